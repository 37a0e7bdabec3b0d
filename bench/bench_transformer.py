"""Rows of transformer layers, and of multi-head attention that shows its weights, against torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import ours
from bench.layers import backward_of, check_same
from bench.limits import Work

LAYERS = [(4, 512, 512, 8), (16, 64, 256, 8), (1, 2048, 512, 8), (32, 128, 256, 4)]  # batch, length, columns, heads
WIDER = 4  # the perceptron's columns over the layer's
WHY = {
    "transformer-inference": "the linear layers, which are torch's in both, take most of the time",
    "transformer-training": "the linear layers and the perceptron's dropout are torch's in both",
    "attention-weights": "the scores are computed twice, so as not to be stored",
}

layers = pytest.mark.parametrize("shape", LAYERS, ids=lambda shape: "B{}-L{}-E{}-H{}".format(*shape))


def layer_work(shape: tuple[int, int, int, int], training: bool) -> Work:
    """Four projections, two products of attention, two of the perceptron; twice as much again in the backward, and the
    scores once more."""
    batch, length, columns, _ = shape
    tokens = batch * length
    linear = 2.0 * tokens * columns * columns * (4 + 2 * WIDER)
    product = 2.0 * tokens * length * columns
    weights = 4.0 * columns * columns * (4 + 2 * WIDER)
    flop = 3 * linear + 7 * product if training else linear + 2 * product
    return Work(flop, (3 if training else 1) * weights + (8 if training else 2) * 4.0 * tokens * columns)


def both_layers(shape: tuple[int, int, int, int], **options: Any) -> tuple[nn.Module, nn.Module, Tensor]:
    batch, length, columns, heads = shape
    torch.manual_seed(sum(shape))
    given = columns, heads, WIDER * columns
    mine = ours.library().TransformerEncoderLayer(*given, batch_first=True, **options)
    theirs = nn.TransformerEncoderLayer(*given, batch_first=True, **options)
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs, torch.randn(batch, length, columns)


def label_of(shape: tuple[int, int, int, int], *marks: str) -> str:
    return " ".join(["B{} L{} E{} H{}".format(*shape), *(mark for mark in marks if mark)])


@layers
def test_transformer_inference(shape, compare):
    mine, theirs, x = both_layers(shape)
    mine.eval(), theirs.eval()
    works = {"ours": lambda: mine(x), "torch": lambda: theirs(x)}
    with torch.no_grad():
        check_same(works["ours"](), works["torch"]())
    work = layer_work(shape, False)
    compare("transformer-inference", label_of(shape), works, grad=False, work=work, target=1.0, why=WHY)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@layers
def test_transformer_training(shape, dropout, compare):
    mine, theirs, x = both_layers(shape, dropout=dropout)
    x.requires_grad_()
    grad = torch.randn_like(x)
    if not dropout:
        check_same(mine(x), theirs(x))
    calls: dict[str, Callable[[], Tensor]] = {"ours": lambda: mine(x), "torch": lambda: theirs(x)}
    steps = {name: backward_of(call, [x, *_of(name, mine, theirs)], grad) for name, call in calls.items()}
    label = label_of(shape, "dropout" if dropout else "")
    compare("transformer-training", label, steps, grad=True, work=layer_work(shape, True), target=1.0, why=WHY)


@pytest.mark.parametrize("training", [False, True])
@layers
def test_attention_weights(shape, training, compare):
    """As torch's module is called by default: with the weights, their mean over the heads."""
    batch, length, columns, heads = shape
    torch.manual_seed(sum(shape))
    mine = ours.library().MultiheadAttention(columns, heads, batch_first=True).train(training)
    theirs = nn.MultiheadAttention(columns, heads, batch_first=True).train(training)
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(batch, length, columns, requires_grad=training)
    works: dict[str, Callable[[], object]] = {"ours": lambda: mine(x, x, x), "torch": lambda: theirs(x, x, x)}
    with torch.no_grad():
        for found, expected in zip(works["ours"](), works["torch"](), strict=True):  # type: ignore[call-overload]
            check_same(found, expected)
    tokens = batch * length
    linear, product = 8.0 * tokens * columns * columns, 2.0 * tokens * length * columns
    work = Work(linear + 2 * product, 8.0 * tokens * columns + 4.0 * tokens * length)
    if training:
        grad = torch.randn(batch, length, columns)
        calls = {"ours": lambda: mine(x, x, x)[0], "torch": lambda: theirs(x, x, x)[0]}
        works = {name: backward_of(call, [x, *_of(name, mine, theirs)], grad) for name, call in calls.items()}
        work = Work(3 * linear + 7 * product, 2 * work.memory_bytes)
    label = label_of(shape, "training" if training else "")
    compare("attention-weights", label, works, grad=training, work=work, target=1.0, why=WHY)


def _of(name: str, mine: nn.Module, theirs: nn.Module) -> list[nn.Parameter]:
    return list((mine if name == "ours" else theirs).parameters())
