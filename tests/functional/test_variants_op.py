"""The registered operators of the variants and their raw kernels: values, what is saved, opcheck, wrong arguments."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.helpers import FLAG, FLAGS, LOW, SEED, Case, assert_equal, assert_same_bits, distance, drawn, every_kind

from .variant_operators import (
    SAVED,
    backward_arguments,
    flag_names,
    forward_arguments,
    noise_names,
    operator,
    raw,
    results_of,
    twin,
    weight_names,
)

DTYPES = [torch.float64, torch.float32, *LOW]
NOISE = {
    "layer_norm": FLAG,
    "zoneout": [0.0, 0.3, 1.0, (0.2, 0.6), (0.0, 0.5), (0.4, 0.0)],
    "recurrent_dropout": [0.0, 0.25],
    "weight_dropout": [0.1],  # of which the operators know nothing; it makes every case one of variants
    "training": FLAG,
}
SMALL = {"steps": (1, 5), "batch": (1, 6), "hidden": (3, 20), "seed": SEED}


# -- the contract -----------------------------------------------------------------------------------------------------
@every_kind
@drawn(40, **SMALL, **FLAGS, **NOISE)
def test_forward_is_the_twin(device, kind, case):
    arguments = forward_arguments(case, device=device)
    found = results_of(case, operator(case, "forward")(*arguments.values()))
    assert_equal({name: found[name] for name in case.about.results}, twin(case, arguments), 1e-10)


@every_kind
@drawn(40, **SMALL, **FLAGS, **NOISE)
def test_backward_computes_what_is_needed(device, kind, case):
    """Whichever gradients come in and are wanted: those asked for are the twin's, the others are empty."""
    count = len(case.about.results)
    need = [bool(case.seed >> k & 1) for k in range(3)]
    given = [bool(case.seed >> (3 + k) & 1) for k in range(count)]
    arguments = backward_arguments(case, torch.float64, device, need)
    gradients = [arguments[name] if keep else None for name, keep in zip(list(arguments)[:count], given, strict=True)]
    *found, to_weights = operator(case, "backward")(*gradients, *list(arguments.values())[count:])

    leaves = forward_arguments(case, device=device)
    for name, shape in case.state_shapes().items():
        if leaves[name] is None:
            leaves[name] = torch.zeros(shape, dtype=torch.float64, device=device)
    operands = [leaves["input"], *(leaves[name] for name in case.about.states), *leaves["weights"]]
    for operand in operands:
        operand.requires_grad_()
    pairs = [(r, g) for r, g in zip(twin(case, leaves).values(), gradients, strict=True) if g is not None]
    expected = [torch.zeros_like(operand) for operand in operands]
    if pairs:
        wanted = [r for r, _ in pairs], operands, [g for _, g in pairs]
        found_by_twin = torch.autograd.grad(*wanted, allow_unused=True)
        expected = [e if g is None else g for e, g in zip(expected, found_by_twin, strict=True)]
    names = ["input", *case.about.states, *weight_names(case)]
    needed = [need[0], *[need[1]] * len(case.about.states), *[need[2]] * len(to_weights)]
    for name, mine, its, want in zip(names, [*found, *to_weights], expected, needed, strict=True):
        assert mine.shape == (its.shape if want else (0,)), name
        if want:
            assert distance(mine, its) <= 1e-10 if its.abs().max() > 0 else not mine.any(), name


@every_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@drawn(12, **SMALL, **FLAGS, **NOISE)
def test_shapes_and_what_is_saved(device, dtype, kind, case):
    """What is saved is what the contract says; without `save` it is empty, and the results are the same bits."""
    arguments = forward_arguments(case, dtype, device)
    results = results_of(case, operator(case, "forward")(*arguments.values()))
    lead = (case.rows,) if case.packed else (case.steps, case.batch)
    rows, norm = (case.directions, case.rows), case.layer_norm
    shapes = {"output": (*lead, case.directions * case.out)}
    shapes |= {name.replace("0", "_n"): shape for name, shape in case.state_shapes().items()}
    shapes |= {"gates": (*rows, (1 if kind == "rnn" else 4) * case.hidden), "cells": (*rows, case.hidden)}
    shapes["normalized"] = (*rows, case.about.gates * case.hidden) if norm else (0,)
    shapes["stats"] = (*rows, 3 if kind == "lstm" else 1) if norm else (0,)
    for name, value in results.items():
        assert value.shape == shapes[name], name
        assert value.dtype == dtype and value.device.type == device.type and value.is_contiguous()
    if norm and dtype == torch.float64 and case.steps > 1:
        sums = results["normalized"]
        assert sums.mean(-1).abs().max() < 1e-12 and sums.square().mean(-1).max() < 1 + 1e-12
        assert (results["stats"][..., 0] > 0).all()
    if kind == "lstm" and not case.packed and not case.bidirectional:
        # c after zoneout: that of the last step is c_n
        last = results["cells"].view(case.steps, case.batch, case.hidden)[-1]
        assert torch.equal(last, results["c_n"][0])

    again = results_of(case, operator(case, "forward")(*{**arguments, "save": False}.values()))
    assert all(again.pop(name).shape == (0,) for name in SAVED[kind])
    assert_same_bits(again, {name: results[name] for name in again})


@every_kind
@drawn(15, **SMALL, **FLAGS, **NOISE)
def test_raw_kernels_and_operators_are_one(device, kind, case):
    arguments = forward_arguments(case, torch.float32, device).values()
    for mine, its in zip(raw(case, "forward", device)(*arguments), operator(case, "forward")(*arguments), strict=True):
        assert torch.equal(mine, its)
    arguments = backward_arguments(case, torch.float32, device).values()
    *mine, mine_weights = raw(case, "backward", device)(*arguments)
    *its, its_weights = operator(case, "backward")(*arguments)
    for one, other in zip([*mine, *mine_weights], [*its, *its_weights], strict=True):
        assert torch.equal(one, other)


def strided(value):
    """The same values with gaps: every second element of a larger tensor, its dimensions in reverse order in memory."""
    if isinstance(value, list):
        return [strided(v) for v in value]
    if not isinstance(value, torch.Tensor):
        return value
    order = list(range(value.dim()))[::-1]
    larger = torch.full([2 * n + 1 for n in value.permute(order).shape], 77).to(value)
    view = larger[tuple(slice(1, 2 * n + 1, 2) for n in value.permute(order).shape)].permute(order)
    return view.copy_(value)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@drawn(10, **SMALL, **FLAGS, **NOISE)
def test_any_layout_of_every_operand(device, dtype, kind, case):
    """Input parts, states, weights, masks, saved tensors and gradients may have any strides; the values decide."""
    for make, which in ((forward_arguments, "forward"), (backward_arguments, "backward")):
        arguments = make(case, dtype, device)
        expected = torch.utils._pytree.tree_leaves(operator(case, which)(*arguments.values()))
        found = torch.utils._pytree.tree_leaves(operator(case, which)(*map(strided, arguments.values())))
        assert all(torch.equal(mine, its) for mine, its in zip(found, expected, strict=True))


@every_kind
def test_operands_are_left_as_they_were(device, kind):
    case = Case(4, 3, 5, 6, layer_norm=True, zoneout=0.3, recurrent_dropout=0.2, training=True, kind=kind)
    for make, which in ((forward_arguments, "forward"), (backward_arguments, "backward")):
        arguments = make(case, torch.float32, device)
        leaves = [t for t in torch.utils._pytree.tree_leaves(arguments) if isinstance(t, torch.Tensor)]
        before = [t.clone() for t in leaves]
        results = torch.utils._pytree.tree_leaves(operator(case, which)(*arguments.values()))
        assert all(torch.equal(t, b) for t, b in zip(leaves, before, strict=True))
        places = [t.untyped_storage().data_ptr() for t in [*results, *leaves] if t.numel()]
        assert len(set(places)) == len(places)


# -- threads ----------------------------------------------------------------------------------------------------------
ALL = {"layer_norm": True, "zoneout": (0.3, 0.2), "recurrent_dropout": 0.25, "training": True}
LARGE = [
    Case(12, 33, 37, 101, **ALL),
    Case(12, 33, 64, 128, bidirectional=True, packed=True, **ALL),
    Case(9, 40, 70, 130, packed=True, projection=True, peephole=True, zoneout=0.2, reset_after=False),
    Case(30, 1, 64, 257, layer_norm=True),
]


def same_bits_for_all(threads, case: Case, dtype: torch.dtype) -> None:
    """Of forward and backward with one, two and three threads."""
    forward, backward = forward_arguments(case, dtype).values(), backward_arguments(case, dtype).values()
    found = []
    for count in (1, 2, 3):
        threads(count)
        results = operator(case, "forward")(*forward), operator(case, "backward")(*backward)
        found.append({str(i): t for i, t in enumerate(torch.utils._pytree.tree_leaves(results))})
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_same_bits_for_any_number_of_threads(threads, case, dtype, kind):
    same_bits_for_all(threads, case.of(kind), dtype)


@every_kind
@drawn(12, steps=(1, 6), batch=(1, 40), hidden=(1, 130), seed=SEED, **FLAGS, **NOISE)
def test_same_bits_for_drawn_problems(threads, kind, case):
    same_bits_for_all(threads, case, torch.float32)


# -- opcheck ----------------------------------------------------------------------------------------------------------
MASKS = {"zoneout": (0.3, 0.4), "recurrent_dropout": 0.25, "training": True}
CASES = [
    Case(2, 2, 3, 4, layer_norm=True, bidirectional=True, projection=True, peephole=True, **MASKS),
    Case(2, 3, 2, 3, packed=True, states=False, bias=False, relu=True, reset_after=False, zoneout=(0.2, 0.0)),
]


@every_kind
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_opcheck_forward(device, case, dtype, kind):
    case, margin = case.of(kind), 0.02 if dtype == torch.bfloat16 else None
    save = dtype == torch.float64
    arguments = tuple(forward_arguments(case, dtype, device, save, requires_grad=save).values())
    torch.library.opcheck(operator(case, "forward").default, arguments, rtol=margin, atol=margin)


@every_kind
@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck_backward(device, case, kind):
    case = case.of(kind)
    checked, utils = (
        operator(case, "backward").default,
        ("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    for need in ((True, False, False), (False, True, False), (False, False, True)):
        arguments = backward_arguments(case, torch.float64, device, need)
        torch.library.opcheck(checked, tuple(arguments.values()), test_utils=utils)
    arguments = backward_arguments(case, torch.float64, device)
    arguments |= {"grad_h_n": None, "grad_output": arguments["grad_output"][:1].expand_as(arguments["grad_output"])}
    torch.library.opcheck(checked, tuple(arguments.values()))


def test_opcheck_backward_to_be_differentiated(device):
    case = Case(1, 2, 2, 3, zoneout=0.3, training=True, kind="gru")
    arguments = backward_arguments(case, torch.float64, device)
    arguments["input"] = arguments["input"].clone().requires_grad_()
    arguments["weights"] = [w.clone().requires_grad_() for w in arguments["weights"]]
    torch.library.opcheck(operator(case, "backward").default, tuple(arguments.values()))


# -- wrong arguments --------------------------------------------------------------------------------------------------
T, B, H = 4, 3, 6
GOOD = Case(T, B, 5, H, layer_norm=True, peephole=True, zoneout=0.4, recurrent_dropout=0.25, training=True)


def zeros(*shape, dtype=torch.float64):
    return torch.zeros(shape, dtype=dtype)


def bad_operands(kind: str) -> dict:
    """Changes of good arguments of forward, each of which alone makes them wrong."""
    case = GOOD.of(kind)
    gates, names = case.about.gates * H, weight_names(case)
    good = forward_arguments(case)
    bad = {
        "input_rank": {"input": zeros(T * B, gates)},
        "input_width": {"input": zeros(T, B, gates + 1)},
        "input_of_two_directions": {"input": zeros(T, B, 2 * gates)},
        "input_float32": {"input": zeros(T, B, gates, dtype=torch.float32)},
        "input_integer": {"input": zeros(T, B, gates, dtype=torch.int64)},
        "h0_batch": {"h0": zeros(1, B + 1, H)},
        "h0_directions": {"h0": zeros(2, B, H)},
        "h0_dtype": {"h0": zeros(1, B, H, dtype=torch.float32)},
        "batch_sizes_of_padded": {"batch_sizes": torch.tensor([B] * T)},
        "no_weights": {"weights": []},
        "one_weight_less": {"weights": good["weights"][:-1]},
        "one_weight_more": {"weights": [*good["weights"], zeros(H)]},
        "no_layer_norm": {"layer_norm": False},
        "no_bias": {"bias": False},
        "two_directions": {"bidirectional": True},
        "state_scale_rank": {"state_scale": zeros(B, H)},
        "state_scale_batch": {"state_scale": zeros(1, B - 1, H)},
        "state_scale_width": {"state_scale": zeros(1, B, H + 1)},
        "state_scale_of_every_step": {"state_scale": zeros(1, T * B, H)},
        "state_scale_dtype": {"state_scale": zeros(1, B, H, dtype=torch.float32)},
        "state_scale_bytes": {"state_scale": zeros(1, B, H, dtype=torch.uint8)},
    }
    for name in noise_names(case):
        bad |= {
            f"{name}_rank": {name: zeros(T * B, H, dtype=torch.uint8)},
            f"{name}_rows": {name: zeros(1, T * B - 1, H, dtype=torch.uint8)},
            f"{name}_of_one_step": {name: zeros(1, B, H, dtype=torch.uint8)},
            f"{name}_width": {name: zeros(1, T * B, H + 1, dtype=torch.uint8)},
            f"{name}_directions": {name: zeros(2, T * B, H, dtype=torch.uint8)},
            f"{name}_bool": {name: zeros(1, T * B, H, dtype=torch.bool)},
            f"{name}_float": {name: zeros(1, T * B, H)},
            f"{name}_int64": {name: zeros(1, T * B, H, dtype=torch.int64)},
        }
    for at, name in enumerate(names):
        weights, shape = good["weights"], good["weights"][at].shape
        for what, wrong in {
            "longer": zeros(*shape[:-1], shape[-1] + 1),
            "empty": zeros(0, *shape[1:]),
            "rank": zeros(*shape, 1),
            "float32": zeros(*shape, dtype=torch.float32),
        }.items():
            bad[f"{name}_{what}"] = {"weights": [*weights[:at], wrong, *weights[at + 1 :]]}
    return bad


BAD = {kind: bad_operands(kind) for kind in ("lstm", "gru", "rnn")}


def refused(case: Case, which: str, arguments) -> None:
    for call in (raw(case, which), operator(case, which)):
        with pytest.raises(RuntimeError, match=rf"^\[{case.kind}_variant\] expected .*got") as error:
            call(*arguments.values())
        assert len(str(error.value).splitlines()[0]) < 300


@pytest.mark.usefixtures("cpu_only")
@pytest.mark.parametrize("kind, name", [(kind, name) for kind in BAD for name in BAD[kind]])
def test_wrong_operands(kind, name):
    case = GOOD.of(kind)
    refused(case, "forward", forward_arguments(case) | BAD[kind][name])
    refused(case, "backward", backward_arguments(case) | BAD[kind][name])


@pytest.mark.usefixtures("cpu_only")
@every_kind
def test_wrong_operands_of_backward(kind):
    """Gradients, output and saved tensors that do not belong to the forward pass."""
    case = GOOD.of(kind)
    good = backward_arguments(case)
    for name in (*(f"grad_{result}" for result in case.about.results), "output", *SAVED[kind]):
        shape = good[name].shape
        for wrong in [(*shape[:-1], shape[-1] + 1), (shape[0], shape[1] - 1, *shape[2:]), shape[1:], (*shape, 1), (0,)]:
            refused(case, "backward", good | {name: zeros(*wrong)})
        refused(case, "backward", good | {name: good[name].float()})


@pytest.mark.usefixtures("cpu_only")
def test_the_original_gru_has_no_layer_norm():
    case = GOOD.of("gru")
    with pytest.raises(RuntimeError, match=r"\[gru_variant\] layer_norm needs reset_after"):
        operator(case, "forward")(*(forward_arguments(case) | {"reset_after": False}).values())


@pytest.mark.usefixtures("cpu_only")
@every_kind
def test_a_weight_of_no_units_or_part_of_a_gate(kind):
    case = dataclasses.replace(GOOD, layer_norm=False, peephole=False, training=False).of(kind)
    good = forward_arguments(case)
    assert len(flag_names(case)) >= 4
    for rows in (0, *([case.about.gates * H - 1] if kind != "rnn" else [])):
        weights = [zeros(rows, H), zeros(rows)]
        refused(case, "forward", good | {"weights": weights, "input": zeros(T, B, rows)})
