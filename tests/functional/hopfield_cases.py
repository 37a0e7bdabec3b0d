"""Drawn Hopfield networks whose sums are exact in every dtype, so that results are the twin's bit by bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from pykernels import reference
from tests.helpers import SEED


@dataclasses.dataclass(frozen=True)
class Net:
    """One problem. `kind` of the weight: "stored" (Hebb's, times the number of patterns), "symmetric" or "any"."""

    units: int = 37
    batch: int = 5
    patterns: int = 3
    kind: str = "stored"
    cue: str = "signs"
    mode: str = "async"
    order: str = "drawn"
    most: int = 20
    layout: str = "dense"
    seed: int = 0

    def _draw(self, name: str, low: int, high: int, *shape: int) -> Tensor:
        draw = torch.Generator().manual_seed(self.seed + 100003 * len(name))
        return torch.randint(low, high, shape, generator=draw)

    def stored(self) -> Tensor:
        return self._draw("stored", 0, 2, self.patterns, self.units).double() * 2 - 1

    def weight(self, dtype: torch.dtype, device: Any = "cpu") -> Tensor:
        if self.kind == "stored":
            weight = reference.hebbian_weight(self.stored()) * max(self.patterns, 1)
        else:
            weight = self._draw("a weight", -3, 4, self.units, self.units).double()
            weight = weight + weight.T if self.kind == "symmetric" else weight
        return self._laid(weight.round().to(device, dtype))

    def state(self, dtype: torch.dtype, device: Any = "cpu") -> Tensor:
        state = self._draw("the state", 0, 2, self.batch, self.units).double() * 2 - 1
        if self.cue == "some unknown" and self.batch:
            state[0] *= self._draw("unknown", 0, 2, self.units)
        if self.cue == "all unknown":
            state *= self._draw("unknown", 0, 2, self.batch, self.units)
        return self._laid(state.to(device, dtype))

    def _laid(self, tensor: Tensor) -> Tensor:
        if self.layout == "turned":
            return tensor.T.contiguous().T
        if self.layout == "wide":
            return torch.stack([tensor, tensor * torch.nan], -1)[..., 0]
        return tensor

    def orders(self, device: Any = "cpu") -> dict[str, Tensor | None]:
        """The operator's order and seed."""
        if self.mode == "sync":
            return {"order": None, "seed": None}
        if self.order == "drawn":
            return {"order": None, "seed": torch.tensor([self.seed * 2654435761])}
        shape = (self.units,) if self.order == "shared" else (self.batch, self.units)
        draw = torch.Generator().manual_seed(self.seed)
        order = torch.rand(shape, generator=draw).argsort(-1)
        if self.order == "repeated" and self.units:
            order = torch.randint(0, self.units, shape, generator=draw)
        return {"order": order.to(device), "seed": None}


SPACE: dict[str, Any] = {
    "units": [0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 129],
    "batch": [0, 1, 2, 9, 10, 11, 40], "patterns": [0, 1, 3, 8], "kind": ["stored", "symmetric", "any"],
    "cue": ["signs", "signs", "some unknown", "all unknown"], "mode": ["async", "sync"],
    "order": ["drawn", "shared", "own", "repeated"], "most": [0, 1, 2, 20],
    "layout": ["dense", "dense", "turned", "wide"],
    "seed": SEED,
}  # fmt: skip
