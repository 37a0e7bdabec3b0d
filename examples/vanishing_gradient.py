r"""The vanishing-gradient regulariser: keep the error's size on its way back through time.

    Omega = sum_t (|dL/dh_t . dh_t/dh_{t-1}| / |dL/dh_t| - 1)^2

is made of gradients, and is itself minimised by gradients: the backward pass of the recurrent layer is differentiated
once more. The task: read a digit row by row, wait forty empty steps, name it. `--quick` makes it a check of a few
seconds.

How Omega comes out of one call of the whole layer: its inputs are already projected (its own input matrix is the
identity and stays so), hence a gradient d_t with respect to an input is the one with respect to the sum inside the
tanh, and d_t W is the error that step t hands to step t-1. What the loss itself adds at a step is the gradient with
respect to the output.

Source: Pascanu, Mikolov and Bengio 2013 (https://arxiv.org/abs/1211.5063), section 3.3.
"""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.nn import functional as F

import pykernels
from examples.common import digits, end_of, quick_wanted

HIDDEN, WAIT, HELD_BACK = 128, 40, 360
WEIGHT = 0.03  # of the regulariser beside the loss


class Namer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, HIDDEN)
        self.layer = pykernels.RNN(HIDDEN, HIDDEN, bias=False)
        self.head = nn.Linear(HIDDEN, 10)
        nn.init.eye_(self.layer.weight_ih_l0).requires_grad_(False)

    def forward(self, steps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores of the digits, and the layer's projected inputs and outputs [T, B, HIDDEN]."""
        projected = self.project(steps)
        output, _ = self.layer(projected)
        return self.head(output[-1]), projected, output


def regulariser(
    loss: torch.Tensor, projected: torch.Tensor, output: torch.Tensor, recurrent: torch.Tensor, again: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Omega, a mean over the batch, and dL/dh_t for each step [T, B, HIDDEN]; both to be differentiated `again`."""
    inside, own = torch.autograd.grad(loss, (projected, output), retain_graph=True, create_graph=again)
    handed_back = inside @ recurrent  # dL/dh_t . dh_t/dh_{t-1}
    error = own + F.pad(handed_back[1:], (0, 0, 0, 0, 0, 1))  # dL/dh_t: the step's own share and the next one's
    ratio = handed_back[1:].norm(dim=2) / (error[1:].norm(dim=2) + 1e-12)
    return (ratio - 1).square().sum(0).mean(), error


def train(
    model: Namer, pictures: torch.Tensor, labels: torch.Tensor, weight: float, count: int
) -> tuple[list[float], list[float]]:
    """Returns the losses and, for each step, how much of the error at the end arrives at the begin."""
    optimizer = torch.optim.Adam((each for each in model.parameters() if each.requires_grad), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)
    generator, losses, arrived = torch.Generator().manual_seed(1), [], []
    for _ in range(count):
        part = torch.randint(len(labels), (64,), generator=generator)
        scores, projected, output = model(with_wait(pictures[part]))
        loss = F.cross_entropy(scores, labels[part])
        omega, error = regulariser(loss, projected, output, model.layer.weight_hh_l0, bool(weight))
        optimizer.zero_grad()
        (loss + weight * omega if weight else loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        arrived.append((error[0].norm() / error[-1].norm()).item())
    return losses, arrived


def with_wait(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 8, 8] as steps [8 + WAIT, B, 8], the last ones empty."""
    return F.pad(pictures.transpose(0, 1), (0, 0, 0, 0, 0, WAIT))


def main(quick: bool = False) -> dict[str, float]:
    pictures, labels = digits()
    found = {}
    for name, weight in (("without", 0.0), ("with", WEIGHT)):
        torch.manual_seed(0)
        model, begin = Namer(), time.perf_counter()
        losses, arrived = train(model, pictures[HELD_BACK:], labels[HELD_BACK:], weight, 8 if quick else 1000)
        with torch.inference_mode():
            named = model(with_wait(pictures[:HELD_BACK]))[0].argmax(1)
        found[name] = (named == labels[:HELD_BACK]).float().mean().item()
        print(
            f"{name:8} loss {losses[0]:.2f} -> {end_of(losses):.2f}   "
            f"share of the error that arrives at the first step {arrived[0]:.0e} -> {arrived[-1]:.0e}   "
            f"{100 * found[name]:.1f} % named correctly   {time.perf_counter() - begin:.1f} s"
        )
        found[f"{name}, arrived"] = arrived[-1]
    return found


if __name__ == "__main__":
    main(quick_wanted(__doc__))
