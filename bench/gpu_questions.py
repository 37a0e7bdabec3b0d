"""What a row of `bench.gpu` is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from bench.limits import Work


@dataclass(frozen=True)
class Question:
    """One row: the section it belongs to, and what is run: ours, and every peer by name."""

    section: str
    works: Mapping[str, Callable[[], object]]
    work: Work
    grad: bool


class AnyCase(Protocol):
    @property
    def label(self) -> str: ...

    def questions(self, dtype: torch.dtype, device: torch.device) -> Iterator[Question]:
        """The rows of a case. Raises RuntimeError if ours gives something else than the peer."""
        ...


def check(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    difference = (mine - theirs).abs().max().item() / theirs.abs().max().item()
    if not difference < (1e-3 if mine.dtype == torch.float32 else 3e-2):
        raise RuntimeError(f"output differs from torch's by {difference:.1e} of its largest value")
