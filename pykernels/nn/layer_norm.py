"""Layer norm in the place of `torch.nn.LayerNorm`, with a residual connection in it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..functional.layer_norm import layer_norm

__all__ = ["LayerNorm"]


class LayerNorm(nn.LayerNorm):
    r"""Layer norm of a sum; takes what :class:`torch.nn.LayerNorm` takes.

    .. math::
        y = \frac{s - \mathrm{E}[s]}{\sqrt{\mathrm{Var}[s] + \epsilon}} \odot w + b, \quad
        s = r + \mathrm{dropout}(x)

    See :func:`pykernels.functional.layer_norm`.

    Example::

        >>> norm = pykernels.LayerNorm(512)
        >>> y = norm(x)                                              # torch's
        >>> y, s = norm(update, residual=s, dropout_p=0.1, return_total=True)
    """

    def forward(
        self, input: Tensor, residual: Tensor | None = None, *, dropout_p: float = 0.0, return_total: bool = False
    ) -> Any:
        """Normalise `residual + dropout(input)`; dropout only while training."""
        return layer_norm(
            input,
            self.normalized_shape,
            self.weight,
            self.bias,
            self.eps,
            residual=residual,
            dropout_p=dropout_p if self.training else 0.0,
            return_total=return_total,
        )
