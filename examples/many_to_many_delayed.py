"""Many to many, delayed: read a name to its end, then write it another way: is_relative_to becomes IsRelativeTo.

The names are those in the sources of Python's standard library. One GRU reads a name; its last state is all that a
second GRU is given, which writes the answer character by character: while learning from the true characters before,
afterwards from its own. It is tested on names it never saw. `--quick` makes it a check of a few seconds.
"""

from __future__ import annotations

import re
import sysconfig
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence, pad_sequence

import pykernels
from examples.common import end_of, quick_wanted

END, BEGIN = 0, 1  # beside the characters' own numbers
NONE = -100  # what cross_entropy leaves out
LONGEST = 16

Pair = tuple[torch.Tensor, torch.Tensor]


def names_in_snake_case() -> list[str]:
    """Every name_of_several_words in the standard library."""
    found: set[str] = set()
    library = Path(sysconfig.get_path("stdlib"))
    for path in library.rglob("*.py"):
        if not {"site-packages", "dist-packages", "test"} & set(path.relative_to(library).parts):
            found |= set(
                re.findall(r"\b[a-z]{2,}(?:_[a-z]{2,})+\b", path.read_text(encoding="utf-8", errors="replace"))
            )
    return sorted(name for name in found if len(name) <= LONGEST)


def in_camel_case(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def as_numbers(text: str) -> torch.Tensor:
    return torch.tensor(list(text.encode()))


class Rewriter(nn.Module):
    def __init__(self, hidden: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 48)
        self.reader = pykernels.GRU(48, hidden)
        self.writer = pykernels.GRU(48, hidden)
        self.head = nn.Linear(hidden, 128)

    def read(self, names: list[torch.Tensor]) -> torch.Tensor:
        """The state after each name's last character."""
        packed = pack_sequence(names, enforce_sorted=False)
        return self.reader(packed._replace(data=self.embedding(packed.data)))[1]

    def forward(self, names: list[torch.Tensor], before: torch.Tensor) -> torch.Tensor:
        """Scores [T, B, 128] of each character of the answers, given the true characters `before` them [T, B]."""
        return self.head(self.writer(self.embedding(before), self.read(names))[0])

    @torch.inference_mode()
    def write(self, names: list[torch.Tensor]) -> list[str]:
        """The answers, each step taking the most likely character and feeding it back."""
        state, last = self.read(names), torch.full((1, len(names)), BEGIN)
        written = []
        for _ in range(2 * LONGEST):
            output, state = self.writer(self.embedding(last), state)
            last = self.head(output).argmax(2)
            written.append(last[0])
        texts = torch.stack(written, 1).tolist()
        return ["".join(map(chr, text[: text.index(END)] if END in text else text)) for text in texts]


def train(model: Rewriter, pairs: list[Pair], count: int) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=count)
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(count):
        chosen = torch.randint(len(pairs), (64,), generator=generator).tolist()
        names = [pairs[place][0] for place in chosen]
        answers = [F.pad(pairs[place][1], (0, 1), value=END) for place in chosen]
        wanted = pad_sequence(answers, padding_value=NONE)
        before = F.pad(wanted[:-1].clamp(min=0), (0, 0, 1, 0), value=BEGIN)
        loss = F.cross_entropy(model(names, before).flatten(0, 1), wanted.flatten(), ignore_index=NONE)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def main(quick: bool = False) -> dict[str, float]:
    names = names_in_snake_case()
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
    learn, test = [names[place] for place in order[300:]], [names[place] for place in order[:300]]
    print(f"{len(learn)} names to learn from, {len(test)} to test on")
    torch.manual_seed(0)
    model, begin = Rewriter(), time.perf_counter()
    pairs = [(as_numbers(name), as_numbers(in_camel_case(name))) for name in learn]
    losses = train(model, pairs, 10 if quick else 1500)
    print(f"  loss a character {losses[0]:.2f} -> {end_of(losses):.4f} in {time.perf_counter() - begin:.1f} s")
    written = model.write([as_numbers(name) for name in test])
    for name, answer in list(zip(test, written, strict=True))[:6]:
        print(f"  {name:22} {answer}")
    share = sum(answer == in_camel_case(name) for name, answer in zip(test, written, strict=True)) / len(test)
    print(f"  {100 * share:.1f} % of the new names are written without a mistake")
    return {"share": share, "first": losses[0], "last": end_of(losses)}


if __name__ == "__main__":
    main(quick_wanted(__doc__))
