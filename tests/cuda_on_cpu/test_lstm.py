"""The LSTM of cuda/, glue and kernels unchanged, executed on the processor: values and gradients against the twin."""

from __future__ import annotations

import pytest
import torch

from pykernels.reference.lstm import lstm_layer
from tests.helpers import FLAG, SEED, Case, assert_same_bits, drawn, split

from .device import Device, assert_near, plans

RESULTS = ("output", "h_n", "c_n")
FLAGS = {"bias": FLAG, "bidirectional": FLAG, "projection": FLAG, "peephole": FLAG, "packed": FLAG, "states": FLAG}


def arguments(case: Case, dtype: torch.dtype) -> tuple[list, list]:
    """What both directions take: (input, batch_sizes, h0, c0, weights), and the flags."""
    input, hx, weights = split(case.tensors(dtype, requires_grad=False))
    h0, c0 = hx or (None, None)
    sizes = case.batch_sizes() if case.packed else None
    return [input, sizes, h0, c0, weights], [case.bias, case.projection, case.peephole, case.bidirectional]


def weightings(case: Case, dtype: torch.dtype, results) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(case.seed + 1)
    return [torch.randn(result.shape, generator=draw).to(dtype) for result in results]


def run(device: Device, case: Case, dtype: torch.dtype, need=(True, True, True)) -> dict[str, torch.Tensor]:
    given, flags = arguments(case, dtype)
    *results, gates, cells = device.kernels.lstm_forward(*given, *flags, True)
    grads = device.kernels.lstm_backward(
        *weightings(case, dtype, results), *given, results[0], gates, cells, *flags, *need
    )
    named = dict(zip(RESULTS, results, strict=True))
    named |= dict(zip(("grad input", "grad h0", "grad c0"), grads[:3], strict=True))
    return named | {f"grad weight {i}": grad for i, grad in enumerate(grads[3])}


def truth(case: Case, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The same by the twin in float64, on what the dtype stores."""
    (input, sizes, h0, c0, weights), flags = arguments(case, dtype)
    zeros = [torch.zeros(case.directions, case.batch, width) for width in (case.out, case.hidden)]
    states = [zero if state is None else state for state, zero in zip((h0, c0), zeros, strict=True)]
    leaves = [tensor.double().requires_grad_() for tensor in (input, *states, *weights)]
    results = lstm_layer(leaves[0], sizes, *leaves[1:3], leaves[3:], *flags)
    weighting = [tensor.double() for tensor in weightings(case, dtype, results)]
    grads = torch.autograd.grad(results, leaves, weighting)
    named = dict(zip(RESULTS, (result.detach() for result in results), strict=True))
    named |= dict(zip(("grad input", "grad h0", "grad c0"), grads[:3], strict=True))
    return named | {f"grad weight {i}": grad for i, grad in enumerate(grads[3:])}


def check(device: Device, case: Case, dtype: torch.dtype) -> None:
    """One launch and a launch a step, in different orders of the threads: the twin's values, and the same bits."""
    expected = truth(case, dtype)
    first = None
    for seed, resident_blocks in ((case.seed, 256), (case.seed + 1, 256), (case.seed + 2, 0)):
        device.configure(seed, resident_blocks)
        device.cooperative_launches()
        results = run(device, case, dtype)
        assert device.cooperative_launches() == (2 if resident_blocks else 0)
        assert_near(results, expected, dtype)
        first = first or results
        assert_same_bits(results, first)


@drawn(20, steps=(1, 5), batch=(1, 6), inputs=(1, 4), hidden=(1, 40), seed=SEED, **FLAGS)
def test_equals_the_twin(device, case):
    check(device, case, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@drawn(6, steps=(1, 5), batch=(1, 6), inputs=(1, 4), hidden=(1, 40), seed=SEED, **FLAGS)
def test_equals_the_twin_in_other_dtypes(device, dtype, case):
    check(device, case, dtype)


@pytest.mark.parametrize(
    "case",
    [
        Case(steps=4, batch=70, hidden=9, bidirectional=True, projection=True, peephole=True, packed=True),
        Case(steps=2, batch=6, hidden=150, bidirectional=True),
        Case(steps=1, batch=1, hidden=260, packed=True, peephole=True),
    ],
    ids=["several row blocks", "several tiles", "several tiles of few rows"],
)
def test_every_plan_gives_the_same_bits(device, case):
    """Weights in shared memory or streamed, all row blocks at once or in turn, a launch a step."""
    expected = truth(case, torch.float32)
    first = None
    for seed, plan in enumerate(plans(case.hidden)):
        device.configure(seed, *plan)
        results = run(device, case, torch.float32)
        first = first or results
        assert_same_bits(results, first)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("packed", FLAG)
def test_what_is_not_needed_is_empty(device, packed):
    case = Case(bidirectional=True, peephole=True, packed=packed)
    device.configure(0)
    whole = run(device, case, torch.float64)
    groups = ["grad input"], ["grad h0", "grad c0"], [name for name in whole if "weight" in name]
    for wanted in range(3):
        results = run(device, case, torch.float64, need=[i == wanted for i in range(3)])
        for i, names in enumerate(groups):
            for name in names:
                expected = whole[name] if i == wanted else torch.empty(0, dtype=torch.float64)
                assert torch.equal(results[name], expected), name
    given, flags = arguments(case, torch.float64)
    *results, gates, cells = device.kernels.lstm_forward(*given, *flags, False)
    assert gates.shape == cells.shape == (0,)
    assert all(torch.equal(result, whole[name]) for name, result in zip(RESULTS, results, strict=True))


def test_absent_gradients_are_zeros_and_strides_are_free(device):
    case = Case(batch=6, hidden=9, bidirectional=True)
    device.configure(0)
    (input, sizes, h0, c0, weights), flags = arguments(case, torch.float64)
    spread = [torch.stack([t, t * torch.nan], -1)[..., 0] for t in (input, h0, c0, *weights)]
    given = [spread[0], sizes, *spread[1:3], spread[3:]]
    *results, gates, cells = device.kernels.lstm_forward(*given, *flags, True)
    saved = [results[0], gates, cells, *flags, True, True, True]
    ones = torch.ones((), dtype=torch.float64).expand(results[0].shape)
    zeros = [torch.zeros_like(result) for result in results[1:]]
    absent = device.kernels.lstm_backward(ones, None, None, *given, *saved)
    dense = [input, sizes, h0, c0, weights]
    present = device.kernels.lstm_backward(ones.contiguous(), *zeros, *dense, *saved)
    for a, b in zip([*absent[:3], *absent[3]], [*present[:3], *present[3]], strict=True):
        assert torch.equal(a, b)


def test_an_empty_batch(device):
    case = Case(batch=0, bidirectional=True, projection=True, peephole=True)
    device.configure(0)
    results = run(device, case, torch.float32)
    assert results["output"].shape == (case.steps, 0, 2 * case.out)
    assert results["h_n"].shape == (2, 0, case.out)
    assert all(torch.count_nonzero(tensor) == 0 for name, tensor in results.items() if "weight" in name)


def test_many_steps_of_packed_input(device):
    """More offsets than one launch's parameters hold."""
    case = Case(steps=1100, batch=2, inputs=1, hidden=1, packed=True)
    given, flags = arguments(case, torch.float64)
    expected = lstm_layer(*given, *flags)
    device.configure(0)
    device.cooperative_launches()
    results = device.kernels.lstm_forward(*given, *flags, True)[:3]
    assert device.cooperative_launches() == 1
    for actual, right in zip(results, expected, strict=True):
        torch.testing.assert_close(actual, right)
