"""Unfold and fold of cuda/, glue and kernels unchanged, executed on the processor: against torch and the twins."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pykernels.reference.unfold import columns_of, image_of
from tests.helpers import SEED, assert_same_bits, drawn

from .convs import Call, assert_right, drawn_call
from .device import Device

EVERY = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", EVERY, ids=str)
FEATURES = {"batch": [0, 1, 2, 3], "inputs": [1, 2, 5], "seed": SEED}


def blocks_of(call: Call) -> list[tuple[int, ...]]:
    return [call.kernel, call.stride, call.padding, call.dilation]


def tensors(call: Call, dtype: torch.dtype) -> dict[str, Tensor]:
    image = call.tensors(dtype)["input"]
    draw = torch.Generator().manual_seed(call.seed)
    size = columns_of(image.double(), *blocks_of(call)).shape
    return {"image": image, "columns": torch.randn(size, generator=draw).to(dtype)}


def run(device: Device, call: Call, given: dict[str, Tensor]) -> dict[str, Tensor]:
    device.configure(call.seed)
    columns = device.kernels.unfold(given["image"], *blocks_of(call))
    image = device.kernels.fold(given["columns"], call.size, *blocks_of(call))
    assert columns.is_contiguous() and image.is_contiguous()
    return {"columns": columns, "image": image}


def truth(call: Call, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """In float64, of what the dtype stores: by torch, which has images of two dimensions, or else by the twins."""
    image, columns = given["image"].double(), given["columns"].double()
    if len(call.size) != 2 or image.numel() == 0:
        blocks = blocks_of(call)
        return {"columns": columns_of(image, *blocks), "image": image_of(columns, call.size, *blocks)}
    top, bottom, left, right = call.padding
    height, width = call.size
    numbers = {"kernel_size": call.kernel, "dilation": call.dilation, "stride": call.stride}
    folded = F.fold(columns, (height + top + bottom, width + left + right), **numbers)
    return {
        "columns": F.unfold(F.pad(image, (left, right, top, bottom)), **numbers),
        "image": folded[:, :, top : top + height, left : left + width],
    }


def check(device: Device, call: Call, dtype: torch.dtype, given: dict[str, Tensor] | None = None) -> None:
    given = given or tensors(call, dtype)
    found, expected = run(device, call, given), truth(call, given)
    assert_right(found, expected, dtype)
    assert torch.equal(found["columns"].double().nan_to_num(), expected["columns"].nan_to_num())  # copies


@every_dtype
@drawn(60, of=functools.partial(drawn_call, 2, 11, channels_last=False, mode="zeros"), **FEATURES)
def test_equals_torch(device, dtype, case):
    check(device, case, dtype)


@every_dtype
@pytest.mark.parametrize(("spatial", "largest"), [(1, 90), (3, 6)])
@drawn(16, **FEATURES, of=lambda **fields: fields)
def test_equals_the_twins_in_other_dimensions(device, dtype, spatial, largest, case):
    check(device, drawn_call(spatial, largest, channels_last=False, mode="zeros", **case), dtype)


@every_dtype
def test_chosen_calls(device, dtype):
    """Whole packs of places and single ones, pixels that nothing reads, places of padding alone, large numbers."""
    for call in (
        Call((9, 11), (3, 3), padding=(1, 0, 0, 1)),
        Call((8, 8), (3, 3), padding=(1, 1, 1, 1)),
        Call((13, 14), (2, 3), (5, 4), (1, 2)),
        Call((7, 7), (3, 3), (2, 3), (3, 2), (4, 5, 4, 3)),
        Call((2, 3), (2, 2), (1, 1), (1, 1), (9, 0, 0, 9)),
        Call((5, 6), (1, 1), (2, 2), (2**31 - 1, 7)),
        Call((5, 6), (1, 2), (2**31 - 1, 2**29), (1, 3)),
        Call((0, 3), (2, 2), padding=(2, 1, 0, 0)),
        Call(batch=0),
        Call(inputs=0),
    ):
        check(device, call, dtype)


@every_dtype
def test_many_places(device, dtype):
    """So many that a thread has all taps of its places and, to fold, several planes."""
    channels = 34 if dtype.itemsize == 2 else 18
    check(device, Call((256, 258), (2, 3), batch=1, inputs=channels, padding=(0, 1, 1, 1)), dtype)


@every_dtype
def test_what_is_not_a_number_stays_where_it_is_read(device, dtype):
    call = Call((7, 7), padding=(1, 1, 1, 1))
    given = tensors(call, dtype)
    given["image"][1, 2, 3, 4] = torch.nan
    given["columns"][1, 11, 24] = torch.inf
    found = run(device, call, given)
    assert int(found["columns"].isnan().sum()) == 9
    assert int(found["image"].isinf().sum()) == 1
    check(device, call, dtype, given)


@every_dtype
def test_strides_are_free(device, dtype):
    """Not-a-numbers between the values, channels last, or nothing aligned."""
    call = Call((8, 8), padding=(1, 1, 1, 1), inputs=8)
    given = tensors(call, dtype)
    dense = run(device, call, given)
    spread = {name: torch.stack([t, t * torch.nan], -1)[..., 0] for name, t in given.items()}
    last = {name: t.movedim(1, -1).contiguous().movedim(-1, 1) for name, t in given.items()}
    moved = {name: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape) for name, t in given.items()}
    for other in (spread, last, moved):
        assert_same_bits(run(device, call, other), dense)


def test_what_is_wrong_is_refused(device):
    device.configure(0)
    image, columns = torch.zeros(2, 3, 8, 8), torch.zeros(2, 27, 36)
    blocks = [(3, 3), (1, 1), (0, 0, 0, 0), (1, 1)]
    with pytest.raises(RuntimeError, match="expected a kernel of 2 numbers"):
        device.kernels.unfold(image, (3,), *blocks[1:])
    with pytest.raises(RuntimeError, match="expected columns of shape"):
        device.kernels.fold(columns[:, :26], (8, 8), *blocks)
    with pytest.raises(RuntimeError):
        device.kernels.unfold(image.long(), *blocks)
