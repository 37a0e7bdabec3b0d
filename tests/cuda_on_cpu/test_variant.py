"""The recurrent variants of cuda/, glue and kernels unchanged, executed on the processor, against their equations."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pykernels.reference.random import random_mask
from tests.functional.test_input_part import BACKWARD as PART_BACKWARD
from tests.functional.test_input_part import FORWARD as PART_FORWARD
from tests.functional.test_input_part import SPACE as SPACE_OF_PARTS
from tests.functional.test_input_part import Part
from tests.helpers import FLAG, SEED, assert_same_bits, distance, drawn

from .device import TOLERANCE, Device, assert_near, plans
from .variants import GATES, Variant, truth

ZONEOUT = ["", "mask", "share"]
SPACE: dict[str, Any] = {
    "steps": (1, 5), "batch": (1, 6), "hidden": (1, 40), "projection": [0, 0, 3, 50], "peephole": FLAG, "form": FLAG,
    "layer_norm": FLAG, "bias": FLAG, "bidirectional": FLAG, "packed": FLAG, "states": FLAG, "scale": FLAG,
    "zoneout": ZONEOUT, "zoneout_cell": ZONEOUT, "seed": SEED,
}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", list(GATES))


def given(layer: Variant, dtype: torch.dtype) -> tuple[list[Any], list[Any]]:
    """What both operators take: the tensors, then the noise and the flags."""
    input, states, weights = layer.tensors(dtype)
    masks, shares = layer.noise(dtype)
    own = states if layer.states else [None] * len(states)
    return [input, layer.sizes(), *own, weights], [*masks, *shares, *layer.flags]


def run(device: Device, layer: Variant, dtype: torch.dtype, need=(True, True, True)) -> dict[str, Tensor]:
    forward, backward = (getattr(device.kernels, f"{layer.kind}_variant_{way}") for way in ("forward", "backward"))
    tensors, others = given(layer, dtype)
    found = forward(*tensors, *others, True)
    results, saved = found[: 1 + len(layer.widths)], found[1 + len(layer.widths) :]
    *gradients, weights = backward(*layer.weightings(dtype), *tensors, results[0], *saved, *others, *need)
    return layer.named(results, [*gradients, *weights])


def check_values(layer: Variant, results: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Against the equations. A normalisation of values that nearly agree makes more of what they have lost, so less is
    asked of it, and of 16 bits only the results."""
    tolerance = dict(TOLERANCE)
    if layer.layer_norm:
        tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 3e-1}
    for name, right in truth(layer, dtype).items():
        if name.startswith("grad") and dtype not in (torch.float64, torch.float32):
            continue
        assert results[name].dtype == dtype and results[name].shape == right.shape, name
        error = float((results[name].double() - right).abs().max() / (right.abs().max() + 1)) if right.numel() else 0.0
        assert error <= tolerance[dtype], f"{name} is off by {error:.3g}"


def check(device: Device, layer: Variant, dtype: torch.dtype) -> None:
    """One launch, with all row blocks at once or in turn, and one a step, in different orders of the threads: the
    equations' values, and the same bits."""
    first = None
    for seed, resident_blocks in enumerate((256, 2 * -(-max(layer.hidden, layer.state) // 8), 0)):
        device.configure(layer.seed + seed, resident_blocks)
        device.cooperative_launches()
        results = run(device, layer, dtype)
        assert device.cooperative_launches() == (2 if resident_blocks else 0)
        if first is None:
            check_values(layer, results, dtype)
        first = first or results
        assert_same_bits(results, first)


@every_kind
@drawn(20, of=Variant, **SPACE)
def test_equals_its_equations(device, kind, case):
    check(device, case, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_kind
@drawn(5, of=Variant, **SPACE)
def test_in_other_dtypes(device, kind, dtype, case):
    check(device, case, dtype)


@pytest.mark.parametrize("layer_norm", FLAG)
@pytest.mark.parametrize(
    "layer",
    [
        Variant("lstm", steps=3, batch=70, hidden=9, projection=12, peephole=True, bidirectional=True, packed=True),
        Variant("lstm", steps=2, batch=6, hidden=150, zoneout_cell="share"),
        Variant("lstm", steps=2, batch=1, hidden=260, projection=140),
        Variant("gru", steps=3, batch=70, hidden=9, bidirectional=True, packed=True),
        Variant("gru", steps=2, batch=6, hidden=150),
        Variant("gru", steps=3, batch=70, hidden=9, form=False, bidirectional=True, packed=True),
        Variant("rnn", steps=3, batch=70, hidden=9, form=False, bidirectional=True, packed=True),
        Variant("rnn", steps=2, batch=2, hidden=260, form=False),
    ],
    ids=lambda layer: f"{layer.kind} {layer.batch} {layer.hidden} {layer.form}",
)
def test_every_plan_gives_the_same_bits(device, layer, layer_norm):
    """Weights in shared memory or streamed, all row blocks at once or in turn, a launch a step."""
    layer = dataclasses.replace(layer, layer_norm=layer_norm, scale=True, zoneout="mask").of(layer.kind)
    first = None
    for seed, plan in enumerate(plans(max(layer.hidden, layer.state))):
        device.configure(seed, *plan)
        results = run(device, layer, torch.float32)
        first = first or results
        assert_same_bits(results, first)
    expected = truth(layer, torch.float32)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-3, atol=1e-3)


WHOLE = Variant(batch=6, hidden=9, peephole=True, layer_norm=True, bidirectional=True, scale=True, zoneout="mask")
"""With everything, of any kind."""


@every_kind
@pytest.mark.parametrize("packed", FLAG)
@pytest.mark.parametrize("layer_norm", FLAG)
def test_what_is_not_needed_is_empty(device, kind, packed, layer_norm):
    layer = dataclasses.replace(WHOLE, packed=packed, layer_norm=layer_norm, projection=4).of(kind)
    device.configure(0)
    whole = run(device, layer, torch.float64)
    groups = ["grad input"], ["grad h0", "grad c0"], [name for name in whole if "weight" in name]
    for wanted in range(3):
        results = run(device, layer, torch.float64, need=[i == wanted for i in range(3)])
        for i, names in enumerate(groups):
            for name in set(names) & set(whole):
                expected = whole[name] if i == wanted else torch.empty(0, dtype=torch.float64)
                assert torch.equal(results[name], expected), name
    tensors, others = given(layer, torch.float64)
    found = getattr(device.kernels, f"{kind}_variant_forward")(*tensors, *others, False)
    finals = len(layer.widths)
    assert all(saved.shape == (0,) for saved in found[1 + finals :])
    assert all(torch.equal(a, b) for a, b in zip(found[: 1 + finals], whole.values(), strict=False))


def normalized(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Along the rows: the values normalised, their mean, and 1 / their deviation."""
    mean, inverse = values.mean(1, keepdim=True), (values.var(1, correction=0, keepdim=True) + 1e-5).rsqrt()
    return (values - mean) * inverse, mean, inverse


@every_kind
@pytest.mark.parametrize("layer_norm", FLAG)
@pytest.mark.parametrize("form", FLAG)
def test_what_is_saved(device, kind, layer_norm, form):
    """Of the first step, as csrc/ops/variant.h has it."""
    layer = Variant(batch=5, hidden=7, form=form, layer_norm=layer_norm, scale=True, zoneout_cell="share").of(kind)
    device.configure(0)
    tensors, others = given(layer, torch.float64)
    finals = len(layer.widths)
    found = getattr(device.kernels, f"{kind}_variant_forward")(*tensors, *others, True)[1 + finals :]
    gates, *cells, norm, stats = [tensor[0, : layer.batch] if tensor.dim() == 3 else tensor for tensor in found]
    input, _, h0, *c0, (w, b, *gains) = tensors
    u, fed = input[0], h0[0] * others[0][0]
    if layer_norm:
        expected, _, inverse = normalized(fed @ w.T)
        torch.testing.assert_close(norm, expected)
        torch.testing.assert_close(stats[:, :1], inverse)
        q = expected * gains[0] + b
    else:
        assert norm.shape == stats.shape == (0,)
        q = fed @ w.T + b
    if kind == "rnn":
        right = torch.relu(u + q) if form else torch.tanh(u + q)
    elif kind == "gru":
        (r, z, _), (_, _, m), (_, _, u_n) = torch.sigmoid(u + q).chunk(3, 1), q.chunk(3, 1), u.chunk(3, 1)
        if not layer.form:
            m = r * fed
        n = torch.tanh(u_n + (r * m if layer.form else F.linear(m, w[14:], b[14:])))
        right = torch.cat([r, z, n, m], 1)
    else:
        i, f, g, o = (u + q).chunk(4, 1)
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
        right, new = torch.cat([i, f, g, o], 1), f * c0[0][0] + i * g
        torch.testing.assert_close(cells[0], new + 0.15 * (c0[0][0] - new))
        if layer_norm:
            torch.testing.assert_close(stats[:, 1:], torch.cat(normalized(new)[1:], 1))
    torch.testing.assert_close(gates, right)


@every_kind
@pytest.mark.parametrize("form", FLAG)
def test_without_variants_it_is_the_plain_layer(device, kind, form):
    layer = Variant(kind, steps=5, batch=6, hidden=11, form=form, bidirectional=True, packed=True)
    device.configure(0)
    input, states, weights = layer.tensors(torch.float64)
    wide = torch.randn(len(input), 5, dtype=torch.float64)
    w_ih = [torch.randn(layer.gates, 5, dtype=torch.float64) / 5 for _ in range(2)]
    zeros = torch.zeros(layer.gates, dtype=torch.float64)
    whole = [t for d in range(2) for t in (w_ih[d], weights[2 * d], zeros, weights[2 * d + 1])]
    own = [False, False] if kind == "lstm" else [True, form][-1:] if kind == "gru" else [False, form]
    forward = getattr(device.kernels, f"{kind}_forward")
    right = forward(wide, layer.sizes(), *states, whole, True, *own, True, False)
    (_, sizes, *_), others = given(layer, torch.float64)
    forward = getattr(device.kernels, f"{kind}_variant_forward")
    found = forward(wide @ torch.cat(w_ih).T, sizes, *states, weights, *others, False)
    for a, b in zip(found[: 1 + len(states)], right, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FLAG)
def test_what_stays_stays_exactly(device, kind, dtype, form):
    layer = Variant(batch=5, hidden=9, form=form, layer_norm=form, bidirectional=True, packed=True, scale=True,
                    zoneout="mask", zoneout_cell="mask").of(kind)  # fmt: skip
    device.configure(0)
    tensors, others = given(layer, dtype)
    others = [torch.ones_like(x) if isinstance(x, Tensor) and x.dtype == torch.uint8 else x for x in others]
    output, *finals = getattr(device.kernels, f"{kind}_variant_forward")(*tensors, *others, False)
    states = tensors[2 : 2 + len(layer.widths)]
    assert all(torch.equal(a, b) for a, b in zip(finals, states, strict=False))
    rows = torch.cat([states[0][:, :size] for size in layer.batch_sizes().tolist()], 1)
    assert torch.equal(output, torch.cat(list(rows), 1))


@every_kind
def test_absent_gradients_are_zeros_and_strides_are_free(device, kind):
    layer = WHOLE.of(kind)
    forward, backward = (getattr(device.kernels, f"{kind}_variant_{way}") for way in ("forward", "backward"))
    device.configure(0)

    def spread(thing: Any) -> Any:
        if isinstance(thing, list):
            return [spread(each) for each in thing]
        return torch.stack([thing, thing * 0 + 1], -1)[..., 0] if isinstance(thing, Tensor) else thing

    tensors, others = given(layer, torch.float64)
    results = forward(*spread(tensors), *spread(others), True)
    output, *finals = results[: 1 + len(layer.widths)]
    rest = [output, *results[1 + len(finals) :], *others, True, True, True]
    ones = torch.ones((), dtype=torch.float64).expand(output.shape)
    absent = backward(ones, *[None] * len(finals), *spread(tensors), *spread(rest))
    present = backward(ones.contiguous(), *(torch.zeros_like(final) for final in finals), *tensors, *rest)
    for a, b in zip([*absent[:-1], *absent[-1]], [*present[:-1], *present[-1]], strict=True):
        assert torch.equal(a, b)


@every_kind
@pytest.mark.parametrize("layer_norm", FLAG)
def test_an_empty_batch(device, kind, layer_norm):
    layer = dataclasses.replace(WHOLE, batch=0, layer_norm=layer_norm, projection=5).of(kind)
    device.configure(0)
    results = run(device, layer, torch.float32)
    assert results["output"].shape == (layer.steps, 0, 2 * layer.state)
    assert all(torch.count_nonzero(tensor) == 0 for name, tensor in results.items() if "weight" in name)


@every_kind
@pytest.mark.parametrize("layer_norm", FLAG)
def test_a_value_that_is_not_a_number(device, kind, layer_norm):
    """It reaches what depends on it and nothing else."""
    layer = dataclasses.replace(WHOLE, layer_norm=layer_norm, form=False, zoneout="share").of(kind)
    device.configure(0)
    tensors = layer.tensors

    def with_nan(dtype):
        input, *others = tensors(dtype)
        input[1, 2, 0] = torch.nan
        return input, *others

    object.__setattr__(layer, "tensors", with_nan)
    expected = {n: t for n, t in truth(layer, torch.float64).items() if not n.startswith("grad")}
    assert expected["output"].isnan().any() and not expected["output"].isnan().all()
    assert_near(run(device, layer, torch.float64), expected, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(3, 5, 7), (1,), (0, 4), (2, 1024), (70_001,)], ids=str)
def test_random_mask_has_the_bits_of_its_twin(device, dtype, size):
    like = torch.empty(0, dtype=dtype)
    for seed, stream, p, value, as_bytes in [
        (0, 0, 0.5, 2.0, False),
        (-3, 7, 0.3, 1 / 0.7, False),
        (2**63 - 1, 2**32 - 1, 0.9, 1.0, True),
        (5, 1, 0.0, 1.0, False),
        (5, 1, 1.0, 3.0, True),
    ]:
        device.configure(seed % 1000)
        arguments = [like, torch.tensor(seed), stream, size, p, value, as_bytes]
        mask = device.kernels.random_mask(*arguments)
        expected = random_mask(*arguments)
        assert mask.dtype == expected.dtype and torch.equal(mask, expected)


@drawn(20, of=Part, **SPACE_OF_PARTS)
def test_input_part(device, case):
    """The glue, in both ways, gives what the operators on the processor give."""
    x, *weights = (t.detach() for t in case.tensors())
    arguments = (x, case.sizes, weights)
    out, *kept = device.kernels.input_part_forward(*arguments, *case.flags, True)
    expected, *expected_kept = PART_FORWARD(*arguments, *case.flags, True)
    grad = torch.randn_like(out)
    need = [bool(case.seed & 1), False, bool(case.seed & 2)]
    grad_x, grads = device.kernels.input_part_backward(grad, *arguments, out, *kept, *case.flags, *need)
    expected_grad_x, expected_grads = PART_BACKWARD(grad, *arguments, expected, *expected_kept, *case.flags, *need)
    pairs = zip((out, *kept, grad_x, *grads), (expected, *expected_kept, expected_grad_x, *expected_grads), strict=True)
    for found, wanted in pairs:
        assert found.shape == wanted.shape
        assert distance(found, wanted, 1e-3) < 1e-10
