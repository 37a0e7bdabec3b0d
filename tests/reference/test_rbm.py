"""The twin of the restricted Boltzmann machine against its definition: every state of tiny machines is enumerated."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from pykernels import reference
from pykernels.reference.rbm import normals, uniforms

from .test_random import ONES, philox

W = torch.tensor([[0.7, -1.1, 0.3, 0.0], [-0.4, 0.9, 1.3, -2.0], [0.2, 0.5, -0.6, 0.8]], dtype=torch.float64)
B = torch.tensor([0.1, -0.3, 0.5, -0.2], dtype=torch.float64)
C = torch.tensor([-0.5, 0.4, 0.2], dtype=torch.float64)


def states(count: int) -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=count)), dtype=torch.float64)


def joint(temperature: float) -> Tensor:
    """p(v, h) of all states, [2^visible, 2^hidden]."""
    v, h = states(4), states(3)
    energy = -(v @ B)[:, None] - (h @ C)[None] - v @ W.t() @ h.t()
    return torch.softmax((-energy / temperature).flatten(), 0).reshape(len(v), len(h))


@pytest.mark.parametrize("temperature", [1.0, 0.4, 3.0])
def test_means_are_the_conditional_probabilities(temperature):
    p, v, h = joint(temperature), states(4), states(3)
    of_hidden = p @ h / p.sum(1, keepdim=True)
    torch.testing.assert_close(reference.rbm_mean(v, W, C, temperature=temperature), of_hidden)
    of_visible = p.t() @ v / p.sum(0)[:, None]
    found = reference.rbm_mean(h, W, B, transposed=True, temperature=temperature)
    torch.testing.assert_close(found, of_visible)


@pytest.mark.parametrize("temperature", [1.0, 0.4, 3.0])
def test_free_energy_sums_the_hidden_units_out(temperature):
    energy = reference.rbm_free_energy(states(4), W, B, C, temperature=temperature)
    torch.testing.assert_close(torch.softmax(-energy / temperature, 0), joint(temperature).sum(1))


def test_free_energy_of_gaussian_units():
    """The density over v is a mixture of normal ones, one for each hidden state."""
    heat, v, h = 1.7, torch.randn(5, 4, dtype=torch.float64), states(3)
    energy = (v - B).square().sum(1)[:, None] / 2 - (h @ C)[None] - v @ W.t() @ h.t()
    found = reference.rbm_free_energy(v, W, B, C, units="gaussian", temperature=heat)
    torch.testing.assert_close(found, -heat * torch.logsumexp(-energy / heat, 1))
    mean = B + h @ W
    rest = (mean.square().sum(1) - B.square().sum()) / 2 + h @ C  # completing the square
    again = (v[:, None] - mean).square().sum(2) / 2 - rest
    torch.testing.assert_close(energy, again)


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, 0x0123456789ABCDEF])
@pytest.mark.parametrize("stream", [0, ONES])
def test_numbers_are_philox_by_counters(seed, stream):
    found = uniforms(torch.tensor([seed]), stream, 3, 130, first_row=2**32 - 2) * 2**24
    for i, j in ((0, 0), (0, 17), (1, 63), (0, 64), (1, 129)):
        counter = j // 64 * 16 + j % 16, 2**32 - 2 + i, stream, 0
        numbers = philox(counter, (seed & ONES, seed >> 32 & ONES))
        assert int(found[i, j]) == numbers[j % 64 // 16] >> 8


def test_normal_numbers_come_in_pairs_of_uniform_ones():
    seed = torch.tensor([5])
    u, n = uniforms(seed, 3, 2, 128), normals(seed, 3, 2, 128)
    for first in (0, 32, 64, 96):
        radius = (-2 * (u[:, first : first + 16] + 2.0**-24).log()).sqrt()
        angle = 2 * math.pi * u[:, first + 16 : first + 32]
        torch.testing.assert_close(n[:, first : first + 16], radius * angle.cos())
        torch.testing.assert_close(n[:, first + 16 : first + 32], radius * angle.sin())


def test_moments_of_the_draws():
    seed, count = torch.tensor([11]), 200_000
    u, n = uniforms(seed, 0, count // 100, 100).flatten(), normals(seed, 1, count // 100, 100).flatten()
    error = 5 / math.sqrt(count)
    assert u.min() >= 0 and u.max() < 1
    for power, expected in ((1, 1 / 2), (2, 1 / 3), (3, 1 / 4)):
        assert abs(float((u**power).mean()) - expected) < error
    for power, expected in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert abs(float((n**power).mean()) - expected) < 10 * error
    pairs = u.reshape(-1, 100)
    assert pairs.t().corrcoef().fill_diagonal_(0).abs().max() < 0.1


def test_draws_have_their_means():
    v = states(4).repeat(4000, 1)
    p, s = reference.rbm_sample(v, W, C, seed=3)
    assert ((s == 0) | (s == 1)).all()
    means = s.reshape(4000, 16, 3).mean(0)
    assert (means - p[:16]).abs().max() < 5 * 0.5 / math.sqrt(4000)
    mean, s = reference.rbm_sample(states(3).repeat(4000, 1), W, B, units="gaussian", transposed=True, temperature=4.0)
    rest = s - mean
    assert abs(float(rest.mean())) < 0.05 and abs(float(rest.std()) - 2) < 0.05


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_after_many_steps_statistics_are_the_gradient_of_the_likelihood(temperature, persistent):
    """d/dW of the mean log p(v) is 1/T of what data expect less what the machine does."""
    some = states(4)[[1, 5, 5, 12]]
    leaves = [t.clone().requires_grad_() for t in (W, B, C)]
    all_energies = reference.rbm_free_energy(states(4), *leaves, temperature=temperature) / temperature
    energies = reference.rbm_free_energy(some, *leaves, temperature=temperature) / temperature
    likelihood = (-energies - torch.logsumexp(-all_energies, 0)).mean()
    exact = torch.autograd.grad(likelihood, leaves)
    data = some.repeat(1500, 1)
    chain = torch.zeros(6000, 3, dtype=torch.float64) if persistent else None
    *found, chain = reference.rbm_contrastive_divergence(
        data, W, B, C, chain=chain, k=25, temperature=temperature, seed=1
    )
    for ours, truth in zip(found, exact, strict=True):
        torch.testing.assert_close(ours / temperature, truth, rtol=0, atol=0.04 / temperature)
    if chain is not None:
        expected = joint(temperature).sum(0) @ states(3)
        assert (chain.mean(0) - expected).abs().max() < 0.035


def test_what_is_no_number_is_drawn_as_none():
    p, s = reference.rbm_sample(torch.tensor([[1.0, math.nan], [1.0, 0.0]]), torch.ones(3, 2), seed=1)
    assert p[0].isnan().all() and s[0].isnan().all() and not s[1].isnan().any()


def test_unknown_units():
    with pytest.raises(ValueError, match=r"\[rbm_mean\] expected units 'bernoulli' or 'gaussian', got 'relu'"):
        reference.rbm_mean(states(4), W, units="relu")
