"""What a map tells of itself and of samples: errors, hits, distances between units, pictures; the same as minisom."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from pykernels import SOM
from pykernels.estimators.som import METRICS

from .maps import apart, blobs, places, squares

GRIDS = [("rectangular", False), ("rectangular", True), ("hexagonal", False), ("hexagonal", True), ("linear", False),
         ("linear", True)]  # fmt: skip
every_grid = pytest.mark.parametrize("topology, toroidal", GRIDS)
every_metric = pytest.mark.parametrize("metric", METRICS)


def untrained(w: np.ndarray, x: np.ndarray, **given) -> SOM:
    """A map whose codebook [R, C, D] is `w`."""
    som = SOM(*w.shape[:2], init=w, training="online", learning_rate=1e-300, **given).partial_fit(x)
    assert np.array_equal(som.codebook_, w)
    return som


def drawn(shape=(6, 5), features: int = 3, samples: int = 80) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(4)
    return draw.normal(size=(*shape, features)), draw.normal(size=(samples, features))


# -- numbers ----------------------------------------------------------------------------------------------------------
@every_grid
@every_metric
def test_errors_and_hits(topology, toroidal, metric):
    w, x = drawn()
    som = untrained(w, x, topology=topology, toroidal=toroidal, metric=metric)
    found = apart(x, w.reshape(30, 3), metric)
    two = np.argsort(found, 1)[:, :2]
    near = squares(6, 5, topology, toroidal)[two[:, 0], two[:, 1]] < (2.1 if topology == "rectangular" else 1.1)
    assert som.quantization_error(x) == pytest.approx(found.min(1).mean())
    assert som.topographic_error(x) == pytest.approx(1 - near.mean()) and 0 < near.mean() < 1
    assert isinstance(som.quantization_error(x), float) and isinstance(som.topographic_error(x), float)
    hits = som.hit_map(x)
    assert np.array_equal(hits, np.bincount(two[:, 0], minlength=30).reshape(6, 5)) and hits.dtype == np.int64
    assert np.array_equal(som.predict(x), two[:, 0])
    np.testing.assert_allclose(som.transform(x), found, atol=1e-14)


@every_grid
@every_metric
def test_mean_distances_between_neighbours(topology, toroidal, metric):
    w, x = drawn()
    som = untrained(w, x, topology=topology, toroidal=toroidal, metric=metric)
    square = squares(6, 5, topology, toroidal)
    near = (square > 0) & (square < (2.1 if topology == "rectangular" else 1.1))
    between = apart(w.reshape(30, 3), w.reshape(30, 3), metric)
    np.testing.assert_allclose(som.u_matrix(), ((between * near).sum(1) / near.sum(1)).reshape(6, 5))


def test_planes():
    w, x = drawn()
    som = untrained(w, x)
    for i in (0, 2, -1):
        assert np.array_equal(som.component_plane(i), w[:, :, i])


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 6)])
@every_grid
def test_small_maps(shape, topology, toroidal):
    if topology == "hexagonal" and toroidal and shape[0] % 2:
        return
    som = SOM(*shape, topology=topology, toroidal=toroidal, n_epochs=3).fit(blobs(40))
    assert som.u_matrix().shape == shape and np.isfinite(som.u_matrix()).all()
    assert som.hit_map(blobs(40)).sum() == 40
    alone = shape == (1, 1)
    assert np.isnan(som.topographic_error_) if alone else som.topographic_error_ >= 0  # (of one unit there is none)
    assert (som.u_matrix() == 0).all() == alone


def test_samples_far_from_the_origin():
    """All at 1e6: values are multiples of 1/16, so that float32 holds them."""
    draw = np.random.default_rng(0)
    w, x = (draw.integers(-64, 64, size=s).astype(np.float32) / 16 for s in ((5, 5, 3), (200, 3)))
    near, far = untrained(w, x), untrained(w + np.float32(1e6), x + np.float32(1e6))
    assert np.array_equal(near.predict(x), far.predict(x + np.float32(1e6)))
    np.testing.assert_allclose(near.transform(x), far.transform(x + np.float32(1e6)), rtol=1e-6)
    np.testing.assert_allclose(near.u_matrix(), far.u_matrix(), rtol=1e-6)


# -- minisom ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("topology", ["rectangular", "hexagonal"])
def test_the_same_as_minisom(topology):
    """minisom[column, row] is our unit (row, column); an odd number of rows makes it move the same rows."""
    minisom = pytest.importorskip("minisom")
    w, x = drawn((7, 6))
    som = untrained(w, x, topology=topology)
    other = minisom.MiniSom(6, 7, 3, topology=topology)
    other._weights = w.transpose(1, 0, 2).copy()
    assert som.quantization_error(x) == pytest.approx(other.quantization_error(x))
    assert som.topographic_error(x) == pytest.approx(other.topographic_error(x))
    assert np.array_equal(som.hit_map(x), other.activation_response(x).T)
    assert [divmod(unit, 6)[::-1] for unit in som.predict(x).tolist()] == [other.winner(sample) for sample in x]
    theirs = other.distance_map(scaling="mean").T
    if topology == "rectangular":
        np.testing.assert_allclose(som.u_matrix() / som.u_matrix().max(), theirs)


# -- pictures ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def outlines(ax) -> list[np.ndarray]:
    """Of each unit that was drawn, the corners [n, 2]."""
    (shown,) = ax.collections
    return [path.vertices[:-1] if path.codes is not None else path.vertices for path in shown.get_paths()]


@every_grid
@pytest.mark.parametrize("shape", [(4, 5), (1, 3)])
def test_a_picture_has_every_unit_in_its_place(pyplot, topology, toroidal, shape):
    if topology == "hexagonal" and toroidal and shape[0] % 2:
        return
    w, x = drawn(shape)
    som = untrained(w, x, topology=topology, toroidal=toroidal)
    ax = som.plot_u_matrix()
    corners = outlines(ax)
    assert len(corners) == shape[0] * shape[1]
    at = places(*shape, "hexagonal" if topology == "hexagonal" else "rectangular")
    for outline, (y, x_) in zip(corners, at, strict=True):
        np.testing.assert_allclose(outline.mean(0), [x_, y], atol=1e-12)
        assert len(outline) == (6 if topology == "hexagonal" else 4)
    assert np.array_equal(np.asarray(ax.collections[0].get_array()), som.u_matrix().ravel())
    ax.figure.canvas.draw()


def test_hexagons_touch(pyplot):
    """Each has its sides in common with its neighbours, and stands on a corner, as rows are moved sideways."""
    w, x = drawn((5, 4))
    ax = untrained(w, x, topology="hexagonal").plot_component_plane(1)
    corners = [{tuple(np.round(c, 9)) for c in outline} for outline in outlines(ax)]
    square = squares(5, 4, "hexagonal", False)
    for a in range(20):
        for b in range(a):
            assert len(corners[a] & corners[b]) == (2 if square[a, b] < 1.1 else 0)


def test_pictures_of_all_kinds(pyplot):
    w, x = drawn((4, 5))
    som = untrained(w, x, topology="hexagonal")
    _, (left, right) = pyplot.subplots(1, 2)
    assert som.plot_hit_map(x, ax=left, cmap="gray") is left and som.plot_component_plane(2, right) is right
    assert left.collections[0].get_cmap().name == "gray" and left.get_title() == "hits"
    assert np.array_equal(np.asarray(left.collections[0].get_array()), som.hit_map(x).ravel())
    assert right.get_title() == "feature 2" and left.get_aspect() == 1
    low, high = left.get_ylim()
    assert low > high  # row 0 is at the top
    colours = np.random.default_rng(0).random((4, 5, 3))
    ax = som.plot_values(colours, title="colours")
    np.testing.assert_allclose(ax.collections[0].get_facecolor()[:, :3], colours.reshape(20, 3))
    assert len(ax.figure.axes) == 1  # no bar of colours
    assert len(som.plot_values(torch.rand(4, 5)).figure.axes) == 2
    assert len(som.plot_values(torch.rand(4, 5), colorbar=False).figure.axes) == 1


def test_every_unit_is_within_the_axes(pyplot):
    for topology in ("rectangular", "hexagonal", "linear"):
        w, x = drawn((5, 4))
        ax = untrained(w, x, topology=topology).plot_u_matrix()
        every = np.concatenate(outlines(ax))
        (left, right), (low, high) = sorted(ax.get_xlim()), sorted(ax.get_ylim())
        assert left <= every[:, 0].min() and every[:, 0].max() <= right
        assert low <= every[:, 1].min() and every[:, 1].max() <= high


# -- progress ---------------------------------------------------------------------------------------------------------
def test_progress_is_shown_where_it_is_asked_for(capsys):
    pytest.importorskip("tqdm")
    SOM(2, 2, n_epochs=3).fit(blobs(20))
    assert capsys.readouterr().err == ""
    SOM(2, 2, n_epochs=3, verbose=1).fit(blobs(20))
    assert "3/3" in capsys.readouterr().err


def test_without_tqdm_or_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    som = SOM(2, 2, n_epochs=3, verbose=1).fit(blobs(20))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="matplotlib"):
        som.plot_u_matrix()
