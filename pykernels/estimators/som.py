"""The self-organising map."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ..functional import bmu
from ..reference.bmu import distances
from ._base import Estimator, Rows, generator_of
from ._grid import NEIGHBOURHOODS, TOPOLOGIES, Grid, Neighbourhood
from ._som_pictures import Pictures
from ._som_training import Pass, Schedule, Trainer, blocks_of, initial_codebook, is_shared, look_up

__all__ = ["SOM"]

TRAININGS = ("batch", "online", "minibatch")
METRICS = ("euclidean", "cosine", "manhattan")
INITS = ("pca", "random", "sample")


class SOM(Pictures, ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, Estimator):
    r"""A self-organising map: units on a grid that come to lie where the data are, neighbours beside each other.

    With b(x) the unit nearest to x (:func:`pykernels.functional.bmu`), h(d) the neighbourhood of width
    :math:`\sigma` and d the distance on the grid, whose neighbouring units are 1 apart:

    .. math::
        \text{online, for each sample: } & w_j \leftarrow w_j + \eta \, h(d_{j, b(x)}) (x - w_j) \\
        \text{batch, for each epoch: } &
            w_j \leftarrow \frac{\sum_i h(d_{ij}) \, s_i}{\sum_i h(d_{ij}) \, n_i}

    where :math:`s_i` and :math:`n_i` are sum and number of the samples whose best unit is i. "minibatch" takes batches
    in random order and running means of both. A batch epoch costs one pass over the data and K (R + C) D for the
    neighbourhood; under `torch.distributed` every process passes its own samples to :meth:`fit` and all get the same
    map, that of all samples: an epoch is one all-reduce of sums.

    Args:
        n_rows, n_columns: of the grid, of R x C = K units; unit r * C + c is in row r and column c.
        n_features: D, where it is to be checked; None for that of the data.
        topology: "rectangular" (eight neighbours, those at a corner too), "hexagonal" (six) or "linear" (a chain of
            all units).
        toroidal: whether opposite borders of the grid are joined.
        neighbourhood: "gaussian" :math:`e^{-d^2/2\sigma^2}`, "bubble" :math:`[d \le \sigma]` or "mexican_hat"
            :math:`(1 - d^2/m\sigma^2) e^{-d^2/2\sigma^2}` in m dimensions, two or, for a chain, one. That one pushes
            units away, at most to the borders of the data; a batch divides by the sum of its magnitudes.
        training: "batch", "online" or "minibatch".
        n_epochs: how often all samples are seen.
        sigma: the width in the first epoch; None for half of the longer side.
        sigma_end: the width in the last, where that is less.
        sigma_decay: how it falls: "exponential", "linear", a number tau for :math:`\sigma e^{-n/\tau}` in epoch n, or
            a function of the fraction of all epochs that gives a factor.
        learning_rate: :math:`\eta` at first, which falls to a hundredth of it ("online"), or the part that a batch has
            in the running means ("minibatch").
        batch_size: of "minibatch"; what is less in :meth:`partial_fit` counts for less.
        init: "pca" (a plane along the two principal directions), "random" (within the range of the data) or "sample"
            (samples); or a codebook [K, D].
        metric: "euclidean", "cosine" or "manhattan".
        random_state: None, a number, a `numpy.random.RandomState` or a `torch.Generator`.
        device: where to compute; None for where a tensor lies and the processor for arrays.
        verbose: 1 shows progress (by tqdm).

    Attributes:
        codebook\_: w, [R, C, D]; cluster_centers\_: the same as [K, D].
        labels\_: the best unit of each sample of :meth:`fit`.
        quantization_error\_, topographic_error\_: of these samples.
        history\_: the mean distance in each epoch, before its update.
        n_features_in\_, n_epochs\_: features, and epochs (or calls of :meth:`partial_fit`) so far.

    Samples may be numpy arrays, tensors (on any device; results are tensors then) or sparse matrices.

    Source: Kohonen 1982 (https://doi.org/10.1007/BF00337288); 2013 (https://doi.org/10.1016/j.neunet.2012.09.018) for
    batches.

    Example::

        >>> som = pykernels.SOM(12, 12, random_state=0).fit(digits)
        >>> som.predict(digits), som.topographic_error(digits)
    """

    def __init__(
        self,
        n_rows: int = 10,
        n_columns: int = 10,
        n_features: int | None = None,
        *,
        topology: str = "rectangular",
        toroidal: bool = False,
        neighbourhood: str = "gaussian",
        training: str = "batch",
        n_epochs: int = 30,
        sigma: float | None = None,
        sigma_end: float = 0.6,
        sigma_decay: Any = "exponential",
        learning_rate: float = 0.5,
        batch_size: int = 256,
        init: Any = "pca",
        metric: str = "euclidean",
        random_state: Any = None,
        device: Any = None,
        verbose: int = 0,
    ) -> None:
        self.n_rows, self.n_columns, self.n_features = n_rows, n_columns, n_features
        self.topology, self.toroidal, self.neighbourhood = topology, toroidal, neighbourhood
        self.training, self.n_epochs = training, n_epochs
        self.sigma, self.sigma_end, self.sigma_decay = sigma, sigma_end, sigma_decay
        self.learning_rate, self.batch_size = learning_rate, batch_size
        self.init, self.metric = init, metric
        self.random_state, self.device, self.verbose = random_state, device, verbose

    # --- learning

    def fit(self, X: Any, y: Any = None) -> SOM:
        """Learn the map of samples X [N, D], from the start. Where that fails the map is what it was."""
        before = dict(self.__dict__)
        try:
            return self._fit(X)
        except Exception:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _fit(self, X: Any) -> SOM:
        rows = self._own_rows(X, reset=True)
        generator = generator_of(self.random_state)
        trainer = self._begin(rows, generator)
        trainer.see(rows)
        self.history_: list[float] = []
        for epoch in self._epochs():
            if self.training == "batch":
                error = trainer.batch(rows, epoch)
            elif self.training == "minibatch":
                error = trainer.small_batches(rows, epoch, self.batch_size, generator)
            else:
                error = trainer.online(rows, epoch, generator)
            self.history_.append(error)
        self.n_epochs_ = int(self.n_epochs)
        found = look_up(rows, trainer.codebook, self._grid, self.metric, min(2, self._grid.size), shared=True)
        if self.training == "batch":  # where partial_fit goes on
            samples = found.counts.sum()
            trainer.sums, trainer.counts = found.sums / samples, found.counts / samples
        self._keep(trainer, rows)
        self.labels_ = rows.result(found.units[:, 0])
        self.quantization_error_, self.topographic_error_ = found.quantization_error, found.topographic_error
        return self

    def partial_fit(self, X: Any, y: Any = None) -> SOM:
        """Learn from one more batch of samples: a step of "minibatch", or with "online" one pass in the given order.
        The width falls over the first `n_epochs` calls and then stays."""
        first = not hasattr(self, "_trainer")
        rows = self._own_rows(X, reset=first)
        if first:
            self._begin(rows, generator_of(self.random_state))
            self.n_epochs_ = 0
        trainer = self._trainer
        trainer.codebook = trainer.codebook.to(rows.device, rows.dtype)
        trainer.see(rows)
        if self.training == "online":
            trainer.online(rows, self.n_epochs_)
        else:
            trainer.small_batch(rows, self.n_epochs_, self.batch_size)
        self.n_epochs_ += 1
        self._keep(trainer, rows)
        return self

    def _begin(self, rows: Rows, generator: torch.Generator) -> Trainer:
        if isinstance(self.init, str):
            codebook = initial_codebook(rows, self._grid, self.init, generator)
        else:
            codebook = self._given_codebook(rows)
        return self._start(codebook)

    def _given_codebook(self, rows: Rows) -> Tensor:
        given = self.init if isinstance(self.init, Tensor) else torch.from_numpy(np.array(self.init, np.float64))
        flat, table = (self._grid.size, rows.n_features), (*self._grid.shape, rows.n_features)
        if given.shape not in (flat, table):
            raise ValueError(f"[SOM] expected init of shape {list(flat)} or {list(table)}, got {list(given.shape)}")
        if not bool(given.isfinite().all()):
            raise ValueError("[SOM] expected init of finite numbers, got some that are not")
        return given.detach().reshape(flat).to(rows.device, rows.dtype, copy=True)

    def _start(self, codebook: Tensor) -> Trainer:
        width = self.sigma if self.sigma is not None else max(self._grid.longest / 2, self.sigma_end)
        sigma = Schedule(self.sigma_decay, width, min(width, self.sigma_end), self.n_epochs)
        fall = 0.01 if self.training == "online" else 1.0
        rate = Schedule("exponential", self.learning_rate, self.learning_rate * fall, self.n_epochs)
        neighbourhood = Neighbourhood(self._grid, self.neighbourhood)
        self._trainer = Trainer(codebook, self._grid, neighbourhood, self.metric, sigma, rate)
        return self._trainer

    def _keep(self, trainer: Trainer, rows: Rows) -> None:
        self.cluster_centers_ = rows.result(trainer.codebook)
        self.codebook_ = self.cluster_centers_.reshape(self.n_rows, self.n_columns, -1)
        self._n_features_out = self._grid.size

    def _epochs(self) -> Any:
        epochs = range(self.n_epochs)
        if not self.verbose:
            return epochs
        try:
            from tqdm.auto import tqdm
        except ImportError:
            return epochs
        return tqdm(epochs, desc=type(self).__name__, unit="epoch")

    def _own_rows(self, X: Any, *, reset: bool) -> Rows:
        self._check_parameters()
        rows = self._rows(X, reset=reset)
        if self.n_features is not None and rows.n_features != self.n_features:
            raise ValueError(f"[SOM] expected samples of {self.n_features} features, got {rows.n_features}")
        if reset:
            self._grid = Grid(self.n_rows, self.n_columns, self.topology, self.toroidal)
        return rows

    def _check_parameters(self) -> None:
        for name, allowed in (
            ("topology", TOPOLOGIES), ("neighbourhood", NEIGHBOURHOODS), ("training", TRAININGS), ("metric", METRICS),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                expected = " or ".join(f'"{one}"' for one in allowed)
                raise ValueError(f"[SOM] expected {name} {expected}, got {getattr(self, name)!r}")
        if isinstance(self.init, str) and self.init not in INITS:
            raise ValueError(f"[SOM] expected init {' or '.join(map(repr, INITS))} or a codebook, got {self.init!r}")
        for name in ("n_rows", "n_columns", "n_epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"[SOM] expected {name} to be a positive whole number, got {value!r}")
        for name in ("sigma", "sigma_end", "learning_rate"):
            value = getattr(self, name)
            if name == "sigma" and value is None:
                continue
            if not (isinstance(value, Real) and 0 < float(value) < math.inf):
                raise ValueError(f"[SOM] expected {name} above 0, got {value!r}")
        if self.training == "minibatch" and self.learning_rate > 1:
            raise ValueError(f"[SOM] expected a learning_rate of 1 at most for small batches, got {self.learning_rate}")
        kind = self.sigma_decay
        if not (callable(kind) or kind in ("exponential", "linear") or (isinstance(kind, Real) and float(kind) > 0)):
            raise ValueError(
                f'[SOM] expected sigma_decay "exponential", "linear", a number or a function, got {kind!r}'
            )
        if callable(kind):
            factors = [float(kind(epoch / max(self.n_epochs - 1, 1))) for epoch in range(self.n_epochs)]
            if not all(0 < factor < math.inf for factor in factors):
                raise ValueError(f"[SOM] expected sigma_decay to give factors above 0, got {factors}")
        if self.topology == "hexagonal" and self.toroidal and self.n_rows % 2:
            raise ValueError(f"[SOM] expected an even number of rows for a hexagonal torus, got {self.n_rows}")
        if self.training == "online" and is_shared():
            raise ValueError('[SOM] expected "batch" or "minibatch" where processes share the samples, got "online"')

    # --- what has been learned

    def predict(self, X: Any) -> Any:
        """The best unit of each sample, [N]: r * C + c."""
        return self._look_up(X, 1)[1]

    def transform(self, X: Any) -> Any:
        """Distances of each sample from all units, [N, K], by torch: here the table is what is wanted."""
        rows = self._fitted_rows(X)
        codebook = self._codebook(rows)
        parts = [distances(block, codebook, self.metric) for _, block in blocks_of(rows)]
        return rows.result(torch.cat(parts))

    def best_units(self, X: Any, k: int = 1) -> tuple[Any, Any]:
        """Distances and numbers of the k nearest units, [N, k] (see :func:`pykernels.functional.bmu`)."""
        distance, index = self._look_up(X, k)
        return (distance[:, None], index[:, None]) if k == 1 else (distance, index)

    def quantization_error(self, X: Any) -> float:
        """The mean distance of samples from their best unit."""
        return self._pass(X, 1).quantization_error

    def topographic_error(self, X: Any) -> float:
        """The share of samples whose two best units are not neighbours on the grid (Kiviluoto 1996)."""
        return self._pass(X, 2).topographic_error

    def hit_map(self, X: Any) -> Any:
        """How many samples have each unit as their best, [R, C]."""
        rows = self._fitted_rows(X)
        counts = look_up(rows, self._codebook(rows), self._grid, self.metric, 1, shared=False).counts
        return rows.result(counts.long().reshape(self.n_rows, self.n_columns))

    def u_matrix(self) -> Any:
        """The mean distance of each unit from its neighbours, [R, C]: high where clusters meet."""
        check_is_fitted(self)
        centers = torch.as_tensor(self.cluster_centers_)
        units, others = (t.to(centers.device) for t in self._grid.neighbours())
        apart = distances(centers[units][:, None], centers[others][:, None], self.metric).flatten()
        sums = apart.new_zeros(self._grid.size).index_add(0, units, apart)
        found = sums / torch.bincount(units, minlength=self._grid.size).clamp_min(1)
        return self._kind(found.reshape(self.n_rows, self.n_columns))

    def component_plane(self, i: int) -> Any:
        """Feature i of every unit, [R, C]."""
        check_is_fitted(self)
        return self.codebook_[:, :, i]

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`load_state_dict` needs, of plain values and tensors (and of a parameter that is a function or
        a generator, that)."""
        check_is_fitted(self)
        trainer = self._trainer
        return {
            "parameters": {name: _plain(value) for name, value in self.get_params().items()},
            "codebook": trainer.codebook,
            "sums": trainer.sums,
            "counts": trainer.counts,
            "bounds": trainer.bounds,
            "n_epochs": self.n_epochs_,
            "array": not isinstance(self.cluster_centers_, Tensor),
        }

    def load_state_dict(self, state: dict[str, Any]) -> SOM:
        """Become the map that :meth:`state_dict` was taken from; learning can go on where it was."""
        self.set_params(**state["parameters"])
        self._check_parameters()
        codebook = state["codebook"]
        for name in ("labels_", "history_", "quantization_error_", "topographic_error_", "feature_names_in_"):
            self.__dict__.pop(name, None)
        self._grid = Grid(self.n_rows, self.n_columns, self.topology, self.toroidal)
        self.n_features_in_, self.n_epochs_ = codebook.shape[1], state["n_epochs"]
        rows = Rows(codebook, codebook.device, codebook.dtype, state["array"])
        trainer = self._start(codebook.clone())
        trainer.sums, trainer.counts, trainer.bounds = (state[name] for name in ("sums", "counts", "bounds"))
        self._keep(trainer, rows)
        return self

    def _kind(self, tensor: Tensor) -> Any:
        """In the kind that the codebook has."""
        return tensor if isinstance(self.cluster_centers_, Tensor) else tensor.numpy()

    def _codebook(self, rows: Rows) -> Tensor:
        return torch.as_tensor(self.cluster_centers_).to(rows.device, rows.dtype)

    def _look_up(self, X: Any, k: int) -> tuple[Any, Any]:
        rows = self._fitted_rows(X)
        codebook = self._codebook(rows)
        parts = [bmu(block, codebook, k, self.metric) for _, block in blocks_of(rows)]
        distance, index = (torch.cat(part) for part in zip(*parts, strict=True))
        return rows.result(distance), rows.result(index)

    def _pass(self, X: Any, k: int) -> Pass:
        rows = self._fitted_rows(X)
        return look_up(rows, self._codebook(rows), self._grid, self.metric, min(k, self._grid.size), shared=False)


def _plain(value: Any) -> Any:
    """What numpy has made of a number or of a codebook, without numpy."""
    if isinstance(value, np.generic):
        return value.item()
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
