"""The GRU and the RNN of cuda/, glue and kernels unchanged, executed on the processor, against their equations."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import FLAG, SEED, assert_same_bits, drawn

from .device import Device, assert_near, plans
from .layers import Layer, evaluate, named, truth

SPACE: dict[str, Any] = {
    "steps": (1, 5), "batch": (1, 6), "inputs": (1, 4), "hidden": (1, 40), "seed": SEED,
    "bias": FLAG, "bidirectional": FLAG, "packed": FLAG, "states": FLAG,
}  # fmt: skip
GRU = {**SPACE, "kind": ["gru"], "reset_after": FLAG}
RNN = {**SPACE, "kind": ["rnn"], "relu": FLAG, "outputs": [0, 0, 3, 50]}
KINDS = {
    "gru": Layer(kind="gru"),
    "gru, reset before": Layer(kind="gru", reset_after=False),
    "rnn": Layer(kind="rnn"),
    "rnn, relu": Layer(kind="rnn", relu=True),
    "jordan": Layer(kind="rnn", outputs=4),
}
every_kind = pytest.mark.parametrize("kind", list(KINDS))


def of(kind: str, **fields: Any) -> Layer:
    return dataclasses.replace(KINDS[kind], **fields)


def run(device: Device, layer: Layer, dtype: torch.dtype, need=(True, True, True)) -> dict[str, Tensor]:
    forward, backward = (getattr(device.kernels, f"{layer.kind}_{way}") for way in ("forward", "backward"))
    given = layer.tensors(dtype)
    output, h_n, saved = forward(*given, *layer.flags, True)
    *gradients, weights = backward(*layer.weightings(dtype), *given, output, saved, *layer.flags, *need)
    return named((output, h_n), [*gradients, *weights])


def check(device: Device, layer: Layer, dtype: torch.dtype) -> None:
    """One launch and a launch a step, in different orders of the threads: the equations' values, and the same bits."""
    expected = truth(layer, dtype)
    if layer.relu and dtype in (torch.bfloat16, torch.float16):
        # A unit that is nearly 0 may fall on either side of it, and then its gradient is another.
        expected = {name: expected[name] for name in ("output", "h_n")}
    first = None
    for seed, resident_blocks in ((layer.seed, 256), (layer.seed + 1, 256), (layer.seed + 2, 0)):
        device.configure(seed, resident_blocks)
        device.cooperative_launches()
        results = run(device, layer, dtype)
        assert device.cooperative_launches() == (2 if resident_blocks else 0)
        assert_near(results, expected, dtype)
        first = first or results
        assert_same_bits(results, first)


@drawn(16, of=Layer, **GRU)
def test_gru_equals_its_equations(device, case):
    check(device, case, torch.float64)


@drawn(16, of=Layer, **RNN)
def test_rnn_equals_its_equations(device, case):
    check(device, case, torch.float64)


OTHER_DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


@OTHER_DTYPES
@drawn(5, of=Layer, **GRU)
def test_gru_in_other_dtypes(device, dtype, case):
    check(device, case, dtype)


@OTHER_DTYPES
@drawn(5, of=Layer, **RNN)
def test_rnn_in_other_dtypes(device, dtype, case):
    check(device, case, dtype)


@pytest.mark.parametrize("kind", ["gru", "rnn", "rnn, relu"])
@pytest.mark.parametrize("bidirectional", FLAG)
@pytest.mark.parametrize("packed", FLAG)
def test_the_equations_are_those_of_torch(kind, bidirectional, packed):
    layer = of(kind, bidirectional=bidirectional, packed=packed)
    input, sizes, h0, weights = layer.tensors(torch.float64)
    options: dict[str, Any] = {"bidirectional": bidirectional, "dtype": torch.float64}
    if layer.kind == "gru":
        module: torch.nn.RNNBase = torch.nn.GRU(layer.inputs, layer.hidden, **options)
    else:
        nonlinearity = "relu" if layer.relu else "tanh"
        module = torch.nn.RNN(layer.inputs, layer.hidden, nonlinearity=nonlinearity, **options)
    with torch.no_grad():
        for parameter, weight in zip(module.parameters(), weights, strict=True):
            parameter.copy_(weight)
    output, h_n = module(input if sizes is None else torch.nn.utils.rnn.PackedSequence(input, sizes), h0)
    output = output if sizes is None else output.data
    torch.testing.assert_close(evaluate(layer, input, h0, weights), (output, h_n))


@pytest.mark.parametrize(
    "layer",
    [
        of("gru", steps=4, batch=70, hidden=9, bidirectional=True, packed=True),
        of("gru", steps=2, batch=6, hidden=150),
        of("gru", steps=2, batch=1, hidden=260, bidirectional=True),
        of("gru, reset before", steps=4, batch=70, hidden=9, bidirectional=True, packed=True),
        of("gru, reset before", steps=2, batch=6, hidden=150, bidirectional=True),
        of("rnn", steps=4, batch=70, hidden=9, bidirectional=True, packed=True),
        of("rnn, relu", steps=2, batch=2, hidden=260),
        of("jordan", steps=3, batch=40, hidden=9, outputs=140, bidirectional=True, packed=True),
    ],
    ids=lambda layer: f"{layer.kind} {layer.batch} {layer.hidden} {layer.outputs} {layer.reset_after}",
)
def test_every_plan_gives_the_same_bits(device, layer):
    """Weights in shared memory or streamed, all row blocks at once or in turn, a launch a step."""
    expected = truth(layer, torch.float32)
    first = None
    for seed, plan in enumerate(plans(max(layer.hidden, layer.state))):
        device.configure(seed, *plan)
        results = run(device, layer, torch.float32)
        first = first or results
        assert_same_bits(results, first)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-4, atol=1e-4)


@every_kind
@pytest.mark.parametrize("packed", FLAG)
def test_what_is_not_needed_is_empty(device, kind, packed):
    layer = of(kind, bidirectional=True, packed=packed)
    device.configure(0)
    whole = run(device, layer, torch.float64)
    groups = ["grad input"], ["grad h0"], [name for name in whole if "weight" in name]
    for wanted in range(3):
        results = run(device, layer, torch.float64, need=[i == wanted for i in range(3)])
        for i, names in enumerate(groups):
            for name in names:
                expected = whole[name] if i == wanted else torch.empty(0, dtype=torch.float64)
                assert torch.equal(results[name], expected), name
    forward = getattr(device.kernels, f"{layer.kind}_forward")
    for save in FLAG:
        output, h_n, saved = forward(*layer.tensors(torch.float64), *layer.flags, save)
        rows = int(layer.batch_sizes().sum())
        kept = (2, rows, 4 * layer.hidden) if layer.kind == "gru" else (2, rows, layer.hidden)
        assert saved.shape == (kept if save and (layer.kind == "gru" or layer.outputs) else (0,))
        assert torch.equal(output, whole["output"]) and torch.equal(h_n, whole["h_n"])


@pytest.mark.parametrize("reset_after", FLAG)
def test_the_gates_that_are_saved(device, reset_after):
    """r, z, n and m of the first step."""
    layer = Layer(reset_after=reset_after)
    device.configure(0)
    given = input, _, h0, (w_ih, w_hh, b_ih, b_hh) = layer.tensors(torch.float64)
    gates = device.kernels.gru_forward(*given, *layer.flags, True)[2]
    x, (w_r, w_z, w_n), (b_r, b_z, b_n) = input[0] @ w_ih.T + b_ih, w_hh.chunk(3), b_hh.chunk(3)
    x_r, x_z, x_n = x.chunk(3, 1)
    r, z = torch.sigmoid(x_r + h0[0] @ w_r.T + b_r), torch.sigmoid(x_z + h0[0] @ w_z.T + b_z)
    m = h0[0] @ w_n.T + b_n if reset_after else r * h0[0]
    n = torch.tanh(x_n + (r * m if reset_after else m @ w_n.T + b_n))
    torch.testing.assert_close(gates[0, : layer.batch], torch.cat([r, z, n, m], 1))


@every_kind
def test_absent_gradients_are_zeros_and_strides_are_free(device, kind):
    layer = of(kind, batch=6, hidden=9, bidirectional=True)
    forward, backward = (getattr(device.kernels, f"{layer.kind}_{way}") for way in ("forward", "backward"))
    device.configure(0)
    input, sizes, h0, weights = layer.tensors(torch.float64)
    spread = [torch.stack([t, t * torch.nan], -1)[..., 0] for t in (input, h0, *weights)]
    given = [spread[0], sizes, spread[1], spread[2:]]
    output, h_n, saved = forward(*given, *layer.flags, True)
    rest = [output, saved, *layer.flags, True, True, True]
    ones = torch.ones((), dtype=torch.float64).expand(output.shape)
    absent = backward(ones, None, *given, *rest)
    present = backward(ones.contiguous(), torch.zeros_like(h_n), input, sizes, h0, weights, *rest)
    for a, b in zip([*absent[:2], *absent[2]], [*present[:2], *present[2]], strict=True):
        assert torch.equal(a, b)


@every_kind
def test_an_empty_batch(device, kind):
    layer = of(kind, batch=0, bidirectional=True)
    device.configure(0)
    results = run(device, layer, torch.float32)
    assert results["output"].shape == (layer.steps, 0, 2 * layer.state)
    assert results["h_n"].shape == (2, 0, layer.state)
    assert all(torch.count_nonzero(tensor) == 0 for name, tensor in results.items() if "weight" in name)


@every_kind
def test_a_value_that_is_not_a_number(device, kind):
    """It reaches what depends on it and nothing else; where a ReLU is not a number its gradient passes, as torch's."""
    layer = of(kind, batch=5)
    device.configure(0)
    tensors = layer.tensors

    def with_nan(dtype):
        input, *others = tensors(dtype)
        input[1, 2, 0] = torch.nan
        return input, *others

    object.__setattr__(layer, "tensors", with_nan)
    expected = truth(layer, torch.float64)
    assert expected["output"].isnan().any() and not expected["output"].isnan().all()
    assert_near(run(device, layer, torch.float64), expected, torch.float64)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "jordan"])
@pytest.mark.parametrize("states", FLAG)
def test_cells(device, kind, states):
    """One step without the dimension of time."""
    layer = of(kind, steps=1, states=states)
    device.configure(0)
    whole = run(device, layer, torch.float64)
    input, _, h0, weights = layer.tensors(torch.float64)
    forward, backward = (getattr(device.kernels, f"{layer.kind}_cell_{way}") for way in ("forward", "backward"))
    given = [input[0], None if h0 is None else h0[0], weights]
    flags = layer.flags[:2] if layer.kind == "gru" else [layer.bias, layer.relu]
    if layer.kind == "gru":
        h, saved = forward(*given, *flags, True)
        assert torch.equal(forward(*given, *flags, False)[0], h)
    else:
        h = saved = forward(*given, *flags)
    assert torch.equal(h, whole["output"][0])
    weighting, last = layer.weightings(torch.float64)
    grad_input, grad_h0, grad_weights = backward(weighting[0] + last[0], *given, saved, *flags, True, True, True)
    actual = [grad_input[None], grad_h0[None], *grad_weights]
    for gradient, right in zip(actual, list(whole.values())[2:], strict=True):
        torch.testing.assert_close(gradient, right)
