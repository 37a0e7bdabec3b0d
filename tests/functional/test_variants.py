"""The variants of functional.lstm, gru and rnn equal their reference twins: results and every gradient."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from pykernels import functional, reference
from tests.helpers import (
    FLAG,
    FLAGS,
    LOW,
    SEED,
    VARIED,
    Case,
    assert_equal,
    assert_no_worse,
    assert_same_bits,
    call,
    drawn,
    every_kind,
    run,
    split,
    with_gradients,
)

# From three units on: two normalised numbers are 1 and -1, whatever they were, and leave no gradient to be compared.
SHAPES = {"steps": (1, 7), "batch": (1, 19), "inputs": (1, 40), "hidden": (3, 70), "seed": SEED}
SMALL = {"steps": (1, 5), "batch": (1, 5), "inputs": (1, 9), "hidden": (3, 20), "seed": SEED}
DTYPES = [torch.float64, torch.float32, *LOW]
TOLERANCE = 1e-10  # of float64; normalisation divides by small deviations

ALONE = {
    "layer_norm": {"layer_norm": True},
    "zoneout": {"zoneout": 0.4, "training": True},
    "zoneout_in_evaluation": {"zoneout": 0.4},
    "zoneout_of_h": {"zoneout": (0.4, 0.0), "training": True},
    "zoneout_of_c": {"zoneout": (0.0, 0.4), "training": True},
    "zoneout_pair_in_evaluation": {"zoneout": (0.2, 0.7)},
    "recurrent_dropout": {"recurrent_dropout": 0.25, "training": True},
    "weight_dropout": {"weight_dropout": 0.4, "training": True},
}
ALL = {"layer_norm": True, "zoneout": (0.3, 0.2), "recurrent_dropout": 0.25, "weight_dropout": 0.3}
EVERY = {**ALONE, "all": {**ALL, "training": True}, "all_in_evaluation": ALL}
every_variant = pytest.mark.parametrize("variant", EVERY)


def check(case: Case, dtype: torch.dtype, device, floor: float = 8) -> None:
    """Results and gradients against the twin: in float64 equal, else no less exact. Of ReLU only the results."""
    ours, peer = (run(where, case, dtype, device) for where in (functional, reference))
    if dtype == torch.float64:
        assert_equal(ours, peer, TOLERANCE)
        return
    truth = run(reference, case, torch.float64, device, draw_as=dtype)
    kept = case.about.results if case.relu else ours
    assert_no_worse(*({name: which[name] for name in kept} for which in (ours, peer, truth)), floor=floor)


# -- values and gradients ---------------------------------------------------------------------------------------------
@every_kind
@drawn(60, **SHAPES, **FLAGS, **VARIED)
def test_float64_equals_the_twin(device, kind, case):
    check(case, torch.float64, device)


@every_kind
@every_variant
@drawn(8, **SMALL, **FLAGS)
def test_each_variant_alone(device, variant, kind, case):
    check(dataclasses.replace(case, **EVERY[variant]).of(kind), torch.float64, device)


@every_kind
@drawn(30, **SHAPES, **FLAGS, **VARIED)
def test_float32_is_as_exact_as_the_twin(device, kind, case):
    check(case, torch.float32, device)


@every_kind
@pytest.mark.parametrize("dtype", LOW, ids=str)
@drawn(15, **SHAPES, **FLAGS, **VARIED)
def test_low_precision_is_as_exact_as_the_twin(device, dtype, kind, case):
    check(case, dtype, device, floor=4)


@every_kind
@drawn(12, **SMALL, **FLAGS, **VARIED, layers=(2, 3))
def test_layers(device, kind, case):
    check(case, torch.float64, device)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case(25, 33, 37, 101, **ALL, training=True),
        Case(12, 33, 37, 101, packed=True, bidirectional=True, peephole=True, **ALL, training=True),
        Case(4, 65, 101, 257, projection=True, **ALL, reset_after=False),
        Case(60, 1, 3, 64, zoneout=0.3, recurrent_dropout=0.25, reset_after=False, training=True),
    ],
    ids=str,
)
def test_beyond_one_block(device, case, dtype, kind):
    """Sizes that cross the borders of the product's blocks and of vectors."""
    check(case.of(kind), dtype, device)


@every_kind
@pytest.mark.parametrize("hidden", [1, 2])
@every_variant
def test_one_or_two_units(device, variant, hidden, kind):
    """Whose normalised sums are constants; the results are still those of the twin, and every gradient is finite."""
    case = Case(4, 3, 5, hidden, bidirectional=True, **EVERY[variant]).of(kind)
    ours, twin = (run(where, case, torch.float64, device) for where in (functional, reference))
    for name in ours:
        torch.testing.assert_close(ours[name], twin[name], rtol=1e-8, atol=1e-8)


@pytest.mark.isa
@pytest.mark.usefixtures("cpu_only")
@every_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@drawn(8, steps=(1, 4), batch=(1, 19), inputs=(1, 20), hidden=(3, 70), seed=SEED, **FLAGS, **VARIED)
def test_on_every_instruction_set(dtype, kind, case):
    check(case, dtype, "cpu")


@every_kind
@drawn(6, **SMALL, **FLAGS, **VARIED, layers=(1, 2))
def test_without_gradients_the_same_bits(device, kind, case):
    for dtype in (torch.float32, torch.bfloat16):
        tensors = case.tensors(dtype, device)
        expected = {name: result.detach() for name, result in call(functional, case, tensors).items()}
        with torch.no_grad():
            assert_same_bits(call(functional, case, tensors), expected)
        with torch.inference_mode():
            assert_same_bits(call(functional, case, tensors), expected)


@every_kind
@drawn(6, **SMALL, **{**FLAGS, "packed": [False]}, **VARIED, layers=(1, 2))
def test_batch_first_turns_input_and_output(device, kind, case):
    input, hx, weights = split(case.tensors(torch.float64, device, requires_grad=False))
    expected = call(functional, case, case.tensors(torch.float64, device, requires_grad=False))
    torch.manual_seed(case.seed)
    output, *states = getattr(functional, kind)(input.transpose(0, 1), hx, weights, batch_first=True, **case.options)
    found = dict(zip(expected, (output.transpose(0, 1), *states), strict=True))
    assert_same_bits(found, expected)


# -- packed sequences -------------------------------------------------------------------------------------------------
@every_kind
@pytest.mark.parametrize("variant", ["layer_norm", "zoneout_in_evaluation", "weight_dropout", "all_in_evaluation"])
@drawn(6, steps=(1, 6), batch=(1, 6), hidden=(3, 12), seed=SEED, layers=(1, 2),
       **{**FLAGS, "packed": [True]})  # fmt: skip
def test_packed_is_each_sequence_alone(device, variant, kind, case):
    """Where the masks do not depend on the sequence, each of them gives what it gives by itself."""
    case = dataclasses.replace(case, **EVERY[variant]).of(kind)
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    whole = call(functional, case, tensors)
    starts = [0, *case.batch_sizes().cumsum(0).tolist()]
    for sample, length in enumerate(case.lengths()):
        rows = [starts[step] + sample for step in range(length)]
        own = {**tensors, "input": tensors["input"][rows].unsqueeze(1)}
        own |= {name: tensors[name][:, sample : sample + 1] for name in case.about.states if name in tensors}
        alone = call(functional, dataclasses.replace(case, packed=False), own)
        torch.testing.assert_close(whole["output"][rows], alone["output"][:, 0], rtol=1e-11, atol=1e-11)
        for state in case.about.results[1:]:
            torch.testing.assert_close(whole[state][:, sample], alone[state][:, 0], rtol=1e-11, atol=1e-11)


@every_kind
@drawn(10, **SMALL, **{**FLAGS, "packed": [False]}, **VARIED)
def test_packed_of_full_length_is_padded(device, kind, case):
    """Packed sequences of one length hold the rows of the padded tensor, and their masks too."""
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    sizes = torch.full((case.steps,), case.batch)

    def packed(input, hx, weights, **options):
        output, *states = getattr(functional, kind)(input.flatten(0, 1), hx, weights, batch_sizes=sizes, **options)
        return output.unflatten(0, input.shape[:2]), *states

    found = []
    for where in (packed, functional):
        leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
        found.append(with_gradients(call(where, case, leaves), leaves))
    assert_equal(*found, TOLERANCE)


# -- threads ----------------------------------------------------------------------------------------------------------
@every_kind
@pytest.mark.parametrize("variant", ["layer_norm", "zoneout"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", [Case(12, 33, 37, 101), Case(1, 4, 5, 17, bias=False, states=False)], ids=str)
def test_same_bits_for_any_number_of_threads(threads, case, dtype, variant, kind):
    """Of the input parts and their gradients too, as in the plain layers. (Of the steps alone: test_variants_op.py.)"""
    case, found = dataclasses.replace(case, **EVERY[variant]).of(kind), []
    for count in (1, 2, 3):
        threads(count)
        found.append(run(functional, case, dtype))
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


# -- nothing to do, and not finite ------------------------------------------------------------------------------------
@every_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@drawn(4, steps=(1, 3), seed=SEED, batch=[0], **{**FLAGS, "packed": [False]}, **VARIED)
def test_no_batch(device, dtype, kind, case):
    tensors = case.tensors(dtype, device)
    results = call(functional, case, tensors)
    assert results["output"].shape == (case.steps, 0, case.directions * case.out)
    for state, shape in zip(case.about.results[1:], case.state_shapes().values(), strict=True):
        assert results[state].shape == shape
    gradients = torch.autograd.grad(sum(r.sum() for r in results.values()), list(tensors.values()))
    for name, gradient in zip(tensors, gradients, strict=True):
        assert gradient.shape == tensors[name].shape and gradient.dtype == dtype
        assert torch.equal(gradient, torch.zeros_like(gradient)), name


@every_kind
@every_variant
def test_no_steps_is_torchs_error(device, variant, kind):
    case = Case(steps=0, kind="lstm", **EVERY[variant]).of(kind)
    with pytest.raises(RuntimeError) as error:
        call(functional, case, case.tensors(torch.float32, device))
    assert str(error.value) == "Expected sequence length to be larger than 0 in RNN"


def assert_alike(found, expected, what: str = "") -> None:
    """Close, with NaN in the same places."""
    for name, value in found.items():
        torch.testing.assert_close(
            value.double(), expected[name].double(), rtol=1e-9, atol=1e-9, equal_nan=True,
            msg=lambda text, name=name: f"{what} {name}: {text}",
        )  # fmt: skip


@every_kind
@every_variant
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_of_one_step_of_one_sample_stays_there(device, variant, dtype, kind):
    """In sample 1 at step 2 it changes no other sample and no earlier step, and it does not get lost."""
    case = Case(5, 4, 5, 11, **EVERY[variant]).of(kind)
    tensors = case.tensors(dtype, device, requires_grad=False)
    clean = call(functional, case, tensors)
    tensors["input"] = tensors["input"].clone()
    tensors["input"][2, 1, 3] = math.nan
    found = call(functional, case, tensors)
    others = torch.arange(4) != 1
    for name in case.about.results:
        assert torch.equal(found[name][:, others], clean[name][:, others])
    assert torch.equal(found["output"][:2], clean["output"][:2])
    assert found["output"][2:, 1].isnan().any(-1).all() and found["h_n"][:, 1].isnan().any()


@every_kind
@every_variant
@pytest.mark.parametrize("own", FLAG, ids=["default_form", "other_form"])
def test_nan_anywhere_is_as_the_twins(device, variant, own, kind):
    """The third number of every operand in turn."""
    forms = {"relu": own, "reset_after": not own, "peephole": own, "projection": own}
    case = Case(3, 2, 4, 5, bidirectional=True, **forms, **EVERY[variant]).of(kind)
    for place in case.tensors():
        found = []
        for where in (functional, reference):
            leaves = case.tensors(torch.float64, device, requires_grad=False)
            leaves[place].view(-1)[2] = math.nan
            found.append(call(where, case, leaves))
        assert_alike(*found, place)
