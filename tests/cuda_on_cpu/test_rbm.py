"""The restricted Boltzmann machine of cuda/, glue and kernels unchanged, executed on the processor: means, draws,
statistics and updates against the twin."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from pykernels.reference.rbm import rbm_train_, sample_operator, statistics, uniforms
from tests.helpers import FLAG, SEED, assert_same_bits, drawn

from .device import TOLERANCE, Device, assert_near

EVERY = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", EVERY, ids=str)
wide = pytest.mark.parametrize("dtype", EVERY[:2], ids=str)


@dataclasses.dataclass(frozen=True)
class Layer:
    rows: int = 5
    inputs: int = 9
    outputs: int = 70
    transposed: bool = False
    gaussian: bool = False
    bias: bool = True
    draws: bool = True
    temperature: float = 1.0
    apart: bool = False
    stream: int = 0
    seed: int = 0

    def arguments(self, dtype: torch.dtype) -> list[Any]:
        draw = torch.Generator().manual_seed(self.seed)
        x = torch.rand(self.rows, self.inputs + 3 * self.apart, generator=draw).to(dtype)[:, : self.inputs]
        shape = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        weight = torch.randn(shape, generator=draw).to(dtype)
        bias = torch.randn(self.outputs, generator=draw).to(dtype) if self.bias else None
        seed = torch.tensor([self.seed * 0x123456789 - 7]) if self.draws else None
        return [x, weight, bias, seed, self.stream, self.transposed, self.gaussian, self.temperature]


LAYERS: dict[str, Any] = {
    "rows": [1, 2, 16, 17, 70], "inputs": [1, 3, 16, 33], "outputs": [1, 15, 64, 65, 130], "transposed": FLAG,
    "gaussian": FLAG, "bias": FLAG, "draws": [True, True, False], "temperature": [1.0, 0.7], "apart": FLAG,
    "stream": [0, 5, 2**32 - 1], "seed": SEED,
}  # fmt: skip


def check_layer(device: Device, layer: Layer, dtype: torch.dtype) -> None:
    device.configure(layer.seed)
    given = layer.arguments(dtype)
    mean, sample = device.kernels.rbm_sample(*given)
    wide = [t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for t in given]
    true_mean, true_sample = sample_operator(*wide)
    assert_near({"mean": mean}, {"mean": true_mean}, dtype)
    assert sample.shape == true_sample.shape and sample.dtype == dtype
    if layer.draws and not layer.gaussian:
        u = uniforms(given[3], layer.stream, layer.rows, layer.outputs)
        clear = (u - true_mean).abs() > 1e-5
        assert torch.equal(sample.double()[clear], true_sample[clear])
    elif layer.draws:
        error = (sample.double() - true_sample).abs().max() / true_sample.abs().max()
        assert error < 4 * TOLERANCE[dtype]


@every_dtype
@drawn(40, of=Layer, **LAYERS)
def test_layers(device, dtype, case):
    check_layer(device, case, dtype)


@every_dtype
def test_empty_layers(device, dtype):
    for layer in (Layer(rows=0), Layer(inputs=0), Layer(outputs=0), Layer(inputs=0, gaussian=True)):
        given = layer.arguments(dtype)
        mean, sample = device.kernels.rbm_sample(*given)
        assert mean.shape == sample.shape == (layer.rows, layer.outputs)
        assert torch.allclose(mean.double(), sample_operator(*given)[0].double(), atol=TOLERANCE[dtype])


def test_what_is_not_a_number_stays_in_its_row(device):
    given = Layer(rows=4).arguments(torch.float32)
    given[0][2, 3] = torch.nan
    for gaussian in (False, True):
        given[6] = gaussian
        for found in device.kernels.rbm_sample(*given):
            assert found[2].isnan().all() and not found[[0, 1, 3]].isnan().any()


@dataclasses.dataclass(frozen=True)
class Machine:
    rows: int = 7
    batch: int = 3
    visible: int = 10
    hidden: int = 20
    chains: int = 0
    steps: int = 1
    gaussian: bool = False
    temperature: float = 1.0
    momentum: float = 0.0
    decay: float = 0.0
    ordered: bool = False
    apart: bool = False
    seed: int = 0

    def tensors(self, dtype: torch.dtype) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(self.seed)
        data = (torch.rand(self.rows, self.visible + self.apart, generator=draw) < 0.4).to(dtype)[:, : self.visible]
        made: dict[str, Any] = {"data": data}
        made["weight"] = 0.3 * torch.randn(self.hidden, self.visible, generator=draw).to(dtype)
        made["visible_bias"] = torch.randn(self.visible, generator=draw).to(dtype)
        made["hidden_bias"] = torch.randn(self.hidden, generator=draw).to(dtype)
        made["chain"] = None
        if self.chains:
            made["chain"] = (torch.rand(self.chains, self.hidden, generator=draw) < 0.5).to(dtype)
        made["seed"] = torch.tensor([self.seed * 0x987654321 + 3])
        return made


MACHINES: dict[str, Any] = {
    "rows": [1, 4, 7, 20], "batch": [1, 3, 20], "visible": [1, 7, 65], "hidden": [1, 20, 66], "chains": [0, 0, 2, 5],
    "steps": [1, 3], "gaussian": FLAG, "temperature": [1.0, 1.3], "momentum": [0.0, 0.5], "decay": [0.0, 0.01],
    "ordered": FLAG, "apart": FLAG, "seed": SEED,
}  # fmt: skip


@drawn(40, of=Machine, **MACHINES)
def test_statistics(device, case):
    device.configure(case.seed)
    data, weight, b, c, chain, seed = case.tensors(torch.float64).values()
    given = data, weight, b, c, chain, seed, case.steps, case.gaussian, case.temperature, 11
    found, expected = device.kernels.rbm_contrastive_divergence(*given), statistics(*given)
    for ours, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)


@wide
@drawn(30, of=Machine, **MACHINES)
def test_training(device, dtype, case):
    """In float32 the draws are the same but where rounding decides, so that only its statistics are compared there."""
    device.configure(case.seed)
    data, weight, b, c, chain, seed = case.tensors(dtype).values()
    order = torch.randperm(case.rows, generator=torch.Generator().manual_seed(case.seed)) if case.ordered else None
    velocity = tuple(torch.zeros_like(t) for t in (weight, b, c)) if case.momentum else None
    theirs = [t.clone() for t in (weight, b, c)]
    their_velocity = None if velocity is None else tuple(t.clone() for t in velocity)
    their_chain = None if chain is None else chain.clone()
    rbm_train_(
        data, *theirs, learning_rate=0.1, batch_size=case.batch, order=order, velocity=their_velocity,
        chain=their_chain, k=case.steps, visible="gaussian" if case.gaussian else "bernoulli",
        temperature=case.temperature, momentum=case.momentum, weight_decay=case.decay, seed=seed, first_row=2,
    )  # fmt: skip
    device.kernels.rbm_train_(
        data, order, weight, b, c, *(velocity or (None,) * 3), chain, seed, case.batch, case.steps, case.gaussian,
        case.temperature, 0.1, case.momentum, case.decay, 2,
    )  # fmt: skip
    tolerance = 1e-8 if dtype == torch.float64 else 1e-4 if not case.gaussian else 2e-2
    pairs = list(zip((weight, b, c), theirs, strict=True)) + ([] if chain is None else [(chain, their_chain)])
    if velocity is not None:
        pairs += list(zip(velocity, their_velocity or (), strict=True))
    for ours, truth in pairs:
        torch.testing.assert_close(ours, truth, rtol=tolerance, atol=tolerance)


def test_written_tensors_may_lie_anywhere(device):
    """Parameters that are not dense are written to where they lie."""
    device.configure(1)
    case, found = Machine(chains=2, momentum=0.5), []
    for spread in (False, True):
        data, *written, chain, seed = case.tensors(torch.float64).values()
        written += [torch.zeros_like(t) for t in written] + [chain]
        if spread:
            written = [torch.stack([t, t * torch.nan], -1)[..., 0] for t in written]
        w, b, c, *velocity, chain = written
        device.kernels.rbm_train_(data, None, w, b, c, *velocity, chain, seed, 3, 1, False, 1.0, 0.1, 0.5, 0.0, 0)
        found.append({str(i): t for i, t in enumerate(written)})
    assert_same_bits(found[1], found[0])


def test_what_is_wrong_is_refused(device):
    device.configure(0)
    layer = Layer().arguments(torch.float32)
    for at, bad, text in ((0, layer[0][:, :3], "expected input of shape"), (7, 0.0, "a temperature above zero")):
        with pytest.raises(RuntimeError, match=text):
            device.kernels.rbm_sample(*[bad if i == at else t for i, t in enumerate(layer)])
    data, *rest = Machine().tensors(torch.float32).values()
    with pytest.raises(RuntimeError, match="at least one Gibbs step"):
        device.kernels.rbm_contrastive_divergence(data, *rest, 0, False, 1.0, 0)
