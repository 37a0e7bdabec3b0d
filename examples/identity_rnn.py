"""A long lag: see a digit row by row, wait a hundred empty steps, then name it.

A recurrent layer with rectified units, begun with the identity as its recurrent matrix and without biases, keeps what
it has seen until the gradient finds a use for it; begun as usual, neither the rectified nor the tanh layer learns
anything at all, though without the wait both read the same digits. The layers differ in their first weights only.
`--quick` makes it a check of a few seconds.

Source: Le, Jaitly and Hinton 2015 (https://arxiv.org/abs/1504.00941).
"""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.nn import functional as F

import pykernels
from examples.common import digits, end_of, quick_wanted

HIDDEN, HELD_BACK = 100, 360


class Namer(nn.Module):
    """Names the digit from the state after the last step."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(HIDDEN, 10)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(steps)[1][-1])


def identity_rnn() -> nn.Module:
    """h_t = relu(W x_t + h_{t-1}) to begin with: with an empty input, what was there stays."""
    layer = pykernels.RNN(8, HIDDEN, nonlinearity="relu")
    nn.init.eye_(layer.weight_hh_l0)
    nn.init.normal_(layer.weight_ih_l0, std=0.2)
    nn.init.zeros_(layer.bias_ih_l0)
    nn.init.zeros_(layer.bias_hh_l0)
    return layer


LAYERS = {
    "identity, relu": identity_rnn,
    "default, relu": lambda: pykernels.RNN(8, HIDDEN, nonlinearity="relu"),
    "default, tanh": lambda: pykernels.RNN(8, HIDDEN),
}


def with_wait(pictures: torch.Tensor, wait: int) -> torch.Tensor:
    """Pictures [B, 8, 8] as steps [8 + wait, B, 8], the last `wait` of them empty."""
    return F.pad(pictures.transpose(0, 1), (0, 0, 0, 0, 0, wait))


def train(model: Namer, pictures: torch.Tensor, labels: torch.Tensor, wait: int, count: int) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(count):
        part = torch.randint(len(labels), (64,), generator=generator)
        loss = F.cross_entropy(model(with_wait(pictures[part], wait)), labels[part])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@torch.inference_mode()
def accuracy(model: Namer, pictures: torch.Tensor, labels: torch.Tensor, wait: int) -> float:
    return (model(with_wait(pictures, wait)).argmax(1) == labels).float().mean().item()


def main(quick: bool = False) -> dict[tuple[str, int], float]:
    pictures, labels = digits()
    found = {}
    for wait in (0, 100):
        print(f"{wait} empty steps between the digit and its name:")
        for name, make in LAYERS.items():
            torch.manual_seed(0)
            model, begin = Namer(make()), time.perf_counter()
            count = 5 if quick else 1200 if wait else 400
            losses = train(model, pictures[HELD_BACK:], labels[HELD_BACK:], wait, count)
            found[name, wait] = accuracy(model, pictures[:HELD_BACK], labels[:HELD_BACK], wait)
            print(
                f"  {name:15} loss {losses[0]:.2f} -> {end_of(losses):.2f}   "
                f"{100 * found[name, wait]:5.1f} % named correctly   {time.perf_counter() - begin:.1f} s"
            )
    return found


if __name__ == "__main__":
    main(quick_wanted(__doc__))
