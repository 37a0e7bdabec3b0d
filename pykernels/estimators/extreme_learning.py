"""Extreme learning machines."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ._base import Rows
from ._ridge import RidgeClassifier, RidgeNetwork, RidgeRegressor

__all__ = ["ExtremeLearningClassifier", "ExtremeLearningRegressor"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
}
_ABOUT = r"""

    .. math::
        H = f(X W + b), \qquad \beta = (H^\top H + \lambda I)^{-1} H^\top T, \qquad y(x) = f(x W + b) \beta

    with W and b drawn at random once: only the output layer is learned, by ridge regression. Features are brought to
    mean 0 and variance 1 first, weights are uniform in -1 ... 1 over the root of the number of features, times `scale`.

    Args:
        n_hidden: how many hidden units.
        activation: f, "sigmoid", "tanh" or "relu".
        scale: of the random weights; larger ones give steeper units.
        alpha: :math:`\lambda`.
        fit_intercept: whether a constant, which is not penalised, is added to the outputs.
        random_state: None, a number, a `numpy.random.RandomState` or a `torch.Generator`.
        device: where to compute; None for where a tensor lies and the processor for arrays.

    Attributes:
        weight\_, bias\_: W [D, hidden] and b, of the samples as they are given.
        coef\_, intercept\_: :math:`\beta` [hidden, outputs] and the constant.

    Source: Huang, Zhu and Siew 2006 (https://doi.org/10.1016/j.neucom.2005.12.126); Huang et al. 2012
    (https://doi.org/10.1109/TSMCB.2011.2168604) for :math:`\lambda`.
"""


class _ExtremeLearning(RidgeNetwork):
    _weight: Tensor
    _bias: Tensor

    def __init__(
        self,
        n_hidden: int = 500,
        *,
        activation: str = "sigmoid",
        scale: float = 3.0,
        alpha: float = 1e-3,
        fit_intercept: bool = True,
        random_state: Any = None,
        device: Any = None,
    ) -> None:
        self.n_hidden, self.activation, self.scale = n_hidden, activation, scale
        self.alpha, self.fit_intercept = alpha, fit_intercept
        self.random_state, self.device = random_state, device

    def _learn_hidden(self, rows: Rows, generator: torch.Generator) -> None:
        name = type(self).__name__
        if not isinstance(self.n_hidden, Integral) or self.n_hidden < 1:
            raise ValueError(f"[{name}] expected n_hidden of 1 or more, got {self.n_hidden!r}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"[{name}] expected activation {' or '.join(map(repr, ACTIVATIONS))}, got {self.activation!r}"
            )
        sums = torch.zeros(2, rows.n_features, dtype=torch.float64, device=rows.device)
        shift = rows.dense(slice(0, 1)).double()[0]
        for _, block in rows.blocks(8192):
            off = block.double() - shift
            sums += torch.stack([off.sum(0), off.square().sum(0)])
        mean, square = sums / len(rows)
        deviation = (square - mean.square()).clamp_min(0).sqrt()
        deviation = torch.where(deviation > 1e-12 * (mean + shift).abs(), deviation, 1.0)
        drawn = torch.rand(rows.n_features + 1, int(self.n_hidden), generator=generator, dtype=torch.float64)
        drawn = (2 * drawn - 1).to(rows.device)
        weight = self.scale * drawn[:-1] / rows.n_features**0.5 / deviation[:, None]
        self._weight = weight
        self._bias = self.scale * drawn[-1] - (mean + shift) @ weight
        self.weight_, self.bias_ = rows.result(self._weight), rows.result(self._bias)

    def _hidden(self, block: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](torch.addmm(self._bias.to(block), block, self._weight.to(block)))


class ExtremeLearningRegressor(_ExtremeLearning, RidgeRegressor):
    __doc__ = f"""An extreme learning machine for numbers.{_ABOUT}
    Example::

        >>> pykernels.ExtremeLearningRegressor(200, random_state=0).fit(X, y).predict(X)
    """


class ExtremeLearningClassifier(_ExtremeLearning, RidgeClassifier):
    __doc__ = f"""An extreme learning machine for classes, with an output for each.{_ABOUT}
    Example::

        >>> pykernels.ExtremeLearningClassifier(1000, random_state=0).fit(X, y).score(X, y)
    """
