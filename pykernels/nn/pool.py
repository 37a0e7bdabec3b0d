"""Pooling in the place of torch's modules."""

# (no postponed annotations: torch.fx writes those of a module it traces into the code that it pickles)

from typing import Any

from torch import Tensor, nn

from ..functional import pool

__all__ = [
    "MaxPool1d", "MaxPool2d", "MaxPool3d", "AdaptiveMaxPool1d", "AdaptiveMaxPool2d", "AdaptiveMaxPool3d",
    "AvgPool1d", "AvgPool2d", "AvgPool3d", "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d",
    "MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d",
]  # fmt: skip


def _windows(module: Any) -> tuple[Any, Any, Any]:
    return module.kernel_size, module.stride, module.padding


def _max_arguments(module: Any) -> tuple[Any, Any, Any, Any, Any, Any]:
    return *_windows(module), module.dilation, module.ceil_mode, module.return_indices


class MaxPool1d(nn.MaxPool1d):
    """The largest element of each window of [N, C, L] or [C, L]; takes what :class:`torch.nn.MaxPool1d` takes.

    See :func:`pykernels.functional.max_pool2d`.
    """

    def forward(self, input: Tensor) -> Any:
        return pool.max_pool1d(input, *_max_arguments(self))


class MaxPool2d(nn.MaxPool2d):
    r"""The largest element of each window of [N, C, H, W] or [C, H, W]; takes what :class:`torch.nn.MaxPool2d` takes.

    .. math::
        y_{nc,ij} = \max_{k < K_h,\, l < K_w} x_{nc,\; s_h i - p_h + d_h k,\; s_w j - p_w + d_w l}

    See :func:`pykernels.functional.max_pool2d`.

    Example::

        >>> y = pykernels.MaxPool2d(3, stride=2, padding=1)(x)
    """

    def forward(self, input: Tensor) -> Any:
        return pool.max_pool2d(input, *_max_arguments(self))


class MaxPool3d(nn.MaxPool3d):
    """The largest element of each window of [N, C, D, H, W] or [C, D, H, W]; takes what :class:`torch.nn.MaxPool3d`
    takes.

    See :func:`pykernels.functional.max_pool2d`.
    """

    def forward(self, input: Tensor) -> Any:
        return pool.max_pool3d(input, *_max_arguments(self))


class AdaptiveMaxPool1d(nn.AdaptiveMaxPool1d):
    """See :class:`torch.nn.AdaptiveMaxPool1d` and :func:`pykernels.functional.adaptive_max_pool2d`."""

    def forward(self, input: Tensor) -> Any:
        return pool.adaptive_max_pool1d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool2d(nn.AdaptiveMaxPool2d):
    """See :class:`torch.nn.AdaptiveMaxPool2d` and :func:`pykernels.functional.adaptive_max_pool2d`."""

    def forward(self, input: Tensor) -> Any:
        return pool.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool3d(nn.AdaptiveMaxPool3d):
    """See :class:`torch.nn.AdaptiveMaxPool3d` and :func:`pykernels.functional.adaptive_max_pool2d`."""

    def forward(self, input: Tensor) -> Any:
        return pool.adaptive_max_pool3d(input, self.output_size, self.return_indices)


class AvgPool1d(nn.AvgPool1d):
    """The mean of each window of [N, C, L] or [C, L]; takes what :class:`torch.nn.AvgPool1d` takes.

    See :func:`pykernels.functional.avg_pool2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return pool.avg_pool1d(input, *_windows(self), self.ceil_mode, self.count_include_pad)


class AvgPool2d(nn.AvgPool2d):
    r"""The mean of each window of [N, C, H, W] or [C, H, W]; takes what :class:`torch.nn.AvgPool2d` takes.

    .. math::
        y_{nc,ij} = \frac{1}{c_{ij}} \sum_{k < K_h,\, l < K_w} x_{nc,\; s_h i - p_h + k,\; s_w j - p_w + l}

    See :func:`pykernels.functional.avg_pool2d`.

    Example::

        >>> y = pykernels.AvgPool2d(2)(x)
    """

    def forward(self, input: Tensor) -> Tensor:
        return pool.avg_pool2d(input, *_windows(self), self.ceil_mode, self.count_include_pad, self.divisor_override)


class AvgPool3d(nn.AvgPool3d):
    """The mean of each window of [N, C, D, H, W] or [C, D, H, W]; takes what :class:`torch.nn.AvgPool3d` takes.

    See :func:`pykernels.functional.avg_pool2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return pool.avg_pool3d(input, *_windows(self), self.ceil_mode, self.count_include_pad, self.divisor_override)


class AdaptiveAvgPool1d(nn.AdaptiveAvgPool1d):
    """See :class:`torch.nn.AdaptiveAvgPool1d` and :func:`pykernels.functional.adaptive_avg_pool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return pool.adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """See :class:`torch.nn.AdaptiveAvgPool2d` and :func:`pykernels.functional.adaptive_avg_pool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return pool.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveAvgPool3d(nn.AdaptiveAvgPool3d):
    """See :class:`torch.nn.AdaptiveAvgPool3d` and :func:`pykernels.functional.adaptive_avg_pool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return pool.adaptive_avg_pool3d(input, self.output_size)


class MaxUnpool1d(nn.MaxUnpool1d):
    """See :class:`torch.nn.MaxUnpool1d` and :func:`pykernels.functional.max_unpool2d`."""

    def forward(self, input: Tensor, indices: Tensor, output_size: Any = None) -> Tensor:
        return pool.max_unpool1d(input, indices, *_windows(self), output_size)


class MaxUnpool2d(nn.MaxUnpool2d):
    """See :class:`torch.nn.MaxUnpool2d` and :func:`pykernels.functional.max_unpool2d`."""

    def forward(self, input: Tensor, indices: Tensor, output_size: Any = None) -> Tensor:
        return pool.max_unpool2d(input, indices, *_windows(self), output_size)


class MaxUnpool3d(nn.MaxUnpool3d):
    """See :class:`torch.nn.MaxUnpool3d` and :func:`pykernels.functional.max_unpool2d`."""

    def forward(self, input: Tensor, indices: Tensor, output_size: Any = None) -> Tensor:
        return pool.max_unpool3d(input, indices, *_windows(self), output_size)
