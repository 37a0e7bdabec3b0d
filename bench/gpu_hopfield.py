"""Hopfield networks on the GPU: a sweep at once and one in order, against torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from bench import ours
from bench.bench_hopfield import stored, torch_at_once, torch_in_order
from bench.gpu_questions import Question, check
from bench.limits import Work


@dataclass(frozen=True)
class HopfieldCase:
    """So many states of a network of so many units."""

    units: int
    rows: int

    @property
    def label(self) -> str:
        return f"hopfield N{self.units} B{self.rows}"

    def questions(self, dtype: torch.dtype, device: torch.device) -> Iterator[Question]:
        _, weight, state = (t.to(device, dtype) for t in stored(self.units, self.units // 12 + 1, self.rows))
        order = torch.randperm(self.units)
        turns, order = order.tolist(), order.to(device)
        update = ours.library().functional.hopfield_update
        work = Work(2.0 * self.rows * self.units**2, weight.nbytes + 2 * state.nbytes)
        at_once: dict[str, Callable[[], object]] = {
            "ours": lambda: update(weight, state, "sync"),
            "torch": lambda: torch_at_once(weight, state),
        }
        check(update(weight, state, "sync").float(), torch_at_once(weight.float(), state.float()))
        yield Question("gpu-hopfield-sync", at_once, work, False)
        in_order: dict[str, Callable[[], object]] = {
            "ours": lambda: update(weight, state, order=order),
            "torch": lambda: torch_in_order(weight, state, turns),
        }
        check(update(weight, state, order=order).float(), torch_in_order(weight.float(), state.float(), turns))
        yield Question("gpu-hopfield-async", in_order, work, False)
