"""The rows of a recurrent layer, the same for every kind: bench_lstm.py, bench_gru.py and bench_rnn.py call these.

Each takes the fixture that keeps the row (`compare` or `keep`, see conftest.py), and the bars of its bench.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from bench import ours, peers
from bench.layers import Kind, check_gradients, check_same, layer_work, pair_of_modules, training_step
from bench.memory import held_for_backward
from bench.pairs import Plan, fastest
from bench.rows import held_row

Shape = tuple[int, int, int, int]  # steps, batch, inputs, hidden units

SHAPES: list[Shape] = [
    (100, 1, 64, 64),
    (100, 1, 128, 256),
    (100, 1, 512, 512),
    (100, 32, 64, 64),
    (100, 32, 128, 256),
    (100, 32, 512, 512),
    (57, 3, 37, 101),
    (23, 5, 19, 77),
    (41, 17, 130, 200),
]
LOW_PRECISION_SHAPES: list[Shape] = [(100, 32, 128, 256), (100, 32, 512, 512), (50, 64, 256, 512)]
MEMORY_SHAPES: list[Shape] = [(100, 1, 128, 256), (100, 32, 128, 256), (100, 32, 512, 512)]
PACKED: list[tuple[Shape, str]] = [
    ((100, 8, 128, 256), "unsorted"),
    ((100, 32, 64, 64), "sorted"),
    ((100, 32, 128, 256), "unsorted"),
]

# Why a row stays below 70 % of its bound.
SMALL_STEP = (
    "a step's product takes about a microsecond; the transcendentals of its units, the barrier of the step and packing "
    "the weights once a call take as long, and the next step cannot start before"
)
CALL = "one step of one sequence: the call itself costs more than its arithmetic"
LOW_PRECISION = "packing and the gates stay in float32, and the product is twice as fast: their share doubles"


@dataclass(frozen=True)
class Rows:
    """A kind of layer, with why its rows stay below their bound: by "section label", or by section for all of them."""

    kind: Kind
    why: Mapping[str, str] = field(default_factory=dict)

    def inference(self, compare: Callable, plan: Plan, shape: Shape, target: float, **options: Any) -> None:
        steps, batch, inputs, hidden = shape
        mine, theirs = pair_of_modules(self.kind.name, inputs, hidden, **options)
        x = torch.randn(steps, batch, inputs)
        works = {"ours": lambda: mine(x), "torch": lambda: theirs(x)}
        with torch.no_grad():
            check_same(mine(x)[0], theirs(x)[0])
            ways = peers.onnx_ways(theirs, x, torch.get_num_threads())
            if ways is not None:
                works["ONNX Runtime"] = ways[fastest(ways, plan)]
        work = layer_work(self.kind, steps * batch, steps, inputs, hidden)
        self._compare(
            compare, "inference", label_of(shape, *options.values()), works, grad=False, target=target, work=work
        )

    def training(self, compare: Callable, shape: Shape, target: float, **options: Any) -> None:
        steps, batch, inputs, hidden = shape
        mine, theirs = pair_of_modules(self.kind.name, inputs, hidden, **options)
        x = torch.randn(steps, batch, inputs, requires_grad=True)
        grad_output = torch.randn(steps, batch, hidden)
        works = {"ours": training_step(mine, x, grad_output), "torch": training_step(theirs, x, grad_output)}
        check_gradients(mine, theirs, works, x)
        work = layer_work(self.kind, steps * batch, steps, inputs, hidden, training=True)
        self._compare(
            compare, "training", label_of(shape, *options.values()), works, grad=True, target=target, work=work
        )

    def packed(self, compare: Callable, shape: Shape, order: str, target: float) -> None:
        """A training step on sequences of drawn lengths, "sorted" by length or "unsorted"."""
        steps, batch, inputs, hidden = shape
        mine, theirs = pair_of_modules(self.kind.name, inputs, hidden)
        lengths = torch.randint(1, steps + 1, (batch,))
        lengths[0] = steps
        if order == "sorted":
            lengths = lengths.sort(descending=True).values
        padded = torch.randn(steps, batch, inputs)
        packed = pack_padded_sequence(padded, lengths, enforce_sorted=order == "sorted")
        leaf = packed.data.detach().requires_grad_()
        packed = packed._replace(data=leaf)
        rows = int(lengths.sum())
        grad_output = torch.randn(rows, hidden)
        works = {"ours": training_step(mine, packed, grad_output), "torch": training_step(theirs, packed, grad_output)}
        check_gradients(mine, theirs, works, leaf)
        work = layer_work(self.kind, rows, steps, inputs, hidden, training=True)
        self._compare(compare, "packed", label_of(shape, order), works, grad=True, target=target, work=work)

    def low_precision(self, compare: Callable, shape: Shape, target: float) -> None:
        """Judged against our own float32 where the processor has bf16 dot products; elsewhere it has no target."""
        steps, batch, inputs, hidden = shape
        mine, theirs = pair_of_modules(self.kind.name, inputs, hidden)
        x = torch.randn(steps, batch, inputs)
        mine_low, theirs_low, x_low = copy.deepcopy(mine).bfloat16(), copy.deepcopy(theirs).bfloat16(), x.bfloat16()
        works = {
            "ours": lambda: mine_low(x_low),
            "our float32": lambda: mine(x),
            "torch bf16": lambda: theirs_low(x_low),
        }
        with torch.no_grad():
            check_same(mine_low(x_low)[0].float(), theirs(x)[0], 0.05)
        dot_products = ours.isa().endswith("bf16")
        work = layer_work(self.kind, steps * batch, steps, inputs, hidden, size=2, rate=2.0 if dot_products else 1.0)
        bar = target if dot_products else None
        self._compare(compare, "bf16", label_of(shape), works, grad=False, target=bar, work=work, against="our float32")

    def streaming(self, compare: Callable, hidden: int, cell: bool, target: float) -> None:
        """One step of one sequence, by the cell or by the layer: what a caller pays who feeds a stream."""
        name = self.kind.name + ("Cell" if cell else "")
        mine, theirs = pair_of_modules(name, hidden, hidden)
        lead = (1,) if cell else (1, 1)
        x, zeros = torch.randn(*lead, hidden), torch.zeros(*lead, hidden)
        state = (zeros, zeros.clone()) if self.kind.name == "LSTM" else zeros
        with torch.no_grad():
            check_same(mine(x, state)[0], theirs(x, state)[0])
        works = {"ours": lambda: mine(x, state), "torch": lambda: theirs(x, state)}
        work = layer_work(self.kind, 1, 1, hidden, hidden)
        label = f"{name}{'' if cell else ' T1'} B1 I{hidden} H{hidden}"
        self._compare(compare, "streaming", label, works, grad=False, target=target, work=work)

    def memory(self, keep: Callable, shape: Shape) -> None:
        """Bytes that the forward pass of a training step leaves allocated, beyond its results."""
        steps, batch, inputs, hidden = shape
        mine, theirs = pair_of_modules(self.kind.name, inputs, hidden)
        x = torch.randn(steps, batch, inputs, requires_grad=True)
        mine_bytes, theirs_bytes = held_for_backward(mine, x), held_for_backward(theirs, x)
        keep(held_row(f"{self.kind.key}-memory", label_of(shape), mine_bytes, theirs_bytes), [0.0])

    def _compare(self, compare: Callable, question: str, label: str, works: dict[str, Callable], **about: Any) -> None:
        compare(f"{self.kind.key}-{question}", label, works, why=self.why, **about)


def label_of(shape: Shape, *marks: str) -> str:
    steps, batch, inputs, hidden = shape
    return " ".join([f"B{batch} T{steps} I{inputs} H{hidden}", *marks])


def over(rows: Mapping[Shape, Any] | Sequence[Any], names: str = "shape") -> pytest.MarkDecorator:
    """A row of the bench for each shape, or for each pair of a shape and what else `names` says."""
    alone = names == "shape"
    pairs = list(rows.items() if isinstance(rows, Mapping) else rows)
    ids = [label_of(pair) if alone else label_of(pair[0], str(pair[1])) for pair in pairs]
    return pytest.mark.parametrize(
        names if alone else names.split(), pairs, ids=[each.replace(" ", "-") for each in ids]
    )


# Every kind takes a stream in the same four ways.
over_streams = pytest.mark.parametrize(
    ("cell", "hidden"),
    [(True, 64), (True, 256), (False, 64), (False, 256)],
    ids=["cell-H64", "cell-H256", "layer-H64", "layer-H256"],
)
