"""What the arguments of a convolution mean, in numbers for each spatial dimension, and torch's errors where they mean
nothing. Sizes may be symbolic."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Options", "check", "ending", "flat_padding", "integer", "is_torchs_padding", "numbers", "output_size"]

Ints = tuple[int, ...]
Options = tuple[Ints, Ints, Ints, int, str]
"""stride, padding (before and behind each dimension), dilation, groups and padding_mode, as the operators take them."""

MODES = ("zeros", "reflect", "replicate", "circular")


def numbers(spatial: int, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any) -> tuple[Ints, Ints, Ints]:
    """Stride, padding (two for each dimension) and dilation.

    Args:
        spatial: how many dimensions there are.
        kernel: the size of the kernel in each.
        padding: a number; one, or a pair (before, behind), for each dimension; "valid", "same" or "full".
    """
    strides, dilations = _each("stride", stride, spatial), _each("dilation", dilation, spatial)
    if not isinstance(padding, str):
        pairs = _each("padding", padding, spatial, pairs=True)
        return strides, tuple(n for p in pairs for n in (p if isinstance(p, tuple) else (p, p))), dilations
    if padding == "valid":
        return strides, (0,) * (2 * spatial), dilations
    reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    if padding == "full":
        return strides, tuple(r for r in reach for _ in range(2)), dilations
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: '{padding}'")
    if any(s != 1 for s in strides):
        raise RuntimeError("padding='same' is not supported for strided convolutions")
    return strides, tuple(n for r in reach for n in (r // 2, r - r // 2)), dilations


def _each(name: str, value: Any, count: int, pairs: bool = False) -> Any:
    if not isinstance(value, (tuple, list)):
        return (integer(value),) * count
    found: list[Any] = []
    for entry in value:
        is_pair = pairs and isinstance(entry, (tuple, list)) and len(entry) == 2
        # torch refuses a bool in the first place only
        found.append(tuple(integer(n) for n in entry) if is_pair else (index if found else integer)(entry))
    if len(found) == 1:
        found *= count
    if len(found) != count:
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of {count} values to match the convolution "
            f"dimensions, but got {name}={list(value)}"
        )
    return tuple(found)


def integer(value: Any) -> Any:
    if isinstance(value, bool):
        raise TypeError("[conv] expected integers, got a bool")
    return index(value)


def index(value: Any) -> Any:
    return value if isinstance(value, (int, torch.SymInt)) else operator.index(value)


def is_torchs_padding(padding: Any) -> bool:
    """Whether torch knows it: neither "full" nor pairs."""
    if isinstance(padding, (tuple, list)):
        return not any(isinstance(p, (tuple, list)) for p in padding)
    return not (isinstance(padding, str) and padding == "full")


def ending(activation: str | None) -> str:
    """The operators' name of it."""
    if activation is None:
        return "none"
    if isinstance(activation, str) and activation == "relu":
        return "relu"
    given = repr(activation) if isinstance(activation, str) else type(activation).__name__
    raise ValueError(f"[conv] expected activation None or 'relu', got {given}")


def flat_padding(padding: Sequence[int]) -> list[int]:
    """In the order of torch.nn.functional.pad, which begins with the last dimension."""
    return [n for i in reversed(range(0, len(padding), 2)) for n in padding[i : i + 2]]


def output_size(input: Sequence[int], weight: Sequence[int], options: Options) -> list[Any]:
    stride, padding, dilation = options[:3]
    sizes = zip(input[2:], weight[2:], stride, padding[::2], padding[1::2], dilation, strict=True)
    return [input[0], weight[0], *((i + b + a - d * (k - 1) - 1) // s + 1 for i, k, s, b, a, d in sizes)]


def check(
    spatial: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
    groups: int, padding_mode: str, activation: str | None,
) -> tuple[Ints, Ints, Ints]:  # fmt: skip
    """The numbers of `numbers`. Raises what the operator raises and, in its order, what torch raises where it has an
    error for it."""
    if bias is not None and bias.dtype != input.dtype:
        raise RuntimeError(f"Input type ({input.dtype}) and bias type ({bias.dtype}) should be the same")
    if input.dim() not in (spatial + 1, spatial + 2):
        raise RuntimeError(
            f"Expected {spatial + 1}D (unbatched) or {spatial + 2}D (batched) input to conv{spatial}d, but got input "
            f"of size: {list(input.shape)}"
        )
    sizes = list(input.shape) if input.dim() == spatial + 2 else [1, *input.shape]
    shape = list(weight.shape)
    if len(shape) < 3:
        raise RuntimeError("weight should have at least three dimensions")
    if groups <= 0:
        raise RuntimeError("non-positive groups is not supported")
    if len(shape) != spatial + 2:
        raise RuntimeError(
            f"Expected {len(shape)}-dimensional input for {len(shape)}-dimensional weight {shape}, but got "
            f"{len(sizes)}-dimensional input of size {sizes} instead"
        )
    found = numbers(spatial, shape[2:], stride, padding, dilation)
    strides, pads, dilations = found
    for least, text, values in (
        (0, "negative padding is not supported", pads),
        (1, "non-positive stride is not supported", strides),
        (0, "dilation should be greater than zero", dilations),
        (1, "non-positive dilation is not supported", dilations),
    ):
        if any(value < least for value in values):
            raise RuntimeError(text)
    _check_channels(sizes, shape, bias, groups)
    _check_padding(sizes, pads, padding_mode)
    padded = [i + pads[2 * n] + pads[2 * n + 1] for n, i in enumerate(sizes[2:])]
    kernel = [d * (k - 1) + 1 for d, k in zip(dilations, shape[2:], strict=True)]
    if any(p < k for p, k in zip(padded, kernel, strict=True)):
        extents = (" x ".join(map(str, values)) for values in (padded, kernel))
        raise RuntimeError(
            "Calculated padded input size per channel: ({}). Kernel size: ({}). Kernel size can't be greater than "
            "actual input size".format(*extents)
        )
    if any(k == 0 for k in shape[2:]):
        raise RuntimeError(f"[conv] expected a kernel that is not empty, got a weight of size {shape}")
    if weight.dtype != input.dtype:
        raise RuntimeError(f"Input type ({input.type()}) and weight type ({weight.type()}) should be the same")
    ending(activation)
    return found


def _check_channels(input: list[Any], weight: list[Any], bias: Tensor | None, groups: int) -> None:
    if weight[0] < groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be at least {groups} at dimension 0, but got weight of size "
            f"{weight} instead"
        )
    if weight[0] % groups != 0:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, but got weight of "
            f"size [{weight}] instead"
        )
    if input[1] != weight[1] * groups:
        raise RuntimeError(
            f"Given groups={groups}, weight of size {weight}, expected input{input} to have {weight[1] * groups} "
            f"channels, but got {input[1]} channels instead"
        )
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != weight[0]):
        raise RuntimeError(
            f"Given weight of size {weight}, expected bias to be 1-dimensional with {weight[0]} elements, but got "
            f"bias of size {list(bias.shape)} instead"
        )


def _check_padding(input: list[Any], padding: Sequence[int], mode: str) -> None:
    """What is put around a dimension has to be there."""
    if mode not in MODES:
        raise RuntimeError(f"[conv] expected padding_mode zeros, reflect, replicate or circular, got {mode}")
    for i in reversed(range(len(input) - 2)):
        size, before, behind = input[i + 2], padding[2 * i], padding[2 * i + 1]
        if mode == "reflect" and (before >= size or behind >= size) and before + behind > 0:
            raise RuntimeError(
                f"Argument #{2 * (len(input) - i - 1)}: Padding size should be less than the corresponding input "
                f"dimension, but got: padding ({before}, {behind}) at dimension {i + 2} of input {input}"
            )
        if mode == "circular" and (before > size or behind > size):
            raise RuntimeError("Padding value causes wrapping around more than once.")
        if mode == "replicate" and size == 0 and before + behind > 0:
            raise RuntimeError("[conv] expected something to replicate, got a dimension of size 0")
