"""What a forward pass keeps allocated for its backward pass."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile


def held_for_backward(module: torch.nn.Module, x: torch.Tensor) -> int:
    """Bytes that `module(x)` keeps for its backward pass while its results live, less the results themselves.

    The larger of two counts: at the allocator (allocations minus releases during the call), which sees what an operator
    hides in a workspace, and of the tensors that autograd is given to save, which sees blocks that an operator keeps
    from call to call. Inputs and parameters existed before and do not count.
    """
    module(x)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        results = module(x)
    allocated = sum(event.self_cpu_memory_usage for event in profiler.events())
    return max(allocated - results_bytes(results), saved_tensor_bytes(module, x))


def results_bytes(results: object) -> int:
    """Bytes of the distinct storages behind a nest of tuples of tensors."""
    storages: dict[int, int] = {}

    def visit(item: object) -> None:
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, tuple):
            for part in item:
                visit(part)

    visit(results)
    return sum(storages.values())


def saved_tensor_bytes(module: torch.nn.Module, x: torch.Tensor) -> int:
    """The same question asked of autograd: distinct storages passed to its saved-tensor hooks, parameters and input
    aside.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), x]}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = module(x)
    return sum(storages.values()) - sum(
        size
        for pointer, size in storages.items()
        if pointer in {part.untyped_storage().data_ptr() for part in _flat(results)}
    )


def _flat(results: object) -> list[torch.Tensor]:
    if isinstance(results, torch.Tensor):
        return [results]
    return [tensor for part in results for tensor in _flat(part)] if isinstance(results, tuple) else []
