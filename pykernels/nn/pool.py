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

    over the elements that exist. See :func:`pykernels.functional.max_pool2d`.

    Args:
        kernel_size, stride, padding, dilation: K, s, p and d, one number or two; s is K by default, p at most K / 2.
        return_indices: also the indices into the planes of x, for :class:`MaxUnpool2d`; costs a second pass.
        ceil_mode: windows may reach beyond the padding behind.

    Raises:
        RuntimeError, TypeError, ValueError: torch's, when it is called.

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
    """The largest element of each of `output_size` windows of [N, C, L] or [C, L]; takes what
    :class:`torch.nn.AdaptiveMaxPool1d` takes. See :class:`AdaptiveMaxPool2d`.
    """

    def forward(self, input: Tensor) -> Any:
        return pool.adaptive_max_pool1d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool2d(nn.AdaptiveMaxPool2d):
    r"""The largest element of each of so many windows of [N, C, H, W] or [C, H, W]; takes what
    :class:`torch.nn.AdaptiveMaxPool2d` takes.

    .. math::
        y_{nc,ij} = \max_{r \in R_i,\, s \in S_j} x_{nc,rs}, \qquad
        R_i = \{\lfloor i H / m_h \rfloor, \dots, \lceil (i + 1) H / m_h \rceil - 1\}

    and :math:`S_j` likewise of the columns: [N, C, m_h, m_w] or [C, m_h, m_w]. See
    :func:`pykernels.functional.adaptive_max_pool2d`.

    Args:
        output_size: m, one number or two; None in a pair for the input's.
        return_indices: also the indices into the planes of x; costs a second pass.

    Raises:
        RuntimeError, TypeError, ValueError: torch's, when it is called.

    Example::

        >>> y = pykernels.AdaptiveMaxPool2d((7, None))(x)
    """

    def forward(self, input: Tensor) -> Any:
        return pool.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool3d(nn.AdaptiveMaxPool3d):
    """The largest element of each of `output_size` windows of [N, C, D, H, W] or [C, D, H, W]; takes what
    :class:`torch.nn.AdaptiveMaxPool3d` takes. See :class:`AdaptiveMaxPool2d`.
    """

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

    over the elements that exist. See :func:`pykernels.functional.avg_pool2d`.

    Args:
        kernel_size, stride, padding: K, s and p, one number or two; s is K by default, p at most K / 2.
        ceil_mode: windows may reach beyond the padding behind.
        count_include_pad: c is the number of elements with those of the padding, or without.
        divisor_override: c.

    Raises:
        RuntimeError, TypeError, ValueError: torch's, when it is called.

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
    """The mean of each of `output_size` windows of [N, C, L] or [C, L]; takes what
    :class:`torch.nn.AdaptiveAvgPool1d` takes. See :class:`AdaptiveAvgPool2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return pool.adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    r"""The mean of each of so many windows of [N, C, H, W] or [C, H, W]; takes what
    :class:`torch.nn.AdaptiveAvgPool2d` takes.

    .. math::
        y_{nc,ij} = \frac{1}{|R_i| |S_j|} \sum_{r \in R_i,\, s \in S_j} x_{nc,rs}, \qquad
        R_i = \{\lfloor i H / m_h \rfloor, \dots, \lceil (i + 1) H / m_h \rceil - 1\}

    and :math:`S_j` likewise of the columns: [N, C, m_h, m_w] or [C, m_h, m_w]. See
    :func:`pykernels.functional.adaptive_avg_pool2d`.

    Args:
        output_size: m, one number or two; None in a pair for the input's.

    Raises:
        RuntimeError, TypeError, ValueError: torch's, when it is called.

    Example::

        >>> y = pykernels.AdaptiveAvgPool2d(1)(x)
    """

    def forward(self, input: Tensor) -> Tensor:
        return pool.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveAvgPool3d(nn.AdaptiveAvgPool3d):
    """The mean of each of `output_size` windows of [N, C, D, H, W] or [C, D, H, W]; takes what
    :class:`torch.nn.AdaptiveAvgPool3d` takes. See :class:`AdaptiveAvgPool2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return pool.adaptive_avg_pool3d(input, self.output_size)


class MaxUnpool1d(nn.MaxUnpool1d):
    """Zeros, and [N, C, L] or [C, L] where the indices of :class:`MaxPool1d` say; takes what
    :class:`torch.nn.MaxUnpool1d` takes. See :class:`MaxUnpool2d`.
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: Any = None) -> Tensor:
        return pool.max_unpool1d(input, indices, *_windows(self), output_size)


class MaxUnpool2d(nn.MaxUnpool2d):
    r"""Zeros, and [N, C, H', W'] or [C, H', W'] where the indices of :class:`MaxPool2d` say; takes what
    :class:`torch.nn.MaxUnpool2d` takes.

    .. math::
        x_{nc,p} = y_{nc,o} \text{ where } a_{nc,o} = p, \text{ of the last such } o; \text{ else } 0

    of size :math:`H = (H' - 1) s_h - 2 p_h + K_h` (W likewise), or the `output_size` of the call. See
    :func:`pykernels.functional.max_unpool2d`.

    Args:
        kernel_size, stride, padding: K, s and p of the pooling, one number or two; s is K by default.

    Raises:
        RuntimeError, TypeError, ValueError: torch's, when it is called.

    Example::

        >>> y, at = pykernels.MaxPool2d(2, return_indices=True)(x)
        >>> x = pykernels.MaxUnpool2d(2)(y, at, output_size=x.shape)
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: Any = None) -> Tensor:
        return pool.max_unpool2d(input, indices, *_windows(self), output_size)


class MaxUnpool3d(nn.MaxUnpool3d):
    """Zeros, and [N, C, D, H, W] or [C, D, H, W] where the indices of :class:`MaxPool3d` say; takes what
    :class:`torch.nn.MaxUnpool3d` takes. See :class:`MaxUnpool2d`.
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: Any = None) -> Tensor:
        return pool.max_unpool3d(input, indices, *_windows(self), output_size)
