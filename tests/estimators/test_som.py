"""How a map learns: against its equations in plain numpy, on digits, in parts, from seeds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

import pykernels
from pykernels import SOM
from pykernels.estimators import _som_training
from pykernels.estimators.som import METRICS, TRAININGS

from .maps import apart, batch_map, blobs, digits, shares, squares, width

NEIGHBOURHOODS = ("gaussian", "bubble", "mexican_hat")
GRIDS = [("rectangular", False), ("rectangular", True), ("hexagonal", False), ("hexagonal", True), ("linear", False)]
every_training = pytest.mark.parametrize("training", TRAININGS)


def test_the_name_is_public():
    assert pykernels.SOM is SOM is pykernels.estimators.SOM and "SOM" in dir(pykernels)


# -- equations --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("topology, toroidal", GRIDS)
@pytest.mark.parametrize("neighbourhood", NEIGHBOURHOODS)
@pytest.mark.parametrize("metric", METRICS)
def test_batches_follow_their_equation(topology, toroidal, neighbourhood, metric):
    x = blobs()
    given = {
        "n_rows": 4,
        "n_columns": 5,
        "topology": topology,
        "toroidal": toroidal,
        "neighbourhood": neighbourhood,
        "metric": metric,
    }
    epochs = 1 if neighbourhood == "bubble" else 5  # (then units coincide, and rounding chooses between them)
    init = np.random.default_rng(1).normal(size=(20, 4))
    som = SOM(**given, init=init, n_epochs=epochs, sigma=2.0, sigma_end=0.7).fit(x)
    w, history = batch_map(x, init, given, (2.0, 0.7), epochs)
    np.testing.assert_allclose(som.cluster_centers_, w, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(som.history_, history, rtol=1e-9)
    found = apart(x, w, metric)
    assert som.quantization_error_ == pytest.approx(found.min(1).mean())
    if neighbourhood != "bubble":
        two = np.argsort(found, 1, kind="stable")[:, :2]
        near = squares(4, 5, topology, toroidal)[two[:, 0], two[:, 1]] < (2.1 if topology == "rectangular" else 1.1)
        assert np.array_equal(som.labels_, two[:, 0])
        assert som.topographic_error_ == pytest.approx(1 - near.mean())


def test_a_unit_that_nothing_reaches_stays():
    init = np.array([[0.0], [5.0], [50.0], [90.0]])
    x = np.array([[0.5], [1.5], [4.0]])
    som = SOM(1, 4, neighbourhood="bubble", sigma=0.5, sigma_end=0.5, n_epochs=1, init=init).fit(x)
    assert som.cluster_centers_.tolist() == [[1.0], [4.0], [50.0], [90.0]]


@pytest.mark.parametrize("neighbourhood", NEIGHBOURHOODS)
@pytest.mark.parametrize("toroidal", [False, True])
def test_samples_one_by_one_follow_their_equation(neighbourhood, toroidal):
    """In the given order, by partial_fit, whose rate falls to a hundredth."""
    x, epochs = blobs(60), 3
    given = {"topology": "hexagonal", "toroidal": toroidal, "neighbourhood": neighbourhood}
    init = np.random.default_rng(1).normal(size=(20, 4))
    som = SOM(4, 5, **given, training="online", init=init, n_epochs=epochs, sigma=2.0, sigma_end=0.7, learning_rate=0.4)
    w, square = init.copy(), squares(4, 5, "hexagonal", toroidal)
    for epoch in range(epochs):
        som.partial_fit(x)
        for i, sample in enumerate(x):
            when = epoch + i / len(x)
            share = shares(neighbourhood, square[apart(sample[None], w)[0].argmin()], width(2.0, 0.7, when, epochs))
            w += width(0.4, 0.004, when, epochs) * share[:, None] * (sample - w)
            if neighbourhood == "mexican_hat":
                w = w.clip(x.min(0), x.max(0))
    np.testing.assert_allclose(som.cluster_centers_, w, rtol=1e-7, atol=1e-9)
    assert som.n_epochs_ == epochs


@pytest.mark.parametrize("kind", ["linear", 4.0, lambda part: 1 - part / 2])
def test_other_ways_of_the_width(kind):
    x, init = blobs(), np.random.default_rng(1).normal(size=(20, 4))
    som = SOM(4, 5, init=init, n_epochs=4, sigma=2.0, sigma_end=0.7, sigma_decay=kind).fit(x)
    w = init
    for n in range(4):
        falls = {"linear": 2.0 - 1.3 * n / 3, 4.0: 2.0 * np.exp(-n / 4)}
        sigma = 2.0 * kind(n / 3) if callable(kind) else falls[kind]
        given = {"n_rows": 4, "n_columns": 5, "topology": "rectangular", "toroidal": False}
        w, _ = batch_map(x, w, given | {"neighbourhood": "gaussian", "metric": "euclidean"}, (sigma, sigma), 1)
    np.testing.assert_allclose(som.cluster_centers_, w, rtol=1e-9)


def test_the_width_begins_at_half_of_the_longer_side():
    x, init = blobs(), np.random.default_rng(1).normal(size=(24, 4))
    for shape, sigma in (((4, 6), 3.0), ((8, 3), 4.0)):
        found = [SOM(*shape, init=init, n_epochs=3, sigma=s).fit(x).codebook_ for s in (None, sigma)]
        assert np.array_equal(*found)


@pytest.mark.parametrize("metric", METRICS)
def test_one_small_batch_is_a_batch(metric):
    """The first one: running means begin at it."""
    x, init = blobs(), np.random.default_rng(1).normal(size=(20, 4))
    som = SOM(4, 5, training="minibatch", init=init, sigma=2.0, metric=metric).partial_fit(x)
    batch = SOM(4, 5, init=init, sigma=2.0, n_epochs=1, metric=metric).fit(x)
    np.testing.assert_allclose(som.cluster_centers_, batch.cluster_centers_, rtol=1e-12)


def test_running_means_of_small_batches():
    """Second batch: its sums take part with `learning_rate`."""
    x, init, rate = blobs(80), np.random.default_rng(1).normal(size=(20, 4)), 0.3
    given = {
        "training": "minibatch",
        "init": init,
        "sigma": 1.5,
        "sigma_end": 1.5,
        "learning_rate": rate,
        "n_epochs": 9,
        "batch_size": 40,
    }
    som = SOM(4, 5, **given).partial_fit(x[:40]).partial_fit(x[40:])
    share, w, sums, counts = shares("gaussian", squares(4, 5, "rectangular", False), 1.5), init, 0, 0
    for part, some in ((1.0, x[:40]), (rate, x[40:])):
        best = apart(some, w).argmin(1)
        one = np.eye(20)[best]
        sums, counts = (1 - part) * sums + part * one.T @ some, (1 - part) * counts + part * one.sum(0)
        w = (share @ sums) / (share @ counts)[:, None]
    np.testing.assert_allclose(som.cluster_centers_, w, rtol=1e-9)


# -- quality ----------------------------------------------------------------------------------------------------------
def test_the_default_map_of_digits():
    som = SOM(12, 12, random_state=0).fit(digits())
    assert som.quantization_error_ < 1.25 and som.topographic_error_ < 0.25
    assert som.codebook_.shape == (12, 12, 64) and som.cluster_centers_.shape == (144, 64)
    assert len(som.history_) == som.n_epochs_ == 30 and som.n_features_in_ == 64
    assert som.history_[-1] < som.history_[0]
    assert som.codebook_.min() >= 0 and som.codebook_.max() <= 1  # means of samples


@every_training
@pytest.mark.parametrize("topology", ["hexagonal", "linear"])
def test_every_training_makes_a_map(training, topology):
    x = digits()[:600]
    som = SOM(7, 7, training=training, topology=topology, random_state=0, n_epochs=12, batch_size=100).fit(x)
    assert som.quantization_error_ < 1.5 and som.topographic_error_ < 0.3
    # neighbouring units are alike
    w = som.cluster_centers_
    units, others = som._grid.neighbours()
    beside = np.linalg.norm(w[units.numpy()] - w[others.numpy()], axis=1).mean()
    assert beside < 0.6 * apart(w, w).mean()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("init", ["pca", "random", "sample"])
def test_every_start_ends_in_a_map(metric, init):
    x = digits()[:500]
    som = SOM(6, 6, metric=metric, init=init, random_state=3, n_epochs=15).fit(x)
    assert som.quantization_error_ < 0.75 * apart(x, x.mean(0)[None], metric).mean() and som.topographic_error_ < 0.3


def test_the_last_small_batch_counts_as_its_samples_do():
    """One sample more than fills the batches must not outweigh all the others."""
    given = {"training": "minibatch", "random_state": 0, "n_epochs": 10, "learning_rate": 1.0, "batch_size": 128}
    errors = [SOM(6, 6, **given).fit(digits()[:n]).quantization_error_ for n in (512, 513)]
    assert errors[1] < 1.1 * errors[0]


# -- starts -----------------------------------------------------------------------------------------------------------
def first_step(init, x, shape=(4, 5), **given) -> np.ndarray:
    """A codebook as it was before learning: of an online step that teaches nothing."""
    return SOM(*shape, init=init, training="online", learning_rate=1e-300, **given).partial_fit(x).codebook_


def test_the_plane_does_not_turn_with_rounding():
    """Two standardised features: both entries of a direction are as large, and rounding chooses between them."""
    x = blobs(100, 2, seed=3)
    x = (x - x.mean(0)) / x.std(0)
    whole = first_step("pca", x)
    for other in (x.astype(np.float32), x[::-1], np.concatenate([x[50:], x[:50]]), x + 1e-9):
        np.testing.assert_allclose(first_step("pca", other), whole, rtol=1e-4, atol=1e-4)


def test_a_plane_along_the_principal_directions():
    x = blobs(300) * [10.0, 1.0, 0.1, 3.0]
    mean = x.mean(0)
    variances, directions = np.linalg.eigh(np.cov(x.T, bias=True))
    for shape, axis in (((4, 6), 1), ((6, 4), 0)):
        w = first_step("pca", x, shape) - mean
        across = (w @ directions[:, -1]) / np.sqrt(variances[-1])
        expected = np.linspace(-2, 2, 6)
        across = across if axis == 1 else across.T
        assert np.allclose(across, expected) or np.allclose(across, -expected)  # the first along the longer side
        other = (w @ directions[:, -2]) / np.sqrt(variances[-2])
        other = other.T if axis == 1 else other
        assert np.allclose(np.abs(other), np.abs(np.linspace(-2, 2, 4)))
        np.testing.assert_allclose(w @ directions[:, :-2], 0, atol=1e-9)


def test_starts_drawn_from_the_data():
    x = blobs(40)
    w = first_step("sample", x, random_state=0).reshape(-1, 4)
    rows = {tuple(row) for row in x}
    assert all(tuple(row) in rows for row in w) and len({tuple(row) for row in w}) == 20  # no sample twice
    few = first_step("sample", x[:3], random_state=0).reshape(-1, 4)
    assert {tuple(row) for row in few} == {tuple(row) for row in x[:3]}
    w = first_step("random", x, (30, 30), random_state=0).reshape(-1, 4)
    low, high = x.min(0), x.max(0)
    assert (w >= low).all() and (w <= high).all() and (np.ptp(w, 0) > 0.98 * (high - low)).all()


@pytest.mark.parametrize("form", [lambda w: w, lambda w: w.reshape(4, 5, 4), torch.from_numpy, lambda w: w.tolist()])
def test_a_start_of_ones_own(form):
    x, w = blobs(), np.random.default_rng(1).normal(size=(20, 4))
    kept = w.copy()
    assert np.array_equal(first_step(form(w), x).reshape(20, 4), w)
    SOM(4, 5, init=w, training="online", n_epochs=2).fit(x)
    assert np.array_equal(w, kept)


# -- seeds, parts, threads --------------------------------------------------------------------------------------------
@every_training
@pytest.mark.parametrize("init", ["pca", "random", "sample"])
def test_seeds(training, init):
    x = blobs()

    def learned(random_state):
        som = SOM(4, 5, training=training, init=init, n_epochs=3, random_state=random_state, batch_size=32)
        return som.fit(x).codebook_

    assert np.array_equal(learned(5), learned(5)) and np.array_equal(learned(5), learned(np.int64(5)))
    assert np.array_equal(learned(np.random.RandomState(1)), learned(np.random.RandomState(1)))
    made = [learned(torch.Generator().manual_seed(2)) for _ in range(2)]
    assert np.array_equal(*made)
    torch.manual_seed(4)
    first = learned(None)
    second = learned(None)
    torch.manual_seed(4)
    assert np.array_equal(learned(None), first)
    drawn = (training, init) != ("batch", "pca")  # (that one draws nothing)
    assert np.array_equal(learned(6), learned(5)) != drawn and np.array_equal(first, second) != drawn


@every_training
def test_no_other_random_numbers_are_drawn(training):
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    SOM(3, 3, training=training, init="sample", random_state=0, n_epochs=2).fit(blobs())
    assert torch.equal(torch.get_rng_state(), before[0]) and np.array_equal(np.random.get_state()[1], before[1])


@every_training
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_change_nothing(monkeypatch, training, dtype):
    """Samples that come in blocks (here sparse, online dense too), of few rows or of all."""
    sparse = pytest.importorskip("scipy.sparse")
    x = blobs(90).astype(dtype)
    found = []
    for size in (1, 1000, 1 << 30):
        monkeypatch.setattr(_som_training, "BLOCK_BYTES", size)
        for form in (np.asarray, sparse.csr_matrix):
            som = SOM(4, 5, training=training, random_state=0, n_epochs=3, batch_size=32).fit(form(x))
            found.append((som.codebook_, som.labels_, som.transform(form(x)), som.hit_map(form(x)), som.history_))
    eps = np.finfo(dtype).eps
    for other, first in itertools.product(found[1:], found[:1]):
        np.testing.assert_allclose(other[0], first[0], rtol=100 * eps, atol=100 * eps)
        assert np.array_equal(other[1], first[1]) and np.array_equal(other[3], first[3])
        np.testing.assert_allclose(other[2], first[2], rtol=1000 * eps, atol=1000 * eps)
        np.testing.assert_allclose(other[4], first[4], rtol=100 * eps)


@every_training
def test_any_number_of_threads(threads, training):
    found = []
    for count in (1, 2):
        threads(count)
        found.append(SOM(9, 9, training=training, random_state=0, n_epochs=3).fit(digits()[:500]))
    np.testing.assert_allclose(found[1].codebook_, found[0].codebook_, rtol=1e-5, atol=1e-6)
    assert np.array_equal(found[1].labels_, found[0].labels_)
