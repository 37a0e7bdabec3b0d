"""Drawn calls of the pooling functions, run by ours, by the twin and by torch."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pykernels import functional, reference
from tests.helpers import FLAG, LOW, SEED, assert_equal, assert_no_worse, with_gradients

DTYPES = [torch.float64, torch.float32, *LOW]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclasses.dataclass(frozen=True)
class Pool:
    """One problem: every tensor of it follows from these fields. Of `kernel` and so on the last `dims` are used."""

    kind: str = "max"  # max, avg, adaptive_max, adaptive_avg
    dims: int = 2
    batch: int = 2  # -1: none
    channels: int = 3
    depth: int = 5
    rows: int = 7
    columns: int = 19
    kernel: tuple[int, int, int] = (2, 3, 3)
    stride: tuple[int, int, int] | None = None
    padding: int = 0  # no more than half of the kernel is used
    dilation: tuple[int, int, int] = (1, 1, 1)
    ceil_mode: bool = False
    include: bool = True
    divisor: int | None = None
    output: tuple[int, int, int] = (2, 3, 4)
    channels_last: bool = False
    values: str = "normal"  # or "few": many ties; "missing": also not-a-numbers and infinities
    seed: int = 0

    @property
    def is_max(self) -> bool:
        return self.kind.endswith("max")

    @property
    def name(self) -> str:
        return f"{self.kind}_pool{self.dims}d"

    @property
    def windows(self) -> list[tuple[int, int, int, int]]:
        """Kernel, stride, padding and dilation along each dimension."""
        stride = self.stride or self.kernel
        each = zip(self.kernel, stride, self.dilation if self.kind == "max" else (1, 1, 1), strict=True)
        found = [(k, s, min(self.padding, k // 2), d) for k, s, d in each]
        return found[3 - self.dims :]

    @property
    def size(self) -> tuple[int, ...]:
        """Spatial; at least as long as one window."""
        given = (self.depth, self.rows, self.columns)[3 - self.dims :]
        if self.kind.startswith("adaptive"):
            return given
        # (torch's avg_pool3d wants the input to be as long without its padding)
        lengths = [(k - 1) * d + 1 - (2 * p if self.name != "avg_pool3d" else 0) for k, _, p, d in self.windows]
        return tuple(map(max, given, lengths))

    @property
    def arguments(self) -> dict[str, Any]:
        if self.kind.startswith("adaptive"):
            return {"output_size": self.output[3 - self.dims :]}
        kernel, stride, padding, dilation = (tuple(column) for column in zip(*self.windows, strict=True))
        made = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": self.ceil_mode}
        if self.is_max:
            return made | {"dilation": dilation}
        made |= {"count_include_pad": self.include}
        return made if self.dims == 1 else made | {"divisor_override": self.divisor}

    def input(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> torch.Tensor:
        draw = torch.Generator().manual_seed(self.seed)
        shape = *([] if self.batch < 0 else [self.batch]), self.channels, *self.size
        x = torch.randn(shape, generator=draw, dtype=torch.float64)
        if self.values != "normal":
            x = (x * 1.5).round()  # also zeros of either sign
        if self.values == "missing":
            odd = torch.randint(0, 40, shape, generator=draw)
            for value, number in enumerate((math.nan, math.inf, -math.inf, -math.inf, -math.nan)):
                x[odd == value] = number
        x = x.to(device, dtype)
        if self.channels_last and self.dims in FORMATS and self.batch >= 0:
            x = x.contiguous(memory_format=FORMATS[self.dims])
        return x

    def __str__(self) -> str:
        pairs = ((f, getattr(self, f.name)) for f in dataclasses.fields(self))
        others = [f"{f.name}={value}" for f, value in pairs if value != f.default]
        return " ".join(others) or "default"


def call(where: Any, case: Pool, input: torch.Tensor, indices: bool = False) -> dict[str, torch.Tensor]:
    options = case.arguments | ({"return_indices": True} if indices else {})
    found = getattr(where, case.name)(input, **options)
    return {"y": found[0], "indices": found[1]} if indices else {"y": found}


def run(where: Any, case: Pool, dtype: torch.dtype, device: Any = "cpu", truth: bool = False):
    """Results and gradients; as the truth in float64, of operands rounded to `dtype`."""
    x = case.input(dtype, device)
    x = (x.double() if truth else x).requires_grad_()
    return with_gradients(call(where, case, x), {"input": x})


def check_values(case: Pool, dtype: torch.dtype, device: Any = "cpu") -> None:
    """Maxima and their places: those of the twin and of torch. The rest in float64 too; else at most twice torch's
    error."""
    if case.is_max:
        x = case.input(dtype, device)
        ours, twin = (call(where, case, x, indices=True) for where in (functional, reference))
        theirs = None if torch_has_no_place(case) else call(F, case, x, indices=True)["indices"]
        plain = call(functional, case, x)
        kept = call(functional, case, x.clone().requires_grad_())
        for found in (ours, kept):
            same_values(found["y"], twin["y"])
        same_values(plain["y"], twin["y"], zeros=False)
        assert ours["indices"].dtype == torch.int64 and torch.equal(ours["indices"], twin["indices"])
        # (torch's indices of windows of -infinity are not always the first, channels last in three dimensions)
        there = twin["y"] != -math.inf
        assert theirs is None or torch.equal(ours["indices"][there], theirs[there])
    if case.values == "missing":
        if not case.is_max:
            x = case.input(dtype, device)
            ours, twin = (call(where, case, x)["y"] for where in (functional, reference))
            assert torch.equal(ours.isfinite(), twin.isfinite()) and torch.equal(ours.isnan(), twin.isnan())
        return
    ours = run(functional, case, dtype, device)
    if dtype == torch.float64:
        found = ours, run(reference, case, dtype, device)
        if torch_has_no_place(case):  # the maximum of nothing is not a number that can be off
            same_values(*(f.pop("y") for f in found))
        assert_equal(*found, 1e-13)
        return
    # (torch's indices of windows that hold nothing are outside of its gradients; it has no avg_pool3d of 16 bits)
    peer = reference if torch_has_no_place(case) or (case.name == "avg_pool3d" and dtype in LOW) else F
    found = ours, run(peer, case, dtype, device), run(reference, case, dtype, device, truth=True)
    if torch_has_no_place(case):
        [f.pop("y") for f in found]
    assert_no_worse(*found)


def same_values(found: torch.Tensor, expected: torch.Tensor, zeros: bool = True) -> None:
    """zeros: of the same sign as well (where no places are wanted, the zero of a window may be any of its zeros)."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    missing = expected.isnan()
    assert torch.equal(found.isnan(), missing)
    numbers = ~missing
    assert torch.equal(found[numbers], expected[numbers])
    assert not zeros or torch.equal(found[numbers].signbit(), expected[numbers].signbit())


def torch_has_no_place(case: Pool) -> bool:
    """Whether a window may hold nothing: torch's index is then outside of the plane, where its backward writes."""
    return any(d > 1 and p for *_, p, d in case.windows)


SPACE: dict[str, Any] = {
    "kind": ["max", "max", "avg", "adaptive_max", "adaptive_avg"],
    "dims": (1, 3),
    "batch": (-1, 3),
    "channels": [1, 2, 3, 5, 8, 16, 17, 33],
    "depth": (1, 6),
    "rows": (1, 12),
    "columns": [*range(1, 40), 47, 48, 49, 64, 65, 70],
    "kernel": [(1, 1, 1), (2, 2, 2), (3, 3, 3), (1, 2, 3), (3, 1, 2), (2, 5, 4), (3, 4, 5), (1, 7, 7), (4, 9, 9)],
    "stride": [None, (1, 1, 1), (2, 2, 2), (1, 2, 2), (2, 1, 3), (3, 2, 1), (1, 1, 2)],
    "padding": [0, 1, 1, 2, 9],
    "dilation": [(1, 1, 1), (1, 1, 1), (2, 2, 2), (1, 3, 2), (2, 1, 3)],
    "ceil_mode": FLAG,
    "include": FLAG,
    "divisor": [None, None, 5, -3],
    "output": [(1, 1, 1), (2, 3, 4), (3, 2, 7), (5, 1, 40), (1, 7, 7), (2, 1, 1)],
    "channels_last": FLAG,
    "values": ["normal", "few", "missing"],
    "seed": SEED,
}
TINY = {
    **SPACE, "batch": (-1, 2), "channels": (1, 2), "depth": (1, 3), "rows": (1, 4), "columns": (1, 6),
    "kernel": [(1, 1, 1), (2, 2, 2), (1, 2, 3), (3, 1, 2)], "output": [(1, 1, 1), (2, 3, 4)], "values": ["normal"],
}  # fmt: skip
