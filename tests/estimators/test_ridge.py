"""Radial basis networks and extreme learning machines."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.datasets import load_digits, make_friedman1
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split
from sklearn.utils.estimator_checks import parametrize_with_checks

import pykernels
from pykernels.estimators._base import Rows
from pykernels.estimators._ridge import cluster, ridge

CLASSIFIERS = [pykernels.RadialBasisClassifier, pykernels.ExtremeLearningClassifier]
REGRESSORS = [pykernels.RadialBasisRegressor, pykernels.ExtremeLearningRegressor]


@parametrize_with_checks([estimator(30, random_state=0) for estimator in (*CLASSIFIERS, *REGRESSORS)])
def test_is_an_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("estimator", CLASSIFIERS)
def test_digits(estimator):
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    train, test, train_labels, test_labels = train_test_split(images, labels, random_state=0)
    network = estimator(400, random_state=0).fit(train, train_labels)
    assert network.score(test, test_labels) > 0.94
    assert np.array_equal(pickle.loads(pickle.dumps(network)).predict(test), network.predict(test))
    tensors = clone(network).fit(torch.from_numpy(train), torch.from_numpy(train_labels))
    predicted = tensors.predict(torch.from_numpy(test))
    assert isinstance(predicted, torch.Tensor) and np.array_equal(predicted.numpy(), network.predict(test))


@pytest.mark.parametrize("estimator", REGRESSORS)
def test_friedman(estimator):
    X, y = make_friedman1(1000, random_state=0)
    network = estimator(200, random_state=0).fit(X[:800], y[:800])
    assert network.score(X[800:], y[800:]) > 0.85
    both = clone(network).fit(X, np.stack([y, -y], 1)).predict(X)
    assert both.shape == (1000, 2) and np.allclose(both[:, 0], -both[:, 1])


@pytest.mark.parametrize("intercept", [True, False])
def test_output_layer_is_ridge_regression(intercept):
    X, y = make_friedman1(300, random_state=1)
    network = pykernels.ExtremeLearningRegressor(40, alpha=0.7, fit_intercept=intercept, random_state=0).fit(X, y)
    hidden = 1 / (1 + np.exp(-(X @ network.weight_ + network.bias_)))
    expected = Ridge(alpha=0.7, fit_intercept=intercept, solver="cholesky").fit(hidden, y)
    assert np.allclose(network.coef_[:, 0], expected.coef_, rtol=1e-6)
    assert np.allclose(network.predict(X), expected.predict(hidden))


def test_without_penalty_and_with_equal_units():
    h = torch.randn(50, 3, dtype=torch.float64)
    h = torch.cat([h, h[:, :1], torch.ones(50, 1, dtype=torch.float64)], 1)
    t = torch.randn(50, 2, dtype=torch.float64)
    coefficients, intercept = ridge(h.mT @ h, h.mT @ t, 0.0, True)
    truth = torch.linalg.lstsq(h, t, driver="gelsd").solution
    assert torch.allclose(h[:, :-1] @ coefficients + intercept, h @ truth, atol=1e-7)


def test_clusters_are_a_fixed_point_of_lloyd():
    torch.manual_seed(0)
    x = torch.randn(500, 3) + 5 * torch.randint(0, 4, (500, 1))
    centers = cluster(Rows(x, x.device, x.dtype, False), 12, 200, torch.Generator().manual_seed(0))
    nearest = torch.cdist(x, centers).argmin(1)
    assert torch.equal(nearest.unique(), torch.arange(12))
    for unit in range(12):
        assert torch.allclose(x[nearest == unit].mean(0), centers[unit], atol=1e-5)


def test_sparse_samples_and_features_that_do_not_change():
    sparse = pytest.importorskip("scipy.sparse")
    X, y = make_friedman1(200, random_state=2)
    X[:, 3] = 7.0
    X[X < 0.2] = 0
    for estimator in REGRESSORS:
        dense = estimator(30, random_state=0).fit(X, y).predict(X)
        assert np.allclose(
            estimator(30, random_state=0).fit(sparse.csr_matrix(X), y).predict(sparse.coo_matrix(X)), dense
        )


@pytest.mark.parametrize("name", [*pykernels.estimators.__all__])
def test_names_are_there_without_an_import(name):
    assert getattr(pykernels, name) is getattr(pykernels.estimators, name)


@pytest.mark.parametrize(
    ("estimator", "options", "message"),
    [
        (pykernels.RadialBasisRegressor, {"n_centers": 0}, "expected n_centers of 1 or more, got 0"),
        (pykernels.RadialBasisRegressor, {"gamma": "wide"}, "expected gamma a number, None or \"spread\", got 'wide'"),
        (pykernels.ExtremeLearningRegressor, {"n_hidden": 1.5}, "expected n_hidden of 1 or more, got 1.5"),
        (
            pykernels.ExtremeLearningRegressor,
            {"activation": "sin"},
            "expected activation 'sigmoid' or 'tanh' or 'relu'",
        ),
        (pykernels.ExtremeLearningRegressor, {"alpha": -1}, "expected alpha of 0 or more, got -1"),
    ],
)
def test_errors(estimator, options, message):
    with pytest.raises(ValueError, match=message):
        estimator(**options).fit(np.eye(5), np.arange(5.0))
