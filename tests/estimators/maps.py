"""What the tests of the maps share: data, and the equations of learning in plain numpy."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

HEIGHT = math.sqrt(3) / 2


@functools.cache
def digits() -> np.ndarray:
    """1797 images of 8x8 pixels, 0 ... 1, float32; not to be written."""
    from sklearn.datasets import load_digits

    images = (load_digits().data / 16).astype(np.float32)
    images.flags.writeable = False
    return images


def blobs(samples: int = 150, features: int = 4, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    centers = draw.normal(size=(5, features)) * 3
    return centers[draw.integers(0, 5, samples)] + draw.normal(size=(samples, features))


def places(rows: int, columns: int, topology: str) -> np.ndarray:
    unit = np.arange(rows * columns)
    if topology == "linear":
        return np.stack([0.0 * unit, 1.0 * unit], 1)
    row, column = np.divmod(unit, columns)
    if topology == "hexagonal":
        return np.stack([row * HEIGHT, column + 0.5 * (row % 2)], 1)
    return np.stack([row, column], 1).astype(float)


def squares(rows: int, columns: int, topology: str, toroidal: bool) -> np.ndarray:
    """Squared distances on the grid [K, K]."""
    at = places(rows, columns, topology)
    apart = np.abs(at[:, None] - at)
    if toroidal:
        sides = (
            (1, rows * columns)
            if topology == "linear"
            else (rows * (HEIGHT if topology == "hexagonal" else 1), columns)
        )
        apart = np.minimum(apart, np.array(sides) - apart)
    return (apart**2).sum(-1)


def shares(kind: str, square: np.ndarray, sigma: float, dimensions: int = 2) -> np.ndarray:
    if kind == "bubble":
        return (square <= sigma**2 * (1 + 1e-9)).astype(float)
    bell = np.exp(-square / (2 * sigma**2))
    return bell if kind == "gaussian" else (1 - square / (dimensions * sigma**2)) * bell


def apart(x: np.ndarray, w: np.ndarray, metric: str = "euclidean") -> np.ndarray:
    """Distances [N, K]."""
    if metric == "euclidean":
        return np.sqrt(((x[:, None] - w) ** 2).sum(-1))
    if metric == "manhattan":
        return np.abs(x[:, None] - w).sum(-1)
    norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(w, axis=1)
    return 1 - np.divide(x @ w.T, norms, out=np.zeros_like(norms), where=norms > 0)


def width(begin: float, end: float, epoch: float, epochs: int) -> float:
    """Exponential, from `begin` in the first epoch to `end` in the last."""
    return begin * (end / begin) ** (min(epoch, epochs - 1) / max(epochs - 1, 1))


def batch_map(x: np.ndarray, init: np.ndarray, given: dict[str, Any], sigma: tuple[float, float], epochs: int):
    """The codebook [K, D] after batch learning, and the mean distance in each epoch."""
    square = squares(given["n_rows"], given["n_columns"], given["topology"], given["toroidal"])
    kind, metric, w, history = given["neighbourhood"], given["metric"], init.copy(), []
    for epoch in range(epochs):
        found = apart(x, w, metric)
        best = found.argmin(1)
        history.append(found.min(1).mean())
        share = shares(kind, square, width(*sigma, epoch, epochs), 1 if given["topology"] == "linear" else 2)
        sums, counts = np.zeros_like(w), np.zeros(len(w))
        np.add.at(sums, best, x)
        np.add.at(counts, best, 1)
        weight, magnitude = share @ counts, np.abs(share) @ counts
        step = share @ sums - weight[:, None] * w
        w = np.where(magnitude[:, None] > 0, w + step / np.where(magnitude > 0, magnitude, 1)[:, None], w)
        if kind == "mexican_hat":
            w = w.clip(x.min(0), x.max(0))
    return w, history
