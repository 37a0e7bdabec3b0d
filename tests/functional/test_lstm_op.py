"""The registered operators and the raw kernels: opcheck, the contract of shapes, and wrong arguments.

A wrong argument of a direct call is always a RuntimeError "[lstm] expected ...", and never ends the process.
"""

from __future__ import annotations

import pytest
import torch

import pykernels
from pykernels import _native, reference
from tests.helpers import FLAG, LOW, SEED, Case, assert_same_bits, distance, drawn, split

DTYPES = [torch.float64, torch.float32, *LOW]
KINDS = {"bias": FLAG, "bidirectional": FLAG, "projection": FLAG, "peephole": FLAG, "packed": FLAG, "states": FLAG}


def kernels(device):
    return _native.kernels if torch.device(device).type == "cpu" else _native.cuda_kernels


def forward_arguments(case: Case, dtype=torch.float64, device="cpu", save=True, requires_grad=False) -> list:
    input, hx, weights = split(case.tensors(dtype, device, requires_grad))
    sizes = case.batch_sizes() if case.packed else None
    h0, c0 = hx or (None, None)
    return [input, sizes, h0, c0, weights, *flags(case), save]


def flags(case: Case) -> list[bool]:
    return [case.bias, case.projection, case.peephole, case.bidirectional]


def backward_arguments(case: Case, dtype=torch.float64, device="cpu", need=(True, True, True)) -> list:
    forward = forward_arguments(case, dtype, device)
    output, h_n, c_n, gates, cells = torch.ops.pykernels.lstm_forward(*forward)
    gradients = [torch.randn(t.shape).to(t) for t in (output, h_n, c_n)]
    return [*gradients, *forward[:5], output, gates, cells, *flags(case), *need]


# -- the contract -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@drawn(20, steps=(1, 6), batch=(1, 6), inputs=(1, 20), hidden=(1, 20), seed=SEED, **KINDS)
def test_shapes_and_what_is_saved(device, dtype, case):
    """gates are the activated i, f, g, o and cells the c_t of every row; without `save` both are empty."""
    arguments = forward_arguments(case, dtype, device)
    output, h_n, c_n, gates, cells = torch.ops.pykernels.lstm_forward(*arguments)
    rows = int(case.batch_sizes().sum()) if case.packed else case.steps * case.batch
    lead = (rows,) if case.packed else (case.steps, case.batch)
    assert output.shape == (*lead, case.directions * case.out) and output.is_contiguous()
    assert h_n.shape == (case.directions, case.batch, case.out)
    assert c_n.shape == (case.directions, case.batch, case.hidden)
    assert gates.shape == (case.directions, rows, 4 * case.hidden)
    assert cells.shape == (case.directions, rows, case.hidden)
    assert all(t.dtype == dtype and t.device.type == device.type for t in (output, h_n, c_n, gates, cells))
    i, f, g, o = gates.double().chunk(4, -1)
    assert min(i.min(), f.min(), o.min()) >= 0 and max(i.max(), f.max(), o.max()) <= 1 and g.abs().max() <= 1
    if not case.projection:
        hidden = (o * cells.double().tanh()).unbind(0)
        assert distance(torch.cat(hidden, -1).view_as(output), output) <= 8 * torch.finfo(dtype).eps
    *results, no_gates, no_cells = torch.ops.pykernels.lstm_forward(*arguments[:-1], False)
    assert no_gates.shape == no_cells.shape == (0,)
    for one, other in zip(results, (output, h_n, c_n), strict=True):
        assert torch.equal(one, other)


@drawn(20, steps=(1, 5), batch=(1, 5), inputs=(1, 9), hidden=(1, 9), seed=SEED, **KINDS)
def test_raw_kernels_and_operators_are_one(device, case):
    """pybind11 by position gives the bits of torch.ops, forward and backward."""
    raw, ops = kernels(device), torch.ops.pykernels
    arguments = forward_arguments(case, torch.float32, device)
    for mine, its in zip(raw.lstm_forward(*arguments), ops.lstm_forward(*arguments), strict=True):
        assert torch.equal(mine, its)
    arguments = backward_arguments(case, torch.float32, device)
    *mine, mine_weights = raw.lstm_backward(*arguments)
    *its, its_weights = ops.lstm_backward(*arguments)
    for one, other in zip([*mine, *mine_weights], [*its, *its_weights], strict=True):
        assert torch.equal(one, other)


@drawn(30, steps=(1, 5), batch=(1, 5), inputs=(1, 9), hidden=(1, 9), seed=SEED, **KINDS, need_input=FLAG,
       need_states=FLAG, need_weights=FLAG, given=(0, 7), of=lambda **drawn: drawn)  # fmt: skip
def test_backward_computes_what_is_needed(device, case):
    """Whichever gradients come in and are wanted: those asked for are right, the others are empty."""
    need = [case.pop(name) for name in ("need_input", "need_states", "need_weights")]
    given, case = case.pop("given"), Case(**case)
    arguments = backward_arguments(case, torch.float64, device, need)
    for index in range(3):
        if not given >> index & 1:
            arguments[index] = None
    *found, to_weights = torch.ops.pykernels.lstm_backward(*arguments)
    assert len(to_weights) == len(arguments[7])

    input, sizes, h0, c0, weights = (
        [t.clone().requires_grad_() for t in a] if isinstance(a, list) else a for a in arguments[3:8]
    )
    input = input.clone().requires_grad_()
    if h0 is None:
        h0 = input.new_zeros(case.directions, case.batch, case.out)
        c0 = input.new_zeros(case.directions, case.batch, case.hidden)
    h0, c0 = h0.clone().requires_grad_(), c0.clone().requires_grad_()
    results = reference.lstm_layer(input, sizes, h0, c0, weights, *flags(case))
    leaves = [input, h0, c0, *weights]
    expected = [torch.zeros_like(leaf) for leaf in leaves]
    if given:
        pairs = [(r, g) for r, g in zip(results, arguments[:3], strict=True) if g is not None]
        gradients = torch.autograd.grad([r for r, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True)
        expected = [e if g is None else g for e, g in zip(expected, gradients, strict=True)]
    wanted = [need[0], need[1], need[1], *[need[2]] * len(weights)]
    for mine, its, want in zip([*found, *to_weights], expected, wanted, strict=True):
        assert mine.shape == (its.shape if want else (0,))
        if want:
            assert distance(mine, its) <= 1e-12 if its.abs().max() > 0 else not mine.any()


# -- opcheck ----------------------------------------------------------------------------------------------------------
CASES = [
    Case(3, 2, 3, 4),
    Case(3, 2, 3, 4, bidirectional=True, projection=True, peephole=True),
    Case(3, 3, 2, 4, packed=True, peephole=True),
    Case(3, 2, 3, 4, bias=False, states=False),
    Case(4, 3, 2, 5, packed=True, bidirectional=True, projection=True),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck_forward(device, case, dtype):
    for save in (True, False):
        torch.library.opcheck(
            torch.ops.pykernels.lstm_forward.default,
            forward_arguments(case, dtype, device, save, requires_grad=save),
            rtol=0.02 if dtype == torch.bfloat16 else None,
            atol=0.02 if dtype == torch.bfloat16 else None,
        )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck_backward(device, case):
    operator = torch.ops.pykernels.lstm_backward.default
    for need in ((True, True, True), (True, False, False), (False, False, True)):
        torch.library.opcheck(operator, backward_arguments(case, torch.float64, device, need))
    arguments = backward_arguments(case, torch.float64, device)
    gradient = arguments[0].detach()
    arguments[0] = gradient[:1].expand_as(gradient)  # an expanded gradient, as .sum() makes
    arguments[1] = None
    torch.library.opcheck(operator, arguments)
    arguments = backward_arguments(case, torch.float64, device)
    arguments[3] = arguments[3].clone().requires_grad_()
    arguments[7] = [w.clone().requires_grad_() for w in arguments[7]]
    torch.library.opcheck(operator, arguments)


# -- wrong arguments --------------------------------------------------------------------------------------------------
GOOD = Case(4, 3, 5, 6, peephole=True)
PACKED = Case(4, 3, 5, 6, packed=True, seed=4)  # batch sizes 3, 3, 2, 1


def changed(arguments: list, place: int, value) -> list:
    return [*arguments[:place], value, *arguments[place + 1 :]]


def with_weight(place: int, shape, **options):
    def change(arguments):
        weights = list(arguments[4])
        weights[place] = torch.zeros(shape, **{"dtype": torch.float64, **options})
        return changed(arguments, 4, weights)

    return change


def with_tensor(place: int, *shape, **options):
    return lambda arguments: changed(arguments, place, torch.zeros(shape, **{"dtype": torch.float64, **options}))


BAD = {
    "input_rank_2": with_tensor(0, 3, 5),
    "input_rank_4": with_tensor(0, 1, 4, 3, 5),
    "input_scalar": with_tensor(0),
    "input_width": with_tensor(0, 4, 3, 6),
    "input_integer": with_tensor(0, 4, 3, 5, dtype=torch.int64),
    "input_float32": with_tensor(0, 4, 3, 5, dtype=torch.float32),
    "input_complex": with_tensor(0, 4, 3, 5, dtype=torch.complex128),
    "h0_rank": with_tensor(2, 3, 6),
    "h0_directions": with_tensor(2, 2, 3, 6),
    "h0_batch": with_tensor(2, 1, 2, 6),
    "h0_width": with_tensor(2, 1, 3, 7),
    "h0_dtype": with_tensor(2, 1, 3, 6, dtype=torch.float32),
    "c0_rank": with_tensor(3, 3, 6),
    "c0_batch": with_tensor(3, 1, 4, 6),
    "c0_width": with_tensor(3, 1, 3, 5),
    "c0_dtype": with_tensor(3, 1, 3, 6, dtype=torch.float16),
    "no_weights": lambda a: changed(a, 4, []),
    "one_weight_less": lambda a: changed(a, 4, a[4][:-1]),
    "one_weight_more": lambda a: changed(a, 4, [*a[4], a[4][-1]]),
    "weights_of_both_directions": lambda a: changed(a, 4, [*a[4], *a[4]]),
    "weight_ih_rank": with_weight(0, (120,)),
    "weight_ih_rows": with_weight(0, (23, 5)),
    "weight_ih_rows_of_fewer_units": with_weight(0, (20, 5)),
    "weight_ih_width": with_weight(0, (24, 6)),
    "weight_hh_shape": with_weight(1, (24, 5)),
    "weight_hh_rank": with_weight(1, (24,)),
    "weight_hh_dtype": with_weight(1, (24, 6), dtype=torch.float32),
    "bias_ih_length": with_weight(2, (23,)),
    "bias_hh_rank": with_weight(3, (24, 1)),
    "bias_hh_empty": with_weight(3, (0,)),
    "peephole_shape": with_weight(4, (6, 3)),
    "peephole_flat": with_weight(4, (18,)),
    "weights_of_a_larger_layer": lambda a: changed(a, 4, split(Case(4, 3, 5, 60, peephole=True).tensors())[2]),
    "bias_not_given": lambda a: changed(a, 5, False),
    "projection_not_given": lambda a: changed(a, 6, True),
    "peephole_given": lambda a: changed(a, 7, False),
    "two_directions": lambda a: changed(a, 8, True),
}
BAD_SIZES = {
    "rising": [2, 3, 2, 2],
    "zero_in_the_end": [4, 3, 2, 0],
    "negative": [5, 3, 2, -1],
    "sum_too_small": [3, 2, 1, 1],
    "sum_too_large": [3, 3, 3, 3],
    "enormous": [2**62, 1, 1, 1],
    "overflowing": [2**62, 2**62, 2**62, 2**62],
    "none": [],
    "all_zero": [0],
}


def refused(call, arguments) -> None:
    with pytest.raises(RuntimeError, match=r"\[lstm\] expected .*got") as error:
        call(*arguments)
    assert len(str(error.value).splitlines()[0]) < 300


@pytest.mark.parametrize("name", BAD)
def test_wrong_operands_of_forward(cpu_only, name):
    arguments = BAD[name](forward_arguments(GOOD))
    refused(_native.kernels.lstm_forward, arguments)
    refused(torch.ops.pykernels.lstm_forward, arguments)


@pytest.mark.parametrize("name", BAD_SIZES)
def test_wrong_batch_sizes(cpu_only, name):
    assert PACKED.batch_sizes().tolist() == [3, 3, 2, 1]
    good = forward_arguments(PACKED)
    sizes = torch.tensor(BAD_SIZES[name], dtype=torch.int64)
    for arguments in (changed(good, 1, sizes), changed(changed(changed(good, 2, None), 3, None), 1, sizes)):
        refused(_native.kernels.lstm_forward, arguments)
        refused(torch.ops.pykernels.lstm_forward, arguments)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float64, torch.uint8], ids=str)
def test_batch_sizes_of_another_dtype(cpu_only, dtype):
    refused(_native.kernels.lstm_forward, changed(forward_arguments(PACKED), 1, PACKED.batch_sizes().to(dtype)))


def test_batch_sizes_of_another_rank_or_for_padded_input(cpu_only):
    good = forward_arguments(PACKED)
    refused(_native.kernels.lstm_forward, changed(good, 1, good[1][None]))
    refused(_native.kernels.lstm_forward, changed(good, 1, torch.tensor(3)))
    refused(_native.kernels.lstm_forward, changed(good, 1, None))
    refused(_native.kernels.lstm_forward, changed(forward_arguments(GOOD), 1, torch.tensor([3, 3, 3, 3])))


def test_batch_sizes_with_gaps(cpu_only):
    """A strided view of batch_sizes is read by its strides."""
    good = forward_arguments(PACKED)
    gaps = torch.stack([good[1], torch.full_like(good[1], 99)], 1)[:, 0]
    assert not gaps.is_contiguous()
    for mine, its in zip(
        _native.kernels.lstm_forward(*changed(good, 1, gaps)), _native.kernels.lstm_forward(*good), strict=True
    ):
        assert torch.equal(mine, its)


@pytest.mark.parametrize(
    "place, shape",
    [(0, (4, 3, 7)), (0, (12, 6)), (1, (3, 6)), (1, (1, 3, 7)), (2, (1, 2, 6)), (8, (4, 3, 5)), (9, (1, 12, 23)),
     (9, (0,)), (10, (1, 11, 6)), (10, (0,))],
)  # fmt: skip
def test_wrong_operands_of_backward(cpu_only, place, shape):
    """Gradients, output and saved tensors that do not belong to the forward pass."""
    arguments = changed(backward_arguments(GOOD), place, torch.zeros(shape, dtype=torch.float64))
    refused(_native.kernels.lstm_backward, arguments)
    refused(torch.ops.pykernels.lstm_backward, arguments)


@pytest.mark.parametrize("place", [0, 1, 2, 3, 8, 9, 10])
def test_backward_of_mixed_dtypes(cpu_only, place):
    arguments = backward_arguments(GOOD)
    refused(_native.kernels.lstm_backward, changed(arguments, place, arguments[place].float()))


def test_backward_of_forwards_wrong_operands(cpu_only):
    good = backward_arguments(GOOD)
    for name in ("input_width", "h0_batch", "c0_dtype", "weight_hh_shape", "one_weight_less", "peephole_flat"):
        five = BAD[name](forward_arguments(GOOD))[:5]
        refused(_native.kernels.lstm_backward, [*good[:3], *five, *good[8:]])


def test_the_process_survives_and_still_computes(cpu_only):
    good = forward_arguments(GOOD, torch.float64)
    expected = _native.kernels.lstm_forward(*good)
    for change in BAD.values():
        with pytest.raises(RuntimeError):
            _native.kernels.lstm_forward(*change(good))
    after = _native.kernels.lstm_forward(*good)
    assert_same_bits(dict(zip("abcde", after, strict=True)), dict(zip("abcde", expected, strict=True)))
    assert pykernels.LSTM(5, 6)(torch.zeros(4, 3, 5))[0].isfinite().all()
