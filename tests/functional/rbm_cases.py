"""Drawn layers and machines: what the tests of the restricted Boltzmann machine share."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from tests.helpers import FLAG, SEED

UNITS = ["bernoulli", "gaussian"]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One side given the other."""

    rows: tuple[int, ...] = (5,)
    inputs: int = 9
    outputs: int = 70
    units: str = "bernoulli"
    transposed: bool = False
    bias: bool = True
    temperature: float = 1.0
    stream: int = 0
    layout: str = "dense"
    seed: int = 0

    @property
    def options(self) -> dict[str, Any]:
        return {"units": self.units, "transposed": self.transposed, "temperature": self.temperature}

    @property
    def draws(self) -> dict[str, Any]:
        return {"seed": self.seed * 0x9E3779B97F4A7C15 % 2**63, "stream": self.stream}

    def tensors(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(self.seed)
        shape = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        made = {"input": torch.rand(*self.rows, self.inputs, generator=draw, dtype=torch.float64)}
        made["weight"] = torch.randn(shape, generator=draw, dtype=torch.float64) / math.sqrt(self.inputs + 1)
        if self.bias:
            made["bias"] = torch.randn(self.outputs, generator=draw, dtype=torch.float64)
        made = {name: t.to(device, dtype) for name, t in made.items()}
        if self.layout == "wide":
            made = {name: torch.stack([t, t * math.nan], -1)[..., 0] for name, t in made.items()}
        if self.layout == "rows apart":
            made["input"] = torch.cat([made["input"], made["input"] * math.nan], -1)[..., : self.inputs]
        if self.layout == "turned":
            made["weight"] = made["weight"].t().contiguous().t()
        return {name: t.requires_grad_() for name, t in made.items()}


LAYERS: dict[str, Any] = {
    "rows": [(), (0,), (1,), (2,), (7,), (49,), (3, 5), (2, 0, 3)], "inputs": [0, 1, 7, 16, 33, 130],
    "outputs": [0, 1, 4, 15, 16, 17, 63, 64, 65, 200], "units": UNITS, "transposed": FLAG, "bias": FLAG,
    "temperature": [1.0, 0.5, 2.5], "stream": [0, 7, 2**32 - 1], "seed": SEED,
    "layout": ["dense", "wide", "rows apart", "turned"],
}  # fmt: skip


def run(where: Any, layer: Layer, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return where.rbm_sample(tensors["input"], tensors["weight"], tensors.get("bias"), **layer.options, **layer.draws)


@dataclasses.dataclass(frozen=True)
class Machine:
    rows: int = 7
    batch: int = 3
    visible: int = 10
    hidden: int = 20
    chains: int = 0
    k: int = 1
    units: str = "bernoulli"
    temperature: float = 1.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    ordered: bool = False
    layout: str = "dense"
    seed: int = 0

    @property
    def options(self) -> dict[str, Any]:
        seed = self.seed * 0x9E3779B97F4A7C15 % 2**63
        return {"k": self.k, "visible": self.units, "temperature": self.temperature, "seed": seed, "first_row": 5}

    def tensors(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(self.seed)
        made = {"data": (torch.rand(self.rows, self.visible, generator=draw) < 0.4).double()}
        made["weight"] = 0.3 * torch.randn(self.hidden, self.visible, generator=draw, dtype=torch.float64)
        made["visible_bias"] = torch.randn(self.visible, generator=draw, dtype=torch.float64)
        made["hidden_bias"] = torch.randn(self.hidden, generator=draw, dtype=torch.float64)
        if self.chains:
            made["chain"] = (torch.rand(self.chains, self.hidden, generator=draw) < 0.5).double()
        made = {name: t.to(device, dtype) for name, t in made.items()}
        if self.layout == "wide":
            made = {name: torch.stack([t, t * math.nan], -1)[..., 0] for name, t in made.items()}
        return made

    def trained(self, where: Any, dtype: torch.dtype, device: Any = "cpu") -> dict[str, Tensor]:
        """What rbm_train_ leaves behind."""
        written = self.tensors(dtype, device)
        data = written.pop("data")
        velocity = None
        if self.momentum:
            velocity = tuple(torch.full_like(written[n], 0.01) for n in ("weight", "visible_bias", "hidden_bias"))
        order = None
        if self.ordered:
            order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed)).to(device)
        where.rbm_train_(
            data, **written, velocity=velocity, order=order, learning_rate=0.1, batch_size=self.batch,
            momentum=self.momentum, weight_decay=self.weight_decay, **self.options,
        )  # fmt: skip
        return written | {f"velocity {i}": t for i, t in enumerate(velocity or ())}


MACHINES: dict[str, Any] = {
    "rows": [1, 2, 7, 50], "batch": [1, 3, 10, 60], "visible": [1, 7, 16, 33, 65, 100],
    "hidden": [1, 5, 16, 31, 64, 66, 130], "chains": [0, 0, 1, 4, 60], "k": [1, 2, 3], "units": UNITS,
    "temperature": [1.0, 1.3], "momentum": [0.0, 0.5], "weight_decay": [0.0, 0.01], "ordered": FLAG,
    "layout": ["dense", "dense", "wide"], "seed": SEED,
}  # fmt: skip


def check_near(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, truth in expected.items():
        torch.testing.assert_close(found[name].to(truth.dtype), truth, rtol=tolerance, atol=tolerance, msg=name)
