"""Our modules beside the modules of torch whose places they take."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import pykernels


@dataclasses.dataclass(frozen=True)
class Pair:
    """One of ours and torch's of the same name, both made with `options`."""

    name: str
    nonlinearity: str | None = None

    def __str__(self) -> str:
        return self.name + ("_relu" if self.nonlinearity else "")

    @property
    def both(self) -> tuple[type[nn.Module], type[nn.Module]]:
        return getattr(pykernels, self.name), getattr(nn, self.name)

    @property
    def is_cell(self) -> bool:
        return self.name.endswith("Cell")

    @property
    def is_lstm(self) -> bool:
        return self.name.startswith("LSTM")

    @property
    def states(self) -> tuple[str, ...]:
        return ("h0", "c0") if self.is_lstm else ("h0",)

    @property
    def results(self) -> tuple[str, ...]:
        names = ("h_n", "c_n")[: len(self.states)]
        return names if self.is_cell else ("output", *names)

    @property
    def options(self) -> dict[str, Any]:
        return {"nonlinearity": self.nonlinearity} if self.nonlinearity else {}

    def ours(self, *args: Any, **kwargs: Any) -> nn.Module:
        return self.both[0](*args, **self.options, **kwargs)

    def theirs(self, *args: Any, **kwargs: Any) -> nn.Module:
        return self.both[1](*args, **self.options, **kwargs)

    def hx(self, tensors: dict[str, Tensor]) -> Any:
        """The initial state out of named tensors, in the module's form; None where they have none."""
        found = tuple(tensors[name] for name in self.states if name in tensors)
        return (found if self.is_lstm else found[0]) if found else None

    def state(self, *shape: int, **how: Any) -> Any:
        """An initial state of zeros."""
        return self.hx({name: torch.zeros(shape, **how) for name in self.states})

    def named(self, returned: Any) -> dict[str, Tensor]:
        """What the module returned, by name; of a PackedSequence its data."""
        if not self.is_cell:
            output, state = returned
            returned = (output.data if isinstance(output, PackedSequence) else output, state)
        leaves = torch.utils._pytree.tree_leaves(returned)
        return dict(zip(self.results, leaves, strict=True))

    def example(self, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> Tensor:
        """An input of 5 numbers for each of 4 samples."""
        return torch.randn((4, 5) if self.is_cell else (3, 4, 5)).to(device, dtype)


LAYERS = (Pair("LSTM"), Pair("GRU"), Pair("RNN"), Pair("RNN", "relu"))
CELLS = (Pair("LSTMCell"), Pair("GRUCell"), Pair("RNNCell"), Pair("RNNCell", "relu"))
every_layer = pytest.mark.parametrize("pair", LAYERS, ids=str)
every_cell = pytest.mark.parametrize("pair", CELLS, ids=str)
every_pair = pytest.mark.parametrize("pair", LAYERS + CELLS, ids=str)
