"""A map in scikit-learn's manner: kinds of samples, its checks, copies, pipelines, saved states, continued learning."""

from __future__ import annotations

import io
import pickle
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from scipy import sparse
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from pykernels import SOM
from pykernels.estimators.som import TRAININGS

from .maps import blobs, digits

every_training = pytest.mark.parametrize("training", TRAININGS)


# (Of a few units each has samples: scikit-learn wants labels without gaps.)
@parametrize_with_checks([SOM(1, 3, n_epochs=5, training=training) for training in TRAININGS])
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


# -- kinds of samples -------------------------------------------------------------------------------------------------
def dense_kinds(x: np.ndarray) -> dict[str, object]:
    wide = np.zeros((2 * len(x), 2 * x.shape[1]), x.dtype)
    wide[::2, ::2] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    return {
        "array": x, "fortran": np.asfortranarray(x), "strided": wide[::2, ::2], "frozen": frozen,
        "backwards": np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1], "list": x.astype(np.float64).tolist(),
        "bytes swapped": x.astype(x.dtype.newbyteorder()), "tensor": torch.from_numpy(x.copy()),
        "tensor of columns": torch.from_numpy(np.asfortranarray(x)),
        "tensor with strides": torch.from_numpy(wide)[::2, ::2],
        "parameter": torch.nn.Parameter(torch.from_numpy(x.copy())),
    }  # fmt: skip


@every_training
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dense_samples_of_any_kind(training, dtype):
    x = np.round(blobs(60), 2).astype(np.float32).astype(dtype)
    given = {"training": training, "n_epochs": 3, "random_state": 0, "batch_size": 16}
    expected = SOM(3, 4, **given).fit(x)
    for name, kind in dense_kinds(x).items():
        som = SOM(3, 4, **given).fit(kind)
        tensors = isinstance(kind, torch.Tensor)
        cast = name in ("list", "bytes swapped")  # (may be in float32)
        loose = 1e-5 if cast or dtype == np.float32 else 1e-12
        for found in (som.codebook_, som.cluster_centers_, som.labels_, som.predict(kind), som.transform(kind)):
            assert isinstance(found, torch.Tensor if tensors else np.ndarray), name
            assert not (tensors and found.requires_grad), name
        np.testing.assert_allclose(np.asarray(som.codebook_), expected.codebook_, rtol=loose, atol=loose, err_msg=name)
        assert np.array_equal(np.asarray(som.labels_), expected.labels_), name
        assert cast or np.asarray(som.codebook_).dtype == dtype
        assert som.quantization_error(kind) == pytest.approx(expected.quantization_error_, rel=1e-5)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8, np.float16, bool])
def test_samples_that_are_cast(dtype):
    x = (blobs(60) * 5).clip(0, 100).astype(dtype)
    expected = SOM(3, 4, n_epochs=3).fit(x.astype(np.float64))
    for kind in (x, torch.from_numpy(x)):
        som = SOM(3, 4, n_epochs=3).fit(kind)
        np.testing.assert_allclose(np.asarray(som.codebook_), expected.codebook_, rtol=1e-5, atol=1e-5)
        assert np.array_equal(np.asarray(som.predict(kind)), expected.labels_)


def test_whole_numbers_that_float32_does_not_hold():
    """Times in seconds, numbers of customers."""
    x = 1_700_000_000 + np.arange(40).reshape(20, 2)
    for kind in (x, torch.from_numpy(x)):
        som = SOM(1, 4, n_epochs=5, sigma_end=0.3).fit(kind)
        assert len(np.unique(np.asarray(som.labels_))) == 4


def test_half_precision_tensors():
    x = torch.from_numpy(blobs(60).astype(np.float32))
    for dtype in (torch.float16, torch.bfloat16):
        som = SOM(3, 4, n_epochs=3).fit(x.to(dtype))
        assert som.codebook_.dtype == torch.float32
        assert torch.equal(som.labels_, SOM(3, 4, n_epochs=3).fit(x.to(dtype).float()).labels_)


SPARSE = {
    "csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "coo": sparse.coo_matrix, "lil": sparse.lil_matrix,
    "csr array": sparse.csr_array, "coo array": sparse.coo_array,
    "torch coo": lambda x: torch.from_numpy(x).to_sparse(), "torch csr": lambda x: torch.from_numpy(x).to_sparse_csr(),
    "torch csc": lambda x: torch.from_numpy(x).to_sparse_csc(),
}  # fmt: skip


@every_training
@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.filterwarnings("ignore:Sparse CS")
def test_sparse_samples(training, kind):
    x = digits()[:120] * (digits()[:120] > 0.4)
    given = {"training": training, "n_epochs": 3, "random_state": 0, "batch_size": 32}
    dense, som = SOM(3, 4, **given).fit(x), SOM(3, 4, **given).fit(SPARSE[kind](x))
    np.testing.assert_allclose(np.asarray(som.codebook_), dense.codebook_, rtol=1e-6, atol=1e-7)
    assert np.array_equal(np.asarray(som.labels_), dense.labels_)
    given = SPARSE[kind](x[:30])
    assert np.array_equal(np.asarray(som.predict(given)), dense.predict(x[:30]))
    np.testing.assert_allclose(np.asarray(som.transform(given)), dense.transform(x[:30]), rtol=1e-5, atol=1e-5)
    assert som.quantization_error(given) == pytest.approx(dense.quantization_error(x[:30]))
    assert np.array_equal(np.asarray(som.hit_map(given)), dense.hit_map(x[:30]))


def test_frames():
    pandas = pytest.importorskip("pandas")
    x = blobs(60)
    frame = pandas.DataFrame(x, columns=list("abcd"))
    som = SOM(3, 4, n_epochs=3).fit(frame)
    assert som.feature_names_in_.tolist() == list("abcd")
    assert np.array_equal(som.predict(frame), SOM(3, 4, n_epochs=3).fit(x).labels_)
    assert som.set_output(transform="pandas").transform(frame).columns.tolist() == [f"som{i}" for i in range(12)]


def test_kinds_may_change_between_calls():
    x = blobs(60).astype(np.float32)
    som = SOM(3, 4, n_epochs=3).fit(x)
    assert isinstance(som.predict(torch.from_numpy(x)), torch.Tensor)
    assert np.array_equal(som.predict(torch.from_numpy(x)).numpy(), som.predict(x))
    other = SOM(3, 4, n_epochs=3).fit(torch.from_numpy(x))
    assert np.array_equal(other.predict(x), som.labels_) and isinstance(other.hit_map(x), np.ndarray)
    assert isinstance(other.u_matrix(), torch.Tensor) and isinstance(som.u_matrix(), np.ndarray)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
@every_training
def test_devices_by_name(device, training):
    x = blobs(60)
    som = SOM(3, 4, training=training, device=device, n_epochs=2, random_state=0).fit(x)
    assert np.array_equal(som.codebook_, SOM(3, 4, training=training, n_epochs=2, random_state=0).fit(x).codebook_)


def test_samples_are_left_as_they_were():
    x = blobs(60)
    kept = x.copy()
    for training in TRAININGS:
        som = SOM(3, 4, training=training, init="sample", n_epochs=2).fit(x)
        before = som.codebook_.copy()
        som.predict(x), som.transform(x), som.hit_map(x), som.u_matrix()
        assert np.array_equal(x, kept) and np.array_equal(som.codebook_, before)


# -- scikit-learn's manner --------------------------------------------------------------------------------------------
def test_parameters():
    given = {
        "n_rows": 3, "n_columns": 4, "n_features": 4, "topology": "hexagonal", "toroidal": True,
        "neighbourhood": "bubble", "training": "online", "n_epochs": 2, "sigma": 1.5, "sigma_end": 0.9,
        "sigma_decay": "linear", "learning_rate": 0.1, "batch_size": 7, "init": "random", "metric": "manhattan",
        "random_state": 3, "device": "cpu", "verbose": 0,
    }  # fmt: skip
    som = SOM(**given)
    assert som.get_params() == given and SOM(3, 4, 4).get_params()["n_features"] == 4
    assert clone(som).get_params() == given and not hasattr(clone(som), "codebook_")
    assert "topology='hexagonal'" in repr(som)
    assert som.set_params(n_epochs=5) is som and som.n_epochs == 5


@every_training
def test_fit_predict_and_fit_transform(training):
    x = blobs(60)
    som = SOM(3, 4, training=training, n_epochs=3, random_state=0)
    labels = som.fit_predict(x)
    assert np.array_equal(labels, som.labels_) and np.array_equal(labels, som.predict(x))
    found = clone(som).fit_transform(x)
    assert (
        found.shape == (60, 12) and np.array_equal(found, som.transform(x)) and np.array_equal(found.argmin(1), labels)
    )
    distance, index = som.best_units(x)
    assert distance.shape == index.shape == (60, 1) and np.array_equal(index[:, 0], labels)
    distance, index = som.best_units(x, 3)
    np.testing.assert_allclose(distance, np.sort(found, 1)[:, :3])
    assert som.get_feature_names_out().tolist() == [f"som{i}" for i in range(12)]


def test_in_a_pipeline_and_a_search():
    x = blobs(90)
    pipeline = make_pipeline(MinMaxScaler(), SOM(3, 4, n_epochs=3, random_state=0))
    labels = pipeline.fit_predict(x)
    assert np.array_equal(labels, SOM(3, 4, n_epochs=3, random_state=0).fit_predict(MinMaxScaler().fit_transform(x)))
    search = GridSearchCV(
        pipeline, {"som__n_rows": [1, 4], "som__topology": ["rectangular", "hexagonal"]}, cv=2,
        scoring=lambda model, x, y=None: -model[-1].quantization_error(model[:-1].transform(x)),
    ).fit(x)  # fmt: skip
    assert search.best_params_["som__n_rows"] == 4


@every_training
def test_pickles(training):
    x = blobs(60)
    som = SOM(3, 4, training=training, n_epochs=3, random_state=0).fit(x)
    other = pickle.loads(pickle.dumps(som))
    assert np.array_equal(other.predict(x), som.labels_) and np.array_equal(other.labels_, som.labels_)
    assert np.array_equal(other.partial_fit(x).codebook_, som.partial_fit(x).codebook_)


# -- states and continued learning ------------------------------------------------------------------------------------
def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)  # (weights only: no code)


@every_training
@pytest.mark.parametrize("neighbourhood", ["gaussian", "mexican_hat"])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_saved_map_goes_on_where_it_was(training, neighbourhood, kind):
    x = kind(blobs(60))
    som = SOM(3, 4, training=training, neighbourhood=neighbourhood, n_epochs=6, random_state=0, topology="hexagonal")
    som.partial_fit(x[:30]).partial_fit(x[30:])
    other = SOM().load_state_dict(through_a_file(som.state_dict()))
    assert other.get_params() == som.get_params() and other.n_epochs_ == 2
    assert type(other.codebook_) is type(som.codebook_) and other.codebook_.shape == (3, 4, 4)
    for view in (lambda m: m.predict(x), lambda m: m.u_matrix(), lambda m: m.transform(x), lambda m: m.codebook_):
        assert np.array_equal(np.asarray(view(other)), np.asarray(view(som)))
    assert other.topographic_error(x) == som.topographic_error(x)
    for some in (x[:20], x[10:]):
        som.partial_fit(some)
        other.partial_fit(some)
        assert np.array_equal(np.asarray(other.codebook_), np.asarray(som.codebook_))


@pytest.mark.parametrize(
    "given",
    [{"sigma": np.float64(2.0)}, {"random_state": np.int64(3)}, {"n_epochs": np.int64(3)}, {"init": blobs(12)}],
    ids=["sigma", "random_state", "n_epochs", "init"],
)  # fmt: skip
def test_a_state_is_of_plain_values(given):
    """Whatever came in: parameters of a search, or a codebook, are numpy's."""
    som = SOM(3, 4, n_epochs=2).set_params(**given).fit(blobs(60))
    other = SOM().load_state_dict(through_a_file(som.state_dict()))
    assert np.array_equal(other.codebook_, som.codebook_)


def test_a_state_is_a_copy():
    x = blobs(60)
    som = SOM(3, 4, training="online", n_epochs=3, random_state=0).fit(x)
    state, before = som.state_dict(), som.codebook_.copy()
    other = SOM().load_state_dict(state)
    other.partial_fit(x)
    som.partial_fit(x)
    assert np.array_equal(SOM().load_state_dict(state).codebook_, before)


def test_what_a_map_had_before_is_gone_when_a_state_is_loaded():
    som = SOM(3, 4, n_epochs=2).fit(blobs(60))
    other = SOM(2, 2, n_epochs=1).fit(blobs(20, 7)).load_state_dict(som.state_dict())
    assert not hasattr(other, "labels_") or len(other.labels_) == 60
    assert not hasattr(other, "history_") or other.history_ == som.history_


@every_training
def test_learning_in_parts_makes_a_map(training):
    x = digits()[:1000]
    som = SOM(8, 8, training=training, n_epochs=20, random_state=0)
    for _ in range(20 if training == "online" else 4):
        for begin in range(0, 1000, 200):
            som.partial_fit(x[begin : begin + 200])
    assert som.quantization_error(x) < 1.5 and som.topographic_error(x) < 0.3


@every_training
def test_one_more_sample_leaves_a_fitted_map_what_it_is(training):
    x = digits()[:500]
    som = SOM(8, 8, training=training, n_epochs=15, random_state=0).fit(x)
    before = som.quantization_error_
    som.partial_fit(x[:1])
    assert som.quantization_error(x) < 1.1 * before


@every_training
def test_fit_begins_anew(training):
    x = blobs(60)
    given = {"training": training, "n_epochs": 3, "random_state": 0}
    som = SOM(3, 4, **given).partial_fit(blobs(30, seed=2)).fit(x)
    assert np.array_equal(som.codebook_, SOM(3, 4, **given).fit(x).codebook_)
    assert som.set_params(n_rows=2).fit(blobs(30, 7)).codebook_.shape == (2, 4, 7)


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for training in TRAININGS:
            SOM(3, 4, training=training, n_epochs=2).fit(blobs(60)).transform(blobs(10))
