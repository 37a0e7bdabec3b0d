"""What the estimators share: scikit-learn's manner over tensors, arrays and sparse matrices, and random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    from sklearn.base import BaseEstimator
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "the estimators of pykernels are scikit-learn's: pip install pykernels[estimators], or scikit-learn"
    ) from error

__all__ = ["Estimator", "Rows", "generator_of"]


class Rows:
    """Samples by rows, dense or sparse, which come to the device in blocks.

    Args:
        data: a tensor on any device, or a scipy matrix in CSR form.
        device, dtype: of the blocks.
        wrap: whether results are to be numpy arrays.
    """

    def __init__(self, data: Any, device: torch.device, dtype: torch.dtype, wrap: bool) -> None:
        self.data, self.device, self.dtype, self.wrap = data, device, dtype, wrap

    def __len__(self) -> int:
        return self.data.shape[0]

    @property
    def n_features(self) -> int:
        return self.data.shape[1]

    @property
    def is_sparse(self) -> bool:
        return not isinstance(self.data, Tensor)

    def dense(self, rows: Any = slice(None)) -> Tensor:
        """Rows (a slice or indices) as a dense tensor on the device."""
        if isinstance(self.data, Tensor):
            chosen = self.data[rows.to(self.data.device) if isinstance(rows, Tensor) else rows]
        else:
            chosen = torch.from_numpy(self.data[rows.numpy() if isinstance(rows, Tensor) else rows].toarray())
        return chosen.to(self.device, self.dtype)

    def blocks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """Dense blocks of at most `size` rows, in order, each with the number of its first row."""
        for begin in range(0, len(self), size):
            yield begin, self.dense(slice(begin, begin + size))

    def result(self, tensor: Tensor) -> Any:
        """A result of these rows, in the kind in which they were given."""
        return tensor.numpy(force=True) if self.wrap else tensor


class Estimator(BaseEstimator):
    """An estimator in scikit-learn's manner, whose samples may be numpy arrays, tensors or sparse matrices.

    A subclass has a parameter `device`: None for where a tensor lies, and the processor for arrays.
    """

    device: Any

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _rows(self, X: Any, *, reset: bool = False) -> Rows:
        """The samples, checked; with `reset` their number of features is kept, without it compared.

        Raises:
            ValueError, TypeError: scikit-learn's.
        """
        if isinstance(X, Tensor) and not X.is_sparse and X.layout == torch.strided:
            return self._tensor_rows(X.detach(), reset)
        if isinstance(X, Tensor):
            X = _scipy_of(X.detach())
        wanted = np.float64 if isinstance(X, np.ndarray) and _is_wide(X) else [np.float32, np.float64]
        given = validate_data(self, X, reset=reset, accept_sparse="csr", dtype=wanted)
        device = torch.device(self.device or "cpu")
        dtype = torch.float64 if given.dtype == np.float64 else torch.float32
        data = torch.from_numpy(_own(given)) if isinstance(given, np.ndarray) else given
        return Rows(data, device, dtype, wrap=True)

    def _tensor_rows(self, X: Tensor, reset: bool) -> Rows:
        name = type(self).__name__
        if X.is_complex():
            raise ValueError(f"Complex data not supported\n{X}\n")
        if X.dim() != 2:
            raise ValueError(
                f"Expected 2D array, got {X.dim()}D array instead:\narray={X}.\nReshape your data either using "
                "array.reshape(-1, 1) if your data has a single feature or array.reshape(1, -1) if it contains a "
                "single sample."
            )
        for count, what in zip(X.shape, ("sample", "feature"), strict=True):
            if count == 0:
                raise ValueError(
                    f"Found array with 0 {what}(s) (shape={tuple(X.shape)}) while a minimum of 1 is required by {name}."
                )
        dtype = torch.float64 if X.dtype == torch.float64 or _is_wide(X) else torch.float32
        if X.is_floating_point() and not bool(torch.isfinite(X.sum(dtype=torch.float64))) and not X.isfinite().all():
            what = "NaN" if bool(X.isnan().any()) else f"infinity or a value too large for dtype({X.dtype})"
            raise ValueError(f"Input X contains {what}.")
        if reset:
            self.n_features_in_ = X.shape[1]
            if hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
        elif X.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {X.shape[1]} features, but {name} is expecting {self.n_features_in_} features as input"
            )
        return Rows(X, torch.device(self.device or X.device), dtype, wrap=False)

    def _fitted_rows(self, X: Any) -> Rows:
        check_is_fitted(self)
        return self._rows(X)


def _is_wide(X: Any) -> bool:
    """Whether there are whole numbers that float32 does not hold."""
    if isinstance(X, np.ndarray):
        whole = X.dtype.kind in "iu" and X.dtype.itemsize > 2
    else:
        whole = X.dtype in (torch.int32, torch.int64)
    return whole and 0 not in X.shape and bool(abs(int(X.min())) > 2**24 or abs(int(X.max())) > 2**24)


def _own(array: np.ndarray) -> np.ndarray:
    """A copy where a tensor cannot be made of the array: it is not to be written, or runs backwards."""
    return array if array.flags.writeable and min(array.strides) >= 0 else array.copy()


def _scipy_of(X: Tensor) -> Any:
    from scipy import sparse

    if X.layout == torch.sparse_csr:
        parts = X.values(), X.col_indices(), X.crow_indices()
        return sparse.csr_matrix(tuple(p.numpy(force=True) for p in parts), shape=tuple(X.shape))
    coo = X.to_sparse_coo().coalesce()
    return sparse.coo_matrix((coo.values().numpy(force=True), coo.indices().numpy(force=True)), tuple(X.shape)).tocsr()


def generator_of(random_state: Any) -> torch.Generator:
    """The generator, on the processor, that `random_state` stands for.

    Args:
        random_state: None (seeded by torch's own generator), a number, a generator of torch (itself), or what
            scikit-learn takes (a `numpy.random.RandomState`, which gives the seed).
    """
    if isinstance(random_state, torch.Generator):
        return random_state
    if random_state is None:
        seed = int(torch.randint(2**62, ()))
    elif isinstance(random_state, (int, np.integer)):
        seed = int(random_state)
    else:
        seed = int(check_random_state(random_state).randint(2**31 - 1))
    return torch.Generator().manual_seed(seed)
