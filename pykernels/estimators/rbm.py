"""The restricted Boltzmann machine as an estimator."""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ..functional import rbm_free_energy, rbm_mean, rbm_sample, rbm_train_
from ._base import Estimator, Rows, generator_of

__all__ = ["RBM"]

_AT_ONCE = 1 << 25  # elements of data that are dense at one time, where it is sparse or of another dtype
_BLOCK = 4096  # rows that are looked at together


class Counted:
    """Random numbers that go on from call to call: seeds and generators made of one seed and a count."""

    def __init__(self, seed: int) -> None:
        self.seed, self.count = seed, 0

    def generator(self) -> torch.Generator:
        self.count += 1
        return torch.Generator().manual_seed((self.seed + 0x9E3779B97F4A7C15 * self.count) % 2**63)

    def next_seed(self) -> int:
        return int(torch.randint(2**63 - 1, (), generator=self.generator()))


def _has_bernoulli_units(estimator: Any) -> bool:
    if estimator.visible != "bernoulli":
        raise AttributeError(f"pseudo-likelihood is of visible='bernoulli', which is {estimator.visible!r} here")
    return True


class RBM(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Estimator):
    r"""Restricted Boltzmann machine, trained by contrastive divergence.

    Visible units v and hidden units h, the two sides of a graph without edges inside a side, have the energy

    .. math::
        E(v, h) = -b^\top v - c^\top h - h^\top W v, \qquad p(v, h) \propto e^{-E(v, h) / T}.

    So a unit is on with probability :math:`p(s_i = 1) = \sigma(\Delta E_i / T)`, where
    :math:`\Delta E_i = \sum_j w_{ij} s_j + b_i`, and given the other side the units of a side are independent. Learning
    goes along the difference of what data and model expect, the latter after k steps of Gibbs sampling that begin at
    the data, or (persistent) where the last ones ended:

    .. math::
        \Delta W = \eta \big(\langle h v^\top \rangle^0 - \langle h v^\top \rangle^k\big).

    Gaussian visible units, for data that are no probabilities, have
    :math:`E(v, h) = \tfrac12 |v - b|^2 - c^\top h - h^\top W v`: given h they are normal with mean
    :math:`b + W^\top h` and variance T. Bring each feature to mean 0 and variance 1 for them, and take a learning rate
    ten times smaller or more.

    Every mini-batch of an epoch is in one call of one kernel (`pykernels.functional.rbm_train_`), whose random numbers
    are counted: the same seed gives the same model for any number of threads.

    Args:
        n_visible: the number of features; None: that of the data.
        n_hidden: hidden units.
        visible: "bernoulli" (data from 0 to 1) or "gaussian".
        k: steps of Gibbs sampling for an update.
        persistent: whether chains go on from update to update (PCD), as many as a mini-batch has rows.
        temperature: T.
        learning_rate: :math:`\eta`.
        momentum: share of the last update in the next.
        weight_decay: weights shrink by this times the learning rate in an update.
        batch_size: rows of a mini-batch.
        n_epochs: passes over the data.
        random_state: None, a number, a `torch.Generator` or what scikit-learn takes.
        device: where to compute; None: where a tensor lies, and on the processor for arrays.
        verbose: whether to print the pseudo-likelihood after each epoch (the free energy of Gaussian units).

    Attributes:
        components_: W, a tensor [n_hidden, n_features].
        intercept_visible_, intercept_hidden_: b and c.
        chain_: [batch_size, n_hidden], hidden states of the persistent chains, or None.
        n_epochs_: passes made so far.
        n_features_in_: number of features.

    Samples may be numpy arrays, tensors or sparse matrices; what is of samples comes back as an array or a tensor.
    `fit` and `partial_fit` are deterministic for a given `random_state`; so is each further draw of `gibbs`.

    Sources: Hinton 2002 (https://doi.org/10.1162/089976602760128018), Tieleman 2008
    (https://doi.org/10.1145/1390156.1390290), Hinton 2012, "A Practical Guide to Training Restricted Boltzmann
    Machines" (https://doi.org/10.1007/978-3-642-35289-8_32).

    Example::

        >>> rbm = pykernels.RBM(n_hidden=100, learning_rate=0.06, random_state=0).fit(x)
        >>> features = rbm.transform(x)
    """

    def __init__(
        self,
        n_visible: int | None = None,
        n_hidden: int = 256,
        *,
        visible: str = "bernoulli",
        k: int = 1,
        persistent: bool = False,
        temperature: float = 1.0,
        learning_rate: float = 0.1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        batch_size: int = 10,
        n_epochs: int = 10,
        random_state: Any = None,
        device: Any = None,
        verbose: bool = False,
    ) -> None:
        self.n_visible = n_visible
        self.n_hidden = n_hidden
        self.visible = visible
        self.k = k
        self.persistent = persistent
        self.temperature = temperature
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    # --- learning

    def fit(self, X: Any, y: Any = None) -> RBM:
        """Learn from X [n_samples, n_features] in `n_epochs` passes over shuffled rows. y is not looked at."""
        rows = self._rows(X, reset=True)
        self._begin(rows)
        order_size = len(rows)
        for epoch in range(self.n_epochs):
            self._pass(rows, torch.randperm(order_size, generator=self._random.generator()))
            if self.verbose:
                self._tell(rows, epoch + 1)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> RBM:
        """Learn from X [n_samples, n_features] in one pass over its rows as they come, going on from what there is."""
        first = not hasattr(self, "components_")
        rows = self._rows(X, reset=first)
        if first:
            self._begin(rows)
        else:
            self._check_parameters(rows)
        self._pass(rows, None)
        return self

    def _begin(self, rows: Rows) -> None:
        self._check_parameters(rows)
        generator = generator_of(self.random_state)
        self._random = Counted(int(torch.randint(2**62, (), generator=generator)))
        drawn = torch.randn(self.n_hidden, rows.n_features, generator=self._random.generator(), dtype=torch.float64)
        where: dict[str, Any] = {"device": rows.device, "dtype": rows.dtype}
        self.components_ = (0.01 * drawn).to(**where)
        self.intercept_visible_ = torch.zeros(rows.n_features, **where)
        self.intercept_hidden_ = torch.zeros(self.n_hidden, **where)
        self.chain_ = torch.zeros(self.batch_size, self.n_hidden, **where) if self.persistent else None
        self._velocity: tuple[Tensor, Tensor, Tensor] | None = None
        self.n_epochs_ = 0
        self._n_features_out = self.n_hidden

    def _check_parameters(self, rows: Rows) -> None:
        name = type(self).__name__
        if self.n_visible is not None and self.n_visible != rows.n_features:
            raise ValueError(f"[{name}] expected n_visible={self.n_visible} features, got {rows.n_features}")
        for what, least in (("n_hidden", 1), ("k", 1), ("batch_size", 1), ("n_epochs", 0)):
            value = getattr(self, what)
            if not isinstance(value, numbers.Integral) or value < least:
                raise ValueError(f"[{name}] expected {what} to be a whole number from {least}, got {value!r}")
        for what in ("learning_rate", "momentum", "weight_decay"):
            if not getattr(self, what) >= 0:
                raise ValueError(f"[{name}] expected {what} of at least 0, got {getattr(self, what)!r}")
        if not self.temperature > 0:
            raise ValueError(f"[{name}] expected a temperature above 0, got {self.temperature!r}")
        if self.visible not in ("bernoulli", "gaussian"):
            raise ValueError(f"[{name}] expected visible 'bernoulli' or 'gaussian', got {self.visible!r}")

    def _pass(self, rows: Rows, order: Tensor | None) -> None:
        """One epoch; the data come to the device in large pieces where they are not there as they should be."""
        weight = self.components_
        parameters = weight, self.intercept_visible_, self.intercept_hidden_
        if self.momentum and self._velocity is None:
            w, b, c = (torch.zeros_like(p) for p in parameters)
            self._velocity = w, b, c
        seed, first_row = self._random.next_seed(), 0
        stride = max(self.batch_size, 0 if self.chain_ is None else len(self.chain_))
        for data, part in _pieces(rows, order, self.batch_size, weight):
            rbm_train_(
                data, *parameters, order=part, learning_rate=self.learning_rate, batch_size=self.batch_size,
                velocity=self._velocity if self.momentum else None, chain=self.chain_, k=self.k, visible=self.visible,
                temperature=self.temperature, momentum=self.momentum, weight_decay=self.weight_decay, seed=seed,
                first_row=first_row,
            )  # fmt: skip
            count = len(data) if part is None else len(part)
            first_row += -(-count // self.batch_size) * stride
        self.n_epochs_ += 1

    def _tell(self, rows: Rows, epoch: int) -> None:
        some = rows.dense(slice(0, _BLOCK)).to(self.components_)
        if self.visible == "bernoulli":
            what, value = "pseudo-likelihood", self._pseudo_likelihood(some).mean()
        else:
            what, value = "free energy", self._free_energy(some).mean()
        print(f"[{type(self).__name__}] epoch {epoch}: {what} {float(value):.2f}", flush=True)

    # --- what it has learned

    def transform(self, X: Any) -> Any:
        """The hidden units' probabilities given X, [n_samples, n_hidden]."""
        rows = self._fitted_rows(X)
        return self._each(rows, lambda v: rbm_mean(v, self.components_, self.intercept_hidden_, **self._heat))

    def gibbs(self, v: Any, k: int = 1) -> Any:
        """Visible states after k steps of Gibbs sampling from v [n_samples, n_features]."""
        rows = self._fitted_rows(v)

        def steps(states: Tensor) -> Tensor:
            seed = self._random.next_seed()
            weight, b, c = self.components_, self.intercept_visible_, self.intercept_hidden_
            for step in range(k):
                hidden = rbm_sample(states, weight, c, seed=seed, stream=2 * step, **self._heat)[1]
                states = rbm_sample(
                    hidden, weight, b, units=self.visible, transposed=True, seed=seed, stream=2 * step + 1, **self._heat
                )[1]
            return states

        return self._each(rows, steps)

    def reconstruct(self, v: Any) -> Any:
        """The visible units' means given the hidden units' probabilities given v: v as the features keep it."""
        rows = self._fitted_rows(v)
        return self._each(rows, self._reconstruct)

    def inverse_transform(self, X: Any) -> Any:
        """The visible units' means given hidden states or probabilities X [n_samples, n_hidden]."""
        check_is_fitted(self)
        given = X if isinstance(X, Tensor) else torch.as_tensor(X)
        means = rbm_mean(
            given.to(self.components_), self.components_, self.intercept_visible_, units=self.visible, transposed=True,
            **self._heat,
        )  # fmt: skip
        return means if isinstance(X, Tensor) else means.numpy(force=True)

    def free_energy(self, v: Any) -> Any:
        r"""F(v) of each sample: :math:`p(v) \propto e^{-F(v) / T}` (`pykernels.functional.rbm_free_energy`)."""
        rows = self._fitted_rows(v)
        return self._each(rows, self._free_energy)

    @available_if(_has_bernoulli_units)
    def pseudo_likelihood(self, v: Any) -> Any:
        """An estimate of the log pseudo-likelihood of each sample, as scikit-learn's: one feature, drawn at random, is
        flipped, and stands for all of them."""
        rows = self._fitted_rows(v)
        return self._each(rows, self._pseudo_likelihood)

    @available_if(_has_bernoulli_units)
    def score_samples(self, X: Any) -> Any:
        r"""The log pseudo-likelihood of each sample, :math:`\sum_i \log p(v_i \mid v_{-i})`, summed in full: it costs
        what n_features calls of :meth:`free_energy` do, without their products. `pseudo_likelihood` estimates it."""
        rows = self._fitted_rows(X)
        return self._each(rows, self._whole_pseudo_likelihood)

    @property
    def _heat(self) -> dict[str, Any]:
        return {"temperature": self.temperature}

    def _each(self, rows: Rows, function: Any) -> Any:
        """Of block after block, in the dtype of the samples."""
        with torch.no_grad():
            found = [function(block.to(self.components_)).to(rows.dtype) for _, block in rows.blocks(_BLOCK)]
        return rows.result(found[0] if len(found) == 1 else torch.cat(found))

    def _reconstruct(self, v: Tensor) -> Tensor:
        hidden = rbm_mean(v, self.components_, self.intercept_hidden_, **self._heat)
        return rbm_mean(
            hidden, self.components_, self.intercept_visible_, units=self.visible, transposed=True, **self._heat
        )

    def _free_energy(self, v: Tensor) -> Tensor:
        parameters = self.components_, self.intercept_visible_, self.intercept_hidden_
        return rbm_free_energy(v, *parameters, units=self.visible, **self._heat)

    def _pseudo_likelihood(self, v: Tensor) -> Tensor:
        generator = self._random.generator()
        flipped, features = v.clone(), v.shape[1]
        index = torch.randint(features, (len(v), 1), generator=generator).to(v.device)
        flipped.scatter_(1, index, 1 - v.gather(1, index))
        return features * F.logsigmoid((self._free_energy(flipped) - self._free_energy(v)) / self.temperature)

    def _whole_pseudo_likelihood(self, v: Tensor) -> Tensor:
        weight, heat = self.components_, self.temperature
        given = F.linear(v, weight, self.intercept_hidden_)
        plain, change, total = F.softplus(given / heat).sum(1), 1 - 2 * v, torch.zeros_like(v[:, 0])
        for i in range(v.shape[1]):
            flipped = F.softplus(torch.addcmul(given, change[:, i, None], weight[:, i]) / heat).sum(1)
            difference = -change[:, i] * self.intercept_visible_[i] / heat - (flipped - plain)
            total += F.logsigmoid(difference)
        return total

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _pieces(rows: Rows, order: Tensor | None, batch: int, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Data on the device and which rows of them are visited: all at once where they are ready, else many mini-batches
    at a time."""
    data = rows.data
    if isinstance(data, Tensor) and data.dtype == like.dtype and data.device == like.device:
        yield data, None if order is None else order.to(like.device)
        return
    size = max(_AT_ONCE // max(rows.n_features, 1) // batch, 1) * batch
    for begin in range(0, len(rows), size):
        which = slice(begin, begin + size) if order is None else order[begin : begin + size]
        yield rows.dense(which).to(like), None
