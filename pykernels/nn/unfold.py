"""Sliding blocks in the place of `torch.nn.Unfold` and `Fold`."""

# (no postponed annotations: torch.fx writes those of a module it traces into the code that it pickles)

from torch import Tensor, nn

from ..functional.unfold import fold, unfold

__all__ = ["Fold", "Unfold"]


class Unfold(nn.Unfold):
    """The sliding blocks of an image as columns; takes what :class:`torch.nn.Unfold` takes.

    See :func:`pykernels.functional.unfold`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)


class Fold(nn.Fold):
    """The sum of sliding blocks into an image; takes what :class:`torch.nn.Fold` takes.

    See :func:`pykernels.functional.fold`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return fold(input, self.output_size, self.kernel_size, self.dilation, self.padding, self.stride)
