"""What `bench.gpu` measures of restricted Boltzmann machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from bench import ours
from bench.gpu_questions import Question, check
from bench.limits import Work


@dataclass(frozen=True)
class RbmCase:
    """One side drawn given the other, and, in float32, an epoch of contrastive divergence."""

    rows: int
    visible: int
    hidden: int
    batch: int

    @property
    def label(self) -> str:
        return f"rbm N{self.rows} V{self.visible} H{self.hidden} B{self.batch}"

    def questions(self, dtype: torch.dtype, device: torch.device) -> Iterator[Question]:
        functional = ours.library().functional
        data = (torch.rand(self.rows, self.visible, device=device) < 0.3).to(dtype)
        weight = 0.1 * torch.randn(self.hidden, self.visible, device=device).to(dtype)
        b, c = (torch.zeros(n, device=device, dtype=dtype) for n in (self.visible, self.hidden))

        def means() -> torch.Tensor:
            return torch.addmm(c, data, weight.t()).sigmoid_()

        check(functional.rbm_mean(data, weight, c), means())

        def theirs() -> tuple[torch.Tensor, torch.Tensor]:
            p = means()
            return p, torch.bernoulli(p)

        product = 2.0 * data.numel() * self.hidden
        moved = data.nbytes + weight.nbytes + 2 * self.rows * self.hidden * dtype.itemsize
        calls: dict[str, Callable[[], object]] = {
            "ours": lambda: functional.rbm_sample(data, weight, c),
            "torch": theirs,
        }
        yield Question("gpu-rbm-sample", calls, Work(product, moved), False)
        if dtype != torch.float32:
            return
        train = functional.rbm_train_

        def epoch() -> None:
            for v0 in data[torch.randperm(self.rows, device=device)].split(self.batch):
                h0 = torch.addmm(c, v0, weight.t()).sigmoid_()
                v1 = torch.addmm(b, torch.bernoulli(h0), weight).sigmoid_().bernoulli_()
                h1 = torch.addmm(c, v1, weight.t()).sigmoid_()
                rate = 0.01 / len(v0)
                weight.addmm_(h0.t(), v0, alpha=rate).addmm_(h1.t(), v1, alpha=-rate)
                b.add_((v0 - v1).sum(0), alpha=rate)
                c.add_((h0 - h1).sum(0), alpha=rate)

        def mine() -> None:
            order = torch.randperm(self.rows, device=device)
            train(data, weight, b, c, learning_rate=0.01, batch_size=self.batch, order=order)

        yield Question("gpu-rbm", {"ours": mine, "torch": epoch}, Work(5 * product, 2 * data.nbytes), False)
