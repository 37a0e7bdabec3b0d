"""Convolutions at the edges of what the kernels are made for, against torch in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import pykernels.functional as pf

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def pair(function, theirs, *shapes, dtype=torch.float32, layout=None):
    """Output and gradients of ours in `dtype`, and of torch's in float64, of the same values."""
    values = [torch.randn(shape).to(dtype) for shape in shapes]
    found = []
    for call, kind in ((function, dtype), (theirs, torch.float64)):
        given = [v.to(kind) for v in values]
        if layout is not None:
            given = [v.contiguous(memory_format=layout) for v in given]
        given = [v.requires_grad_() for v in given]
        out = call(*given)
        torch.manual_seed(1)
        grad = torch.randn(out.shape).to(dtype).to(kind)
        found.append((out, *torch.autograd.grad(out, given, grad)))
    return found


def assert_close(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a.double(), b, atol=tolerance * max(1.0, b.abs().max().item()), rtol=0)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_place_that_reads_nothing_but_padding(groups):
    """Strides over planes can lead into the padding, where only the bias is."""
    ours, theirs = pair(
        lambda x, w, b: pf.conv3d(x, w, b, (3, 1, 1), (1, 1, 1), 1, groups),
        lambda x, w, b: F.conv3d(x, w, b, (3, 1, 1), (1, 1, 1), 1, groups),
        (1, 2, 1, 8, 8), (2, 2 // groups, 1, 3, 3), (2,),
    )  # fmt: skip
    assert_close(ours, theirs, 1e-5)


@pytest.mark.isa
@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("channels", [3, 6])
@pytest.mark.parametrize(
    "kernel, stride, padding, dilation",
    [(16, 16, 0, 1), (4, 5, 1, 1), (2, 2, 0, 1), (2, 3, 1, 2), ((3, 1), (4, 2), (2, 0), 1), (1, 2, 0, 1)],
    ids=str,
)
def test_patches_that_do_not_overlap(kernel, stride, padding, dilation, channels, layout):
    """Strides no smaller than the kernel: patch embeddings and their like."""
    high, wide = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    ours, theirs = pair(
        lambda x, w: pf.conv2d(x, w, None, stride, padding, dilation),
        lambda x, w: F.conv2d(x, w, None, stride, padding, dilation),
        (3, channels, 37, 33), (10, channels, high, wide), layout=layout,
    )  # fmt: skip
    assert_close(ours, theirs, 1e-5)
    assert kernel == 1 or ours[1].is_contiguous(memory_format=layout)  # (such weights have no layout)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_gradients_of_padding_are_rounded_once(mode):
    """Every pixel's gradient in bfloat16 is the nearest number to the sum, also where padding adds to it."""
    torch.manual_seed(2)
    x = torch.randn(4, 3, 9, 9, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(5, 3, 5, 5, dtype=torch.bfloat16)
    out = pf.conv2d(x, weight, padding=2, padding_mode=mode)
    grad = torch.randn_like(out)
    (ours,) = torch.autograd.grad(out, x, grad)
    exact = x.detach().double().requires_grad_()
    padded = F.pad(exact, (2, 2, 2, 2), mode=mode)
    (theirs,) = torch.autograd.grad(F.conv2d(padded, weight.double()), exact, grad.double())
    apart = (ours != theirs.to(torch.bfloat16)).double().mean().item()
    assert apart < 0.01  # the sums themselves are float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dilation_wider_than_the_image(dtype):
    x, weight = torch.randn(1, 2, 20, 64).to(dtype), torch.randn(3, 2, 3, 3).to(dtype)
    ours = pf.conv2d(x, weight, padding=(1, 24), dilation=(1, 24))
    theirs = F.conv2d(x.double(), weight.double(), padding=(1, 24), dilation=(1, 24))
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(ours.double(), theirs, atol=tolerance * 5, rtol=tolerance)


@pytest.mark.parametrize("which", range(3))
def test_negated_views(which):
    """torch negates the imaginary part of a conjugate where it is read."""
    given = [torch.randn(1, 2, 6, 6), torch.randn(4, 2, 3, 3), torch.randn(4)]
    given[which] = torch.complex(given[which], given[which]).conj().imag
    assert given[which].is_neg()
    torch.testing.assert_close(pf.conv2d(*given), F.conv2d(*given), atol=1e-5, rtol=1e-5)


def test_fused_pooling_of_infinities():
    """A bias of infinity and a sum of -infinity are no number, as in the two functions one after the other."""
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 1] = -torch.inf
    weight, bias = torch.ones(1, 1, 1, 1), torch.tensor([torch.inf])
    fused = pf.conv2d_relu_max_pool2d(x, weight, bias, pool_kernel_size=2)
    torch.testing.assert_close(fused, F.max_pool2d(F.relu(F.conv2d(x, weight, bias)), 2), equal_nan=True)
    assert fused.isnan().sum() == 1


class TestLargeResults:
    """Results in memory that the next call finds again are tensors like any other."""

    def result(self):
        return pf.conv2d(torch.randn(2, 3, 128, 128), torch.randn(8, 3, 3, 3), padding=1)

    def test_storage(self):
        out = self.result()
        before = out.clone()
        assert out.data_ptr() % 64 == 0
        out.share_memory_()
        assert out.is_shared() and torch.equal(out, before)
        out = self.result()
        kept = out.clone()
        out.resize_(3, *out.shape[1:])
        assert torch.equal(out[:2], kept)

    def test_lives_as_long_as_it_is_used(self):
        kept = [self.result() for _ in range(4)]
        copies = [k.clone() for k in kept]
        for _ in range(4):
            self.result().fill_(7)
        assert all(torch.equal(k, c) for k, c in zip(kept, copies, strict=True))
        assert len({k.data_ptr() for k in kept}) == 4

    def test_profiler_sees_it(self):
        x, weight = torch.randn(2, 3, 128, 128), torch.randn(8, 3, 3, 3)
        with torch.profiler.profile(profile_memory=True) as profile:
            out = pf.conv2d(x, weight, padding=1)
        assert sum(event.self_cpu_memory_usage for event in profile.key_averages()) == out.nbytes
