"""Every example runs with its small budget, and what it builds is what its text says. What they learn shows in full."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
NOT_EXAMPLES = {"__init__", "common"}
BY_ITSELF = {"digits_and_text"}  # `make demo` runs it, with its own budget
PLAIN = {"perceptrons"}  # the classical rules, in torch alone
NEEDS = {"image_classifiers": "skimage"}
NAMES = sorted({path.stem for path in (ROOT / "examples").glob("*.py")} - NOT_EXAMPLES - BY_ITSELF)

pytestmark = pytest.mark.usefixtures("cpu_only")


@pytest.fixture(autouse=True)
def _needs_scikit_learn() -> None:
    pytest.importorskip("sklearn")


@pytest.mark.parametrize("name", NAMES)
def test_example_runs_with_a_small_budget(name, capsys):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    example = importlib.import_module(f"examples.{name}")
    found = example.main(quick=True)
    assert found and all(math.isfinite(value) for value in found.values())
    assert capsys.readouterr().out.count("\n") >= 2
    assert example.__doc__ and "--quick" in example.__doc__


def test_examples_take_the_budget_from_the_command_line():
    answer = subprocess.run(
        [sys.executable, "-m", "examples.identity_rnn", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert "--quick" in answer.stdout


def test_examples_are_listed():
    listed = (ROOT / "examples" / "README.md").read_text()
    assert all(f"`{name}.py`" in listed for name in [*NAMES, *BY_ITSELF])


def test_examples_use_this_library():
    for name in set(NAMES) - PLAIN:
        text = (ROOT / "examples" / f"{name}.py").read_text()
        assert "\nimport pykernels\n" in text
        assert not any(f"nn.{layer}(" in text for layer in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"))


def test_windows_read_every_stream_on_where_it_ended():
    from examples.many_to_many_aligned import WINDOW, windows

    text = torch.arange(5 * WINDOW * 3 + 1)
    given, wanted = zip(*windows(text, streams=3), strict=True)
    assert torch.equal(torch.cat(given).t().flatten(), text[:-1])
    assert torch.equal(torch.cat(wanted).t().flatten(), text[1:])


def test_identity_rnn_keeps_its_state_while_nothing_comes_in():
    from examples.identity_rnn import Namer, identity_rnn, with_wait

    torch.manual_seed(0)
    model, pictures = Namer(identity_rnn()), torch.rand(3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(with_wait(pictures, 50)), model(with_wait(pictures, 0)))


def test_regulariser_is_its_formula():
    """Omega against the definition, step by step and sequence by sequence, with the Jacobians written out."""
    from examples.vanishing_gradient import Namer, regulariser

    torch.manual_seed(0)
    model = Namer().double()
    steps, labels = torch.randn(6, 4, 8, dtype=torch.double), torch.tensor([1, 2, 3, 4])
    scores, projected, output = model(steps)
    weight = model.layer.weight_hh_l0
    omega, error = regulariser(torch.nn.functional.cross_entropy(scores, labels), projected, output, weight)

    states, sequences = [torch.zeros(4, output.shape[2], dtype=torch.double)], range(4)
    for x in projected.detach():
        states.append(torch.tanh(x + states[-1] @ weight.t()).requires_grad_())
    loss = torch.nn.functional.cross_entropy(model.head(states[-1]), labels)
    gradients = torch.autograd.grad(loss, states[1:])
    expected = 0.0
    for step in range(1, 6):
        for row in sequences:
            gradient, state = gradients[step][row], states[step + 1][row].detach()
            jacobian = torch.diag(1 - state * state) @ weight.detach()
            expected += float((gradient @ jacobian).norm() / gradient.norm() - 1) ** 2 / 4
    assert omega.item() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(error, torch.stack(gradients))


def test_regulariser_has_the_gradient_that_differences_give():
    """The derivative of a derivative: through the backward pass of the layer."""
    from examples.vanishing_gradient import Namer, regulariser

    torch.manual_seed(0)
    model = Namer().double()
    steps, labels = torch.randn(5, 2, 8, dtype=torch.double), torch.tensor([1, 2])
    weight = model.layer.weight_hh_l0

    def omega() -> torch.Tensor:
        scores, projected, output = model(steps)
        loss = torch.nn.functional.cross_entropy(scores, labels)
        return regulariser(loss, projected, output, weight)[0]

    (gradient,) = torch.autograd.grad(omega(), weight)
    direction, small = torch.randn_like(weight), 1e-6
    with torch.no_grad():
        weight += small * direction
        above = omega_at(omega)
        weight -= 2 * small * direction
        below = omega_at(omega)
    assert (gradient * direction).sum().item() == pytest.approx((above - below) / (2 * small), rel=1e-4)


def omega_at(omega) -> float:
    with torch.enable_grad():
        return omega().item()


def test_a_perceptron_around_which_a_skip_leads_can_be_silent():
    from examples.deep_rnn import Skip, perceptron

    f, x = perceptron(), torch.randn(3, 96)
    torch.testing.assert_close(Skip(f)(x), x + f(x))
    torch.nn.init.zeros_(f[2].weight)
    torch.nn.init.zeros_(f[2].bias)
    assert torch.equal(Skip(f)(x), x)


def test_names_are_rewritten_as_the_task_says():
    from examples.many_to_many_delayed import in_camel_case, names_in_snake_case

    assert in_camel_case("is_relative_to") == "IsRelativeTo"
    names = names_in_snake_case()
    assert len(names) > 3000
    assert all("_" in name and name.islower() for name in names)
