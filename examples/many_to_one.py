"""Many to one: which module of Python's standard library does this line of code come from?

A line is a sequence of characters, each line of its own length, so a batch is a `PackedSequence`; the answer comes
from the state after the last character. A GRU, an RNN and a Jordan RNN (which feeds back its outputs, not its hidden
units) learn from the same lines. `--quick` makes it a check of a few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import pykernels
from examples.common import end_of, quick_wanted, source_of

MODULES = [
    "argparse",
    "calendar",
    "difflib",
    "doctest",
    "fractions",
    "imaplib",
    "inspect",
    "statistics",
    "tarfile",
    "turtle",
]
LONGEST = 60  # characters; the rest of a line is cut off

Line = tuple[torch.Tensor, int]  # characters, number of the module


def lines_of_code() -> tuple[list[Line], list[Line]]:
    """Different lines of at least 20 characters from each module, shuffled: to learn from, and to test on."""
    lines = []
    for number, module in enumerate(MODULES):
        different = sorted({line.strip()[:LONGEST] for line in source_of(module).splitlines()})
        texts = [line.encode("ascii", "replace") for line in different if len(line) >= 20]
        lines += [(torch.tensor(list(text)), number) for text in texts]
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = [lines[place] for place in order]
    return shuffled[1000:], shuffled[:1000]


def packed(lines: list[Line]) -> tuple[PackedSequence, torch.Tensor]:
    """Sequences of all lengths in one batch, in any order: no padding is computed."""
    return pack_sequence([text for text, _ in lines], enforce_sorted=False), torch.tensor(
        [module for _, module in lines]
    )


class Reader(nn.Module):
    """Reads a line and scores every module. `layer` is any recurrent layer whose second result is its last state."""

    def __init__(self, layer: nn.Module, state: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 32)
        self.layer = layer
        self.head = nn.Linear(state, len(MODULES))

    def forward(self, text: PackedSequence) -> torch.Tensor:
        _, state = self.layer(text._replace(data=self.embedding(text.data)))
        return self.head(state[-1])  # of each line, the state after its own last character


def batches(lines: list[Line], size: int = 64) -> Iterator[list[Line]]:
    generator = torch.Generator().manual_seed(1)
    while True:
        order = torch.randperm(len(lines), generator=generator).tolist()
        for start in range(0, len(order) - size + 1, size):
            yield [lines[place] for place in order[start : start + size]]


def train(model: Reader, lines: list[Line], count: int) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _, batch in zip(range(count), batches(lines), strict=False):
        text, modules = packed(batch)
        loss = F.cross_entropy(model(text), modules)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.inference_mode()
def accuracy(model: Reader, lines: list[Line]) -> float:
    text, modules = packed(lines)
    return (model(text).argmax(1) == modules).float().mean().item()


def main(quick: bool = False) -> dict[str, float]:
    learn, test = lines_of_code()
    print(f"{len(learn)} lines of {len(MODULES)} modules to learn from, {len(test)} to test on")
    torch.manual_seed(0)
    layers = {
        "GRU": (pykernels.GRU(32, 128), 128),
        "RNN": (pykernels.RNN(32, 128), 128),
        "Jordan RNN": (pykernels.JordanRNN(32, 128, 48), 48),
    }
    found = {}
    for name, (layer, state) in layers.items():
        begin, model = time.perf_counter(), Reader(layer, state)
        losses = train(model, learn, 10 if quick else 800)
        found[name] = accuracy(model, test)
        print(
            f"  {name:10} loss {losses[0]:.2f} -> {end_of(losses):.2f}   "
            f"{100 * found[name]:.1f} % named correctly   {time.perf_counter() - begin:.1f} s"
        )
    counts = torch.tensor([module for _, module in learn]).bincount()
    print(f"  always the longest module: {100 * counts.max() / counts.sum():.1f} %")
    return found


if __name__ == "__main__":
    main(quick_wanted(__doc__))
