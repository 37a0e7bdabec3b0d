"""Radial basis networks."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..functional import radial_basis
from ..reference import default_gamma
from ._base import Rows
from ._ridge import RidgeClassifier, RidgeNetwork, RidgeRegressor, cluster

__all__ = ["RadialBasisClassifier", "RadialBasisRegressor"]

_ABOUT = r"""

    .. math::
        y(x) = b + \sum_i \beta_i \, e^{-\gamma \lVert x - t_i \rVert^2}

    with centres :math:`t_i` found by clustering the samples (Lloyd's algorithm, by the search for best matching units)
    and :math:`\beta = (H^\top H + \lambda I)^{-1} H^\top T` by ridge regression, H being what the hidden units give for
    the samples.

    Args:
        n_centers: how many centres; all samples where there are fewer.
        gamma: :math:`\gamma`; None for :math:`1 / 4 s^2` with :math:`s^2` the mean square of the distances between each
            centre and its two nearest; "spread" for m / d_max^2 (:func:`pykernels.functional.radial_basis`), which
            suits few features and centres only.
        alpha: :math:`\lambda`.
        fit_intercept: whether there is a b, which is not penalised.
        n_iter: rounds of clustering at most.
        random_state: None, a number, a `numpy.random.RandomState` or a `torch.Generator`.
        device: where to compute; None for where a tensor lies and the processor for arrays.

    Attributes:
        centers\_, gamma\_: t [m, D] and :math:`\gamma`; coef\_, intercept\_: :math:`\beta` [m, outputs] and b.

    Source: Moody and Darken 1989 (https://doi.org/10.1162/neco.1989.1.2.281).
"""


class _RadialBasis(RidgeNetwork):
    _centers: Tensor
    gamma_: float

    def __init__(
        self,
        n_centers: int = 100,
        *,
        gamma: float | str | None = None,
        alpha: float = 1e-3,
        fit_intercept: bool = True,
        n_iter: int = 30,
        random_state: Any = None,
        device: Any = None,
    ) -> None:
        self.n_centers, self.gamma, self.alpha, self.fit_intercept = n_centers, gamma, alpha, fit_intercept
        self.n_iter, self.random_state, self.device = n_iter, random_state, device

    def _learn_hidden(self, rows: Rows, generator: torch.Generator) -> None:
        if not isinstance(self.n_centers, Integral) or self.n_centers < 1:
            raise ValueError(f"[{type(self).__name__}] expected n_centers of 1 or more, got {self.n_centers!r}")
        self._centers = cluster(rows, min(int(self.n_centers), len(rows)), self.n_iter, generator)
        self.gamma_ = self._width()
        self.centers_ = rows.result(self._centers)

    def _width(self) -> float:
        if isinstance(self.gamma, str) and self.gamma != "spread":
            raise ValueError(f'[{type(self).__name__}] expected gamma a number, None or "spread", got {self.gamma!r}')
        if self.gamma is not None and self.gamma != "spread":
            return float(self.gamma)
        if self.gamma == "spread" or len(self._centers) < 3:
            return float(default_gamma(self._centers))
        centers = self._centers.double()
        nearest = torch.cdist(centers, centers).topk(3, largest=False).values[:, 1:]
        square = float(nearest.square().mean())
        return 1 / (4 * square) if square > 0 else 1.0

    def _hidden(self, block: Tensor) -> Tensor:
        return radial_basis(block, self._centers.to(block), self.gamma_)


class RadialBasisRegressor(_RadialBasis, RidgeRegressor):
    __doc__ = f"""A radial basis network for numbers.{_ABOUT}
    Example::

        >>> pykernels.RadialBasisRegressor(50, random_state=0).fit(X, y).predict(X)
    """


class RadialBasisClassifier(_RadialBasis, RidgeClassifier):
    __doc__ = f"""A radial basis network for classes, with an output for each.{_ABOUT}
    Example::

        >>> pykernels.RadialBasisClassifier(300, random_state=0).fit(X, y).score(X, y)
    """
