"""RBM: scikit-learn's own checks, kinds of data, what it learns beside scikit-learn's, errors, state."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import BernoulliRBM
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import pykernels
from pykernels import RBM, functional, reference
from tests.helpers import outcome

CHECKED = [
    RBM(n_hidden=5, n_epochs=2, random_state=0),
    RBM(n_hidden=5, n_epochs=2, visible="gaussian", persistent=True, learning_rate=0.001, momentum=0.5),
]


@parametrize_with_checks(CHECKED)
def test_scikit_learns_checks(cpu_only, estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return (load_digits().data / 16).astype(np.float32)


SMALL = {"n_hidden": 20, "n_epochs": 2, "random_state": 3}


def same(a: RBM, b: RBM) -> bool:
    names = ("components_", "intercept_visible_", "intercept_hidden_")
    return all(torch.equal(getattr(a, n).cpu(), getattr(b, n).cpu()) for n in names)


# -- kinds of data ----------------------------------------------------------------------------------------------------
def test_all_kinds_of_data_are_one(digits):
    """Arrays, lists of rows, tensors and sparse matrices of the same numbers make the same model."""
    x = digits[:90] * (digits[:90] > 0.5)
    fitted = RBM(**SMALL).fit(x)
    found = fitted.transform(x)
    assert isinstance(found, np.ndarray) and found.shape == (90, 20) and found.dtype == np.float32
    tensor = torch.from_numpy(x)
    for other in (tensor, np.asfortranarray(x), sparse.csr_matrix(x), sparse.coo_array(x), tensor.to_sparse_csr()):
        again = RBM(**SMALL).fit(other)
        assert same(fitted, again)
        hidden = again.transform(other)
        assert isinstance(hidden, torch.Tensor) == (other is tensor)
        assert np.array_equal(np.asarray(hidden), found)
    wide = RBM(**SMALL).fit(x.astype(np.float64))
    assert wide.components_.dtype == torch.float64 and wide.transform(x).dtype == np.float32
    assert RBM(**SMALL).fit((x > 0.5).astype(int)).components_.dtype == torch.float32


def test_large_data_come_in_pieces(digits, monkeypatch):
    """What is not on the device as it should be comes piece by piece, and the model is the same."""
    module = pykernels.estimators.rbm
    x = sparse.csr_matrix(digits[:150])
    for options in ({}, {"persistent": True, "batch_size": 7}, {"momentum": 0.5, "batch_size": 64}):
        whole = RBM(**SMALL, **options).fit(x)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_AT_ONCE", 64 * 20)
            assert same(RBM(**SMALL, **options).fit(x), whole)


def test_tensors_stay_where_they_are(device, digits):
    x = torch.from_numpy(digits[:50]).to(device)
    fitted = RBM(**SMALL).fit(x)
    assert fitted.components_.device.type == device.type
    assert fitted.transform(x).device.type == device.type
    assert fitted.gibbs(x).device.type == device.type


# -- what it learns ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{}, {"persistent": True, "k": 2}, {"momentum": 0.5, "weight_decay": 0.01}])
def test_an_epoch_is_what_the_twin_does(digits, options):
    """From the parameters it begins with, its seeds and its order of rows."""
    x = torch.from_numpy(digits[:57].astype(np.float64))
    begun = RBM(n_hidden=9, n_epochs=0, random_state=1, temperature=1.2, **options).fit(x)
    fitted = RBM(n_hidden=9, n_epochs=1, random_state=1, temperature=1.2, **options).fit(x)
    order = torch.randperm(57, generator=begun._random.generator())
    parameters = begun.components_, begun.intercept_visible_, begun.intercept_hidden_
    more = {name: value for name, value in options.items() if name != "persistent"}
    reference.rbm_train_(
        x, *parameters, order=order, learning_rate=0.1, batch_size=10, chain=begun.chain_, temperature=1.2,
        velocity=tuple(torch.zeros_like(p) for p in parameters), seed=begun._random.next_seed(), **more,
    )  # fmt: skip
    torch.testing.assert_close(fitted.components_, begun.components_)
    torch.testing.assert_close(fitted.intercept_visible_, begun.intercept_visible_)
    if fitted.chain_ is not None:
        assert torch.equal(fitted.chain_, begun.chain_)


@pytest.mark.parametrize("persistent", [False, True])
def test_pseudo_likelihood_is_scikit_learns(digits, persistent):
    """Trained alike, both machines find the digits about as likely; and ours scores scikit-learn's as it does."""
    ours = RBM(n_hidden=64, learning_rate=0.05, n_epochs=8, persistent=persistent, random_state=0).fit(digits)
    theirs = BernoulliRBM(64, learning_rate=0.05, n_iter=8, random_state=0).fit(digits)
    scores = ours.score_samples(digits).mean(), theirs.score_samples(digits).mean()
    assert abs(scores[0] - scores[1]) < 1.5
    borrowed = copy.deepcopy(ours)
    borrowed.components_ = torch.from_numpy(theirs.components_)
    borrowed.intercept_hidden_ = torch.from_numpy(theirs.intercept_hidden_)
    borrowed.intercept_visible_ = torch.from_numpy(theirs.intercept_visible_)
    np.testing.assert_allclose(borrowed.transform(digits), theirs.transform(digits), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(borrowed.free_energy(digits), theirs._free_energy(digits), rtol=1e-4)
    estimates = [estimate(digits).mean() for estimate in (borrowed.pseudo_likelihood, theirs.score_samples)]
    exact = borrowed.score_samples(digits).mean()
    assert all(abs(estimate - exact) < 1.5 for estimate in estimates)


@pytest.mark.slow
def test_features_of_digits_are_as_good_as_scikit_learns():
    x, y = load_digits(return_X_y=True)
    given = train_test_split((x / 16).astype(np.float32), y, test_size=0.4, random_state=0, stratify=y)
    scores = []
    for machine in (
        RBM(n_hidden=100, learning_rate=0.06, n_epochs=20, random_state=0),
        RBM(n_hidden=100, learning_rate=0.06, n_epochs=20, persistent=True, random_state=0),
        BernoulliRBM(100, learning_rate=0.06, n_iter=20, random_state=0),
    ):
        model = make_pipeline(machine, LogisticRegression(C=100, max_iter=1000, tol=1e-3))
        scores.append(model.fit(given[0], given[2]).score(given[1], given[3]))
    assert min(scores[:2]) > scores[2] - 0.015 and min(scores) > 0.9


def test_exact_score_is_the_sum_over_all_flips():
    """Of states of 0 and 1, where each conditional probability is known from the energies of both states."""
    torch.manual_seed(0)
    x = (torch.rand(40, 6) < 0.5).double()
    rbm = RBM(n_hidden=4, n_epochs=3, temperature=1.4, random_state=0, learning_rate=0.5).fit(x)
    expected = torch.zeros(40, dtype=torch.float64)
    for i in range(6):
        both = []
        for value in (0.0, 1.0):
            changed = x.clone()
            changed[:, i] = value
            both.append(-rbm.free_energy(changed) / 1.4)
        log = torch.log_softmax(torch.stack(both, 1), 1)
        expected += log.gather(1, x[:, i, None].long())[:, 0]
    torch.testing.assert_close(rbm.score_samples(x), expected)
    estimates = torch.stack([rbm.pseudo_likelihood(x) for _ in range(3000)]).mean(0)
    torch.testing.assert_close(estimates, expected, rtol=0.1, atol=0.1)


def test_gaussian_units_learn_two_clusters():
    """Of normal data: reconstructions come near the clouds' means, and free energy tells clouds from noise."""
    torch.manual_seed(0)
    means = torch.tensor([[2.0, 2.0, -2.0, 0.0], [-2.0, -1.0, 2.0, 1.0]])
    x = means[torch.randint(2, (2000,))] + torch.randn(2000, 4)
    rbm = RBM(n_hidden=8, visible="gaussian", learning_rate=0.01, n_epochs=20, random_state=0).fit(x)
    assert (rbm.reconstruct(means) - means).abs().max() < 0.8
    noise = 3 * torch.randn(2000, 4)
    assert rbm.free_energy(x).mean() < rbm.free_energy(noise).mean() - 3
    sampled = rbm.gibbs(torch.zeros(2000, 4), k=100)
    distance, cloud = (sampled[:, None] - means).square().sum(2).min(1)
    assert 2 < distance.mean() < 8 and 0.1 < cloud.float().mean() < 0.9  # 4 is that of the clouds themselves


def test_gibbs_samples_from_the_learned_distribution():
    """Two patterns, learned; chains from noise end at one of them."""
    patterns = torch.tensor([[1.0, 1, 1, 0, 0, 0, 1, 0], [0.0, 0, 1, 1, 1, 0, 0, 1]])
    x = patterns.repeat(200, 1)
    rbm = RBM(n_hidden=6, n_epochs=40, learning_rate=0.2, random_state=0).fit(x)
    found = rbm.gibbs((torch.rand(500, 8) < 0.5).float(), k=50)
    distance = (found[:, None] - patterns).abs().sum(2).min(1).values
    assert (distance <= 1).float().mean() > 0.8
    assert ((found == 0) | (found == 1)).all()


# -- state ------------------------------------------------------------------------------------------------------------
def test_a_seed_makes_a_model(digits, threads):
    x = digits[:100]
    fitted = RBM(**SMALL, persistent=True).fit(x)
    threads(2)
    assert same(fitted, RBM(**SMALL, persistent=True).fit(x))
    for state in (np.random.RandomState(3), torch.Generator().manual_seed(3), np.int64(3)):
        assert RBM(**{**SMALL, "random_state": state}).fit(x).components_.isfinite().all()
    assert not same(fitted, RBM(**{**SMALL, "random_state": 4}, persistent=True).fit(x))
    assert not same(RBM(n_hidden=3, n_epochs=1).fit(x), RBM(n_hidden=3, n_epochs=1).fit(x))
    torch.manual_seed(1)
    first = RBM(n_hidden=3, n_epochs=1).fit(x)
    torch.manual_seed(1)
    assert same(first, RBM(n_hidden=3, n_epochs=1).fit(x))


def test_partial_fit_goes_on(digits):
    x = digits[:100]
    rbm = RBM(**SMALL, momentum=0.5)
    for count in (1, 2, 3):
        before = None if count == 1 else rbm.components_.clone()
        rbm.partial_fit(x)
        assert rbm.n_epochs_ == count
        assert before is None or not torch.equal(before, rbm.components_)
    again = RBM(**SMALL, momentum=0.5).partial_fit(x).partial_fit(x).partial_fit(x)
    assert same(rbm, again)


def test_pickled_and_copied_machines_go_on_alike(digits):
    x = digits[:60]
    rbm = RBM(**SMALL, persistent=True, momentum=0.5).fit(x)
    others = [pickle.loads(pickle.dumps(rbm)), copy.deepcopy(rbm)]
    draws = rbm.gibbs(x, k=2)
    rbm.partial_fit(x)
    for other in others:
        assert np.array_equal(other.gibbs(x, k=2), draws)
        assert same(other.partial_fit(x), rbm)
    fresh = clone(rbm)
    assert not hasattr(fresh, "components_") and fresh.get_params() == rbm.get_params()


def test_draws_go_on(digits):
    rbm = RBM(**SMALL).fit(digits[:60])
    assert not np.array_equal(rbm.gibbs(digits[:60]), rbm.gibbs(digits[:60]))


def test_what_it_gives_back(digits):
    x = digits[:60]
    rbm = RBM(**SMALL).fit(x)
    hidden = rbm.transform(x)
    expected = functional.rbm_mean(torch.from_numpy(x), rbm.components_, rbm.intercept_hidden_)
    assert np.array_equal(hidden, expected.numpy())
    np.testing.assert_allclose(rbm.inverse_transform(hidden), rbm.reconstruct(x), rtol=1e-6)
    assert list(rbm.get_feature_names_out()[:2]) == ["rbm0", "rbm1"]
    assert rbm.n_features_in_ == 64 and rbm.components_.shape == (20, 64)


def test_verbose_prints_a_line_for_each_epoch(digits, capsys):
    RBM(**SMALL, verbose=True).fit(digits[:60])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("[RBM] epoch 1: pseudo-likelihood -")
    RBM(**SMALL, visible="gaussian", learning_rate=0.001, verbose=True).fit(digits[:60])
    assert "free energy" in capsys.readouterr().out


# -- errors -----------------------------------------------------------------------------------------------------------
X = np.random.RandomState(0).rand(20, 4)
ERRORS = {
    "n_visible": ({"n_visible": 5}, "[RBM] expected n_visible=5 features, got 4"),
    "n_hidden": ({"n_hidden": 0}, "[RBM] expected n_hidden to be a whole number from 1, got 0"),
    "n_hidden float": ({"n_hidden": 2.5}, "[RBM] expected n_hidden to be a whole number from 1, got 2.5"),
    "k": ({"k": 0}, "[RBM] expected k to be a whole number from 1, got 0"),
    "batch_size": ({"batch_size": -1}, "[RBM] expected batch_size to be a whole number from 1, got -1"),
    "n_epochs": ({"n_epochs": -1}, "[RBM] expected n_epochs to be a whole number from 0, got -1"),
    "learning_rate": ({"learning_rate": -0.1}, "[RBM] expected learning_rate of at least 0, got -0.1"),
    "momentum": ({"momentum": math.nan}, "[RBM] expected momentum of at least 0, got nan"),
    "temperature": ({"temperature": 0}, "[RBM] expected a temperature above 0, got 0"),
    "visible": ({"visible": "relu"}, "[RBM] expected visible 'bernoulli' or 'gaussian', got 'relu'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    options, text = ERRORS[name]
    assert outcome(lambda: RBM(**options).fit(X)) == (ValueError, text)


def test_errors_of_data():
    rbm = RBM(n_hidden=2, n_epochs=1)
    with pytest.raises(NotFittedError):
        rbm.transform(X)
    rbm.fit(X)
    for call in (rbm.transform, rbm.gibbs, rbm.free_energy, rbm.partial_fit):
        for given in (X[:, :3], torch.from_numpy(X[:, :3])):
            with pytest.raises(ValueError, match="X has 3 features, but RBM is expecting 4 features as input"):
                call(given)
    for bad in (np.full((3, 4), np.nan), torch.full((3, 4), math.inf)):
        with pytest.raises(ValueError, match="contains"):
            rbm.fit(bad)
    gaussian = RBM(n_hidden=2, n_epochs=1, visible="gaussian").fit(X)
    with pytest.raises(AttributeError, match="score_samples"):
        gaussian.score_samples(X)
