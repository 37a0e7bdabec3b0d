"""Contrastive divergence against its twin: statistics, epochs of updates, the likelihood of tiny machines, errors."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from pykernels import functional, reference
from tests.helpers import assert_same_bits, drawn, outcome

from .rbm_cases import MACHINES, UNITS, Machine, check_near

wide = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@pytest.mark.isa
@drawn(120, of=Machine, **MACHINES)
def test_statistics(device, case):
    """In float64, where no draw hangs on rounding."""
    tensors, names = case.tensors(device=device), ("weight", "visible_bias", "hidden_bias", "chain")
    given = {**tensors, **case.options}
    found, expected = (w.rbm_contrastive_divergence(**given) for w in (functional, reference))
    assert (found[3] is None) == (case.chains == 0)
    pairs = [dict(zip(names, each if each[3] is not None else each[:3], strict=False)) for each in (found, expected)]
    check_near(pairs[0], pairs[1], 1e-9)
    for name, tensor in case.tensors(device=device).items():
        assert torch.equal(tensors[name].nan_to_num(), tensor.nan_to_num())  # nothing is written to


@pytest.mark.isa
@drawn(150, of=Machine, **MACHINES)
def test_training(device, case):
    check_near(case.trained(functional, torch.float64, device), case.trained(reference, torch.float64, device), 1e-7)


@drawn(30, of=Machine, **{**MACHINES, "units": ["bernoulli"]})
def test_training_in_float32(device, case):
    """The draws are the same unless a mean is within rounding of one, which none of these is."""
    found = case.trained(functional, torch.float32, device)
    check_near(found, case.trained(reference, torch.float32, device), 3e-5)


@pytest.mark.isa
@wide
@pytest.mark.parametrize("chains", [0, 30])
def test_training_has_the_same_bits_for_any_number_of_threads(threads, dtype, chains):
    for visible, hidden in ((200, 150), (784, 65), (33, 500)):
        case = Machine(90, 40, visible, hidden, chains, k=2, momentum=0.5, weight_decay=0.01, units="gaussian", seed=2)
        found = []
        for count in (1, 2, 3):
            threads(count)
            found.append(case.trained(functional, dtype))
        assert all(t.isfinite().all() for t in found[0].values())
        assert_same_bits(found[1], found[0])
        assert_same_bits(found[2], found[0])


def test_an_epoch_is_its_mini_batches(device):
    """Calls one after the other, with their rows counted on, are one call."""
    case = Machine(20, 4, chains=6, momentum=0.5)
    for chains in (0, 6):
        case = dataclasses.replace(case, chains=chains)
        whole = case.trained(functional, torch.float64, device)
        parts = case.tensors(device=device)
        data, stride = parts.pop("data"), max(4, chains)
        velocity = tuple(torch.full_like(parts[n], 0.01) for n in ("weight", "visible_bias", "hidden_bias"))
        for number, batch in enumerate(data.split(4)):
            options = {**case.options, "first_row": 5 + number * stride}
            functional.rbm_train_(
                batch, **parts, velocity=velocity, learning_rate=0.1, batch_size=4, momentum=0.5, **options
            )
        parts |= {f"velocity {i}": t for i, t in enumerate(velocity)}
        check_near(parts, whole, 1e-12)


@pytest.mark.parametrize("units", UNITS)
def test_statistics_train_as_an_update_does(device, units):
    case = Machine(rows=8, batch=8, units=units)
    tensors = case.tensors(device=device)
    trained = case.trained(functional, torch.float64, device)
    steps = functional.rbm_contrastive_divergence(**tensors, **case.options)
    for name, step in zip(("weight", "visible_bias", "hidden_bias"), steps, strict=False):
        torch.testing.assert_close(tensors[name] + 0.1 * step, trained[name])


def test_likelihood_of_all_states_rises(device):
    """Training learns a distribution over four visible units, whose likelihood is known by enumeration."""
    torch.manual_seed(0)
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4).to(device)
    data = every[torch.tensor([3, 3, 3, 12, 12, 5])].repeat(50, 1)
    parameters = 0.01 * torch.randn(3, 4, dtype=torch.float64, device=device), every.new_zeros(4), every.new_zeros(3)

    def likelihood() -> float:
        energy = functional.rbm_free_energy(data, *parameters)
        return float((-energy - torch.logsumexp(-functional.rbm_free_energy(every, *parameters), 0)).mean())

    found = [likelihood()]
    for epoch in range(60):
        order = torch.randperm(len(data)).to(device)
        functional.rbm_train_(
            data, *parameters, learning_rate=0.2, batch_size=10, order=order, seed=epoch, momentum=0.0
        )
        found.append(likelihood())
    best = -math.log(2) / 2 - math.log(3) / 3 - math.log(6) / 6  # the data's entropy
    assert abs(found[0] + 4 * math.log(2)) < 0.05
    assert found[10] > found[0] + 0.3 and best > found[-1] > best - 0.35


def test_empty_data_and_empty_sides(device):
    weight, b, c = torch.ones(3, 2, device=device), torch.zeros(2, device=device), torch.zeros(3, device=device)
    none = torch.empty(0, 2, device=device)
    functional.rbm_train_(none, weight, b, c, learning_rate=1.0, batch_size=3, seed=1)
    assert (weight == 1).all()
    assert all((t == 0).all() for t in functional.rbm_contrastive_divergence(none, weight, b, c)[:3])
    x = torch.ones(4, 2, device=device)
    found = functional.rbm_contrastive_divergence(x, torch.empty(0, 2, device=device), b, c[:0], seed=1)
    assert found[0].shape == (0, 2) and found[2].shape == (0,) and found[1].isfinite().all()
    found = functional.rbm_contrastive_divergence(x[:, :0], weight[:, :0], b[:0], c, seed=1)
    assert found[0].shape == (3, 0) and (found[2] == 0).all()


def test_writes_are_counted(device):
    """So that autograd notices."""
    case = Machine(chains=2)
    tensors = case.tensors(device=device)
    data = tensors.pop("data")
    before = {n: t._version for n, t in tensors.items()}
    functional.rbm_train_(data, **tensors, learning_rate=0.1, batch_size=3)
    assert all(t._version > before[n] for n, t in tensors.items())


# -- errors -----------------------------------------------------------------------------------------------------------
WEIGHT, BIAS = torch.randn(5, 4), torch.randn(5)
V = torch.rand(6, 4)
TRAIN_ERRORS = {
    "data": ({"data": V[:, :3]}, "expected data of shape [rows, 4] as weight is [5, 4], got [6, 3]"),
    "low": ({"data": V.bfloat16()}, "expected data of dtype float32 or float64, got BFloat16"),
    "dtypes": ({"hidden_bias": BIAS.double()}, "expected hidden_bias of dtype Float like the input, got Double"),
    "visible_bias": ({"visible_bias": BIAS}, "expected visible_bias of shape [4], got [5]"),
    "momentum": ({"momentum": 0.5}, "expected velocities, as momentum is 0.5"),
    "velocity": ({"velocity": (WEIGHT, BIAS, BIAS)}, "expected visible_velocity of shape [4], got [5]"),
    "order": ({"order": torch.tensor([0, 6])}, "expected order to hold rows 0 to 5, got 0 to 6"),
    "order below": ({"order": torch.tensor([0, -1])}, "expected order to hold rows 0 to 5, got -1 to 0"),
    "order dtype": ({"order": torch.tensor([0.0])}, "expected order as one dimension of int64, got [1] of Float"),
    "chain": ({"chain": torch.ones(2, 4)}, "expected chain of shape [chains, 5], got [2, 4]"),
    "no chain": ({"chain": torch.ones(0, 5)}, "expected chain of shape [chains, 5], got [0, 5]"),
    "k": ({"k": 0}, "expected at least one Gibbs step, got 0"),
    "batch": ({"batch_size": 0}, "expected a batch of at least one row, got 0"),
    "rows": ({"first_row": 2**32 - 3}, "expected rows of draws to fit 32 bits, got 4294967293 to 4294967299"),
    "seed": ({"seed": torch.tensor([1, 2])}, "expected seed as one int64 on the CPU, got 2 of Long"),
    "visible": ({"visible": "binary"}, "expected units 'bernoulli' or 'gaussian', got 'binary'"),
}


@pytest.mark.parametrize("name", TRAIN_ERRORS)
def test_errors_of_training(cpu_only, name):
    change, text = TRAIN_ERRORS[name]
    given = {"data": V, "weight": WEIGHT.clone(), "visible_bias": torch.zeros(4), "hidden_bias": torch.zeros(5)}
    given |= {"learning_rate": 0.1, "batch_size": 3, "seed": 1, **change}
    found = outcome(lambda: functional.rbm_train_(**given))
    assert found is not None and found[1].startswith(f"[rbm_train_] {text}"), found
    assert torch.equal(given["weight"], WEIGHT)  # nothing was lost
