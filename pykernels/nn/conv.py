"""Convolutions in the place of `torch.nn.Conv1d`, `Conv2d` and `Conv3d`, with an activation in them."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional.conv import conv1d, conv2d, conv3d
from ..reference.conv_arguments import ending, flat_padding, is_torchs_padding, numbers

__all__ = ["Conv1d", "Conv2d", "Conv3d"]

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Activation = Literal["relu"]


class _Conv(nn.modules.conv._ConvNd):
    """What the three add to torch's."""

    activation: str | None = None
    _convolution: Callable[..., Tensor]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: Any = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: Activation | None = None,
    ) -> None:
        theirs = padding if is_torchs_padding(padding) else 0
        given = in_channels, out_channels, kernel_size, stride, theirs, dilation, groups, bias, padding_mode
        super().__init__(*given, device, dtype)  # type: ignore[arg-type]  # that of the torch class beside this one
        self._take(padding, activation)

    def _take(self, padding: Any, activation: str | None) -> None:
        """What torch's constructor does not know."""
        ending(activation)
        self.activation = activation
        if is_torchs_padding(padding):
            return
        spatial = len(self.kernel_size)
        _, pads, _ = numbers(spatial, self.kernel_size, self.stride, padding, self.dilation)
        pairs = tuple(zip(pads[::2], pads[1::2], strict=True))
        self.padding = padding if isinstance(padding, str) else pairs  # type: ignore[assignment]
        self._reversed_padding_repeated_twice = flat_padding(pads)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":  # then torch's goes by what its constructor made of it
            flat = self._reversed_padding_repeated_twice
            before, padding = flat[-2::-2], flat[::-2]
            if before != padding:
                padding = tuple(zip(before, padding, strict=False))
            if len(flat) != 2 * len(self.kernel_size) or min(flat) < 0:
                input, padding = F.pad(input, flat, mode=self.padding_mode), 0
        return type(self)._convolution(
            input,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            padding_mode=self.padding_mode,
            activation=self.activation,
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.activation is None else f", activation={self.activation}")


class Conv1d(_Conv, nn.Conv1d):
    r"""Convolution over one dimension; takes what :class:`torch.nn.Conv1d` takes.

    .. math::
        y = f(w \star \hat x + b)

    :class:`Conv2d` with one spatial dimension: numbers for each dimension are one number or a tuple of one, and so is a
    pair for each, ((before, behind),). Arguments, parameters and errors are described there.

    Shape:
        x [N, in_channels, L] or [in_channels, L], w [out_channels, in_channels / groups, kernel_size],
        b [out_channels], y [N, out_channels, L'] or [out_channels, L'],
        L' = (L + padding - dilation (kernel_size - 1) - 1) / stride + 1 with the padding of both sides.

    Example::

        >>> layer = pykernels.Conv1d(16, 32, 5, padding=((4, 0),))   # causal
        >>> y = layer(x)                                             # [N, 16, L] -> [N, 32, L]
    """

    _convolution = staticmethod(conv1d)


class Conv2d(_Conv, nn.Conv2d):
    r"""Convolution over two dimensions; takes what :class:`torch.nn.Conv2d` takes.

    .. math::
        y = f(w \star \hat x + b)

    See :func:`pykernels.functional.conv2d`. Parameters, initialisation and `state_dict` are torch's.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias, device, dtype: torch's.
        padding: torch's, and "full", or a pair (before, behind) for each dimension.
        padding_mode: torch's: "zeros", "reflect", "replicate" or "circular". As in torch's module it is the padding
            given at construction that the last three put around, whatever the attribute `padding` is set to later.
        activation: f, None or "relu". (What folds a batch norm into this layer, such as
            :mod:`torch.nn.utils.fusion`, knows nothing of it: the norm would have to come before it.)

    Shape:
        x [N, in_channels, H, W] or [in_channels, H, W], w [out_channels, in_channels / groups, *kernel_size],
        b [out_channels], y [N, out_channels, H', W'] or [out_channels, H', W'], each dimension
        (pixels + padding - dilation (kernel_size - 1) - 1) / stride + 1 with the padding of both sides.

    `torch.jit.trace` takes the module, which it records as torch's function; `torch.jit.script` does not.

    Raises:
        ValueError, TypeError, RuntimeError: torch's messages; ValueError for an activation that there is not.

    Example::

        >>> layer = pykernels.Conv2d(64, 128, 3, stride=2, padding=1, activation="relu")
        >>> y = layer(x)                                             # [N, 64, H, W] -> [N, 128, H / 2, W / 2]
    """

    _convolution = staticmethod(conv2d)


class Conv3d(_Conv, nn.Conv3d):
    r"""Convolution over three dimensions; takes what :class:`torch.nn.Conv3d` takes.

    .. math::
        y = f(w \star \hat x + b)

    :class:`Conv2d` with three spatial dimensions: arguments, parameters and errors are described there. Channels-last
    is `torch.channels_last_3d`.

    Shape:
        x [N, in_channels, D, H, W] or [in_channels, D, H, W], w [out_channels, in_channels / groups, *kernel_size],
        b [out_channels], y [N, out_channels, D', H', W'] or [out_channels, D', H', W'], each dimension
        (voxels + padding - dilation (kernel_size - 1) - 1) / stride + 1 with the padding of both sides.

    Example::

        >>> layer = pykernels.Conv3d(1, 8, (3, 5, 5), padding="same", activation="relu")
        >>> y = layer(x)                                             # [N, 1, D, H, W] -> [N, 8, D, H, W]
    """

    _convolution = staticmethod(conv3d)


def _init_named(owner: str) -> Any:
    """`_Conv.__init__` by the name that Python's errors say."""
    theirs: Any = _Conv.__init__
    init = FunctionType(theirs.__code__, theirs.__globals__, "__init__", theirs.__defaults__, theirs.__closure__)
    init.__kwdefaults__, init.__annotations__ = theirs.__kwdefaults__, theirs.__annotations__
    init.__qualname__ = f"{owner}.__init__"
    return init


for _class in (Conv1d, Conv2d, Conv3d):
    setattr(_class, "__init__", _init_named(_class.__name__))  # noqa: B010 (mypy knows no assignment to it)
