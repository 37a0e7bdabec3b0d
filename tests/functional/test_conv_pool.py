"""Convolution, ReLU and max-pooling in one kernel: the bits of the two functions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

import pykernels
from pykernels import _native
from pykernels.functional import conv2d, conv2d_relu_max_pool2d, max_pool2d
from tests.functional.compiling import compiled
from tests.helpers import outcome

NUMBERS = st.integers(0, 2**31)
LENET = {"pool_kernel_size": 2}


def drawn(seed: int, sizes: tuple[int, ...], kernel: tuple[int, ...], groups: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = sizes, (kernel[0], sizes[1] // groups, *kernel[1:]), kernel[:1]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def apart(x: Tensor, w: Tensor, b: Tensor | None, conv: dict, pool: dict) -> Tensor:
    y = conv2d(x, w, b, **conv, activation="relu")
    given = {name.removeprefix("pool_"): value for name, value in pool.items()}
    return max_pool2d(y, **given)


def fused_calls(monkeypatch) -> list[int]:
    """Counts the calls of the kernel from now on."""
    calls = []
    kernel = _native.kernels.conv_relu_max_pool

    class Counting:
        def __getattr__(self, name: str):
            return getattr(_kernels, name)

        def conv_relu_max_pool(self, *args):
            calls.append(1)
            return kernel(*args)

    _kernels = _native.kernels
    monkeypatch.setattr(_native, "kernels", Counting())
    return calls


@pytest.mark.isa
@settings(deadline=None, max_examples=60, database=None)
@given(
    seed=NUMBERS,
    batch=st.integers(0, 4),
    channels=st.integers(1, 9),
    groups=st.integers(1, 3),
    filters=st.integers(1, 20),
    size=st.tuples(st.integers(6, 30), st.integers(6, 30)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "same", ((0, 2), (1, 0))]),
    pool=st.tuples(st.integers(1, 3), st.sampled_from([None, 1, 2]), st.integers(0, 1), st.booleans()),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    bias=st.booleans(),
    last=st.booleans(),
)
def test_it_has_the_bits_of_the_two_functions(
    seed, batch, channels, groups, filters, size, kernel, stride, padding, pool, dtype, bias, last
):
    sizes = (batch, channels * groups, *size)
    x, w, b = drawn(seed, sizes, (filters * groups, *kernel), groups, dtype)
    if x.numel():
        x.flatten()[seed % x.numel()] = float("nan")
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    conv = {"stride": 1 if padding == "same" else stride, "padding": padding, "groups": groups}
    window = {
        "pool_kernel_size": pool[0], "pool_stride": pool[1], "pool_padding": min(pool[2], pool[0] // 2),
        "ceil_mode": pool[3],
    }  # fmt: skip
    given_bias = b if bias else None
    try:
        expected = apart(x, w, given_bias, conv, window)
    except RuntimeError as error:
        with pytest.raises(RuntimeError) as raised:
            conv2d_relu_max_pool2d(x, w, given_bias, **conv, **window)
        assert str(raised.value) == str(error)
        return
    found = conv2d_relu_max_pool2d(x, w, given_bias, **conv, **window)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert found.stride() == expected.stride() or not last


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_near_the_two_functions_on_every_device(device, dtype):
    """On a GPU the sums have another order; small filters and images, and such as have no kernel there."""
    for sizes, kernel in (((3, 1, 28, 28), (6, 5, 5)), ((2, 6, 12, 12), (16, 5, 5)), ((2, 40, 9, 9), (5, 3, 3))):
        x, w, b = (t.to(device) for t in drawn(5, sizes, kernel, 1, dtype))
        for pool in (LENET, {"pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1, "ceil_mode": True}):
            found, expected = conv2d_relu_max_pool2d(x, w, b, **pool), apart(x, w, b, {}, pool)
            assert found.dtype == dtype and found.shape == expected.shape
            most = (found.double() - expected.double()).abs().max() / expected.double().abs().max()
            assert most <= 8 * torch.finfo(dtype).eps


def test_the_kernel_runs_where_nothing_is_recorded(monkeypatch):
    calls = fused_calls(monkeypatch)
    x, w, b = drawn(0, (2, 3, 12, 12), (8, 3, 3), 1, torch.float32)
    conv2d_relu_max_pool2d(x, w, b, **LENET)
    assert len(calls) == 1
    conv2d_relu_max_pool2d(x[0], w, b, **LENET)
    assert len(calls) == 2
    conv2d_relu_max_pool2d(x, w.requires_grad_(), b, **LENET)
    assert len(calls) == 2
    with torch.no_grad():
        conv2d_relu_max_pool2d(x, w, b, **LENET)
    assert len(calls) == 3


def test_large_images_and_depthwise_weights_go_through_both_functions(monkeypatch):
    calls = fused_calls(monkeypatch)
    x, w, b = drawn(0, (1, 1, 200, 210), (8, 3, 3), 1, torch.float32)
    assert conv2d_relu_max_pool2d(x, w, b, **LENET).shape == (1, 8, 99, 104)
    x, w, b = drawn(0, (1, 4, 9, 9), (8, 3, 3), 4, torch.float32)
    torch.testing.assert_close(
        conv2d_relu_max_pool2d(x, w, b, groups=4, **LENET), apart(x, w, b, {"groups": 4}, LENET), rtol=0, atol=0
    )
    assert not calls


def test_gradients_are_those_of_the_two_functions():
    tensors = [t.requires_grad_() for t in drawn(1, (2, 3, 9, 10), (4, 3, 2), 1, torch.float64)]
    found = torch.autograd.grad(conv2d_relu_max_pool2d(*tensors, **LENET).square().sum(), tensors)
    expected = torch.autograd.grad(apart(*tensors, {}, LENET).square().sum(), tensors)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


NUMBERED = [2, 1], [1, 0, 0, 1], [1, 1], 1, "zeros", [2, 2], [2, 1], [1, 0], [1, 1], True


def test_the_operator_passes_opcheck_and_gradcheck():
    op = torch.ops.pykernels.conv_relu_max_pool.default
    tensors = drawn(2, (2, 3, 9, 10), (4, 3, 2), 1, torch.float64)
    opcheck(op, (*tensors, *NUMBERED))
    wanting = [t.requires_grad_() for t in tensors]
    opcheck(op, (*wanting, *NUMBERED))
    assert torch.autograd.gradcheck(lambda *t: op(*t, *NUMBERED), wanting, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda *t: op(*t, *NUMBERED), wanting)


def test_it_compiles_whole_and_vmaps():
    x, w, b = drawn(3, (2, 3, 12, 12), (8, 3, 3), 1, torch.float32)

    def call(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return conv2d_relu_max_pool2d(x, w, b, **LENET)

    expected = call(x, w, b)
    torch.testing.assert_close(compiled(call)[0](x, w, b), expected, rtol=0, atol=0)
    mapped = torch.func.vmap(call, (0, None, None))(x.unsqueeze(1), w, b)
    torch.testing.assert_close(mapped, expected.unsqueeze(1), rtol=0, atol=0)
    op = torch.ops.pykernels.conv_relu_max_pool.default
    raw = torch.func.vmap(lambda one: op(one, w.double(), b.double(), *NUMBERED))(x.unsqueeze(1).double())
    for i in range(2):
        torch.testing.assert_close(raw[i], op(x[i : i + 1].double(), w.double(), b.double(), *NUMBERED))


def test_windows_of_nothing_but_padding_hold_minus_infinity(monkeypatch):
    x, w, b = drawn(5, (2, 3, 3, 9), (4, 3, 3), 1, torch.float32)
    pool = {"pool_kernel_size": 2, "pool_stride": 2, "pool_padding": 1, "pool_dilation": (2, 1)}
    calls = fused_calls(monkeypatch)
    found, expected = conv2d_relu_max_pool2d(x, w, b, **pool), apart(x, w, b, {}, pool)
    assert calls and expected.isneginf().any()
    assert torch.equal(found, expected)


def test_threads_do_not_change_a_bit():
    x, w, b = drawn(4, (5, 4, 20, 20), (12, 5, 5), 1, torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([conv2d_relu_max_pool2d(t, w, b, **LENET) for t in (x, x[:1], x.repeat(9, 1, 1, 1))])
    finally:
        torch.set_num_threads(before)
    for found in results[1:]:
        for one, other in zip(found, results[0], strict=True):
            assert torch.equal(one, other)


def test_a_trained_model_gives_the_same_predictions():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 6, 5), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
    ours = pykernels.replace(copy.deepcopy(model))
    x = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        fused = conv2d_relu_max_pool2d(x, model[0].weight, model[0].bias, **LENET)
        torch.testing.assert_close(fused, model(x))
        assert torch.equal(fused, ours(x))


def test_what_is_no_tensor_is_refused_as_by_the_convolution():
    x, w, _ = drawn(6, (2, 3, 9, 9), (4, 3, 3), 1, torch.float32)
    for wrong in ((None, w), (x, None), ([1.0], w), (x, w, [1.0])):
        found = outcome(lambda g=wrong: conv2d_relu_max_pool2d(*g, **LENET))
        assert found == outcome(lambda g=wrong: conv2d(*g)) and found[0] is TypeError


def test_odd_windows_are_torchs(monkeypatch):
    x, w, _ = drawn(6, (2, 3, 9, 9), (4, 3, 3), 1, torch.float32)
    calls = fused_calls(monkeypatch)
    conv = torch.relu(F.conv2d(x, w))
    for size, ceil_mode in ((True, False), ((True, 1), False), (np.int64(2), False), (2, 1), (2, None), (20, False)):
        pool = {"pool_kernel_size": size, "ceil_mode": ceil_mode}
        found = outcome(lambda p=pool: conv2d_relu_max_pool2d(x, w, **p))
        assert found == outcome(lambda s=size, c=ceil_mode: F.max_pool2d(conv, s, ceil_mode=c))
    torch.testing.assert_close(conv2d_relu_max_pool2d(x, w, pool_kernel_size=np.int64(2)), F.max_pool2d(conv, 2))
    assert len(calls) == 1  # of the window that is too large, which the kernel refuses


def test_negated_views_are_negated():
    x, w, b = (torch._neg_view(t) for t in drawn(7, (2, 3, 9, 9), (4, 3, 3), 1, torch.float32))
    expected = F.max_pool2d(torch.relu(F.conv2d(x, w, b)), 2)
    torch.testing.assert_close(conv2d_relu_max_pool2d(x, w, b, **LENET), expected)


def test_compile_refuses_windows_in_torchs_words():
    x, w, _ = drawn(6, (2, 3, 9, 9), (4, 3, 3), 1, torch.float32)
    refused = (LENET | {"pool_dilation": 9}, "too small"), (LENET | {"pool_padding": 2}, "at most half")
    for pool, text in refused:
        with pytest.raises(RuntimeError, match=text):
            compiled(lambda x, w, p=pool: conv2d_relu_max_pool2d(x, w, **p))[0](x, w)
