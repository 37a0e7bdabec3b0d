"""Wrong arguments of the operators and the raw kernels: always a RuntimeError "[op] expected ... got ...".

None of them ends the process, and what is computed after them is right.
"""

from __future__ import annotations

import pytest
import torch

from tests.helpers import Case, assert_same_bits, every_kind

from .operators import backward_arguments, forward_arguments, operator, raw

pytestmark = pytest.mark.usefixtures("cpu_only")

T, B, I, H = 4, 3, 5, 6  # noqa: E741
GOOD = {
    "lstm": Case(T, B, I, H, peephole=True),
    "gru": Case(T, B, I, H, kind="gru"),
    "rnn": Case(T, B, I, H, kind="rnn"),
}
GOOD["jordan"] = Case(T, B, I, H, kind="rnn", projection=True)  # of 4 outputs
every_form = pytest.mark.parametrize("form", GOOD)
PACKED = Case(T, B, I, H, packed=True, seed=4)  # batch sizes 3, 3, 2, 1


def with_weight(name: str, shape, **options):
    def change(arguments, names):
        weights = list(arguments["weights"])
        weights[names.index(name + "_l0")] = torch.zeros(shape, **{"dtype": torch.float64, **options})
        return {**arguments, "weights": weights}

    return change


def with_tensor(name: str, *shape, **options):
    return lambda arguments, _: {**arguments, name: torch.zeros(shape, **{"dtype": torch.float64, **options})}


def with_weights(change):
    return lambda arguments, _: {**arguments, "weights": change(arguments["weights"])}


def with_flag(name: str, value: bool):
    return lambda arguments, _: {**arguments, name: value}


def bad_operands(form: str) -> dict:
    """Changes of the arguments of `GOOD[form]`, each of which alone makes them wrong."""
    case = GOOD[form]
    gates, out = case.about.gates * H, case.out
    bad = {
        "input_rank_2": with_tensor("input", B, I),
        "input_rank_4": with_tensor("input", 1, T, B, I),
        "input_scalar": with_tensor("input"),
        "input_width": with_tensor("input", T, B, I + 1),
        "input_integer": with_tensor("input", T, B, I, dtype=torch.int64),
        "input_float32": with_tensor("input", T, B, I, dtype=torch.float32),
        "input_complex": with_tensor("input", T, B, I, dtype=torch.complex128),
        "h0_rank": with_tensor("h0", B, out),
        "h0_directions": with_tensor("h0", 2, B, out),
        "h0_batch": with_tensor("h0", 1, B - 1, out),
        "h0_width": with_tensor("h0", 1, B, out + 1),
        "h0_dtype": with_tensor("h0", 1, B, out, dtype=torch.float32),
        "no_weights": with_weights(lambda w: []),
        "one_weight_less": with_weights(lambda w: w[:-1]),
        "one_weight_more": with_weights(lambda w: [*w, w[-1]]),
        "weights_of_both_directions": with_weights(lambda w: [*w, *w]),
        "weight_ih_rank": with_weight("weight_ih", (gates * I,)),
        "weight_ih_rows": with_weight("weight_ih", (gates - 1, I)),
        "weight_ih_rows_of_fewer_units": with_weight("weight_ih", (case.about.gates * (H - 1), I)),
        "weight_ih_width": with_weight("weight_ih", (gates, I + 1)),
        "weight_ih_empty": with_weight("weight_ih", (0, I)),
        "weight_hh_shape": with_weight("weight_hh", (gates, out - 1)),
        "weight_hh_rank": with_weight("weight_hh", (gates,)),
        "weight_hh_dtype": with_weight("weight_hh", (gates, out), dtype=torch.float32),
        "bias_ih_length": with_weight("bias_ih", (gates - 1,)),
        "bias_hh_rank": with_weight("bias_hh", (gates, 1)),
        "bias_hh_empty": with_weight("bias_hh", (0,)),
        "bias_not_given": with_flag("bias", False),
        "two_directions": with_flag("bidirectional", True),
        "weights_of_a_larger_layer": with_weights(lambda w: [torch.cat([x] * 10) for x in w]),
    }
    if form == "lstm":
        bad |= {
            "c0_rank": with_tensor("c0", B, H),
            "c0_batch": with_tensor("c0", 1, B + 1, H),
            "c0_width": with_tensor("c0", 1, B, H - 1),
            "c0_dtype": with_tensor("c0", 1, B, H, dtype=torch.float16),
            "peephole_shape": with_weight("weight_peephole", (H, 3)),
            "peephole_flat": with_weight("weight_peephole", (3 * H,)),
            "projection_not_given": with_flag("projection", True),
            "peephole_given": with_flag("peephole", False),
        }
    if form == "rnn":
        bad["projection_not_given"] = with_flag("projection", True)
    if form == "jordan":
        bad |= {
            "projection_given": with_flag("projection", False),
            "weight_ho_rank": with_weight("weight_ho", (out * H,)),
            "weight_ho_width": with_weight("weight_ho", (out, H + 1)),
            "weight_ho_rows": with_weight("weight_ho", (out + 1, H)),
            "weight_ho_empty": with_weight("weight_ho", (0, H)),
            "weight_ho_dtype": with_weight("weight_ho", (out, H), dtype=torch.float32),
            "bias_ho_length": with_weight("bias_ho", (out - 1,)),
            "bias_ho_rank": with_weight("bias_ho", (out, 1)),
            "h0_of_the_hidden_width": with_tensor("h0", 1, B, H),
        }
    return bad


BAD = {form: bad_operands(form) for form in GOOD}
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


def refused(case: Case, which: str, arguments) -> None:
    for call in (raw(case, which), operator(case, which)):
        with pytest.raises(RuntimeError, match=rf"\[{case.kind}\] expected .*got") as error:
            call(*arguments.values())
        assert len(str(error.value).splitlines()[0]) < 300


# -- forward ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form, name", [(form, name) for form in GOOD for name in BAD[form]])
def test_wrong_operands_of_forward(form, name):
    case = GOOD[form]
    refused(case, "forward", BAD[form][name](forward_arguments(case), list(case.weight_shapes())))


@every_kind
@pytest.mark.parametrize("name", BAD_SIZES)
def test_wrong_batch_sizes(kind, name):
    case = PACKED.of(kind)
    assert case.batch_sizes().tolist() == [3, 3, 2, 1]
    good = forward_arguments(case) | {"batch_sizes": torch.tensor(BAD_SIZES[name], dtype=torch.int64)}
    for arguments in (good, good | dict.fromkeys(case.about.states)):
        refused(case, "forward", arguments)


@every_kind
@pytest.mark.parametrize("dtype", [torch.int32, torch.float64, torch.uint8], ids=str)
def test_batch_sizes_of_another_dtype(kind, dtype):
    case = PACKED.of(kind)
    refused(case, "forward", forward_arguments(case) | {"batch_sizes": case.batch_sizes().to(dtype)})


@every_kind
def test_batch_sizes_of_another_rank_or_for_padded_input(kind):
    case = PACKED.of(kind)
    good = forward_arguments(case)
    for sizes in (good["batch_sizes"][None], torch.tensor(3), None):
        refused(case, "forward", good | {"batch_sizes": sizes})
    refused(case, "forward", forward_arguments(GOOD[kind]) | {"batch_sizes": torch.tensor([3, 3, 3, 3])})


@every_kind
def test_batch_sizes_with_gaps(kind):
    """A strided view of batch_sizes is read by its strides."""
    case = PACKED.of(kind)
    good = forward_arguments(case)
    gaps = torch.stack([good["batch_sizes"], torch.full_like(good["batch_sizes"], 99)], 1)[:, 0]
    assert not gaps.is_contiguous()
    for mine, its in zip(
        raw(case, "forward")(*(good | {"batch_sizes": gaps}).values()),
        raw(case, "forward")(*good.values()),
        strict=True,
    ):
        assert torch.equal(mine, its)


# -- backward ---------------------------------------------------------------------------------------------------------
def operands_of_backward(form: str) -> list[str]:
    """The tensors, of which none may have another shape or dtype than the forward gave or took."""
    about = GOOD[form].about
    saved = about.saved if form != "rnn" else ()  # Elman's network keeps nothing but its output
    return [*(f"grad_{name}" for name in about.results), "input", *about.states, "output", *saved]


@pytest.mark.parametrize("form, name", [(form, name) for form in GOOD for name in operands_of_backward(form)])
def test_wrong_operands_of_backward(form, name):
    """Gradients, output and saved tensors that do not belong to the forward pass."""
    case = GOOD[form]
    good = backward_arguments(case)
    shape = good[name].shape
    shapes = [(*shape[:-1], shape[-1] + 1), (shape[0], shape[1] - 1, *shape[2:]), shape[1:], (*shape, 1), (0,)]
    for wrong in shapes:
        refused(case, "backward", good | {name: torch.zeros(wrong, dtype=torch.float64)})
    for dtype in (torch.float32, torch.int64):
        refused(case, "backward", good | {name: good[name].to(dtype)})


@every_form
def test_backward_of_forwards_wrong_operands(form):
    case = GOOD[form]
    good, names = backward_arguments(case), list(case.weight_shapes())
    for change in BAD[form].values():
        refused(case, "backward", change(good, names))


# -- afterwards -------------------------------------------------------------------------------------------------------
@every_form
def test_the_process_survives_and_still_computes(form):
    case = GOOD[form]
    good, forward = forward_arguments(case), raw(case, "forward")
    expected = forward(*good.values())
    for change in BAD[form].values():
        with pytest.raises(RuntimeError):
            forward(*change(good, list(case.weight_shapes())).values())
    names = (*case.about.results, *case.about.saved)
    after = forward(*good.values())
    assert_same_bits(dict(zip(names, after, strict=True)), dict(zip(names, expected, strict=True)))
