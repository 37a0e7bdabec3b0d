r"""Convolution (cross-correlation, which is what the field calls convolution) in plain PyTorch.

.. math::
    y_{n,k,o} = b_k + \sum_{c,t} w_{k,c,t}\; \hat x_{n,\,c,\,o s + t d}

over the channels c of k's group and the taps t, with places o, taps and pixels of one to three dimensions, stride s,
dilation d, and :math:`\hat x` the input with what padding puts around it. With `activation="relu"` max(y, 0). One
product for every tap, in float32 for low precision.

Shapes: x [N, C, *pixels] or [C, *pixels], w [K, C / groups, *kernel], b [K], y [N, K, *places] or [K, *places], where
places = (pixels + padding - d (kernel - 1) - 1) / s + 1.

Source: Dumoulin and Visin 2016, A guide to convolution arithmetic for deep learning (https://arxiv.org/abs/1603.07285).
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .conv_arguments import Options, check, flat_padding, output_size

__all__ = ["conv", "conv1d", "conv2d", "conv3d"]


def conv(input: Tensor, weight: Tensor, bias: Tensor | None, options: Options, activation: str) -> Tensor:
    """What the operator `conv_forward` computes: of a batch, with every option in numbers."""
    stride, padding, dilation, groups, mode = options
    sums = input.dtype if input.dtype == torch.float64 else torch.float32
    padded = F.pad(input.to(sums), flat_padding(padding), mode="constant" if mode == "zeros" else mode)
    _, out_channels, *places = output_size(input.shape, weight.shape, options)
    x = padded.unflatten(1, (groups, weight.shape[1]))
    w = weight.to(sums).unflatten(0, (groups, out_channels // groups))
    out = x.new_zeros(x.shape[0], groups, out_channels // groups, *places)
    for tap in itertools.product(*map(range, weight.shape[2:])):
        first = [t * d for t, d in zip(tap, dilation, strict=True)]
        read = [slice(f, f + s * (p - 1) + 1, s) for f, s, p in zip(first, stride, places, strict=True)]
        out = out + torch.einsum("ngc...,gkc->ngk...", x[(..., *read)], w[(..., *tap)])
    out = out.flatten(1, 2)
    if bias is not None:
        out = out + bias.to(sums).reshape(-1, *[1] * len(places))
    return (torch.relu(out) if activation == "relu" else out).to(input.dtype)


def _convolve(
    spatial: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
    groups: int, padding_mode: str, activation: str | None,
) -> Tensor:  # fmt: skip
    found = check(spatial, input, weight, bias, stride, padding, dilation, groups, padding_mode, activation)
    unbatched = input.dim() == spatial + 1
    batch = input.unsqueeze(0) if unbatched else input
    out = conv(batch, weight, bias, (*found, groups, padding_mode), activation or "none")
    return out.squeeze(0) if unbatched else out


def conv1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, padding_mode: str = "zeros", activation: str | None = None,
) -> Tensor:  # fmt: skip
    """The twin of `pykernels.functional.conv1d`: the same arguments."""
    return _convolve(1, input, weight, bias, stride, padding, dilation, groups, padding_mode, activation)


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, padding_mode: str = "zeros", activation: str | None = None,
) -> Tensor:  # fmt: skip
    """The twin of `pykernels.functional.conv2d`: the same arguments."""
    return _convolve(2, input, weight, bias, stride, padding, dilation, groups, padding_mode, activation)


def conv3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, padding_mode: str = "zeros", activation: str | None = None,
) -> Tensor:  # fmt: skip
    """The twin of `pykernels.functional.conv3d`: the same arguments."""
    return _convolve(3, input, weight, bias, stride, padding, dilation, groups, padding_mode, activation)
