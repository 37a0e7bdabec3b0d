"""A small GPT: a transformer that learns the next character of Python's help texts, and then writes on.

Before the first block each character has a vector of its own and one of its place t, without weights:
    PE[t, 2i] = sin(t / 10000^(2i/d)),   PE[t, 2i+1] = cos(t / 10000^(2i/d)).
A block is causal attention and a perceptron, each with a layer norm before it and a residual connection around it; the
layer norm joins that connection, its dropout and the norm that follows. The scores of the next character are products
with the vectors of the characters: one matrix for both.

What is written on is found greedily or by a beam. Keys and values of the characters so far are kept in a cache, so each
new character is one query. The same weights are put into torch's and this library's `TransformerEncoderLayer`, which
give the same scores. `--quick` makes it a check of a few seconds.

Sources: Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762), Radford et al. 2018
(https://cdn.openai.com/research-covers/language-unsupervised/language_understanding_paper.pdf).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pykernels
from examples.common import encoded, end_of, help_texts, quick_wanted
from pykernels.functional import scaled_dot_product_attention


def positional_encoding(length: int, width: int) -> Tensor:
    """PE [length, width]; width is even."""
    angles = torch.arange(length)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
    return torch.stack((angles.sin(), angles.cos()), 2).flatten(1)


class Cache:
    """Keys and values [B, H, length, d] of one layer, of which the first `used` places are filled."""

    def __init__(self, rows: int, heads: int, length: int, width: int) -> None:
        self.keys, self.values = torch.zeros(2, rows, heads, length, width)
        self.used = 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Takes those of new characters, and gives all there are: views, nothing is copied."""
        begin, self.used = self.used, self.used + keys.shape[2]
        self.keys[:, :, begin : self.used] = keys
        self.values[:, :, begin : self.used] = values
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def reorder(self, rows: Tensor) -> None:
        """Row b goes on from what was row `rows[b]`."""
        for kept in (self.keys, self.values):
            kept[:, :, : self.used] = kept[rows, :, : self.used]


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = pykernels.LayerNorm(width), pykernels.LayerNorm(width)
        self.projection, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def attention(self, x: Tensor, cache: Cache | None) -> Tensor:
        """Each character sees itself and those before it, which may be in the cache."""
        query, key, value = self.projection(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            key, value = cache.extend(key, value)
        seen = scaled_dot_product_attention(query, key, value, causal="bottom-right")
        return self.out(seen.transpose(1, 2).flatten(2))


class GPT(nn.Module):
    def __init__(
        self, characters: int, width: int = 128, heads: int = 4, layers: int = 4, length: int = 192, dropout: float = 0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = pykernels.LayerNorm(width)
        self.width, self.heads, self.length, self.dropout = width, heads, length, dropout
        self.register_buffer("places", positional_encoding(length, width))
        nn.init.normal_(self.embedding.weight, std=0.3 * width**-0.5)  # as scores they are small at first

    def embed(self, text: Tensor, begin: int = 0) -> Tensor:
        """Vectors [B, L, width] of text [B, L], whose first character is at the place `begin`."""
        return self.embedding(text) * self.width**0.5 + self.places[begin : begin + text.shape[1]]

    def scores(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embedding.weight)

    def forward(self, text: Tensor, caches: list[Cache] | None = None) -> Tensor:
        """Scores [B, L, characters] of the character after each in text [B, L], which goes on from the caches."""
        update, total = self.embed(text, caches[0].used if caches else 0), None
        for number, block in enumerate(self.blocks):
            y, total = block.norm1(update, residual=total, dropout_p=self.dropout, return_total=True)
            update = block.attention(y, caches[number] if caches else None)
            y, total = block.norm2(update, residual=total, dropout_p=self.dropout, return_total=True)
            update = block.perceptron(y)
        return self.scores(self.norm(update, residual=total, dropout_p=self.dropout))

    def caches(self, rows: int) -> list[Cache]:
        return [Cache(rows, self.heads, self.length, self.width // self.heads) for _ in self.blocks]


@torch.inference_mode()
def greedy(model: GPT, text: Tensor, count: int, cached: bool = True) -> tuple[Tensor, float]:
    """Text [L] and `count` more characters, always the likeliest, and the log probability of what was added."""
    text, total = text[None], 0.0
    caches = model.caches(1) if cached else None
    for step in range(count):
        given = text[:, -1:] if cached and step else text
        best = F.log_softmax(model(given, caches)[0, -1], 0).max(0)
        text = torch.cat((text, best.indices[None, None]), 1)
        total += best.values.item()
    return text[0], total


@torch.inference_mode()
def beam_search(
    model: GPT, text: Tensor, count: int, width: int, end: int | None = None, power: float = 1.0
) -> tuple[Tensor, float]:
    """As `greedy`, but the best of `width` texts that are followed side by side.

    A text is done after `count` characters, or with the character `end`. The best has the highest log probability
    divided by (its number of characters)^power. A beam may lose the greedy text on its way to a better one, or to a
    worse one: here the first row always is the greedy text, so with one length for all the result cannot be worse.
    """
    totals, lengths, written = torch.zeros(1), torch.zeros(1), torch.empty(1, 0, dtype=torch.int64)
    done = torch.zeros(1, dtype=torch.bool)
    caches, given = model.caches(width), text.expand(width, -1)
    for _ in range(count):
        steps = F.log_softmax(model(given, caches)[: len(totals), -1], 1)  # at first all rows are the same: one counts
        if end is not None:  # a text that is done goes on with nothing but its end, which costs nothing
            steps[done] = -math.inf
            steps[done, end] = 0.0
        lengths += ~done
        all_totals = totals[:, None] + steps
        ranks = all_totals / lengths[:, None] ** power
        ranks[0, steps[0].argmax()] = math.inf
        chosen = ranks.flatten().topk(min(width, ranks.numel())).indices
        rows, characters = chosen // steps.shape[1], chosen % steps.shape[1]
        totals, lengths, done = all_totals.flatten()[chosen], lengths[rows], done[rows]
        written = torch.cat((written[rows], characters[:, None]), 1)
        done = done | (characters == end) if end is not None else done
        if done.all():
            break
        missing = width - len(rows)
        for cache in caches:
            cache.reorder(F.pad(rows, (0, missing)))
        given = F.pad(characters, (0, missing))[:, None]
    best = (totals / lengths**power).argmax()
    return torch.cat((text, written[best, : int(lengths[best])])), totals[best].item()


def as_transformer(model: GPT, layer_class: Callable[..., nn.Module]) -> Callable[[Tensor], Tensor]:
    """The same model made of `layer_class`, torch's TransformerEncoderLayer or ours, with a copy of its weights."""
    layer = layer_class(
        model.width, model.heads, 4 * model.width, model.dropout, "gelu", norm_first=True, batch_first=True
    )
    norm = nn.LayerNorm(model.width)
    encoder = nn.TransformerEncoder(layer, len(model.blocks), norm, enable_nested_tensor=False).eval()
    norm.load_state_dict(model.norm.state_dict())
    for copy, block in zip(encoder.layers, model.blocks, strict=True):
        parts: dict[str, Any] = {"norm1": block.norm1, "norm2": block.norm2, "self_attn.out_proj": block.out}
        parts |= {"linear1": block.perceptron[0], "linear2": block.perceptron[2]}
        weights = {f"{name}.{kind}": w for name, part in parts.items() for kind, w in part.named_parameters()}
        weights |= {f"self_attn.in_proj_{kind}": w for kind, w in block.projection.named_parameters()}
        copy.load_state_dict(weights)

    def scores(text: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(text.shape[1])
        return model.scores(encoder(model.embed(text), mask, is_causal=True))

    return scores


def count_models(learn: Tensor, test: Tensor, characters: int) -> tuple[float, float]:
    """Bits per character of test, from how often each character is in `learn`, and each pair; one is added to all."""
    single = learn.bincount(minlength=characters) + 1.0
    pairs = (learn[:-1] * characters + learn[1:]).bincount(minlength=characters**2).view(characters, -1) + 1.0
    unigram = (single / single.sum()).log2()[test[1:]].mean()
    bigram = (pairs / pairs.sum(1, keepdim=True)).log2()[test[:-1], test[1:]].mean()
    return -unigram.item(), -bigram.item()


def windows(text: Tensor, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Passages [B, length] of the text and the same shifted by one character."""
    drawn = text[starts[:, None] + torch.arange(length + 1)]
    return drawn[:, :-1], drawn[:, 1:]


def loss_of(model: GPT, given: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(model(given).flatten(0, 1), wanted.flatten())


@torch.inference_mode()
def bits(model: GPT, text: Tensor) -> float:
    """Per character, on passages side by side; at the beginning of each little is known."""
    model.eval()
    given, wanted = windows(text, torch.arange(0, len(text) - model.length, model.length), model.length)
    losses = [loss_of(model, *pair) * len(pair[0]) for pair in zip(given.split(32), wanted.split(32), strict=True)]
    return sum(losses).item() / len(given) / math.log(2)


def train(model: GPT, text: Tensor, count: int, size: int) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=count, pct_start=0.2)
    generator, losses = torch.Generator().manual_seed(1), []
    model.train()
    for _ in range(count):
        starts = torch.randint(len(text) - model.length, (size,), generator=generator)
        loss = loss_of(model, *windows(text, starts, model.length))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def as_string(text: Tensor, alphabet: list[str]) -> str:
    """To be printed in one line, which is cut."""
    string = repr("".join(alphabet[number] for number in text.tolist()))
    return string if len(string) <= 90 else f"{string[:86]} ..."


def main(quick: bool = False) -> dict[str, float]:
    paragraphs = dict.fromkeys(help_texts().split("\n\n"))  # some pages repeat others: each paragraph once
    text, alphabet = encoded("\n\n".join(paragraphs))
    learn, test = text[: -len(text) // 10], text[-len(text) // 10 :]
    torch.manual_seed(0)
    model = GPT(len(alphabet), 32, 2, 2, 64) if quick else GPT(len(alphabet))
    unigram, bigram = count_models(learn, test, len(alphabet))
    before, begin = bits(model, test), time.perf_counter()
    losses = train(model, learn, 10 if quick else 700, 16)
    seconds, after = time.perf_counter() - begin, bits(model, test)
    print(f"{len(learn)} characters to learn from, {len(test)} to test on; loss {end_of(losses):.3f}, {seconds:.0f} s")
    print(f"  bits a character: {before:.3f} -> {after:.3f}; by counts {unigram:.3f}, by pairs {bigram:.3f}")

    start = int((test == alphabet.index("\n")).nonzero()[0]) + 1
    prompt, count = test[start : start + 16], model.length - 16
    seconds, texts, totals = {}, {}, {}
    for name, cached in (("with", True), ("without", False)):
        greedy(model, prompt, 4, cached)  # the first call of anything is slower
        begin = time.perf_counter()
        texts[name], totals[name] = greedy(model, prompt, count, cached)
        seconds[name] = time.perf_counter() - begin
    same, times = torch.equal(texts["with"], texts["without"]), seconds["without"] / seconds["with"]
    print(f"  {count} more characters, each the likeliest: {as_string(texts['with'], alphabet)}")
    print(f"  the cache makes this {times:.1f} times as fast; the same characters without it: {same}")
    found, beam = beam_search(model, prompt, count, width=4)
    print(f"  a beam of 4: {as_string(found, alphabet)}")
    print(f"  log probability: {totals['with']:.2f} greedily, {beam:.2f} by the beam")
    line, total = beam_search(model, prompt, count, width=4, end=alphabet.index("\n"))
    print(f"  the likeliest rest of the line, for its length: {as_string(line, alphabet)}, {total:.2f}")

    given = windows(test, torch.arange(4), model.length)[0]
    with torch.no_grad():
        ours = model(given)
        classes = {"torch.nn": nn.TransformerEncoderLayer, "pykernels": pykernels.TransformerEncoderLayer}
        apart = {name: (as_transformer(model, kind)(given) - ours).abs().max().item() for name, kind in classes.items()}
    for name, difference in apart.items():
        print(f"  the same weights in {name}.TransformerEncoderLayer: scores differ by {difference:.1e} at most")
    return {
        "before": before, "after": after, "unigram": unigram, "bigram": bigram, "same": float(same), "times": times,
        "greedy": totals["with"], "beam": beam, "apart": max(apart.values()),
    }  # fmt: skip


if __name__ == "__main__":
    main(quick_wanted(__doc__))
