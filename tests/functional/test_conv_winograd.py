"""Kernels of 3x3 in float32, which are computed tile by tile where that takes fewer products."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pykernels import functional, reference
from tests.helpers import SEED, assert_same_bits, drawn, with_gradients

LAYOUTS = {"planar": torch.contiguous_format, "channels last": torch.channels_last}
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


class Tiles:
    """A problem with enough channels and pixels."""

    def __init__(self, batch=2, groups=1, in_channels=32, out_channels=32, height=14, width=14, dilation=1, padding=1,
                 relu=False, layout="planar", seed=0):  # fmt: skip
        self.__dict__.update({n: v for n, v in locals().items() if n != "self"})

    def __repr__(self):
        return f"Tiles({', '.join(f'{n}={v!r}' for n, v in self.__dict__.items())})"

    def tensors(self, dtype=torch.float32):
        draw = torch.Generator().manual_seed(self.seed)
        height, width = (n + max(2 * (self.dilation - self.padding), 0) for n in (self.height, self.width))
        shapes = {
            "input": (self.batch, self.groups * self.in_channels, height, width),
            "weight": (self.groups * self.out_channels, self.in_channels, 3, 3),
            "bias": (self.groups * self.out_channels,),
        }
        made = {n: torch.randn(s, generator=draw) for n, s in shapes.items()}
        for name in ("input", "weight"):
            made[name] = made[name].contiguous(memory_format=LAYOUTS[self.layout])
        return {n: t.to(dtype).requires_grad_() for n, t in made.items()}

    def call(self, where, tensors):
        options = {"padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        if where is F:
            y = F.conv2d(*tensors.values(), **options)
            return y.relu() if self.relu else y
        return where.conv2d(*tensors.values(), **options, activation="relu" if self.relu else None)

    def run(self, where, dtype=torch.float32):
        tensors = self.tensors(dtype)
        return with_gradients({"y": self.call(where, tensors)}, tensors)


def error(found, truth):
    return {n: ((found[n].double() - t).abs().max() / t.abs().max()).item() for n, t in truth.items() if t.numel()}


def check(case):
    truth, found = case.run(F, torch.float64), case.run(functional)
    names = ["y"] if case.relu else list(truth)  # rounding moves sums across zero, where ReLU's derivative jumps
    for name in names:
        assert found[name].shape == truth[name].shape
    for name, off in error({n: found[n] for n in names}, {n: truth[n] for n in names}).items():
        assert off < 3e-6, f"{name} of {case}"


@pytest.mark.isa
@drawn(
    60, of=Tiles, batch=[1, 2, 3], groups=[1, 1, 2], in_channels=[16, 17, 33, 64], out_channels=[16, 20, 33, 65, 70],
    height=(4, 31), width=(4, 31), dilation=[1, 1, 2, 3], padding=[0, 1, 1, 2, 3], relu=[False, True],
    layout=list(LAYOUTS), seed=SEED,
)  # fmt: skip
def test_against_float64(case):
    check(case)


@pytest.mark.isa
@every_layout
@pytest.mark.parametrize("channels", [(16, 130), (130, 16), (200, 40)], ids=str)
def test_many_channels(channels, layout):
    """More than are put together at once, on both sides."""
    check(Tiles(2, 1, *channels, 15, 22, layout=layout))


@every_layout
def test_errors_are_of_the_size_of_torchs(layout):
    case = Tiles(2, 1, 256, 256, 14, 14, layout=layout)
    truth = case.run(F, torch.float64)
    ours, theirs = error(case.run(functional), truth), error(case.run(F), truth)
    for name in truth:
        assert ours[name] < 4 * theirs[name] + 5e-7, name


@pytest.mark.isa
@every_layout
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["input", "weight", "grad"])
def test_what_is_no_number_stays_in_its_places(where, bad, layout):
    case = Tiles(2, 1, 32, 48, 12, 13, layout=layout)

    def results(conv, dtype):
        given = case.tensors(dtype)
        grad = torch.randn(2, 48, 12, 13, generator=torch.Generator().manual_seed(1)).to(dtype)
        with torch.no_grad():
            {**given, "grad": grad}[where][1, 2, 2, 1] = bad
        y = case.call(conv, given)
        return [y.detach(), *torch.autograd.grad(y, given.values(), grad)]

    names = ["y", "input", "weight", "bias"]
    both = results(functional, torch.float32), results(reference, torch.float64)
    for name, found, expected in zip(names, *both, strict=True):
        finite = expected.isfinite()
        if (name, where) == ("input", "weight"):  # zeros around the gradient are multiplied too
            finite = finite[:, :, 1:-1, 1:-1]
            found, expected = found[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1]
        assert torch.equal(found.isfinite(), finite), name
        torch.testing.assert_close(found[finite].double(), expected[finite], rtol=1e-4, atol=1e-4)


@every_layout
def test_sums_inside_a_tile_may_overflow(layout):
    """Pixels of opposite signs, whose difference is no float."""
    case = Tiles(1, 1, 32, 32, 8, 8, padding=0, layout=layout)
    given = {n: t.detach() for n, t in case.tensors().items()}
    given["input"][0, 0, 2:5:2, 3] = torch.tensor([3e38, -3e38])
    given["weight"][:, 0] = 1e-3
    y = case.call(functional, given)
    assert y.isfinite().all()
    torch.testing.assert_close(y, case.call(F, given), rtol=1e-4, atol=1e30)  # (sums of 3e35 and -3e35)


@every_layout
def test_tiles_are_used(layout):
    """A call with a number that is none is computed without them: other bits, nearly the same values."""
    case = Tiles(2, 1, 64, 64, 16, 16, layout=layout)
    given = {n: t.detach() for n, t in case.tensors().items()}
    clean = case.call(functional, given)[0]
    given["input"][1, 0, 0, 0] = math.nan
    other = case.call(functional, given)[0]
    assert not torch.equal(clean, other)
    torch.testing.assert_close(clean, other, rtol=1e-4, atol=1e-4)


@pytest.mark.isa
@every_layout
def test_same_bits_for_any_number_of_threads(threads, layout):
    for case in (Tiles(3, 1, 48, 40, 13, 17, layout=layout), Tiles(1, 2, 70, 130, 8, 8, dilation=2, layout=layout)):
        found = []
        for count in (1, 2, 3):
            threads(count)
            found.append(case.run(functional))
        assert_same_bits(found[1], found[0])
        assert_same_bits(found[2], found[0])
