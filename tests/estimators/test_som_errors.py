"""What a map refuses, and that it keeps what it had."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from scipy import sparse
from sklearn.exceptions import NotFittedError

from pykernels import SOM
from tests.helpers import python

from .maps import blobs

X = blobs(30)
DECAY = '[SOM] expected sigma_decay "exponential", "linear", a number or a function, got '
WRONG = [
    ({"topology": "round"}, '[SOM] expected topology "rectangular" or "hexagonal" or "linear", got \'round\''),
    ({"neighbourhood": "cone"}, '[SOM] expected neighbourhood "gaussian" or "bubble" or "mexican_hat", got \'cone\''),
    ({"training": "fast"}, '[SOM] expected training "batch" or "online" or "minibatch", got \'fast\''),
    ({"metric": None}, '[SOM] expected metric "euclidean" or "cosine" or "manhattan", got None'),
    ({"init": "kmeans"}, "[SOM] expected init 'pca' or 'random' or 'sample' or a codebook, got 'kmeans'"),
    ({"init": np.zeros((12, 3))}, "[SOM] expected init of shape [12, 4] or [3, 4, 4], got [12, 3]"),
    ({"init": np.zeros((5, 4))}, "[SOM] expected init of shape [12, 4] or [3, 4, 4], got [5, 4]"),
    ({"init": None}, "[SOM] expected init"),
    ({"init": np.full((12, 4), np.nan)}, "[SOM] expected init of finite numbers"),
    ({"n_rows": 0}, "[SOM] expected n_rows to be a positive whole number, got 0"),
    ({"n_columns": -2}, "[SOM] expected n_columns to be a positive whole number, got -2"),
    ({"n_rows": 2.5}, "[SOM] expected n_rows to be a positive whole number, got 2.5"),
    ({"n_epochs": 0}, "[SOM] expected n_epochs to be a positive whole number, got 0"),
    ({"n_epochs": "ten"}, "[SOM] expected n_epochs to be a positive whole number, got 'ten'"),
    ({"batch_size": 0}, "[SOM] expected batch_size to be a positive whole number, got 0"),
    ({"sigma": 0}, "[SOM] expected sigma above 0, got 0"),
    ({"sigma": -1.0}, "[SOM] expected sigma above 0, got -1.0"),
    ({"sigma": math.nan}, "[SOM] expected sigma above 0, got nan"),
    ({"sigma": "wide"}, "[SOM] expected sigma"),
    ({"sigma": math.inf}, "[SOM] expected sigma"),
    ({"sigma_end": 0.0}, "[SOM] expected sigma_end above 0, got 0.0"),
    ({"sigma_end": None}, "[SOM] expected sigma_end"),
    ({"learning_rate": 0}, "[SOM] expected learning_rate above 0, got 0"),
    ({"learning_rate": None}, "[SOM] expected learning_rate"),
    ({"learning_rate": 1.5, "training": "minibatch"}, "[SOM] expected a learning_rate of 1 at most"),
    ({"sigma_decay": "cosine"}, DECAY + "'cosine'"),
    ({"sigma_decay": 0}, DECAY + "0"),
    ({"sigma_decay": -1.0}, DECAY + "-1.0"),
    ({"sigma_decay": lambda part: -1.0}, "[SOM] expected sigma_decay"),
    ({"sigma_decay": lambda part: math.nan}, "[SOM] expected sigma_decay"),
    ({"topology": "hexagonal", "toroidal": True}, "[SOM] expected an even number of rows for a hexagonal torus, got 3"),
    ({"n_features": 5}, "[SOM] expected samples of 5 features, got 4"),
]  # fmt: skip


@pytest.mark.parametrize("wrong, text", WRONG, ids=lambda v: v[6:50] if isinstance(v, str) else "")
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_parameters(wrong, text, method):
    """Told when samples come, as scikit-learn wants it, and the map that was there is kept."""
    som = SOM(3, 4, n_epochs=2)
    with pytest.raises(ValueError, match="^" + re.escape(text)):
        getattr(SOM(3, 4, n_epochs=2).set_params(**wrong), method)(X)
    if method == "fit":
        som.fit(X)
        expected, before = som.predict(X), {name: getattr(som, name) for name in vars(SOM()) if name in wrong}
        with pytest.raises(ValueError, match="^" + re.escape(text)):
            som.set_params(**wrong).fit(X)
        assert np.array_equal(som.set_params(**before).predict(X), expected)


SAMPLES = [
    (X[0], "Expected 2D array, got 1D array"), (X[None], "3"), (X[:0], "Found array with 0 sample"),
    (X[:, :0], "Found array with 0 feature"), (X * np.nan, "NaN"), (X * np.inf, "(NaN|infinity)"),
    (X.astype(complex), "Complex data not supported"),
]  # fmt: skip


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy, sparse.csr_matrix])
@pytest.mark.parametrize("wrong, text", SAMPLES, ids=lambda v: v[:30] if isinstance(v, str) else "")
def test_samples(form, wrong, text):
    try:
        wrong = form(wrong)
    except (TypeError, ValueError):
        return  # there is no such thing
    if wrong.ndim == 2 and text.startswith("Expected 2D"):
        return  # (a sparse matrix has two dimensions)
    som = SOM(3, 4, n_epochs=2).fit(X)
    expected = som.predict(X)
    for call in (som.fit, som.predict, som.transform, som.quantization_error, som.hit_map, som.partial_fit, SOM().fit):
        with pytest.raises((ValueError, TypeError), match=text):
            call(wrong)
        assert np.array_equal(som.predict(X), expected)


def test_samples_of_another_width():
    som = SOM(3, 4, n_epochs=2).fit(X)
    text = "X has 3 features, but SOM is expecting 4 features as input"
    for x in (X[:, :3], torch.from_numpy(X[:, :3]), sparse.csr_matrix(X[:, :3])):
        for call in (som.predict, som.partial_fit, som.transform, som.topographic_error):
            with pytest.raises(ValueError, match=text):
                call(x)


@pytest.mark.parametrize("wrong", [{"n_features": 4}, {"init": np.zeros((12, 4))}], ids=str)
def test_a_fit_that_fails_leaves_the_map(wrong):
    """Samples of another width, which a parameter forbids."""
    som = SOM(3, 4, n_epochs=2, **wrong).fit(X)
    expected = som.predict(X)
    with pytest.raises(ValueError, match=r"\[SOM\] expected"):
        som.fit(X[:, :3])
    assert np.array_equal(som.predict(X), expected) and som.n_features_in_ == 4


def test_a_map_that_has_not_learned():
    som = SOM()
    for call in (
        som.predict,
        som.transform,
        som.quantization_error,
        som.topographic_error,
        som.hit_map,
        som.best_units,
    ):
        with pytest.raises(NotFittedError):
            call(X)
    for call in (som.u_matrix, som.state_dict, som.plot_u_matrix, lambda: som.component_plane(0)):
        with pytest.raises(NotFittedError):
            call()


WITHOUT = """
import sys
sys.modules["sklearn"] = None
import pykernels
try:
    pykernels.SOM
except ImportError as error:
    print(error)
pykernels.functional.bmu
"""


def test_what_to_install_is_told():
    assert "pip install pykernels[estimators]" in python(WITHOUT).stdout


def test_too_many_units_are_asked_for():
    som = SOM(3, 4, n_epochs=2).fit(X)
    with pytest.raises(ValueError, match=r"\[bmu\] expected k from 1 to 8 for 12 units, got 9"):
        som.best_units(X, 9)
    with pytest.raises(IndexError):
        som.component_plane(4)


@pytest.mark.parametrize("random_state", ["seven", 1.5, [1]])
def test_seeds_that_are_none(random_state):
    with pytest.raises(ValueError, match=r"cannot be used to seed"):
        SOM(3, 4, random_state=random_state, init="sample").fit(X)


def test_a_device_that_is_none():
    with pytest.raises(RuntimeError, match="nonsense"):
        SOM(3, 4, device="nonsense").fit(X)
