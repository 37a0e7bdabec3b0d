"""What the tests of `pykernels.replace` share: an example of each module that it replaces, and a model with many."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import pykernels
from pykernels.replacement import OURS
from tests.helpers import with_gradients


@dataclasses.dataclass(frozen=True)
class Example:
    """A module of torch and what it is called with."""

    name: str
    args: tuple[Any, ...]
    options: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        return "-".join([self.name, *self.options])

    @property
    def theirs(self) -> type[nn.Module]:
        return getattr(nn, self.name)

    @property
    def ours(self) -> type[nn.Module]:
        return getattr(pykernels.nn, self.name)

    def make(self, dtype: torch.dtype = torch.float64, device: Any = "cpu", seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        module = self.theirs(*self.args, **self.options).to(device, dtype)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "bias" in name or parameter.dim() == 1:  # which are zeros and ones at first
                    parameter.add_(0.2 * torch.randn(parameter.shape).to(device, dtype))
        return module

    def inputs(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> tuple[Tensor, ...]:
        draw = torch.Generator().manual_seed(4)
        made = [torch.randn(shape, generator=draw, dtype=torch.float64).to(device, dtype) for shape in self.shapes]
        if self.name.startswith("MaxUnpool"):
            pool = getattr(nn.functional, self.name.lower().replace("unpool", "_pool"))
            pooled, where = pool(made[0], 2, return_indices=True)
            return pooled.requires_grad_(), where
        return tuple(tensor.requires_grad_() for tensor in made)


def _windows(dims: int) -> list[Example]:
    """Convolution and pooling in so many dimensions."""
    shape = ((2, 3, 12, 9, 7)[: 2 + dims],)
    size, sizes = (2, 3, 4)[:dims], (4, 3, 2)[:dims]
    return [
        Example(f"Conv{dims}d", (3, 4, 3), {}, shape),
        Example(f"Conv{dims}d", (3, 6, 3), {"stride": 2, "padding": 1, "groups": 3, "bias": False}, shape),
        Example(f"Conv{dims}d", (3, 4, 3), {"dilation": 2, "padding": 2, "padding_mode": "reflect"}, shape),
        Example(f"Conv{dims}d", (3, 4, 3), {"padding": "same"}, shape),
        Example(f"MaxPool{dims}d", (2,), {}, shape),
        Example(f"MaxPool{dims}d", (3, 2), {"padding": 1, "ceil_mode": True, "return_indices": True}, shape),
        Example(f"AvgPool{dims}d", (2,), {}, shape),
        Example(f"AvgPool{dims}d", (3, 2), {"padding": 1, "count_include_pad": False}, shape),
        Example(f"AdaptiveMaxPool{dims}d", (1,), {}, shape),
        Example(f"AdaptiveMaxPool{dims}d", (size,), {"return_indices": True}, shape),
        Example(f"AdaptiveAvgPool{dims}d", (sizes,), {}, shape),
    ]


_SEQUENCE = (7, 3, 5)
EXAMPLES = [
    Example("LSTM", (5, 6), {"num_layers": 2, "bidirectional": True}, (_SEQUENCE,)),
    Example("LSTM", (5, 6), {"proj_size": 4, "bias": False, "batch_first": True}, (_SEQUENCE,)),
    Example("GRU", (5, 6), {"num_layers": 2, "bidirectional": True}, (_SEQUENCE,)),
    Example("GRU", (5, 6), {"bias": False, "batch_first": True}, (_SEQUENCE,)),
    Example("RNN", (5, 6), {"num_layers": 2, "bidirectional": True}, (_SEQUENCE,)),
    Example("RNN", (5, 6), {"nonlinearity": "relu", "batch_first": True}, (_SEQUENCE,)),
    Example("LSTMCell", (5, 6), {}, ((3, 5),)),
    Example("GRUCell", (5, 6), {"bias": False}, ((3, 5),)),
    Example("RNNCell", (5, 6), {"nonlinearity": "relu"}, ((3, 5),)),
    Example("MultiheadAttention", (8, 2), {}, ((5, 3, 8), (7, 3, 8), (7, 3, 8))),
    Example("MultiheadAttention", (8, 2), {"kdim": 4, "vdim": 6, "batch_first": True, "add_bias_kv": True},
            ((3, 5, 8), (3, 7, 4), (3, 7, 6))),
    Example("TransformerEncoderLayer", (8, 2, 16, 0.0), {"batch_first": True}, ((3, 5, 8),)),
    Example("TransformerEncoderLayer", (8, 2, 16, 0.0), {"norm_first": True, "activation": "gelu"}, ((5, 3, 8),)),
    Example("TransformerDecoderLayer", (8, 2, 16, 0.0), {"batch_first": True}, ((3, 5, 8), (3, 7, 8))),
    Example("LayerNorm", (8,), {}, ((3, 5, 8),)),
    Example("LayerNorm", ((5, 8),), {"elementwise_affine": False}, ((3, 5, 8),)),
    *(example for dims in (1, 2, 3) for example in _windows(dims)),
    *(Example(f"MaxUnpool{dims}d", (2,), {}, ((2, 3, 8, 6, 4)[: 2 + dims],)) for dims in (1, 2, 3)),
    Example("Unfold", (2,), {"dilation": 2, "padding": 1}, ((2, 3, 8, 6),)),
    Example("Fold", ((4, 5), 2), {"stride": (2, 1)}, ((2, 12, 8),)),
]  # fmt: skip
"""Of everything that is to be replaced, also before there is a module of ours for it."""
REPLACED = [example for example in EXAMPLES if example.theirs in OURS]
FIRST = list({example.name: example for example in reversed(REPLACED)}.values())[::-1]
"""One for each class."""

every_example = pytest.mark.parametrize("example", REPLACED, ids=str)
every_class = pytest.mark.parametrize("example", FIRST, ids=str)


class Mixed(nn.Module):
    """Layers of most kinds, in containers, one of them at two places, and one that nobody replaces."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.layers = nn.ModuleList([nn.LSTM(8, 4, bidirectional=True), nn.GRU(8, 8)])
        self.named = nn.ModuleDict({"rnn": nn.RNN(8, 8), "shared": self.norm})
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, dropout), 2, enable_nested_tensor=False
        )
        self.cross = nn.MultiheadAttention(8, 2, dropout)
        self.cell = nn.LSTMCell(8, 8)
        self.head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 11, bias=False))
        self.head[1].weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = memory = self.norm(self.embedding(tokens))
        for layer in self.layers:
            x = layer(x)[0]
        x = self.named["shared"](x + self.named["rnn"](x)[0])
        x = self.encoder(x)
        x = x + self.cross(x, memory, memory, need_weights=False)[0]
        h, _ = self.cell(x[-1])
        return self.head(x + h)


TOKENS = torch.arange(35).reshape(7, 5) % 11


def mixed(dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> Mixed:
    torch.manual_seed(2)
    return Mixed(dropout).to(dtype)


def results(module: nn.Module, *inputs: Any) -> dict[str, Tensor]:
    """What the module returns, and where that can be had, the gradients of what it was given and of its parameters."""
    returned = {str(i): t for i, t in enumerate(tree_leaves(module(*inputs))) if isinstance(t, Tensor)}
    leaves = {f"input {i}": t for i, t in enumerate(inputs) if t.requires_grad}
    leaves |= {name: p for name, p in module.named_parameters() if p.requires_grad}
    found = {name: t for name, t in returned.items() if t.requires_grad}
    fixed = {name: t.detach() for name, t in returned.items() if not t.requires_grad}
    return (with_gradients(found, leaves) if found else {}) | fixed


def classes(module: nn.Module) -> dict[str, type[nn.Module]]:
    return {name: type(part) for name, part in module.named_modules()}


def is_ours(module: nn.Module) -> bool:
    return isinstance(module, tuple(OURS.values()))
