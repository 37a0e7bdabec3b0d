"""Drawn calls of the convolutions, run by ours, by the twin and by torch."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pykernels import functional, reference
from pykernels.reference.conv_arguments import flat_padding, numbers
from tests.helpers import LOW, SEED, assert_equal, assert_no_worse, with_gradients

DTYPES = [torch.float64, torch.float32, *LOW]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
PADDINGS = ["none", "number", "each", "pairs", "valid", "same", "full"]
MODES = ["zeros", "reflect", "replicate", "circular"]
LAYOUTS = ["planar", "channels last", "mixed", "wide", "turned"]


@dataclasses.dataclass(frozen=True)
class Conv:
    """One problem: every tensor of it follows from these fields. Numbers of each dimension are drawn up to `kernel`,
    `stride` and `dilation`; the image has `size` pixels more than it needs, in each dimension."""

    batch: int = 2
    groups: int = 1
    in_channels: int = 3  # of each group
    out_channels: int = 4
    size: int = 4
    spatial: int = 2
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    padding: str = "number"
    mode: str = "zeros"
    relu: bool = False
    bias: bool = True
    layout: str = "planar"
    batched: bool = True
    seed: int = 0

    def _drawn(self, name: str, most: int) -> tuple[int, ...]:
        draw = random.Random(f"{name} {self.seed}")
        return tuple(draw.randint(1, most) for _ in range(self.spatial))

    @property
    def taps(self) -> tuple[int, ...]:
        return self._drawn("kernel", self.kernel)

    @property
    def strides(self) -> tuple[int, ...]:
        return (1,) * self.spatial if self.padding == "same" else self._drawn("stride", self.stride)

    @property
    def dilations(self) -> tuple[int, ...]:
        return self._drawn("dilation", self.dilation)

    @property
    def given_padding(self) -> Any:
        draw = random.Random(f"padding {self.seed}")
        if self.padding == "number":
            return draw.randint(0, 3)
        if self.padding == "each":
            return [draw.randint(0, 3) for _ in range(self.spatial)]
        if self.padding == "pairs":
            return [(draw.randint(0, 3), draw.randint(0, 3)) for _ in range(self.spatial)]
        return 0 if self.padding == "none" else self.padding

    @property
    def pads(self) -> tuple[int, ...]:
        return numbers(self.spatial, self.taps, self.strides, self.given_padding, self.dilations)[1]

    @property
    def pixels(self) -> tuple[int, ...]:
        """As many as the kernel covers, or as the padding needs, and up to `size` more."""
        sizes = []
        more = self._drawn("pixels", self.size)
        for i in range(self.spatial):
            before, behind = self.pads[2 * i : 2 * i + 2]
            covered = self.dilations[i] * (self.taps[i] - 1) + 1 - before - behind
            needed = 1 if self.mode == "zeros" else max(before, behind) + 1
            sizes.append(max(covered, needed, 1) + more[i] - 1)
        return tuple(sizes)

    @property
    def options(self) -> dict[str, Any]:
        """Beyond input, weight and bias."""
        activation = "relu" if self.relu else None
        return {
            "stride": self.strides, "padding": self.given_padding, "dilation": self.dilations, "groups": self.groups,
            "padding_mode": self.mode, "activation": activation,
        }  # fmt: skip

    @property
    def numbers(self) -> tuple[Any, ...]:
        """The operators' options."""
        return self.strides, self.pads, self.dilations, self.groups, self.mode

    def tensors(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(self.seed)
        channels = self.groups * self.out_channels
        lead = [self.batch] if self.batched else []
        shapes = {
            "input": (*lead, self.groups * self.in_channels, *self.pixels),
            "weight": (channels, self.in_channels, *self.taps),
        } | ({"bias": (channels,)} if self.bias else {})
        made = {n: torch.randn(s, generator=draw, dtype=torch.float64) for n, s in shapes.items()}
        return {n: laid(t.to(device, dtype), self.layout, n).requires_grad_() for n, t in made.items()}


def laid(tensor: Tensor, layout: str, name: str) -> Tensor:
    """The same numbers with other strides."""
    if layout == "wide":
        return torch.stack([tensor, torch.full_like(tensor, torch.nan)], -1)[..., 0]
    if layout == "turned":
        return tensor.movedim(0, -1).contiguous().movedim(-1, 0)
    last = layout == "channels last" or (layout == "mixed" and name == "weight")
    formats = {4: torch.channels_last, 5: torch.channels_last_3d} if last else {}
    return tensor.contiguous(memory_format=formats.get(tensor.dim(), torch.contiguous_format))


def by_torch(input: Tensor, weight: Tensor, bias: Tensor | None = None, *, options: dict[str, Any]) -> Tensor:
    """The same in torch's own functions."""
    spatial = weight.dim() - 2
    given = (options[n] for n in ("stride", "padding", "dilation"))
    stride, pads, dilation = numbers(spatial, weight.shape[2:], *given)
    if any(pads):
        mode = options["padding_mode"]
        input = F.pad(input, flat_padding(pads), mode="constant" if mode == "zeros" else mode)
    function = getattr(F, f"conv{spatial}d")
    out = function(input, weight, bias, stride, 0, dilation, options["groups"])
    return torch.relu(out) if options["activation"] == "relu" else out


def call(where: Any, case: Conv, tensors: dict[str, Tensor]) -> Tensor:
    if where is F:
        return by_torch(*tensors.values(), options=case.options)
    return getattr(where, f"conv{case.spatial}d")(*tensors.values(), **case.options)


def run(where: Any, case: Conv, dtype: torch.dtype, device: Any = "cpu", truth: bool = False) -> dict[str, Tensor]:
    """Result and gradients; as the truth in float64, of operands rounded to `dtype`."""
    tensors = {n: t.detach() for n, t in case.tensors(dtype, device).items()}
    leaves = {n: (t.double() if truth else t).requires_grad_() for n, t in tensors.items()}
    return with_gradients({"y": call(where, case, leaves)}, leaves)


def check_values(case: Conv, dtype: torch.dtype, device: Any = "cpu") -> None:
    """float64: the twin's. Else at most twice torch's error, or the rounded twin's (of gradients three times).

    Of ReLU in lower precision only the results: its derivative jumps where rounding moves a sum across zero.
    """
    found = [run(functional, case, dtype, device)]
    if dtype == torch.float64:
        assert_equal(found[0], run(reference, case, dtype, device), 1e-11)
        return
    peer = reference if dtype in LOW else F  # (torch has no low precision for each of these)
    found += [run(peer, case, dtype, device), run(reference, case, dtype, device, truth=True)]
    if case.relu:
        found = [{"y": each["y"]} for each in found]
    assert_no_worse(*found, floor=4)


SPACE: dict[str, Any] = {
    "batch": [0, 1, 2, 3],
    "groups": [1, 1, 1, 2, 3],
    "in_channels": [1, 1, 2, 3, 8, 17],
    "out_channels": [1, 2, 3, 8, 16, 19],
    "size": [1, 3, 7, 19],
    "spatial": (1, 3),
    "kernel": [1, 2, 3, 5],
    "stride": [1, 1, 2, 3],
    "dilation": [1, 1, 2, 3],
    "padding": PADDINGS,
    "mode": ["zeros", "zeros", *MODES],
    "relu": [False, True],
    "bias": [False, True],
    "layout": LAYOUTS,
    "batched": [True, True, False],
    "seed": SEED,
}
TINY = {
    **SPACE, "batch": [1, 2], "groups": [1, 2], "in_channels": [1, 2], "out_channels": [1, 2], "size": [1, 3],
    "spatial": (1, 2), "kernel": [1, 2, 3],
}  # fmt: skip
