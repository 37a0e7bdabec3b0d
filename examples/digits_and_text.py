"""Two small trainings, each with torch.nn.LSTM and with pykernels.LSTM, from the same weights on the same batches.

* handwritten digits (scikit-learn's, 1797 pictures of 8 x 8), read row by row: eight steps of eight pixels;
* a language model over characters, on the help texts that come with Python.

Both models of a pair take every batch in turn, so the two clocks meet the same machine. What to look for: the loss
curves lie on each other, the accuracy is the same, and the clocks differ. `DEMO_BUDGET=quick` makes it a short check.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import pykernels
from examples.common import digits, encoded, help_texts

PICTURE = Path(__file__).parent / "output" / "demo.png"
SECONDS = 40  # the longest that one training of a pair goes on, on a slow or busy machine
QUICK = os.environ.get("DEMO_BUDGET") == "quick"
LAYERS = {"torch": nn.LSTM, "pykernels": pykernels.LSTM}

Batch = tuple[torch.Tensor, torch.Tensor]


class RowReader(nn.Module):
    """Reads a picture from top to bottom, one row of pixels a step, and names the digit."""

    def __init__(self, lstm: type[nn.Module]) -> None:
        super().__init__()
        self.lstm = lstm(8, 128)
        self.head = nn.Linear(128, 10)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        output, _ = self.lstm(rows)
        return self.head(output[-1])


class NextCharacter(nn.Module):
    """Scores the next character after each one of a text."""

    def __init__(self, lstm: type[nn.Module], characters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, 64)
        self.lstm = lstm(64, 256)
        self.head = nn.Linear(256, characters)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embedding(text))[0])

    @torch.inference_mode()
    def write(self, start: torch.Tensor, length: int, seed: int = 0) -> list[int]:
        """Continues `start`, one drawn character a step."""
        generator = torch.Generator().manual_seed(seed)
        output, state = self.lstm(self.embedding(start[:, None]))
        written = []
        for _ in range(length):
            chances = F.softmax(self.head(output[-1, 0]) / 0.6, dim=0)
            character = torch.multinomial(chances, 1, generator=generator)
            written.append(int(character))
            output, state = self.lstm(self.embedding(character[:, None]), state)
        return written


@dataclass
class Runner:
    """One model of a pair, its clock and its loss curve."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    def step(self, batch: Batch) -> None:
        inputs, targets = batch
        begin = time.perf_counter()
        scores = self.model(inputs)
        loss = F.cross_entropy(scores.flatten(0, -2), targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.seconds += time.perf_counter() - begin
        self.losses.append(loss.item())

    def progress(self) -> str:
        return f"{self.name} loss {mean(self.losses[-20:]):.4f} in {self.seconds:5.2f} s"


def pair(make: Callable[[type[nn.Module]], nn.Module], rate: float) -> list[Runner]:
    """The same model over each of the two layers, with the same weights: a state dict moves as it is."""
    torch.manual_seed(0)
    models = {name: make(layer) for name, layer in LAYERS.items()}
    models["pykernels"].load_state_dict(models["torch"].state_dict())
    return [Runner(name, model, torch.optim.Adam(model.parameters(), rate)) for name, model in models.items()]


def train(runners: list[Runner], batches: Iterator[Batch], count: int) -> None:
    """Every batch goes to each runner in turn; prints a line now and then."""
    deadline = time.perf_counter() + (SECONDS / 6 if QUICK else SECONDS)
    for runner in runners:  # both are warm before the clocks count
        runner.model(next(batches)[0])
    for number in range(1, count + 1):
        batch = next(batches)
        order = runners if number % 2 else runners[::-1]
        for runner in order:
            runner.step(batch)
        late = time.perf_counter() > deadline
        if number % (count // 8) == 0 or number == count or late:
            print(f"  batch {number:4d}/{count}   {'   '.join(runner.progress() for runner in runners)}", flush=True)
        if late:
            print("  (time is up: stopping here)")
            break


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def report(runners: list[Runner]) -> None:
    theirs, ours = runners
    apart = max(abs(a - b) for a, b in zip(theirs.losses, ours.losses, strict=True))
    print(f"  largest distance between the two loss curves: {apart:.1e}")
    ratio = theirs.seconds / ours.seconds
    print(f"  training time: torch {theirs.seconds:.2f} s, pykernels {ours.seconds:.2f} s: {ratio:.2f} times as fast\n")


def digit_batches(pictures: torch.Tensor, labels: torch.Tensor, size: int = 64) -> Iterator[Batch]:
    """Batches for ever, shuffled anew each time round; rows first, as an LSTM reads them."""
    generator = torch.Generator().manual_seed(2)
    while True:
        for part in torch.randperm(len(labels), generator=generator).split(size):
            yield pictures[part].transpose(0, 1), labels[part]


@torch.inference_mode()
def accuracy(model: nn.Module, pictures: torch.Tensor, labels: torch.Tensor) -> float:
    return (model(pictures.transpose(0, 1)).argmax(1) == labels).float().mean().item()


def train_digits() -> tuple[list[Runner], torch.Tensor]:
    pictures, labels = digits()
    held_back = 360
    print(f"Handwritten digits: {len(labels) - held_back} pictures to learn from, {held_back} to test on")
    runners = pair(RowReader, 2e-3)
    batches = digit_batches(pictures[held_back:], labels[held_back:])
    train(runners, batches, 96 if QUICK else 800)
    for runner in runners:
        share = accuracy(runner.model, pictures[:held_back], labels[:held_back])
        print(f"  {runner.name:9} names {100 * share:.1f} % of the test pictures correctly")
    report(runners)
    return runners, pictures[:8]


def text_batches(text: torch.Tensor, size: int = 32, length: int = 100) -> Iterator[Batch]:
    """Random passages [length, size] and the same shifted by one character."""
    generator = torch.Generator().manual_seed(3)
    offsets = torch.arange(length + 1)[:, None]
    while True:
        starts = torch.randint(len(text) - length - 1, (size,), generator=generator)
        passages = text[starts + offsets]
        yield passages[:-1], passages[1:]


def train_text() -> list[Runner]:
    text, alphabet = encoded(help_texts())
    print(f"Python's help texts: {len(text)} characters, {len(alphabet)} different ones")
    runners = pair(lambda lstm: NextCharacter(lstm, len(alphabet)), 4e-3)
    train(runners, text_batches(text), 40 if QUICK else 480)
    start = "The "
    first = torch.tensor([alphabet.index(character) for character in start])
    written = runners[1].model.write(first, 80 if QUICK else 240)
    print("  it has learnt to write:")
    for line in (start + "".join(alphabet[number] for number in written)).splitlines():
        print(f"    | {line}")
    report(runners)
    return runners


def draw(trainings: dict[str, list[Runner]], pictures: torch.Tensor, reader: nn.Module) -> None:
    """Loss curves over each other, the times beside them, and a few digits with what was read."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(12, 7), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[3.2, 1])
    panels = upper.subplots(1, 3, width_ratios=[2, 2, 1.2])
    for axes, (title, runners) in zip(panels, trainings.items(), strict=False):
        for runner, look in zip(runners, ({"linewidth": 4, "alpha": 0.35}, {"linewidth": 1.2}), strict=True):
            axes.plot(smooth(runner.losses), label=runner.name, **look)
        axes.set(title=title, xlabel="batch", ylabel="loss")
        axes.legend(frameon=False)
    draw_times(panels[2], trainings)

    with torch.inference_mode():
        named = reader(pictures.transpose(0, 1)).argmax(1)
    for axes, picture, digit in zip(lower.subplots(1, len(pictures)), pictures, named, strict=True):
        axes.imshow(picture, cmap="gray_r")
        axes.set(title=f"read: {digit}", xticks=[], yticks=[])
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


def draw_times(axes, trainings: dict[str, list[Runner]]) -> None:
    for place, runners in enumerate(trainings.values()):
        for shift, runner in enumerate(runners):
            share = runner.seconds / runners[0].seconds
            bar = axes.bar(
                place + 0.36 * shift, share, 0.34, color=f"C{shift}", label=runner.name if place == 0 else None
            )
            axes.bar_label(bar, [f"{runner.seconds:.1f} s"])
    axes.set(title="training time (torch = 1)", ylim=(0, 1.35))
    axes.set_xticks([place + 0.18 for place in range(len(trainings))], list(trainings))
    axes.legend(frameon=False, loc="upper right")


def smooth(values: list[float], span: int = 10) -> list[float]:
    """Mean over the last few batches, so that the eye sees the curve."""
    return [mean(values[max(0, end - span) : end]) for end in range(1, len(values) + 1)]


def main() -> None:
    print(f"torch {torch.__version__}, pykernels {pykernels.__version__}, {torch.get_num_threads()} threads\n")
    begin = time.perf_counter()
    digit_runners, pictures = train_digits()
    text_runners = train_text()
    draw({"digits": digit_runners, "text": text_runners}, pictures, digit_runners[1].model)
    print(f"Loss curves, times and a few digits: {PICTURE.relative_to(PICTURE.parents[2])}")
    print(f"All of it took {time.perf_counter() - begin:.0f} s.")


if __name__ == "__main__":
    main()
