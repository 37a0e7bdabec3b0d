"""`python -m pykernels`: what was built, what was loaded and why, and a self-check of a few seconds.

The self-check compares each room's kernels with its reference twin in float64, results and gradients, in every dtype.
The exit code is 1 if one of them is off, and 0 otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pykernels import _native, functional, reference
from pykernels._version import __version__

ALLOWED_ERROR = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 4e-2, torch.float16: 5e-3}
"""By dtype: the largest difference from the twin, relative to the largest entry, that passes."""

Check = tuple[str, torch.dtype, float, float]  # what, dtype, error of the results, error of the gradients


def check_lstm(device: str) -> Iterator[Check]:
    """Two layers in both directions, padded and packed, plain and with a projection and peepholes."""
    steps, batch, inputs, hidden, projected = 19, 5, 23, 37, 21
    lengths = torch.tensor([19, 12, 12, 3, 1])
    batch_sizes = (lengths[None] > torch.arange(steps)[:, None]).sum(1)
    for extras in (False, True):
        out = projected if extras else hidden
        shapes: list[tuple[int, ...]] = [(4, batch, out), (4, batch, hidden)]
        for layer in range(2):
            width = inputs if layer == 0 else 2 * out
            one: list[tuple[int, ...]] = [(4 * hidden, width), (4 * hidden, out), (4 * hidden,), (4 * hidden,)]
            shapes += 2 * (one + ([(projected, hidden), (3, hidden)] if extras else []))

        for packed in (False, True):
            sizes = (int(lengths.sum()),) if packed else (steps, batch)
            options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "projection": extras, "peephole": extras}
            options["batch_sizes"] = batch_sizes if packed else None

            def run(op: Callable[..., Any], tensors: list[Tensor], options: dict[str, Any] = options) -> Any:
                return op(tensors[0], (tensors[1], tensors[2]), tensors[3:], **options)

            what = f"lstm {'packed' if packed else 'padded'}{', projection, peephole' if extras else ''}"
            yield from compare(what, device, run, functional.lstm, reference.lstm, [(*sizes, inputs), *shapes])


CHECKS: dict[str, Callable[[str], Iterator[Check]]] = {"lstm": check_lstm}
"""One entry per room: device -> what was compared and how far off it is."""


def compare(
    what: str,
    device: str,
    run: Callable[..., Any],
    kernel: Callable[..., Any],
    twin: Callable[..., Any],
    shapes: list[tuple[int, ...]],
) -> Iterator[Check]:
    """`run(kernel, tensors)` in every dtype against `run(twin, tensors)` in float64, on the same drawn tensors."""
    draw = torch.Generator().manual_seed(0)
    drawn = [0.2 * torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    for dtype in ALLOWED_ERROR:
        rounded = [tensor.to(device, dtype) for tensor in drawn]
        results, gradients = _results_and_gradients(run, kernel, rounded)
        true_results, true_gradients = _results_and_gradients(run, twin, [tensor.double() for tensor in rounded])
        yield what, dtype, _error(results, true_results), _error(gradients, true_gradients)


def _results_and_gradients(run: Callable[..., Any], op: Callable[..., Any], tensors: list[Tensor]) -> tuple[Any, Any]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    results = run(op, leaves)
    total = sum((result.float() if result.dtype.itemsize < 4 else result).square().sum() for result in results)
    return results, torch.autograd.grad(total, leaves)


def _error(actual: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """The largest difference, relative to the largest entry of the same tensor; NaN where a NaN is."""
    pairs = zip(actual, truth, strict=True)
    errors = [(a.double() - t).abs().max() / t.abs().max().clamp_min(1e-300) for a, t in pairs]
    return float(torch.stack(errors).detach().max())


def describe() -> Iterator[tuple[str, str]]:
    """What is here: one (subject, text) a line."""
    yield "pykernels", __version__
    yield "torch", f"{torch.__version__}, {torch.get_num_threads()} threads"
    for subject, text in _native.kernels.build_info().items():
        yield f"built: {subject}", str(text)
    for isa in _native.ISAS:
        states = [("built", isa in _native.built()), ("runs on this processor", isa in _native.supported())]
        text = ", ".join(name if true else f"not {name}" for name, true in states).replace("not runs", "does not run")
        yield isa, text + (f"  <- loaded: {_native.reason}" if isa == _native.isa else "")
    yield "cuda", ("loaded: " if _native.cuda_kernels else "not loaded: ") + _native.cuda_reason
    if torch.cuda.is_available():
        yield "gpu", ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def self_check(devices: list[str]) -> int:
    """Run every check, print a line for each and return how many are off."""
    failed = 0
    print(f"\n{'self-check against the float64 twin':<48}{'dtype':<10}{'results':>9}{'gradients':>11}{'allowed':>9}")
    for device in devices:
        for check in CHECKS.values():
            for what, dtype, error, gradient_error in check(device):
                allowed = ALLOWED_ERROR[dtype]
                passed = error <= allowed and gradient_error <= allowed  # False for NaN
                failed += not passed
                name = str(dtype).removeprefix("torch.")
                numbers = f"{error:>9.1e}{gradient_error:>11.1e}{allowed:>9.0e}"
                print(f"{f'{what} ({device})':<48}{name:<10}{numbers}  {'ok' if passed else 'FAILED'}", flush=True)
    return failed


def main() -> int:
    lines = list(describe())
    width = max(len(subject) for subject, _ in lines) + 2
    for subject, text in lines:
        print(f"{subject:<{width}}{text}")
    on_gpu = _native.cuda_kernels is not None and torch.cuda.is_available()
    failed = self_check(["cpu", "cuda"] if on_gpu else ["cpu"])
    print(f"\n{f'{failed} checks FAILED' if failed else 'all checks passed'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
