"""Many to many, aligned: after every character of a text, the next one; by truncated backpropagation through time.

The text is far too long to go back through, so it is read in windows: the state that one window ends with begins the
next one, detached, so that gradients stop there while memory does not. Gradients are clipped by their norm. Beside it
the same model forgets its state at every window: it never sees further back than a window's begin.
`--quick` makes it a check of a few seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

import pykernels
from examples.common import encoded, help_texts, quick_wanted

WINDOW, STREAMS, CLIP = 16, 32, 0.6

Window = tuple[torch.Tensor, torch.Tensor]  # characters [T, B] and the characters that follow them


class NextCharacter(nn.Module):
    def __init__(self, characters: int, hidden: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, 64)
        self.layer = pykernels.GRU(64, hidden)
        self.head = nn.Linear(hidden, characters)

    def forward(self, text: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        output, state = self.layer(self.embedding(text), state)
        return self.head(output), state


def windows(text: torch.Tensor, streams: int = STREAMS) -> Iterator[Window]:
    """The text cut into `streams` long pieces, read side by side: row b of a window goes on where row b ended."""
    length = (len(text) - 1) // streams
    inputs = text[: streams * length].view(streams, length).t()
    targets = text[1 : streams * length + 1].view(streams, length).t()
    for start in range(0, length - WINDOW + 1, WINDOW):
        yield inputs[start : start + WINDOW], targets[start : start + WINDOW]


def train(model: NextCharacter, text: torch.Tensor, count: int, carry: bool) -> tuple[float, float]:
    """Reads `count` windows; returns the loss of the last ones and the share of steps that were clipped."""
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    losses, clipped, state, reading = [], 0, None, windows(text)
    for _ in range(count):
        window = next(reading, None)
        if window is None:  # at the end: again from the begin, where nothing came before
            reading, state = windows(text), None
            window = next(reading)
        scores, state = model(window[0], state)
        state = state.detach() if carry else None
        loss = F.cross_entropy(scores.flatten(0, 1), window[1].flatten())
        optimizer.zero_grad()
        loss.backward()
        clipped += bool(nn.utils.clip_grad_norm_(model.parameters(), CLIP) > CLIP)
        optimizer.step()
        losses.append(loss.item())
    return bits(losses[-50:]), clipped / count


@torch.inference_mode()
def tested(model: NextCharacter, text: torch.Tensor, carry: bool) -> float:
    losses, state = [], None
    for given, wanted in windows(text, streams=8):
        scores, state = model(given, state if carry else None)
        losses.append(F.cross_entropy(scores.flatten(0, 1), wanted.flatten()).item())
    return bits(losses)


def bits(losses: list[float]) -> float:
    return sum(losses) / len(losses) / math.log(2)


def main(quick: bool = False) -> dict[str, float]:
    text, alphabet = encoded(help_texts())
    learn, test = text[: -len(text) // 10], text[-len(text) // 10 :]
    print(f"{len(learn)} characters to learn from, {len(test)} to test on; windows of {WINDOW}")
    found = {}
    for name, carry in (("state carried and detached", True), ("state forgotten", False)):
        torch.manual_seed(0)
        model, begin = NextCharacter(len(alphabet)), time.perf_counter()
        last, clipped = train(model, learn, 10 if quick else 1600, carry)
        found[name] = tested(model, test[:2000] if quick else test, carry)
        seconds = time.perf_counter() - begin
        print(
            f"  {name:27} {last:.3f} bits a character learning, {found[name]:.3f} on the test text   "
            f"({100 * clipped:.0f} % of the steps clipped, {seconds:.1f} s)"
        )
    return found


if __name__ == "__main__":
    main(quick_wanted(__doc__))
