"""One to many: from the name of a digit to its handwritten picture, one row of pixels a step.

The digit is given once: it chooses the first state. Every later step is given only the row that was drawn before it
(while learning, the true one), and gives the chance of each amount of ink in the eight pixels of the next row. A
classifier that learnt from real pictures then reads what was drawn. `--quick` makes it a check of a few seconds.
"""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.nn import functional as F

import pykernels
from examples.common import digits, end_of, quick_wanted

ROWS, PIXELS, INKS = 8, 8, 5
NO_ROW = -1  # in the place of every pixel's ink, 0 to 4, before the first row
SHADES = " .+%#"


class Writer(nn.Module):
    """A GRU over the rows of a picture, begun from the state that belongs to a digit."""

    def __init__(self, hidden: int = 192) -> None:
        super().__init__()
        self.first = nn.Embedding(10, hidden)
        self.layer = pykernels.GRU(PIXELS * INKS, hidden)
        self.head = nn.Linear(hidden, PIXELS * INKS)

    def forward(self, rows: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [T, B, pixels, inks] of the rows that follow `rows` [T, B, pixels], and the last state."""
        inputs = F.one_hot(rows - NO_ROW, INKS + 1)[..., 1:].flatten(2).float()  # all zeros where there is no row
        output, state = self.layer(inputs, state)
        return self.head(output).unflatten(2, (PIXELS, INKS)), state

    def begin(self, names: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.first(names))[None]

    @torch.inference_mode()
    def draw(self, names: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """Pictures [B, rows, pixels] of the digits `names` [B], each row drawn from the chances and then fed back."""
        generator = torch.Generator().manual_seed(seed)
        state, row = self.begin(names), empty_rows(len(names))
        drawn = []
        for _ in range(ROWS):
            scores, state = self(row, state)
            chances = (scores[0] / 0.7).softmax(2)  # a steadier hand than the one it learnt from
            row = torch.multinomial(chances.flatten(0, 1), 1, generator=generator).view(1, -1, PIXELS)
            drawn.append(row[0])
        return torch.stack(drawn, 1)


def empty_rows(count: int) -> torch.Tensor:
    return torch.full((1, count, PIXELS), NO_ROW)


def train(model: Writer, pictures: torch.Tensor, names: torch.Tensor, epochs: int) -> list[float]:
    """Teacher forcing: step t is given row t - 1 of the picture itself and learns row t."""
    optimizer = torch.optim.Adam(model.parameters(), 2e-3, weight_decay=1e-5)
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(epochs):
        for part in torch.randperm(len(names), generator=generator).split(64):
            rows = pictures[part].transpose(0, 1)
            given = torch.cat([empty_rows(len(part)), rows[:-1]])
            scores, _ = model(given, model.begin(names[part]))
            loss = F.cross_entropy(scores.flatten(0, 2), rows.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
    return losses


def read_by_another(pictures: torch.Tensor, names: torch.Tensor, drawn: torch.Tensor, asked: torch.Tensor) -> float:
    """Share of the drawn pictures that a support vector machine, taught with real ones, reads as asked for."""
    from sklearn.svm import SVC

    judge = SVC().fit(pictures.flatten(1).numpy(), names.numpy())
    return float(judge.score(drawn.flatten(1).numpy(), asked.numpy()))


def main(quick: bool = False) -> dict[str, float]:
    torch.manual_seed(0)
    ink, names = digits()
    pictures = (ink * (INKS - 1)).round().long()
    model, begin = Writer(), time.perf_counter()
    losses = train(model, pictures, names, 1 if quick else 60)
    print(f"loss a pixel {losses[0]:.3f} -> {end_of(losses):.3f} in {time.perf_counter() - begin:.1f} s")

    asked = torch.arange(10).repeat(20)
    drawn = model.draw(asked)
    for row in range(ROWS):
        print("   ".join("".join(SHADES[ink] * 2 for ink in picture[row]) for picture in drawn[:6]))
    share = read_by_another(pictures, names, drawn, asked)
    print(f"{100 * share:.1f} % of {len(asked)} drawn digits are read as what was asked for")
    return {"share": share}


if __name__ == "__main__":
    main(quick_wanted(__doc__))
