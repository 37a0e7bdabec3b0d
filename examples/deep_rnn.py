"""Ways to make a recurrent network deep, built from the cells: one loop over the steps, and what is in it.

* plain: one cell;
* stacked: the second cell reads the states of the first;
* deep input: a multilayer perceptron between the input and the cell, with a skip around it;
* deep transition: a multilayer perceptron from one state to the next, likewise;
* deep output: a multilayer perceptron between the states and the scores;
* all of it, with skips: two cells, a perceptron in each map, and ways around every one of them.

All learn the next character of Python's help texts from the same batches. `--quick` makes it a check of a few seconds.

Source: Pascanu, Gulcehre, Cho and Bengio 2014 (https://arxiv.org/abs/1312.6026).
"""

from __future__ import annotations

import math
import time

import torch
from torch import nn
from torch.nn import functional as F

import pykernels
from examples.common import encoded, help_texts, quick_wanted

WIDTH = 96


def perceptron(outputs: int = WIDTH) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outputs))


class Skip(nn.Module):
    """x + f(x)"""

    def __init__(self, around: nn.Module) -> None:
        super().__init__()
        self.around = around

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.around(x)


class DeepRNN(nn.Module):
    """h_t = cell(input(x_t), transition(h_{t-1})) for each level in turn, then output(h_t).

    `inputs` and `output` see all steps at once, since neither waits for a state; only the cells and their transitions
    are in the loop. With `skips`, the next level and the output also see what went into a cell.
    """

    def __init__(
        self,
        characters: int,
        levels: int = 1,
        inputs: nn.Module | None = None,
        transition: bool = False,
        output: nn.Module | None = None,
        skips: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, WIDTH)
        self.inputs = inputs or nn.Identity()
        self.cells = nn.ModuleList(pykernels.GRUCell(WIDTH, WIDTH) for _ in range(levels))
        transitions = [Skip(perceptron()) if transition else nn.Identity() for _ in range(levels)]
        self.transitions = nn.ModuleList(transitions)
        self.output = output or nn.Identity()
        self.scores = nn.Linear(WIDTH, characters)
        self.skips = skips

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        steps = self.inputs(self.embedding(text))
        for cell, transition in zip(self.cells, self.transitions, strict=True):
            state, states = torch.zeros_like(steps[0]), []
            for x in steps:
                state = cell(x, transition(state))
                states.append(state)
            through = torch.stack(states)
            steps = steps + through if self.skips else through
        return self.scores(self.output(steps))


def forms(characters: int) -> dict[str, DeepRNN]:
    everything = {"inputs": Skip(perceptron()), "transition": True, "output": Skip(perceptron()), "skips": True}
    return {
        "plain": DeepRNN(characters),
        "stacked": DeepRNN(characters, levels=2),
        "deep input": DeepRNN(characters, inputs=Skip(perceptron())),
        "deep transition": DeepRNN(characters, transition=True),
        "deep output": DeepRNN(characters, output=perceptron()),
        "all, with skips": DeepRNN(characters, levels=2, **everything),
    }


def passages(text: torch.Tensor, size: int, length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random passages [length, size] and the same shifted by one character."""
    starts = torch.randint(len(text) - length - 1, (size,), generator=torch.Generator().manual_seed(seed))
    drawn = text[starts + torch.arange(length + 1)[:, None]]
    return drawn[:-1], drawn[1:]


def loss_of(model: DeepRNN, given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(given).flatten(0, 1), wanted.flatten())


def train(model: DeepRNN, text: torch.Tensor, count: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=count)
    for number in range(count):
        loss = loss_of(model, *passages(text, 32, 40, seed=number))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def main(quick: bool = False) -> dict[str, float]:
    text, alphabet = encoded(help_texts())
    learn, test = text[: -len(text) // 10], text[-len(text) // 10 :]
    torch.manual_seed(0)
    found = {}
    for name, model in forms(len(alphabet)).items():
        begin = time.perf_counter()
        train(model, learn, 4 if quick else 400)
        seconds = time.perf_counter() - begin
        with torch.inference_mode():
            found[name] = loss_of(model, *passages(test, 256, 40, seed=0)).item() / math.log(2)
        weights = sum(parameter.numel() for parameter in model.parameters())
        print(f"{name:16} {weights:7d} weights   {found[name]:.3f} bits a character on the test text   {seconds:.1f} s")
    return found


if __name__ == "__main__":
    main(quick_wanted(__doc__))
