"""Convolutions in the place of `torch.nn.Conv1d`, `Conv2d` and `Conv3d`, with an activation in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..functional.conv import conv1d, conv2d, conv3d
from ..reference.conv_arguments import flat_padding, numbers

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
        theirs = padding if _is_torchs(padding) else 0
        given = in_channels, out_channels, kernel_size, stride, theirs, dilation, groups, bias, padding_mode
        super().__init__(*given, device, dtype)  # type: ignore[arg-type]  # that of the torch class beside this one
        self._take(padding, activation)

    def _take(self, padding: Any, activation: str | None) -> None:
        """What torch's constructor does not know."""
        if activation not in (None, "relu"):
            raise ValueError(f"[conv] expected activation None or relu, got {activation}")
        self.activation = activation
        if _is_torchs(padding):
            return
        spatial = len(self.kernel_size)
        _, pads, _ = numbers(spatial, self.kernel_size, self.stride, padding, self.dilation)
        pairs = tuple(zip(pads[::2], pads[1::2], strict=True))
        self.padding = padding if isinstance(padding, str) else pairs  # type: ignore[assignment]
        self._reversed_padding_repeated_twice = flat_padding(pads)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return type(self)._convolution(
            input,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            padding_mode=self.padding_mode,
            activation=self.activation,
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.activation is None else f", activation={self.activation}")


def _is_torchs(padding: Any) -> bool:
    if isinstance(padding, (tuple, list)):
        return not any(isinstance(p, (tuple, list)) for p in padding)
    return padding != "full"


class Conv1d(_Conv, nn.Conv1d):
    r"""Convolution over one dimension; takes what :class:`torch.nn.Conv1d` takes. See :class:`Conv2d`."""

    _convolution = staticmethod(conv1d)


class Conv2d(_Conv, nn.Conv2d):
    r"""Convolution over two dimensions; takes what :class:`torch.nn.Conv2d` takes.

    .. math::
        y = f(w \star \hat x + b)

    See :func:`pykernels.functional.conv2d`. Parameters, initialisation and `state_dict` are torch's.

    Args:
        padding: torch's, and "full", or a pair (before, behind) for each dimension.
        activation: f, None or "relu". (What folds a batch norm into this layer, such as
            :mod:`torch.nn.utils.fusion`, knows nothing of it: the norm would have to come before it.)

    Raises:
        ValueError, RuntimeError: torch's messages.

    Example::

        >>> layer = pykernels.Conv2d(64, 128, 3, stride=2, padding=1, activation="relu")
        >>> y = layer(x)                                             # [N, 64, H, W] -> [N, 128, H / 2, W / 2]
    """

    _convolution = staticmethod(conv2d)


class Conv3d(_Conv, nn.Conv3d):
    r"""Convolution over three dimensions; takes what :class:`torch.nn.Conv3d` takes. See :class:`Conv2d`."""

    _convolution = staticmethod(conv3d)
