"""The pooling functions against their twins in float64 and against torch."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from pykernels import functional, reference
from tests.helpers import LOW, assert_same_bits, drawn, with_gradients

from .pool_cases import FORMATS, SPACE, Pool, call, check_values, every_dtype, run, same_values


# -- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.isa
@every_dtype
@drawn(150, of=Pool, **SPACE)
def test_against_float64(device, dtype, case):
    check_values(case, dtype, device)


USUAL = [((2, 2), None, 0), ((3, 3), (2, 2), 1), ((3, 3), (1, 1), 1), ((5, 5), (1, 1), 2), ((3, 2), (2, 2), 0)]


@pytest.mark.isa
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("columns", [*range(2, 36), 63, 64, 65, 130])
def test_every_tail(device, columns, kind, channels_last):
    for kernel, stride, padding in USUAL:
        stride = None if stride is None else (1, *stride)
        case = Pool(kind, 2, 2, 3, 1, 5, columns, (1, *kernel), stride, padding, values="few", seed=columns)
        if channels_last:
            case = Pool(kind, 2, 1, columns, 1, 5, 4, (1, *kernel), stride, padding, channels_last=True, values="few")
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            check_values(case, dtype, device)


LARGE = [
    Pool("max", 2, 2, 8, 1, 96, 130, (1, 3, 3), (1, 2, 2), 1),
    Pool("max", 2, 1, 1, 1, 200, 257, (1, 2, 2)),
    Pool("avg", 2, 2, 8, 1, 96, 130, (1, 3, 3), (1, 1, 1), 1),
    Pool("max", 3, 1, 4, 12, 33, 40, (3, 3, 3), (2, 2, 2), 1),
    Pool("adaptive_avg", 2, 4, 8, 1, 65, 66, output=(1, 1, 1)),
    Pool("adaptive_max", 2, 4, 8, 1, 65, 66, output=(1, 7, 9)),
    Pool("max", 1, 2, 16, 1, 1, 4099, (1, 1, 7), (1, 1, 2), 3),
]


@pytest.mark.isa
@every_dtype
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (64, 64), (130, 97), (1, 9001)], ids=str)
def test_means_of_whole_planes(device, dtype, size):
    """Of one run and of several, as an adaptive window and as one of the plane's size."""
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(sum(size))).to(device, dtype)
    expected = x.double().mean((2, 3), keepdim=True)
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    for found in (functional.adaptive_avg_pool2d(x, 1), functional.avg_pool2d(x, size)):
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    tripled = functional.avg_pool2d(x, size, divisor_override=3).double()
    torch.testing.assert_close(
        tripled, x.double().sum((2, 3), keepdim=True) / 3, rtol=10 * tolerance, atol=10 * tolerance
    )
    x[1, 2, 0, 0] = math.nan
    assert functional.adaptive_avg_pool2d(x, 1).isnan().sum() == 1


@every_dtype
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_same_bits_for_any_number_of_threads(threads, dtype, case, channels_last):
    case = dataclasses.replace(case, channels_last=channels_last)
    found = []
    for count in (1, 2, 7):
        threads(count)
        found.append(run(functional, case, dtype))
    check_values(case, dtype)
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel", [16, 17, 40])
def test_places_beyond_a_byte(device, kernel, channels_last):
    """256 places are kept in a byte, more of them in an int64."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        case = Pool(
            "max", 2, 1, 3, 1, 45, 60, (1, kernel, kernel), (1, 3, 2), 7, channels_last=channels_last, values="few"
        )
        check_values(case, dtype, device)
        kept = torch.ops.pykernels.max_pool_forward(
            case.input(dtype, device), [kernel] * 2, [3, 2], [7, 7], [1, 1], False, [], True
        )[1]
        assert kept.dtype == (torch.uint8 if kernel == 16 else torch.int64)


@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@drawn(40, of=Pool, **{**SPACE, "kind": ["avg", "adaptive_avg"], "values": ["normal"]})
def test_means_of_equal_numbers_are_these(device, dtype, case):
    x = torch.full_like(case.input(dtype, device), 3.0)
    if case.padding == 0 and case.divisor is None:
        assert (call(functional, case, x)["y"] == 3).all()


# -- what is not a number, infinities, ties ---------------------------------------------------------------------------
@every_dtype
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_no_number_stays_in_its_windows(device, dtype, channels_last):
    x = torch.randn(2, 20, 9, 40, device=device).to(dtype)
    x[1, 3, 4, 20] = math.nan
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for kind, function in (("max", functional.max_pool2d), ("avg", functional.avg_pool2d)):
        x.requires_grad_()
        y = function(x, 3, 2, 1)
        expected = getattr(F, f"{kind}_pool2d")(x, 3, 2, 1).isnan()
        assert torch.equal(y.isnan(), expected) and expected.any()
        grad = torch.autograd.grad(y.float().nan_to_num().sum(), x)[0]
        assert not grad.isnan().any()
        bad = torch.zeros_like(y)
        bad[0, 0, 0, 0] = math.nan
        (grad,) = torch.autograd.grad(function(x, 3, 2, 1), x, bad)
        there = getattr(F, f"{kind}_pool2d")(x, 3, 2, 1)
        theirs = torch.autograd.grad(there, x, bad)[0]
        assert torch.equal(grad.isnan(), theirs.isnan()) and grad.isnan().any()


@every_dtype
def test_ties_go_to_the_first(device, dtype):
    for dims, shape in ((1, (2, 3, 40)), (2, (2, 3, 40, 41)), (3, (1, 2, 6, 7, 20))):
        for form in (torch.contiguous_format, FORMATS.get(dims, torch.contiguous_format)):
            x = torch.zeros(shape, device=device, dtype=dtype).contiguous(memory_format=form)
            for value in (0.0, -math.inf, math.inf):
                x.fill_(value)
                y, at = getattr(functional, f"max_pool{dims}d")(x, 3, 2, 1, return_indices=True)
                expected = getattr(reference, f"max_pool{dims}d")(x, 3, 2, 1, return_indices=True)
                same_values(y, expected[0])
                assert torch.equal(at, expected[1])


def test_windows_of_nothing(device):
    """With dilation a window can pass by the whole input."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for shape in ((1, 1, 1, 1), (2, 17, 1, 1), (1, 1, 1, 40), (1, 3, 40, 1)):
            for form in (torch.contiguous_format, torch.channels_last):
                x = torch.ones(shape, device=device, dtype=dtype).contiguous(memory_format=form).requires_grad_()
                found = [where.max_pool2d(x, 2, 2, 1, 2, return_indices=True) for where in (functional, reference)]
                assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
                (grad,) = torch.autograd.grad(found[0][0].sum(), x, create_graph=True)
                assert torch.equal(grad, torch.autograd.grad(found[1][0].sum(), x)[0])
                # the gradient's own derivative: nothing of what is not there
                window, ops = ([2, 2], [2, 2], [1, 1], [2, 2], False, []), torch.ops.pykernels
                places = ops.max_pool_forward(x.detach(), *window, True)[1]
                again = ops.max_pool_gather(x.detach(), places, *window)
                assert torch.equal(again, torch.where(found[0][0].isfinite(), 1.0, 0.0).to(dtype))


# -- layouts ----------------------------------------------------------------------------------------------------------
@every_dtype
@drawn(40, of=Pool, **{**SPACE, "values": ["few"], "channels_last": [False]})
def test_any_strides(device, dtype, case):
    """Slices and turned inputs have the bits of contiguous ones, and so have expanded gradients."""
    x = case.input(dtype, device)
    expected = run(functional, case, dtype, device)
    lays = {
        "wide": lambda t: torch.cat([torch.full_like(t[..., :1], math.nan), t, t], -1)[..., 1 : 1 + t.shape[-1]],
        "halves": lambda t: torch.stack([t, t], -1)[..., 0],
        "turned": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    }
    for lay in lays.values():
        leaf = lay(x).requires_grad_()
        assert_same_bits(with_gradients(call(functional, case, leaf), {"input": leaf}), expected)
        y = call(functional, case, leaf)["y"]
        given = torch.ones((), device=device, dtype=dtype).expand(y.shape)
        assert torch.equal(*[torch.autograd.grad(y, leaf, g, retain_graph=True)[0] for g in (given, given.clone())])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["max", "avg", "adaptive_max", "adaptive_avg"])
def test_formats_are_torchs(device, kind, dims):
    for case in (Pool(kind, dims, channels=5), Pool(kind, dims, channels=1), Pool(kind, dims, rows=1, depth=1)):
        x = case.input(torch.float32, device)
        turned = x.contiguous(memory_format=FORMATS[dims])
        for given in (x, turned, turned[:1], x[:, :, ..., ::2]):
            found = []
            # (torch's others of three dimensions are contiguous always; ours are like its maxima)
            peer = (lambda x: F.max_pool3d(x, 1)) if dims == 3 else lambda x, case=case: call(F, case, x)["y"]
            for function in (lambda x, case=case: call(functional, case, x)["y"], peer):
                leaf = given.clone(memory_format=torch.preserve_format).requires_grad_()
                y = function(leaf)
                order = sorted(range(1, y.dim()), key=lambda d, y=y: (y.stride(d), -d)) if dims == 3 else y.stride()
                found.append((order, torch.autograd.grad(y.sum(), leaf)[0].stride()))
            assert found[0] == found[1], (case, given.stride())


def test_nothing_but_places_is_saved(device):
    """A byte a window; the indices only for whoever asks for them."""
    x = torch.randn(2, 3, 32, 32, device=device, requires_grad=True)
    for indices in (False, True):
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, k=kept: k.append(t) or t, lambda t: t):
            functional.max_pool2d(x, 2, return_indices=indices)
        assert [(t.dtype, t.numel()) for t in kept] == [(torch.uint8, 2 * 3 * 16 * 16)]
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        functional.avg_pool2d(x, 2)
    assert not kept


def test_integers_are_torchs(cpu_only):
    x = torch.randint(-9, 9, (2, 3, 8, 8))
    assert torch.equal(functional.max_pool2d(x, 2), F.max_pool2d(x, 2))
    assert torch.equal(functional.max_pool2d(x, 2, return_indices=True)[1], F.max_pool2d(x, 2, return_indices=True)[1])


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_gives_torchs_dtypes(device, given):
    for name in ("max_pool2d", "max_pool3d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool3d", "adaptive_max_pool1d"):
        x = torch.ones(1, 2, *[4] * int(name[-2]), device=device, dtype=given, requires_grad=True)
        with torch.autocast(device.type, torch.bfloat16):
            found = [getattr(where, name)(x, 2) for where in (functional, F)]
        assert found[0].dtype == found[1].dtype
        assert torch.autograd.grad(found[0].float().sum(), x)[0].dtype == given


# -- unpooling --------------------------------------------------------------------------------------------------------
@every_dtype
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_max_unpool(device, dtype, dims, channels_last):
    x = torch.randn(2, 17, *[8] * dims, device=device).to(dtype)
    if channels_last and dims in FORMATS:
        x = x.contiguous(memory_format=FORMATS[dims])
    for example in (x, x[1]):
        y, at = getattr(functional, f"max_pool{dims}d")(example, 2, return_indices=True)
        found = []
        for where in (functional, F):
            leaf = y.detach().requires_grad_()
            back = getattr(where, f"max_unpool{dims}d")(leaf, at, 2)
            found.append((back, torch.autograd.grad(back.float().square().sum(), leaf)[0]))
        assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_max_unpool_keeps_the_last_whatever_the_threads(threads):
    y = torch.arange(40000.0).reshape(1, 1, 200, 200)
    at = torch.randint(0, 160000, y.shape)
    expected = torch.zeros(160000)
    for value, index in zip(y.flatten().tolist(), at.flatten().tolist(), strict=True):
        expected[index] = value
    for count in (1, 2, 5):
        threads(count)
        assert torch.equal(functional.max_unpool2d(y, at, 2).flatten(), expected)


@pytest.mark.parametrize("bad", [-1, 64, 2**40])
def test_max_unpool_outside(device, bad):
    y, at = F.max_pool2d(torch.randn(1, 1, 8, 8, device=device), 2, return_indices=True)
    at[0, 0, 1, 1] = bad
    with pytest.raises(RuntimeError, match=r"invalid max index|inside planes of 64 elements"):
        functional.max_unpool2d(y, at, 2)
