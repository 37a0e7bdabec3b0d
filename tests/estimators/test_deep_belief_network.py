"""DeepBeliefNetwork: scikit-learn's checks, greedy learning, wake and sleep, samples, networks made of it."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from scipy import sparse
from sklearn.datasets import load_digits
from sklearn.utils.estimator_checks import parametrize_with_checks

from pykernels import RBM, DeepBeliefNetwork, functional
from pykernels.estimators import deep_belief_network
from tests.helpers import outcome

CHECKED = [
    DeepBeliefNetwork((5, 3), n_epochs=2, n_fine_tuning_epochs=1, random_state=0),
    DeepBeliefNetwork((4, 3, 2), n_epochs=1, visible="gaussian", n_fine_tuning_epochs=1, learning_rate=0.001),
]
SMALL = {"n_hidden": (20, 12, 6), "n_epochs": 2, "random_state": 3}


@parametrize_with_checks(CHECKED)
def test_scikit_learns_checks(cpu_only, estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return (load_digits().data / 16).astype(np.float32)


def weights(network: DeepBeliefNetwork) -> list[torch.Tensor]:
    return [t for layer in (*network._up(), *network._down()) for t in layer]


def same(a: DeepBeliefNetwork, b: DeepBeliefNetwork) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


def test_layers_are_machines_one_on_the_other(digits):
    x = torch.from_numpy(digits[:100])
    network = DeepBeliefNetwork(**SMALL, learning_rate=(0.1, 0.05, 0.02)).fit(x)
    states = x
    for machine, size in zip(network.rbms_, (20, 12, 6), strict=True):
        assert isinstance(machine, RBM) and machine.components_.shape == (size, states.shape[1])
        again = RBM(**machine.get_params()).fit(states)
        assert torch.equal(again.components_, machine.components_)
        states = machine.transform(states)
    assert torch.equal(network.transform(x), states)
    assert [machine.learning_rate for machine in network.rbms_] == [0.1, 0.05, 0.02]
    down = states
    for machine in network.rbms_[::-1]:
        down = machine.inverse_transform(down)
    torch.testing.assert_close(network.reconstruct(x), down)
    torch.testing.assert_close(network.inverse_transform(states), down)


def test_all_kinds_of_data_are_one(digits):
    x = digits[:80] * (digits[:80] > 0.5)
    options = {**SMALL, "n_fine_tuning_epochs": 1}
    fitted = DeepBeliefNetwork(**options).fit(x)
    for other in (torch.from_numpy(x), sparse.csr_matrix(x)):
        assert same(fitted, DeepBeliefNetwork(**options).fit(other))
    assert isinstance(fitted.transform(x), np.ndarray) and fitted.transform(x).dtype == np.float32
    assert same(fitted, pickle.loads(pickle.dumps(fitted)))


def test_fine_tuning_is_the_up_down_algorithm(digits):
    """One mini-batch, against the steps written out with the same draws."""
    x = torch.from_numpy(digits[:10].astype(np.float64))
    network = DeepBeliefNetwork((7, 5, 4), n_epochs=1, k=2, fine_tuning_rate=0.3, random_state=0).fit(x)
    other = copy.deepcopy(network)
    network._wake_and_sleep(x, deep_belief_network.Draws(11, network))
    stream = 0

    def up(states, weight, bias):
        nonlocal stream
        stream += 1
        return functional.rbm_sample(states, weight, bias, seed=11, stream=stream)

    def down(states, weight, bias):
        nonlocal stream
        stream += 1
        return functional.rbm_sample(states, weight, bias, transposed=True, seed=11, stream=stream)

    (r0, c0), (r1, c1) = other.recognition_
    (g0, b0), (g1, b1) = other.generation_
    top = other.rbms_[-1]
    w, b, c = top.components_, top.intercept_visible_, top.intercept_hidden_
    _, h1 = up(x, r0, c0)
    _, h2 = up(h1, r1, c1)
    p0, p1 = torch.sigmoid(h1 @ g0 + b0), torch.sigmoid(h2 @ g1 + b1)
    first, h3 = up(h2, w, c)
    for _ in range(2):
        _, s2 = down(h3, w, b)
        last, h3 = up(s2, w, c)
    _, s1 = down(s2, g1 + 0.03 * h2.t() @ (h1 - p1), b1 + 0.3 * (h1 - p1).mean(0))
    q2 = torch.sigmoid(s1 @ r1.t() + c1)
    _, s0 = down(s1, g0 + 0.03 * h1.t() @ (x - p0), b0 + 0.3 * (x - p0).mean(0))
    q1 = torch.sigmoid(s0 @ r0.t() + c0)
    expected = [
        (r0 + 0.03 * (s1 - q1).t() @ s0, c0 + 0.3 * (s1 - q1).mean(0)),
        (r1 + 0.03 * (s2 - q2).t() @ s1, c1 + 0.3 * (s2 - q2).mean(0)),
        (g0 + 0.03 * h1.t() @ (x - p0), b0 + 0.3 * (x - p0).mean(0)),
        (g1 + 0.03 * h2.t() @ (h1 - p1), b1 + 0.3 * (h1 - p1).mean(0)),
        (w + 0.03 * (first.t() @ h2 - last.t() @ s2), b + 0.3 * (h2 - s2).mean(0)),
    ]
    found = [*network.recognition_, *network.generation_]
    found.append((network.rbms_[-1].components_, network.rbms_[-1].intercept_visible_))
    for ours, truth in zip(found, expected, strict=True):
        for a, t in zip(ours, truth, strict=True):
            torch.testing.assert_close(a, t)
    torch.testing.assert_close(network.rbms_[-1].intercept_hidden_, c + 0.3 * (first - last).mean(0))


def test_fine_tuning_generates_better_digits(digits):
    network = DeepBeliefNetwork((64, 32), n_epochs=5, learning_rate=0.05, random_state=0).fit(digits)
    before = weights(copy.deepcopy(network))
    errors = [float(((network.reconstruct(digits) - digits) ** 2).mean())]
    network.fine_tune(digits, n_epochs=5)
    errors.append(float(((network.reconstruct(digits) - digits) ** 2).mean()))
    assert errors[1] < errors[0] < digits.var()
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(network), strict=True))
    dreams = network.sample(300, k=50)
    assert dreams.shape == (300, 64) and dreams.min() >= 0 and dreams.max() <= 1
    assert (dreams.mean(0) - torch.from_numpy(digits).mean(0)).abs().max() < 0.25  # nothing but ink and paper
    assert dreams.std(0).mean() > 0.05
    assert not torch.equal(dreams, network.sample(300, k=50))


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_networks_made_of_it_compute_the_same(digits, visible, temperature):
    x = torch.from_numpy(digits[:100])
    options = {**SMALL, "visible": visible, "temperature": temperature, "learning_rate": 0.01}
    network = DeepBeliefNetwork(**options, n_fine_tuning_epochs=1).fit(x)
    torch.testing.assert_close(network.to_sequential()(x), network.transform(x))
    classifier = network.to_sequential(n_classes=10)
    assert classifier(x).shape == (100, 10) and len(classifier) == 7
    autoencoder = network.to_autoencoder()
    torch.testing.assert_close(autoencoder.encoder(x), network.transform(x))
    torch.testing.assert_close(autoencoder(x), network.reconstruct(x))
    linear = network.to_autoencoder(linear_code=True)
    torch.testing.assert_close(torch.sigmoid(linear.encoder(x)), network.transform(x))
    assert linear(x).shape == x.shape
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.zero_()
    torch.testing.assert_close(network.to_sequential()(x), network.transform(x))  # a copy


def test_a_linear_code_begins_near_the_other(digits):
    """Where the highest units are in doubt, the decoder sees the same."""
    x = torch.from_numpy(digits[:100])
    network = DeepBeliefNetwork((20, 6), n_epochs=1, learning_rate=0.01, random_state=0).fit(x)
    plain, linear = network.to_autoencoder()(x), network.to_autoencoder(linear_code=True)(x)
    assert (plain - linear).abs().max() < 1e-3


def test_a_network_learns_labels(digits):
    x, y = torch.from_numpy(digits), torch.from_numpy(load_digits().target)
    network = DeepBeliefNetwork((64, 32), n_epochs=10, learning_rate=0.05, random_state=0).fit(x)
    model = network.to_sequential(n_classes=10)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert (model(x).argmax(1) == y).float().mean() > 0.97


def test_one_layer_is_a_machine(digits):
    x = digits[:60]
    network = DeepBeliefNetwork((8,), n_epochs=1, n_fine_tuning_epochs=1, random_state=0).fit(x)
    assert network.transform(x).shape == (60, 8) and network.sample(3, k=2).shape == (3, 64)


def test_verbose(digits, capsys):
    DeepBeliefNetwork((4, 3), n_epochs=1, n_fine_tuning_epochs=2, verbose=True).fit(digits[:60])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[-1].startswith("[DeepBeliefNetwork] fine-tuning 2: error ")


ERRORS = {
    "none": ({"n_hidden": ()}, "expected n_hidden to be a number of units for each layer, got ()"),
    "zero": ({"n_hidden": (3, 0)}, "expected n_hidden to be a number of units for each layer, got (3, 0)"),
    "rates": ({"learning_rate": (0.1,)}, "expected one learning_rate or 2, got (0.1,)"),
    "epochs": ({"n_epochs": (1, 2, 3)}, "expected one n_epochs or 2, got (1, 2, 3)"),
    "fine-tuning": ({"n_fine_tuning_epochs": -1}, "expected n_fine_tuning_epochs from 0, got -1"),
    "fine-tuning rate": ({"fine_tuning_rate": -1.0}, "expected fine_tuning_rate of at least 0, got -1.0"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    options, text = ERRORS[name]
    x = np.random.RandomState(0).rand(20, 4)
    assert outcome(lambda: DeepBeliefNetwork(**options).fit(x)) == (ValueError, f"[DeepBeliefNetwork] {text}")
