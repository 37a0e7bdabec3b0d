"""What radial basis networks and extreme learning machines share: a hidden layer that is not learned by gradients, and
an output layer that is solved for."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_y, check_consistent_length
from torch import Tensor

from ._base import Estimator, Rows, generator_of

_BLOCK = 8192  # samples whose hidden units exist at a time


def ridge(h: Tensor, t: Tensor, alpha: float, fit_intercept: bool) -> tuple[Tensor, Tensor]:
    """From the sums over samples of [h 1]' [h 1] and of [h 1]' t, in float64, coefficients and intercept."""
    products, targets, sums = h[:-1, :-1], t[:-1], h[:-1, -1:]
    count = h[-1:, -1:]
    if fit_intercept:
        products, targets = products - sums @ sums.mT / count, targets - sums @ t[-1:] / count
    products = products + alpha * torch.eye(len(products), dtype=products.dtype, device=products.device)
    factor, failed = torch.linalg.cholesky_ex(products)
    if int(failed):  # no penalty, and hidden units that say the same
        found = torch.linalg.lstsq(products, targets, driver="gelsd" if products.is_cpu else None).solution
    else:
        found = torch.cholesky_solve(targets, factor)
    intercept = (t[-1:] - sums.mT @ found) / count if fit_intercept else torch.zeros_like(t[-1:])
    return found, intercept[0]


class RidgeNetwork(Estimator):
    """A hidden layer, and an output layer by ridge regression. A subclass learns the first and applies it."""

    alpha: float
    fit_intercept: bool
    random_state: Any
    _coefficients: Tensor
    _intercept: Tensor

    def _learn_hidden(self, rows: Rows, generator: torch.Generator) -> None:
        raise NotImplementedError

    def _hidden(self, block: Tensor) -> Tensor:
        raise NotImplementedError

    def _fit(self, X: Any, targets: Tensor, rows: Rows) -> None:
        if not (isinstance(self.alpha, Real) and float(self.alpha) >= 0):
            raise ValueError(f"[{type(self).__name__}] expected alpha of 0 or more, got {self.alpha!r}")
        self._learn_hidden(rows, generator_of(self.random_state))
        h_sums: Any = 0
        t_sums: Any = 0
        for begin, block in rows.blocks(_BLOCK):
            hidden = self._hidden(block).double()
            hidden = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], 1)
            h_sums = h_sums + hidden.mT @ hidden
            t_sums = t_sums + hidden.mT @ targets[begin : begin + len(block)].to(hidden)
        summed = torch.cat([h_sums, t_sums], 1)
        self._coefficients, self._intercept = ridge(
            summed[:, : len(summed)], summed[:, len(summed) :], float(self.alpha), self.fit_intercept
        )
        self.coef_, self.intercept_ = rows.result(self._coefficients), rows.result(self._intercept)

    def _scores(self, X: Any) -> tuple[Rows, Tensor]:
        rows = self._fitted_rows(X)
        weight, bias = (t.to(rows.device, rows.dtype) for t in (self._coefficients, self._intercept))
        return rows, torch.cat([self._hidden(block) @ weight + bias for _, block in rows.blocks(_BLOCK)])

    def _targets(self, X: Any, y: Any) -> tuple[Rows, Any]:
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        rows = self._rows(X, reset=True)
        y = y.numpy(force=True) if isinstance(y, Tensor) else y
        check_consistent_length(range(len(rows)), y)
        return rows, y


class RidgeRegressor(RegressorMixin, RidgeNetwork):
    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> Any:
        """Learn from samples X [N, D] and targets y, [N] or [N, outputs]."""
        rows, y = self._targets(X, y)
        y = _check_y(y, multi_output=True, y_numeric=True, estimator=self)
        self._single = y.ndim == 1
        self._fit(X, torch.tensor(np.asarray(y, np.float64)).reshape(len(rows), -1), rows)
        return self

    def predict(self, X: Any) -> Any:
        """[N] or [N, outputs], as the targets were."""
        rows, scores = self._scores(X)
        return rows.result(scores[:, 0] if self._single else scores)


class RidgeClassifier(ClassifierMixin, RidgeNetwork):
    def fit(self, X: Any, y: Any) -> Any:
        """Learn from samples X [N, D] and classes y [N]: targets are 1 for a sample's class and -1 for others."""
        rows, y = self._targets(X, y)
        y = _check_y(y, multi_output=False, estimator=self)
        check_classification_targets(y)
        binarizer = LabelBinarizer(neg_label=-1)
        targets = binarizer.fit_transform(y)
        self.classes_ = binarizer.classes_
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__} expected samples of at least 2 classes, but the data has 1 class")
        self._fit(X, torch.tensor(np.asarray(targets, np.float64)), rows)
        return self

    def decision_function(self, X: Any) -> Any:
        """The output for each class, [N, classes], or [N] for the second of two."""
        rows, scores = self._scores(X)
        return rows.result(scores[:, 0] if scores.shape[1] == 1 else scores)

    def predict(self, X: Any) -> Any:
        """The class of each sample, [N]: an array, or a tensor where samples are one and classes are numbers."""
        rows, scores = self._scores(X)
        chosen = (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(1)
        if not rows.wrap and self.classes_.dtype.kind in "biuf":
            return torch.from_numpy(self.classes_).to(chosen.device)[chosen]
        return self.classes_[chosen.numpy(force=True)]


def cluster(rows: Rows, count: int, n_iter: int, generator: torch.Generator) -> Tensor:
    """Centres of `count` clusters by Lloyd's algorithm from samples; a cluster that has none gets the sample farthest
    from its centre."""
    from ..functional import bmu

    chosen = torch.randperm(len(rows), generator=generator)[:count].sort().values
    centers = rows.dense(chosen).contiguous()
    before = None
    for _ in range(n_iter):
        units: list[Tensor] = []
        farthest: list[tuple[float, int]] = []
        sums = torch.zeros(count, rows.n_features, dtype=torch.float64, device=rows.device)
        counts = torch.zeros(count, dtype=torch.int64, device=rows.device)
        for begin, block in rows.blocks(_BLOCK):
            distance, index = bmu(block, centers)
            some, number = torch.ops.pykernels.unit_sums(block, index, count)
            sums += some
            counts += number
            top = distance.topk(min(count, len(block)))
            farthest += list(zip(top.values.tolist(), (top.indices + begin).tolist(), strict=True))
            units.append(index)
        new = sums / counts.clamp_min(1)[:, None]
        empty = torch.nonzero(counts == 0).flatten()
        if len(empty):
            best = [sample for _, sample in sorted(farthest, key=lambda pair: (-pair[0], pair[1]))[: len(empty)]]
            new[empty[: len(best)]] = rows.dense(torch.tensor(best)).to(new)
        centers = new.to(rows.dtype)
        now = torch.cat(units)
        if before is not None and torch.equal(now, before) and not len(empty):
            break
        before = now
    return centers
