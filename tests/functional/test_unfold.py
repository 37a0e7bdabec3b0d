"""unfold and fold against torch's and against each other; the modules."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jvp, vmap

import pykernels
from pykernels import functional
from tests.helpers import LOW, SEED, assert_equal, assert_same_bits, drawn, outcome, with_gradients

from .compiling import compiled, forget_what_was_compiled

assert forget_what_was_compiled  # around every test
unfold_op, fold_op = torch.ops.pykernels.unfold.default, torch.ops.pykernels.fold.default
DTYPES = [torch.float64, torch.float32, *LOW]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """One problem. Numbers of each dimension are drawn up to `kernel`, `stride`, `dilation` and `padding`."""

    batch: int = 2
    channels: int = 3
    size: int = 5
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    padding: int = 1
    batched: bool = True
    layout: str = "planar"
    seed: int = 0

    def _drawn(self, name: str, least: int = 1) -> tuple[int, int]:
        draw = random.Random(f"{name} {self.seed}")
        return draw.randint(least, getattr(self, name)), draw.randint(least, getattr(self, name))

    @property
    def options(self) -> dict[str, tuple[int, int]]:
        numbers = {name: self._drawn(name) for name in ("dilation", "stride")}
        return {"kernel_size": self._drawn("kernel"), "padding": self._drawn("padding", 0), **numbers}

    @property
    def pixels(self) -> tuple[int, int]:
        given = self.options
        numbers = zip(given["kernel_size"], given["dilation"], given["padding"], strict=True)
        covered = [d * (k - 1) + 1 - 2 * p for k, d, p in numbers]
        return max(covered[0], 1) + self.size - 1, max(covered[1], 1) + self._drawn("size")[0] - 1

    def image(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> torch.Tensor:
        draw = torch.Generator().manual_seed(self.seed)
        shape = ([self.batch] if self.batched else []) + [self.channels, *self.pixels]
        image = torch.randn(shape, generator=draw, dtype=torch.float64).to(device, dtype)
        if self.layout == "turned":
            image = image.movedim(-3, -1).contiguous().movedim(-1, -3)
        if self.layout == "wide":
            image = torch.stack([image, image * math.nan], -1)[..., 0]
        return image.requires_grad_()


SPACE: dict[str, Any] = {
    "batch": [0, 1, 3], "channels": [1, 2, 5, 17], "size": [1, 2, 7, 33], "kernel": [1, 2, 3, 5], "seed": SEED,
    "stride": [1, 1, 2, 3], "dilation": [1, 1, 2, 3], "padding": [0, 1, 3], "batched": [True, True, False],
    "layout": ["planar", "turned", "wide"],
}  # fmt: skip


def there_and_back(where: Any, case: Blocks, image: torch.Tensor) -> dict[str, torch.Tensor]:
    columns = where.unfold(image, **case.options)
    weighting = torch.linspace(-1, 1, columns.numel(), device=image.device).reshape(columns.shape).to(image.dtype)
    return {"columns": columns, "image": where.fold(columns * weighting, case.pixels, **case.options)}


# -- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.isa
@every_dtype
@drawn(80, of=Blocks, **SPACE)
def test_against_torch(device, dtype, case):
    """Columns are copies. Sums of low precision are no further off than torch's."""
    found = []
    for where in (functional, F):
        leaf = case.image(dtype, device)
        found.append(with_gradients(there_and_back(where, case, leaf), {"x": leaf}))
    assert torch.equal(found[0]["columns"], found[1]["columns"])
    leaf = case.image(dtype, device).detach().double().requires_grad_()
    truth = with_gradients(there_and_back(F, case, leaf), {"x": leaf})
    for name in ("image", "grad x"):
        ours, theirs = ((f[name].double() - truth[name]).abs().max() if leaf.numel() else 0 for f in found)
        most = truth[name].abs().max() if leaf.numel() else 0
        assert ours <= 2 * theirs + 4 * torch.finfo(dtype).eps * most


@every_dtype
def test_what_is_no_number_stays_in_its_places(device, dtype):
    x = torch.randn(2, 3, 7, 7, device=device).to(dtype)
    x[1, 2, 3, 4] = math.nan
    columns = functional.unfold(x, 3, padding=1)
    assert torch.equal(columns.isnan(), F.unfold(x, 3, padding=1).isnan()) and columns.isnan().sum() == 9
    columns = torch.randn(2, 27, 25, device=device).to(dtype)
    columns[1, 11, 7] = math.inf
    image = functional.fold(columns, 7, 3)
    assert torch.equal(image.isinf(), F.fold(columns, 7, 3).isinf()) and image.isinf().sum() == 1


@pytest.mark.isa
@every_dtype
def test_same_bits_for_any_number_of_threads(threads, dtype):
    for case in (Blocks(3, 20, 40), Blocks(1, 1, 90, 5, 2), Blocks(2, 7, 30, 3, 1, 2)):
        found = []
        for count in (1, 2, 3):
            threads(count)
            leaf = case.image(dtype)
            found.append(with_gradients(there_and_back(functional, case, leaf), {"x": leaf}))
        assert_same_bits(found[1], found[0])
        assert_same_bits(found[2], found[0])


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64], ids=str)
def test_dtypes_without_kernels_are_torchs(cpu_only, dtype):
    x = torch.randint(0, 2, (2, 3, 6, 5)).to(dtype)
    assert torch.equal(functional.unfold(x, 2, padding=1), F.unfold(x, 2, padding=1))
    y = F.unfold(x, 2)
    assert torch.equal(functional.fold(y, (6, 5), 2), F.fold(y, (6, 5), 2))


# -- derivatives and transforms ---------------------------------------------------------------------------------------
CASE = Blocks(2, 2, 3, 2, 2, 2, seed=4)


def columns_of(x, where=functional):
    return where.unfold(x, **CASE.options)


def image_of(y, where=functional):
    return where.fold(y, CASE.pixels, **CASE.options)


@pytest.mark.parametrize("function", [columns_of, image_of])
def test_derivatives(device, function):
    image = CASE.image(device=device)
    given = image if function is columns_of else columns_of(image).detach().requires_grad_()
    assert gradcheck(function, given, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(lambda t: function(t).sin(), given, check_fwd_over_rev=True, check_batched_grad=True)
    given, found = given.detach(), []
    for where in (functional, F):

        def scalar(t, where=where):
            return function(t, where).sin().sum()

        made = jvp(grad(scalar), (given,), (given,)), hessian(scalar)(given)
        made += (vmap(grad(scalar), 1, 1)(torch.stack([given, 2 * given], 1)),)
        found.append({str(i): t for i, t in enumerate(torch.utils._pytree.tree_leaves(made))})
    assert_equal(*found)


def test_opcheck(device):
    image = CASE.image(device=device)
    given = CASE.options
    pads = [p for p in given["padding"] for _ in range(2)]
    numbers = given["kernel_size"], given["stride"], pads, given["dilation"]
    torch.library.opcheck(unfold_op, (image, *numbers))
    columns = unfold_op(image, *numbers).detach().requires_grad_()
    torch.library.opcheck(fold_op, (columns, CASE.pixels, *numbers))


def test_compile_with_shapes_that_change(device):
    def block(x, size):
        columns = functional.unfold(x.sin(), 3, padding=1)
        return functional.fold(columns.cos(), size, 3, padding=1)

    fast, counter = compiled(block, dynamic=True)
    for batch, height, width in ((4, 5, 6), (7, 8, 9), (10, 11, 13)):
        x = torch.randn(batch, 2, height, width, dtype=torch.float64, device=device, requires_grad=True)
        found, expected = (with_gradients({"y": f(x, (height, width))}, {"x": x}) for f in (fast, block))
        assert_equal(found, expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non_strict"])
def test_export(device, strict):
    x = torch.randn(3, 2, 6, 7, device=device)
    shapes = ({0: torch.export.Dim("batch", min=2, max=64), 2: torch.export.Dim("height", min=4, max=64)},)
    module = pykernels.Unfold(3, padding=1)
    program = torch.export.export(module, (x,), dynamic_shapes=shapes, strict=strict)
    assert unfold_op in [node.target for node in program.graph.nodes]
    longer = torch.randn(5, 2, 9, 7, device=device)
    torch.testing.assert_close(program.module()(longer), F.unfold(longer, 3, padding=1))


# -- errors -----------------------------------------------------------------------------------------------------------
X, Y = torch.randn(2, 4, 8, 8), torch.randn(2, 36, 36)
NUMBERS = [0, -1, (1,), (1, 1, 1), (), "a", None, 1.5, 9, (1, 5)]
IMAGES = [X[0, 0], X[None], X[:, :0], X[:, :, :0], X[:0], X.int(), [1.0], None, X.to_sparse()]
COLUMNS = [Y[0, 0], Y[None], Y[:, :0], Y[:, :, :0], Y[:0], Y[:, :35], Y[:, :, :35], Y.int(), [1.0], None]


@pytest.mark.parametrize("name", ["unfold", "fold"])
def test_errors_are_torchs(cpu_only, name):
    good = {"input": X} if name == "unfold" else {"input": Y, "output_size": 8}
    good |= {"kernel_size": 3, "dilation": 1, "padding": 0, "stride": 1}
    faults = dict.fromkeys(good, NUMBERS) | {"input": IMAGES if name == "unfold" else COLUMNS}
    draw, raised = random.Random(2), 0
    singles = [{n: fault} for n in good for fault in faults[n]]
    pairs = [{n: draw.choice(faults[n]) for n in draw.sample(list(good), 2)} for _ in range(300)]
    for wrong in singles + pairs:
        given = tuple({**good, **wrong}.values())
        found, expected = (outcome(lambda f=f, g=given: getattr(f, name)(*g)) for f in (functional, F))
        assert found == expected
        raised += found is not None
    assert raised > 250


def test_bad_calls_of_the_operators(cpu_only):
    numbers = ([3, 3], [1, 1], [0] * 4, [1, 1])
    unfold_op(X, *numbers)
    fold_op(Y, [8, 8], *numbers)
    wrong = [(0, [3]), (0, [0, 3]), (0, [9, 3]), (1, [1]), (1, [0, 1]), (2, [0, 0]), (2, [0, -1, 0, 0]), (3, [1, 0])]
    for at, bad in wrong:
        changed = [bad if i == at else n for i, n in enumerate(numbers)]
        for call in (lambda c=changed: unfold_op(X, *c), lambda c=changed: fold_op(Y, [8, 8], *c)):
            with pytest.raises(RuntimeError):
                call()
    for image in (X[0], X.long(), X.cfloat(), X[None]):
        with pytest.raises(RuntimeError):
            unfold_op(image, *numbers)
    for columns, size in ((Y, [8]), (Y, [7, 8]), (Y, [-1, 8]), (Y[0], [8, 8]), (Y[:, :35], [8, 8]), (Y.long(), [8, 8])):
        with pytest.raises(RuntimeError):
            fold_op(columns, size, *numbers)


# -- modules ----------------------------------------------------------------------------------------------------------
def test_modules_in_the_place_of_torchs(device):
    x = torch.randn(2, 3, 8, 9, device=device)
    ours, theirs = (where.Unfold((2, 3), padding=1, stride=2) for where in (pykernels, nn))
    assert isinstance(ours, nn.Unfold) and repr(ours) == repr(theirs)
    columns = ours(x)
    assert torch.equal(columns, theirs(x))
    ours, theirs = (where.Fold((8, 9), (2, 3), padding=1, stride=2) for where in (pykernels, nn))
    assert isinstance(ours, nn.Fold) and repr(ours) == repr(theirs)
    torch.testing.assert_close(ours(columns), theirs(columns))
