r"""Sliding blocks of an image as columns, and their sum back into an image, in plain PyTorch.

.. math::
    \mathrm{unfold}(x)_{n,\,(c,t),\,o} = \hat x_{n,\,c,\,o s + t d}, \qquad
    \mathrm{fold}(y)_{n,c,p} = \sum_{(t,o):\; o s + t d - b = p} y_{n,\,(c,t),\,o}

over taps t and places o of every dimension, with stride s, dilation d, and :math:`\hat x` the image with b zeros before
and behind it. Each is the other's derivative.

Shapes: image [N, C, *pixels] or [C, *pixels], columns [N, C * taps, places] or [C * taps, places].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .conv_arguments import flat_padding

__all__ = ["columns_of", "fold", "image_of", "unfold"]

Ints = tuple[int, ...]
Blocks = tuple[Ints, Ints, Ints, Ints]
"""kernel, stride, padding (before and behind each dimension) and dilation, as the operators take them."""


def places_of(size: Sequence[int], blocks: Blocks) -> list[int]:
    """How many places there are along each dimension."""
    kernel, stride, padding, dilation = blocks
    sizes = zip(size, kernel, stride, padding[::2], padding[1::2], dilation, strict=True)
    return [(n + b + a - d * (k - 1) - 1) // s + 1 for n, k, s, b, a, d in sizes]


def _pixels(size: Sequence[int], blocks: Blocks, device: torch.device) -> tuple[Tensor, list[int]]:
    """For each tap and place the pixel of the padded image that it reads, as one number, and that image's size."""
    kernel, stride, padding, dilation = blocks
    places, dims = places_of(size, blocks), len(size)
    padded = [n + b + a for n, b, a in zip(size, padding[::2], padding[1::2], strict=True)]
    pixel = torch.zeros([1] * (2 * dims), dtype=torch.int64, device=device)
    for i in range(dims):
        taps = torch.arange(kernel[i], device=device) * dilation[i]
        reads = taps[:, None] + torch.arange(places[i], device=device) * stride[i]
        shape = [1] * (2 * dims)
        shape[i], shape[dims + i] = kernel[i], places[i]
        pixel = pixel * padded[i] + reads.reshape(shape)
    return pixel.flatten(), padded


def columns_of(image: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """What the operator `unfold` computes: of a batch."""
    pixel, _ = _pixels(image.shape[2:], (kernel, stride, padding, dilation), image.device)
    read = F.pad(image, flat_padding(padding)).flatten(2).index_select(2, pixel)
    return read.reshape(image.shape[0], image.shape[1] * math.prod(kernel), pixel.shape[0] // math.prod(kernel))


def image_of(columns: Tensor, size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """What the operator `fold` computes: of a batch."""
    pixel, padded = _pixels(size, (kernel, stride, padding, dilation), columns.device)
    batch, channels = columns.shape[0], columns.shape[1] // math.prod(kernel)
    sums = columns.dtype if columns.dtype.itemsize > 2 else torch.float32
    image = columns.new_zeros(batch, channels, math.prod(padded), dtype=sums)
    image = image.index_add(2, pixel, columns.to(sums).reshape(batch, channels, pixel.shape[0]))
    image = image.reshape(batch, channels, *padded)
    inside: list[Any] = [slice(b, b + n) for b, n in zip(padding[::2], size, strict=True)]
    return image[(..., *inside)].to(columns.dtype)


def unfold(input: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Tensor:
    """The twin of `pykernels.functional.unfold`: the same arguments."""
    blocks = check_unfold(input, blocks_of(kernel_size, dilation, padding, stride))
    return columns_of(input, *blocks) if input.dim() == 4 else columns_of(input[None], *blocks)[0]


def fold(
    input: Tensor, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Tensor:
    """The twin of `pykernels.functional.fold`: the same arguments."""
    size, blocks = two("output_size", output_size), blocks_of(kernel_size, dilation, padding, stride)
    check_fold(input, size, blocks)
    return image_of(input, size, *blocks) if input.dim() == 3 else image_of(input[None], size, *blocks)[0]


# --- arguments: torch's errors, in its order


def blocks_of(kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> Blocks:
    """The operators' numbers."""
    kernel = two("kernel_size", kernel_size)
    dilations, pads, strides = two("dilation", dilation), two("padding", padding), two("stride", stride)
    for values, least, text in (
        (kernel, 1, "kernel size should be greater than zero, but got kernel_height: {} kernel_width: {}"),
        (dilations, 1, "dilation should be greater than zero, but got dilation_height: {} dilation_width: {}"),
        (pads, 0, "padding should be non-negative, but got pad_height: {} pad_width: {}"),
        (strides, 1, "stride should be greater than zero, but got stride_height: {} stride_width: {}"),
    ):
        if any(value < least for value in values):
            raise RuntimeError(text.format(*values))
    return kernel, strides, (pads[0], pads[0], pads[1], pads[1]), dilations


def two(name: str, value: Any) -> Ints:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2:
        raise RuntimeError(f"It is expected {name} equals to 2, but got size {len(values)}")
    return values


def check_unfold(input: Tensor, blocks: Blocks) -> Blocks:
    """The blocks, which the input has to have."""
    shape = list(input.shape)
    if len(shape) not in (3, 4) or any(n == 0 for n in shape[-3:]):
        raise RuntimeError(
            "Expected 3D or 4D (batch mode) tensor with possibly 0 batch size and other non-zero dimensions for input, "
            f"but got: {shape}"
        )
    kernel, _, pads, dilations = blocks
    places = places_of(shape[-2:], blocks)
    if any(n < 1 for n in places):
        raise RuntimeError(
            f"Given input with spatial size {_text(shape[-2:])}, kernel_size={_text(kernel)}, "
            f"dilation={_text(dilations)}, padding={_text(pads[::2])}, calculated shape of the array of sliding blocks "
            f"as {_text(places)}, but its components must be at least one."
        )
    return blocks


def check_fold(input: Tensor, size: Ints, blocks: Blocks) -> None:
    """Raise where these are no blocks of an image of that size."""
    kernel = blocks[0]
    shape = list(input.shape)
    if len(shape) not in (2, 3) or any(n == 0 for n in shape[-2:]):
        raise RuntimeError(
            "Expected 2D or 3D (batch mode) tensor for input with possibly 0 batch size and non-zero dimensions for "
            f"input, but got: {shape}"
        )
    if shape[-2] % (kernel[0] * kernel[1]) != 0:
        raise RuntimeError(
            "Expected size of input's dimension 1 to be divisible by the product of kernel_size, but got "
            f"input.size(1)={shape[-2]} and kernel_size={_text(kernel)}."
        )
    places = places_of(size, blocks)
    if shape[-1] != places[0] * places[1]:
        raise RuntimeError(
            f"{_given(size, blocks)}expected size of input's dimension 2 to match the calculated number of sliding "
            f"blocks {places[0]} * {places[1]} = {places[0] * places[1]}, but got input.size(2)={shape[-1]}."
        )
    if any(n < 1 for n in (*places, *size)):
        raise RuntimeError(
            f"{_given(size, blocks)}calculated shape of the array of sliding blocks as {_text(places)}, which is too "
            "small (non-positive)"
        )


def _given(size: Ints, blocks: Blocks) -> str:
    kernel, strides, pads, dilations = blocks
    text = f"Given output_size={_text(size)}, kernel_size={_text(kernel)}, dilation={_text(dilations)}, "
    return f"{text}padding={_text(pads[::2])}, stride={_text(strides)}, "


def _text(values: Sequence[int]) -> str:
    return f"({', '.join(map(str, values))})"
