"""Drawn calls of the layers of a transformer, ours beside torch's."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

import pykernels
from tests.functional.compiling import forget_what_was_compiled
from tests.helpers import SEED, with_gradients

assert forget_what_was_compiled  # around every test
pytestmark = pytest.mark.filterwarnings(
    "ignore:Support for mismatched", "ignore:The PyTorch API of nested tensors", "ignore:enable_nested_tensor"
)
FLAG = [False, True]
NAMES = ("TransformerEncoderLayer", "TransformerDecoderLayer")
every_layer = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(params=[False, True], ids=["slow_path", "fast_path"])
def paths(request):
    """Both of torch's ways of computing."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(request.param)
    yield request.param
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.fixture
def slow_path():
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "callable": torch.tanh, "module": nn.SiLU()}


@dataclasses.dataclass(frozen=True)
class Layer:
    """One problem: modules, inputs and masks follow from these fields."""

    name: str = NAMES[0]
    norm_first: bool = False
    batch_first: bool = True
    bias: bool = True
    activation: str = "relu"
    training: bool = True
    unbatched: bool = False
    mask: str = "none"  # or "bool", "float", "causal"
    padding: str = "none"  # or "bool", "float"
    heads: int = 2
    rows: int = 5
    keys: int = 7
    dropout: float = 0.0
    seed: int = 0

    def make(self, where: Any, dtype: torch.dtype = torch.float64, device: Any = "cpu", **options: Any) -> Any:
        torch.manual_seed(self.seed)
        given = {"batch_first": self.batch_first, "norm_first": self.norm_first, "bias": self.bias, **options}
        module = getattr(where, self.name)(
            4 * self.heads, self.heads, 16, self.dropout, ACTIVATIONS[self.activation], **given
        )
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape)) if "bias" in name or "norm" in name else None
        return module.to(device, dtype).train(self.training)

    def inputs(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> dict[str, torch.Tensor]:
        draw, made = torch.Generator().manual_seed(self.seed + 1), {}
        for name, length in (("x", self.rows), ("memory", self.keys))[: 1 + ("Decoder" in self.name)]:
            shape = [length, 4 * self.heads]
            shape.insert(0 if self.batch_first else 1, 3) if not self.unbatched else None
            made[name] = torch.randn(shape, generator=draw, dtype=torch.float64).to(device, dtype).requires_grad_()
        return made

    def options(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> dict[str, Any]:
        draw, found = torch.Generator().manual_seed(self.seed + 2), {}
        lengths = [("tgt", self.rows), ("memory", self.keys)] if "Decoder" in self.name else [("src", self.rows)]

        def of(kind, hidden):
            added = torch.zeros(hidden.shape, dtype=dtype)
            return (hidden if kind == "bool" else added.masked_fill(hidden, -math.inf)).to(device)

        for who, keys in lengths:
            hidden = torch.rand(self.rows, keys, generator=draw) > 0.6
            hidden[:, 0] = False
            if self.mask == "causal" and who != "memory":
                found[f"{who}_mask"] = of("float", torch.ones(self.rows, keys).triu(1) > 0)
                found["is_causal" if who == "src" else "tgt_is_causal"] = True
            elif self.mask != "none":
                found[f"{who}_mask"] = of(self.mask, hidden)
            if self.padding != "none":
                limits = torch.tensor([keys, max(1, keys // 2), 1])[: 1 if self.unbatched else 3, None]
                beyond = torch.arange(keys) >= limits
                found[f"{who}_key_padding_mask"] = of(self.padding, beyond[0] if self.unbatched else beyond)
        return found

    def run(self, module: Any, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> dict[str, torch.Tensor]:
        leaves = self.inputs(dtype, device)
        torch.manual_seed(self.seed)
        y = module(*leaves.values(), **self.options(dtype, device))
        return with_gradients({"y": y}, leaves | dict(module.named_parameters()))


def pair(case: Layer, dtype: torch.dtype = torch.float64, device: Any = "cpu", **options: Any) -> tuple[Any, Any]:
    ours, theirs = (case.make(where, dtype, device, **options) for where in (pykernels, nn))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


SPACE: dict[str, Any] = {
    "name": list(NAMES),
    "norm_first": FLAG,
    "batch_first": FLAG,
    "bias": FLAG,
    "activation": list(ACTIVATIONS),
    "training": FLAG,
    "unbatched": [False, False, True],
    "mask": ["none", "bool", "float", "causal"],
    "padding": ["none", "bool", "float"],
    "heads": (1, 3),
    "rows": [1, 5, 17],
    "keys": [1, 7, 20],
    "seed": SEED,
}
