"""Convolution of cuda/, glue and kernels unchanged, executed on the processor: values and gradients against torch."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

from tests.helpers import FLAG, SEED, assert_same_bits, drawn

from .convs import RESULTS, Call, assert_right, drawn_call, run, truth

LOW = [torch.bfloat16, torch.float16]
EVERY = [torch.float64, torch.float32, *LOW]
MODES = ["reflect", "replicate", "circular"]
# Multiprocessors that the tile is chosen for: on few of them a wide one.
FEW, MANY = 1, 256
FEATURES = {
    "batch": (1, 3),
    "groups": [1, 1, 2, 3],
    "inputs": [1, 2, 3, 8, 16, 32, 40],
    "outputs": [1, 3, 8, 16, 32, 70],
    "mode": ["zeros", "zeros", *MODES],
    "bias": FLAG,
    "relu": FLAG,
    "channels_last": FLAG,
    "seed": SEED,
}


def check(device, call: Call, dtype: torch.dtype, multiprocessors: int = MANY) -> None:
    device.configure(call.seed, resident_blocks=multiprocessors)
    assert_right(run(device, call, dtype), truth(call, dtype), dtype)


@pytest.mark.parametrize("dtype", EVERY, ids=str)
@drawn(40, of=functools.partial(drawn_call, 2, 11), **FEATURES)
def test_equals_torch(device, dtype, case):
    check(device, case, dtype, (FEW, MANY)[case.seed % 2])


@pytest.mark.parametrize(("spatial", "largest"), [(1, 90), (3, 6)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@drawn(16, **FEATURES, of=lambda **fields: fields)
def test_equals_torch_in_other_dimensions(device, dtype, spatial, largest, case):
    check(device, drawn_call(spatial, largest, **case), dtype, (FEW, MANY)[case["seed"] % 2])


@pytest.mark.parametrize("dtype", EVERY, ids=str)
@drawn(24, of=functools.partial(drawn_call, 2, 14, inputs=1), **FEATURES | {
    "groups": [2, 8, 9, 24, 40], "inputs": [1], "outputs": [1, 1, 1, 2, 3],
})  # fmt: skip
def test_depthwise_equals_torch(device, dtype, case):
    check(device, case, dtype)


@pytest.mark.parametrize("dtype", EVERY, ids=str)
@pytest.mark.parametrize("channels_last", FLAG, ids=["planar", "channels_last"])
@pytest.mark.parametrize("multiprocessors", [FEW, MANY])
@pytest.mark.parametrize(
    "call",
    [
        Call((12, 12), padding=(1, 1, 1, 1), inputs=64, outputs=64),
        Call((9, 9), padding=(1, 1, 1, 1), inputs=32, outputs=136),
        Call((14, 14), (1, 1), inputs=72, outputs=130),
        Call((16, 16), (7, 7), (2, 2), padding=(3, 3, 3, 3), inputs=3, outputs=64, relu=True),
        Call((13, 14), stride=(2, 2), padding=(1, 1, 1, 1), inputs=24, outputs=72),
    ],
    ids=["3x3", "3x3 wide", "1x1", "7x7", "strided"],
)
def test_tiles(device, dtype, channels_last, multiprocessors, call):
    """Several tiles of each kind, whole and not."""
    check(device, dataclasses.replace(call, channels_last=channels_last), dtype, multiprocessors)


@pytest.mark.parametrize("channels_last", FLAG, ids=["planar", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 16])
def test_the_same_bits_in_every_order_of_threads_and_by_every_tile(device, dtype, channels_last, groups):
    call = Call(
        (14, 15), (3, 2), (2, 1), (1, 2), (1, 1, 1, 0), batch=3, groups=groups, inputs=16 // groups,
        outputs=80 // groups if groups < 16 else 1, channels_last=channels_last,
    )  # fmt: skip
    first = None
    for seed, multiprocessors in ((0, FEW), (1, FEW), (2, MANY)):
        device.configure(seed, resident_blocks=multiprocessors)
        found = run(device, call, dtype)
        first = first or found
        assert_same_bits(found, first)


@pytest.mark.parametrize("channels_last", FLAG, ids=["planar", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_padding_as_wide_as_it_may_be(device, dtype, channels_last, mode):
    most = {"reflect": 4, "circular": 5, "replicate": 9}[mode]
    call = Call((5, 5), (4, 3), padding=(most, most, 0, most), inputs=8, mode=mode, channels_last=channels_last)
    check(device, call, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stride", [(1, 6), (7, 2), (9, 11)])
def test_more_remainders_than_a_launch_has(device, dtype, stride):
    """Also of pixels that no tap reads: their gradient is zero."""
    for groups in (1, 4):
        check(device, Call((20, 21), (3, 2), stride, groups=groups, inputs=4 // groups), dtype)


@pytest.mark.parametrize("groups", [1, 5])
def test_many_images(device, groups):
    """More places than the parts that gradients of weights are added up over, and images than are folded at once."""
    call = Call((40, 50), (2, 2), batch=5, groups=groups, inputs=1, outputs=2, mode="replicate", padding=(1, 0, 0, 1))
    check(device, call, torch.float64)
    check(device, dataclasses.replace(call, channels_last=True), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("channels_last", FLAG, ids=["planar", "channels_last"])
def test_what_is_not_a_number_stays_where_it_is_read(device, dtype, groups, channels_last):
    """Of the input, of the gradient and of a filter."""
    channels = {"groups": groups, "inputs": 8 // groups, "outputs": 8 // groups}
    call = Call((9, 9), padding=(1, 1, 1, 1), channels_last=channels_last, **channels)
    for name, at in (("input", (1, 3, 4, 4)), ("grad", (0, 2, 8, 0)), ("weight", (5, 0, 1, 1))):
        tensors = call.tensors(dtype)
        tensors[name][at] = torch.nan
        device.configure(0)
        assert_right(run(device, call, dtype, tensors), truth(call, dtype, tensors), dtype)


def test_relu_keeps_what_is_not_a_number(device):
    call = Call(relu=True, bias=False)
    tensors = call.tensors(torch.float32)
    tensors["input"][0, 0, 0, 0] = torch.nan
    device.configure(0)
    out = run(device, call, torch.float32, tensors)["out"]
    assert out[0, :, 0, 0].isnan().all() and int(out.isnan().sum()) == 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", FLAG, ids=["planar", "channels_last"])
def test_strides_are_free(device, dtype, channels_last):
    """Not-a-numbers between the values, or nothing aligned."""
    call = Call(padding=(1, 1, 1, 1), inputs=8, outputs=8, channels_last=channels_last)
    tensors = call.tensors(dtype)
    device.configure(0)
    dense = run(device, call, dtype, tensors)
    spread = {n: torch.stack([t, t * torch.nan], -1)[..., 0] for n, t in tensors.items()}
    assert_same_bits(run(device, dataclasses.replace(call, channels_last=False), dtype, spread), dense)
    moved = {}
    for name, tensor in tensors.items():
        moved[name] = torch.empty(tensor.numel() + 1, dtype=dtype)[1:].as_strided(tensor.shape, tensor.stride())
        moved[name].copy_(tensor)
    assert_same_bits(run(device, call, dtype, moved), dense)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", FLAG, ids=["planar", "channels_last"])
@pytest.mark.parametrize("call", [Call(batch=0), Call(inputs=0), Call(batch=0, groups=4, inputs=1, outputs=1)], ids=str)
def test_empty(device, dtype, channels_last, call):
    device.configure(0)
    call = dataclasses.replace(call, channels_last=channels_last)
    given = call.tensors(dtype)
    found = run(device, call, dtype, given)
    sizes = [call.output_size(), given["input"].shape, call.weight_size, (call.groups * call.outputs,)]
    assert [found[name].shape for name in RESULTS] == [torch.Size(size) for size in sizes]
    assert not found["grad weight"].any()
    if call.inputs == 0:
        assert torch.equal(found["out"], given["bias"][:, None, None].expand(sizes[0]))
        total = given["grad"].double().sum((0, 2, 3))
        assert torch.allclose(found["grad bias"].double(), total, rtol=1e-2, atol=1e-2)
    else:
        assert not found["grad bias"].any()


@pytest.mark.parametrize("channels_last", FLAG, ids=["planar", "channels_last"])
@pytest.mark.parametrize("groups", [1, 16])
def test_one_place_of_a_larger_image(device, groups, channels_last):
    """Its channels are beside each other in either layout, those of the image are not."""
    channels = {"groups": groups, "inputs": 16 // groups, "outputs": 16 // groups, "channels_last": channels_last}
    for kernel in ((1, 1), (2, 2)):
        check(device, Call((2, 2), kernel, (2, 2), **channels), torch.float32)


def test_an_image_of_padding_alone(device):
    check(device, Call((0, 3), (2, 2), padding=(2, 1, 0, 0)), torch.float32)


@pytest.mark.parametrize("groups", [1, 4])
def test_a_bias_gradient_that_is_not_wanted(device, groups):
    call = Call(groups=groups, inputs=4 // groups, outputs=4 // groups)
    tensors = call.tensors(torch.bfloat16)
    device.configure(0)
    both = [
        device.kernels.conv_weight_gradient(tensors["input"], tensors["grad"], call.weight_size, *call.options, wanted)
        for wanted in FLAG
    ]
    assert both[0][1].shape == (0,) and both[1][1].shape == (4,) and torch.equal(both[0][0], both[1][0])


def test_what_is_too_large_is_refused(device):
    device.configure(0)
    call = Call((1, 1), (1, 1), bias=False)
    tensors = call.tensors(torch.float32)
    options = [(1, 1), (0, 0, 0, 2**31 - 1), (1, 1), 1, "zeros", "none"]
    with pytest.raises(RuntimeError, match=r"\[conv\] expected fewer places of an image on a GPU, got 2147483648"):
        device.kernels.conv_forward(tensors["input"], tensors["weight"], None, *options)
