"""Sliding blocks in the place of `torch.nn.Unfold` and `Fold`."""

# (no postponed annotations: torch.fx writes those of a module it traces into the code that it pickles)

from torch import Tensor, nn

from ..functional.unfold import fold, unfold

__all__ = ["Fold", "Unfold"]


class Unfold(nn.Unfold):
    r"""The sliding blocks of an image as columns; takes what :class:`torch.nn.Unfold` takes.

    .. math::
        y_{n,\,(c,t),\,o} = \hat x_{n,\,c,\,o s + t d}

    over channels c, taps t and places o: [N, C, H, W] or [C, H, W] becomes [N, C * taps, places] or [C * taps, places].
    See :func:`pykernels.functional.unfold`.

    Args:
        kernel_size, dilation, padding, stride: a number, or one for each dimension.

    Raises:
        RuntimeError, TypeError: torch's, when it is called.

    Example::

        >>> y = pykernels.Unfold(3, padding=1)(x)                    # [N, C, H, W] -> [N, 9 C, H W]
    """

    def forward(self, input: Tensor) -> Tensor:
        return unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)


class Fold(nn.Fold):
    r"""The sum of sliding blocks into an image; takes what :class:`torch.nn.Fold` takes.

    .. math::
        x_{n,c,p} = \sum_{(t,o):\; o s + t d - b = p} y_{n,\,(c,t),\,o}

    over the taps t and places o that read pixel p: [N, C * taps, places] or [C * taps, places] becomes [N, C, H, W] or
    [C, H, W]. See :func:`pykernels.functional.fold`.

    Args:
        output_size: (H, W), or a number for both.
        kernel_size, dilation, padding, stride: a number, or one for each dimension: those of the blocks.

    Raises:
        RuntimeError, TypeError: torch's, when it is called.

    Example::

        >>> x = pykernels.Fold((32, 32), 3, padding=1)(y)            # [N, 9 C, 1024] -> [N, C, 32, 32]
    """

    def forward(self, input: Tensor) -> Tensor:
        return fold(input, self.output_size, self.kernel_size, self.dilation, self.padding, self.stride)
