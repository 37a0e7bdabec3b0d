"""Rows of scaled dot-product attention against torch's fused attention: forward, training, bf16, masks, dropout,
lengths, decoding; and causal against plain, our own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import ours
from bench.limits import Work

Shape = tuple[int, int, int, int]  # batch, heads, length, columns of a head

SHAPES: list[Shape] = [
    (4, 8, 512, 64),
    (1, 8, 2048, 64),
    (1, 16, 4096, 128),
    (1, 8, 128, 64),
    (16, 8, 64, 32),
    (2, 4, 200, 48),
]
LONG = [shape for shape in SHAPES if shape[2] >= 2048]
NAMES = ("query", "key", "value")
FORWARD, TRAINING = 4, 14  # operations for a pair of a row and a key, and a column
SOFTMAX = "the exponentials of the scores take the time of a sixth of the products (a third of bf16's)"
WHY = {
    "attention-forward": SOFTMAX,
    "attention-training": SOFTMAX + "; sums of 96 rows or 128 keys are laid down and taken up again",
    "attention-bf16": SOFTMAX,
    "attention-bf16-training": "weights and their gradients are turned into pairs of bf16 in both directions",
    "attention-mask": "the mask is read once for every head",
    "attention-dropout": "ten rounds of the generator for four weights",
    "attention-lengths": SOFTMAX,
    "attention-decode": "keys and values are read once from memory, and nothing is computed with them twice",
    "attention-causal": "blocks on the diagonal are computed whole",
}


def label_of(shape: Shape, *marks: str) -> str:
    batch, heads, length, columns = shape
    return " ".join([f"B{batch} H{heads} L{length} D{columns}", *(mark for mark in marks if mark)])


def over(shapes: list[Shape], *causal: bool) -> pytest.MarkDecorator:
    pairs = [(shape, each) for shape in shapes for each in causal or (False, True)]
    ids = [label_of(shape, "causal" if each else "").replace(" ", "-") for shape, each in pairs]
    return pytest.mark.parametrize("shape, causal", pairs, ids=ids)


def drawn(shape: Shape, dtype: torch.dtype = torch.float32, grad: bool = False) -> list[Tensor]:
    torch.manual_seed(sum(shape))
    return [torch.randn(shape, dtype=dtype).requires_grad_(grad) for _ in NAMES]


def work_of(shape: Shape, operations: float, tensors: int, causal: bool = False, dtype: Any = torch.float32) -> Work:
    """`tensors`: how many of the size of a query are read or written once."""
    batch, heads, length, columns = shape
    pairs = length * (length + 1) // 2 if causal else length * length
    size = batch * heads * length * columns * dtype.itemsize
    rate = 2.0 if dtype == torch.bfloat16 else 1.0
    return Work(operations * batch * heads * pairs * columns, tensors * size, rate=rate)


def attend(*tensors: Any, **options: Any) -> Tensor:
    return ours.library().functional.scaled_dot_product_attention(*tensors, **options)


def forward(
    compare: Callable, section: str, label: str, given: list[Any], mine: dict, theirs: dict, **about: Any
) -> None:
    """A row of inference. Raises if the results are not the same."""
    works = {
        "ours": lambda: attend(*given, **mine),
        "torch": lambda: F.scaled_dot_product_attention(*given, **theirs),
    }
    if about.pop("same", True):
        torch.testing.assert_close(works["ours"](), works["torch"](), rtol=2e-2, atol=2e-2)
    compare(section, label, works, grad=False, why=WHY, **about)


def training(
    compare: Callable, section: str, label: str, given: list[Any], mine: dict, theirs: dict, **about: Any
) -> None:
    """A row of forward and backward. Raises if the gradients are not the same."""
    grad = torch.randn_like(given[0])
    leaves = [t for t in (*given, mine.get("attn_mask")) if t is not None and t.requires_grad]
    works = {
        "ours": lambda: torch.autograd.grad(attend(*given, **mine), leaves, grad),
        "torch": lambda: torch.autograd.grad(F.scaled_dot_product_attention(*given, **theirs), leaves, grad),
    }
    if about.pop("same", True):
        for found, expected in zip(works["ours"](), works["torch"](), strict=True):
            torch.testing.assert_close(found, expected, rtol=5e-2, atol=5e-2)
    compare(section, label, works, grad=True, why=WHY, **about)


@over(SHAPES)
def test_attention_forward(shape, causal, compare):
    options = {"is_causal": causal}
    label = label_of(shape, "causal" if causal else "")
    work = work_of(shape, FORWARD, 4, causal)
    forward(compare, "attention-forward", label, drawn(shape), options, options, target=1.7, work=work)


@over(SHAPES)
def test_attention_training(shape, causal, compare):
    options = {"is_causal": causal}
    label = label_of(shape, "causal" if causal else "")
    work = work_of(shape, TRAINING, 12, causal)
    training(compare, "attention-training", label, drawn(shape, grad=True), options, options, target=1.7, work=work)


@over(SHAPES)
def test_attention_bf16(shape, causal, compare):
    options = {"is_causal": causal}
    label = label_of(shape, "causal" if causal else "")
    work = work_of(shape, FORWARD, 4, causal, torch.bfloat16)
    forward(compare, "attention-bf16", label, drawn(shape, torch.bfloat16), options, options, target=2.0, work=work)


@over(SHAPES)
def test_attention_bf16_training(shape, causal, compare):
    options = {"is_causal": causal}
    label = label_of(shape, "causal" if causal else "")
    work = work_of(shape, TRAINING, 12, causal, torch.bfloat16)
    given = drawn(shape, torch.bfloat16, grad=True)
    training(compare, "attention-bf16-training", label, given, options, options, target=2.0, work=work)


def way(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("way", names)


@way("forward", "training", "gradient")
@over(SHAPES[:2], False)
def test_attention_mask(shape, causal, way, compare):
    """`gradient`: that of the mask too."""
    options = {"attn_mask": torch.randn(shape[2], shape[2], requires_grad=way == "gradient")}
    label = label_of(shape, {"forward": "", "training": "training", "gradient": "training, the mask too"}[way])
    operations = {"forward": FORWARD, "training": TRAINING, "gradient": TRAINING + FORWARD}[way]
    run, given = (forward, drawn(shape)) if way == "forward" else (training, drawn(shape, grad=True))
    work = work_of(shape, operations, 4 if way == "forward" else 12)
    run(compare, "attention-mask", label, given, options, options, target=2.0, work=work)


@way("forward", "training")
@over(SHAPES[:2], False)
def test_attention_dropout(shape, causal, way, compare):
    run, operations, tensors = (forward, FORWARD, 4) if way == "forward" else (training, TRAINING, 12)
    label, options = label_of(shape, "" if way == "forward" else way), {"dropout_p": 0.1}
    about = {"target": 2.0, "work": work_of(shape, operations, tensors), "same": False}
    run(compare, "attention-dropout", label, drawn(shape, grad=way == "training"), options, options, **about)


@way("forward", "training")
@over([(4, 8, 512, 64), (16, 8, 64, 32)], False)
def test_attention_lengths(shape, causal, way, compare):
    """Keys from an eighth of the length on to all of it, as lengths and as the same mask."""
    batch, _, length, _ = shape
    lengths = torch.linspace(length / 8, length, batch).long()
    mask = (torch.arange(length) < lengths[:, None])[:, None, None, :]
    run, operations, tensors = (forward, FORWARD, 4) if way == "forward" else (training, TRAINING, 12)
    label, given = label_of(shape, "" if way == "forward" else way), drawn(shape, grad=way == "training")
    mine, theirs = {"lengths": (None, lengths)}, {"attn_mask": mask}
    work = work_of(shape, operations, tensors)
    run(compare, "attention-lengths", label, given, mine, theirs, target=2.0, work=work)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 8, 8192, 64), (4, 8, 1024, 64), (1, 32, 8192, 128)], ids=str)
def test_attention_decode(shape, dtype, compare):
    _, key, value = drawn(shape, dtype)
    query = torch.randn(shape[0], shape[1], 1, shape[3], dtype=dtype)
    label = label_of(shape, str(dtype).removeprefix("torch."))
    pairs = shape[0] * shape[1] * shape[2] * shape[3]
    work = Work(4 * pairs, 2 * dtype.itemsize * pairs)
    forward(compare, "attention-decode", label, [query, key, value], {}, {}, target=2.0, work=work)


@over(LONG, True)
def test_attention_causal(shape, causal, compare):
    given = drawn(shape)
    works = {"ours": lambda: attend(*given, is_causal=True), "plain": lambda: attend(*given)}
    work = work_of(shape, FORWARD, 4, causal)
    compare("attention-causal", label_of(shape), works, grad=False, target=1.8, work=work, why=WHY)
