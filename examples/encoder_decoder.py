"""Encoder and decoder with attention: dates as people write them, and a word to copy, as "1987-03-03 zipfile".

A GRU reads the text in both directions. A second GRU writes the answer; for each character it asks where to look,

    a_i = softmax((W_a d_i) . (U_a h_j)),   C_i = sum_j a_ij h_j,   p_out = softmax(V tanh(W_c [d_i; C_i])),

d being its own states and h those over the text. The word after the date is new in the test, so it cannot be known by
heart; and in a second test it has a capital, which no answer had before. Such a character is in no p_out, but with the
copy mechanism the weights themselves are probabilities of the characters they lie on:

    p_final(c) = p_gen p_out(c) + (1 - p_gen) sum_{j: text_j = c} a_ij,   p_gen = sigmoid(v . [d_i; C_i] + b).

While learning the true answer goes in at once; afterwards it is found step by step, greedily and by a beam. `--quick`
makes it a check of a few seconds.

Sources: Bahdanau, Cho and Bengio 2014 (https://arxiv.org/abs/1409.0473), Luong, Pham and Manning 2015
(https://arxiv.org/abs/1508.04025), See, Liu and Manning 2017 (https://arxiv.org/abs/1704.04368).
"""

from __future__ import annotations

import calendar
import math
import random
import re
import string
import sys
import time
from datetime import date, timedelta
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

import pykernels
from examples.common import end_of, help_texts, quick_wanted

FIRST, DAYS = date(1969, 1, 1), 36525  # a century: 69 is 1969, 68 is 2068, as Python reads years of two digits
ALPHABET = "\0" + string.printable[:95]  # the character 0 ends an answer, and begins it
END = 0
LONGEST = 32  # characters of an answer

Pair = tuple[str, str]


def ordinal(day: int) -> str:
    ending = "th" if 10 < day < 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"


def as_written(day: date, draw: random.Random) -> str:
    """The date in one of many forms. With slashes, the day comes before the month."""
    name = draw.choice([calendar.month_name, calendar.month_abbr])[day.month]
    d, y, year = day.day, f"{day.year % 100:02}", day.year
    forms = [
        f"{d} {name} {year}", f"{d}. {name} {year}", f"{name} {d}, {year}", f"{name} {ordinal(d)}, {year}",
        f"the {ordinal(d)} of {name} {year}", f"{d}-{name}-{y}", f"{name} {d} '{y}", f"{year} {name} {d}",
        f"{d:02}/{day.month:02}/{y}", f"{d}/{day.month}/{year}", f"{d}.{day.month}.{year}", f"{day:%Y%m%d}",
    ]  # fmt: skip
    text = draw.choice(forms)
    if draw.random() < 0.3:
        text = f"{draw.choice([calendar.day_name, calendar.day_abbr])[day.weekday()]}, {text}"
    return draw.choice([text, text, text.lower(), text.upper()])


def words(draw: random.Random) -> tuple[list[str], list[str]]:
    """To learn: the words of Python's help texts, and as many drawn letter by letter, which nobody can guess, all in
    small letters. To test: the names of Python's modules, which are not among them."""
    new = {name.lower() for name in sys.stdlib_module_names if not name.startswith("_")}
    known = sorted(set(re.findall(r"\b[a-z][a-z0-9_]{1,15}\b", help_texts())) - new)
    letters = string.ascii_lowercase + string.digits + "_"
    known += ["".join(draw.choices(letters, k=draw.randint(2, 16))) for _ in known]
    return known, sorted(new)


def drawn_pairs(days: list[int], names: list[str], count: int, seed: int) -> list[Pair]:
    draw, pairs = random.Random(seed), []
    for _ in range(count):
        day, name = FIRST + timedelta(draw.choice(days)), draw.choice(names)
        text = draw.choice(["{} {}", "{}, {}", "{}: {}", "{} ({})"]).format(as_written(day, draw), name)
        pairs.append((text, f"{day.isoformat()} {name}"))
    return pairs


def learn_and_test(learn: int, test: int) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Pairs; others of other days and words; and those with a capital letter, which no answer of the first has."""
    draw, days = random.Random(0), list(range(DAYS))
    draw.shuffle(days)
    known, new = words(draw)
    tests = [drawn_pairs(days[: DAYS // 10], some, test, seed=2) for some in (new, [name.capitalize() for name in new])]
    return drawn_pairs(days[DAYS // 10 :], known, learn, seed=1), *tests


def as_numbers(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Texts [B, S], filled up with zeros, and their lengths [B]."""
    numbers = [torch.tensor([ALPHABET.index(character) for character in text]) for text in texts]
    return pad_sequence(numbers, batch_first=True), torch.tensor([len(text) for text in texts])


def as_text(numbers: list[int]) -> str:
    return "".join(ALPHABET[n] for n in (numbers[: numbers.index(END)] if END in numbers else numbers))


class Memory(NamedTuple):
    """What the decoder looks at."""

    text: Tensor  # [B, S]
    lengths: Tensor  # [B]
    states: Tensor  # over the text, [B, S, E]
    keys: Tensor  # of the states, [B, S, A]

    def repeated(self, count: int) -> Memory:
        """Each example `count` times, one after the other."""
        return Memory(*(part.repeat_interleave(count, 0) for part in self))


class Normaliser(nn.Module):
    def __init__(self, characters: int = len(ALPHABET), hidden: int = 128, copying: bool = True) -> None:
        super().__init__()
        self.copying = copying
        self.embedding = nn.Embedding(characters, 48)
        self.encoder = pykernels.GRU(48, hidden, bidirectional=True, batch_first=True)
        self.bridge = nn.Linear(2 * hidden, 2 * hidden)
        self.decoder = pykernels.GRU(48, 2 * hidden, batch_first=True)
        self.attention = pykernels.DotAttention(2 * hidden, 2 * hidden, hidden, batch_first=True, scale=hidden**-0.5)
        self.mix = nn.Linear(4 * hidden, 2 * hidden)
        self.out = nn.Linear(2 * hidden, characters)
        self.gate = nn.Linear(4 * hidden, 1)

    def read(self, text: Tensor, lengths: Tensor) -> tuple[Memory, Tensor]:
        """The states over the texts, and the decoder's first state [1, B, D]."""
        packed = pack_padded_sequence(self.embedding(text), lengths, batch_first=True, enforce_sorted=False)
        output, last = self.encoder(packed)
        states = pad_packed_sequence(output, batch_first=True)[0]
        begin = torch.tanh(self.bridge(last.transpose(0, 1).flatten(1)))[None]
        return Memory(text, lengths, states, self.attention.keys(states)), begin

    def write(self, memory: Memory, before: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """After the characters `before` [B, L]: the probabilities [B, L, characters] of the next, the next state, the
        weights [B, L, S] and p_gen [B, L, 1]."""
        states, state = self.decoder(self.embedding(before), state)
        context, weights = self.attention(states, memory.states, memory.lengths, keys=memory.keys, need_weights=True)
        both = torch.cat((states, context), 2)
        p_out = self.out(torch.tanh(self.mix(both))).softmax(2)
        p_gen = torch.sigmoid(self.gate(both)) if self.copying else torch.ones_like(both[..., :1])
        return (p_final(p_out, p_gen, weights, memory.text) if self.copying else p_out), state, weights, p_gen


def p_final(p_out: Tensor, p_gen: Tensor, weights: Tensor, text: Tensor) -> Tensor:
    """p_gen p_out(c) + (1 - p_gen) times the weights on the places of c in the text."""
    places = text[:, None].expand_as(weights)
    return (p_gen * p_out).scatter_add(2, places, (1 - p_gen) * weights)


def log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=1e-20).log()


@torch.inference_mode()
def greedy(model: Normaliser, text: Tensor, lengths: Tensor, longest: int = LONGEST) -> tuple[list[list[int]], Tensor]:
    """Answers, each step taking the likeliest character, and their log probabilities [B]."""
    memory, state = model.read(text, lengths)
    last, written = torch.full((len(text), 1), END), []
    totals, done = torch.zeros(len(text)), torch.zeros(len(text), dtype=torch.bool)
    for _ in range(longest):
        probabilities, state, _, _ = model.write(memory, last, state)
        best, last = log(probabilities).max(2)
        last = last.masked_fill(done[:, None], END)
        totals += best[:, 0].masked_fill(done, 0.0)
        written.append(last[:, 0])
        done = done | (last[:, 0] == END)
        if done.all():
            break
    return torch.stack(written, 1).tolist(), totals


@torch.inference_mode()
def beam_search(
    model: Normaliser, text: Tensor, lengths: Tensor, width: int, longest: int = LONGEST, power: float = 0.0
) -> tuple[list[list[int]], Tensor]:
    """As `greedy`, but the best of `width` answers that are followed side by side.

    An answer that has ended keeps its place, and goes on with nothing but its end, which costs nothing. The best has
    the highest log probability divided by (its number of characters)^power.
    """
    memory, state = model.read(text, lengths)
    memory, state = memory.repeated(width), state.repeat_interleave(width, 1)
    count = len(text)
    totals = torch.full((count, width), -math.inf)
    totals[:, 0] = 0.0  # at first all answers of an example are the same: one counts
    sizes, done = torch.zeros(count, width), torch.zeros(count, width, dtype=torch.bool)
    written = torch.full((count, width, 1), END)
    for _ in range(longest):
        probabilities, state, _, _ = model.write(memory, written[..., -1:].flatten(0, 1), state)
        steps = log(probabilities).view(count, width, -1)
        characters = steps.shape[2]
        steps[done] = -math.inf
        steps[..., END] = steps[..., END].masked_fill(done, 0.0)
        sizes += ~done
        all_totals = totals[..., None] + steps
        chosen = (all_totals / sizes[..., None] ** power).flatten(1).topk(width).indices
        rows, last = chosen // characters, chosen % characters
        totals, sizes = all_totals.flatten(1).gather(1, chosen), sizes.gather(1, rows)
        done = done.gather(1, rows) | (last == END)
        written = torch.cat((written.gather(1, rows[..., None].expand_as(written)), last[..., None]), 2)
        if done.all():
            break
        state = state[:, (rows + width * torch.arange(count)[:, None]).flatten()]
    best = (totals / sizes**power).argmax(1)
    return written[torch.arange(count), best, 1:].tolist(), totals[torch.arange(count), best]


def loss_of(model: Normaliser, pairs: list[Pair]) -> Tensor:
    """Of a character of the answers, given the true ones before it."""
    text, lengths = as_numbers([text for text, _ in pairs])
    answers, sizes = as_numbers([answer + ALPHABET[END] for _, answer in pairs])
    memory, state = model.read(text, lengths)
    probabilities, *_ = model.write(memory, F.pad(answers[:, :-1], (1, 0), value=END), state)
    there = torch.arange(answers.shape[1]) < sizes[:, None]
    return -log(probabilities.gather(2, answers[..., None])[..., 0])[there].mean()


def train(model: Normaliser, pairs: list[Pair], count: int) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=count)
    draw, losses = random.Random(3), []
    for _ in range(count):
        loss = loss_of(model, draw.sample(pairs, 64))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def right(answers: list[list[int]], pairs: list[Pair]) -> float:
    return sum(as_text(answer) == wanted for answer, (_, wanted) in zip(answers, pairs, strict=True)) / len(pairs)


@torch.inference_mode()
def picture(model: Normaliser, pair: Pair) -> str:
    """Each character of the answer, and where in the text it looked: the character it looked at most, . a little."""
    text, lengths = as_numbers([pair[0]])
    answer = greedy(model, text, lengths)[0]
    memory, state = model.read(text, lengths)
    _, _, weights, p_gen = model.write(memory, F.pad(torch.tensor(answer), (1, -1), value=END), state)
    lines = [f"      {pair[0]}"]
    for character, looked, made in zip(as_text(answer[0]), weights[0], p_gen[0, :, 0], strict=False):
        marks = ["." if weight > 0.1 else " " for weight in looked]
        marks[int(looked.argmax())] = pair[0][int(looked.argmax())]
        lines.append(f"    {character} {''.join(marks)}  {100 * (1 - made):3.0f} % copied")
    return "\n".join(lines)


def main(quick: bool = False) -> dict[str, float]:
    learn, *tests = learn_and_test(2000 if quick else 50000, 50 if quick else 1000)
    print(f"{len(learn)} dates and words to learn from, {len(tests[0])} new ones to test on")
    found = {}
    for name, copying in (("copy mechanism", True), ("attention only", False)):
        torch.manual_seed(0)
        model, begin = Normaliser(hidden=32 if quick else 128, copying=copying), time.perf_counter()
        losses = train(model, learn, 10 if quick else 1200)
        seconds = time.perf_counter() - begin
        print(f"  {name}: loss a character {losses[0]:.2f} -> {end_of(losses):.4f} in {seconds:.0f} s")
        for kind, test in zip(("new words", "with a capital"), tests, strict=True):
            text = as_numbers([text for text, _ in test])
            with torch.inference_mode():
                loss = loss_of(model, test).item()
            share, beam = right(greedy(model, *text)[0], test), right(beam_search(model, *text, width=4)[0], test)
            print(f"    {kind}: loss {loss:.4f}; right {100 * share:.1f} % greedily, {100 * beam:.1f} % by a beam of 4")
            found |= {f"{name}, {kind}": share, f"{name}, {kind}, beam": beam}
        if copying:
            print(picture(model, tests[1][0]))
    return found


if __name__ == "__main__":
    main(quick_wanted(__doc__))
