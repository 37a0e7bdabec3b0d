"""pykernels.ModernHopfield: attention over patterns; steps, energy, derivatives, errors."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap

from pykernels import ModernHopfield
from tests.helpers import outcome

from ..functional.compiling import compiled, forget_what_was_compiled

assert forget_what_was_compiled  # around every test


def update(x, state, beta):
    return torch.softmax(beta * state @ x.T, -1) @ x


@pytest.mark.parametrize("shape", [(16,), (7, 16), (2, 3, 16), (0, 16)], ids=str)
def test_is_its_formula(device, shape):
    x = torch.randn(30, 16, dtype=torch.float64, device=device)
    state = torch.randn(shape, dtype=torch.float64, device=device)
    for beta, steps in ((None, 1), (2.0, 3)):
        expected = state
        for _ in range(steps):
            expected = update(x, expected, 0.25 if beta is None else beta)
        torch.testing.assert_close(ModernHopfield(x, beta=beta, max_steps=steps)(state), expected)


def test_finds_patterns_and_lowers_the_energy(device):
    x = torch.randn(200, 64, dtype=torch.float64, device=device)
    state = x[:50] + 0.3 * torch.randn(50, 64, dtype=torch.float64, device=device)
    net = ModernHopfield(x, beta=8.0)
    energy = net.energy(state)
    expected = (
        -torch.logsumexp(8 * state @ x.T, -1) / 8 + state.square().sum(-1) / 2 + torch.log(torch.tensor(200.0)) / 8
    )
    torch.testing.assert_close(energy, expected + x.square().sum(1).max() / 2)
    for _ in range(4):
        state = net(state)
        after = net.energy(state)
        assert (after <= energy + 1e-9).all() and (after >= -1e-9).all()
        energy = after
    torch.testing.assert_close(state, x[:50], rtol=0, atol=1e-4)


def test_ends_at_the_tolerance(device, monkeypatch):
    import pykernels.nn.modern_hopfield as module

    calls = []
    whole = module.scaled_dot_product_attention
    monkeypatch.setattr(module, "scaled_dot_product_attention", lambda *a, **o: (calls.append(1), whole(*a, **o))[1])
    x = torch.randn(20, 64, device=device)
    found = ModernHopfield(x, beta=8.0, max_steps=50, tolerance=1e-4)(x + 0.1)
    assert len(calls) < 6
    torch.testing.assert_close(found, x, rtol=0, atol=1e-3)
    ModernHopfield(x, max_steps=5)(x)
    assert len(calls) < 11


def test_derivatives(device):
    x = torch.randn(5, 4, dtype=torch.float64, device=device)
    net = ModernHopfield(x, beta=0.7, max_steps=2, trainable=True)
    assert [name for name, _ in net.named_parameters()] == ["patterns"]
    state = torch.randn(3, 4, dtype=torch.float64, device=device, requires_grad=True)

    def of(state, patterns):
        return torch.func.functional_call(net, {"patterns": patterns}, (state,))

    assert gradcheck(of, (state, net.patterns)) and gradgradcheck(of, (state, net.patterns))
    net.energy(state).sum().backward()
    assert state.grad is not None and net.patterns.grad is not None


def test_transforms(device):
    net = ModernHopfield(torch.randn(9, 8, device=device), beta=2.0, max_steps=3, tolerance=1e-3)
    state = torch.randn(4, 8, device=device)
    fast, counter = compiled(net)
    torch.testing.assert_close(fast(state), net(state), rtol=1e-3, atol=2e-3)
    assert counter.frame_count == 1
    torch.testing.assert_close(vmap(net)(state), net(state), rtol=1e-3, atol=2e-3)


def test_is_a_module(device):
    x = torch.randn(6, 5, device=device)
    net = ModernHopfield(x)
    assert list(net.state_dict()) == ["patterns"] and not list(net.parameters())
    other = ModernHopfield(torch.zeros(6, 5), device=device)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x)) and net.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    assert ModernHopfield(x.cpu().numpy(), device=device, dtype=torch.float64)(x.double()).dtype == torch.float64
    assert "6 patterns, 5 units" in repr(net)


def test_error_texts(cpu_only):
    x = torch.randn(3, 4)
    for call, text in (
        (lambda: ModernHopfield(x[0]), "[ModernHopfield] expected patterns of shape [patterns, units], got [4]"),
        (lambda: ModernHopfield(x[:0]), "[ModernHopfield] expected patterns of shape [patterns, units], got [0, 4]"),
        (lambda: ModernHopfield(x, beta=0), "[ModernHopfield] expected beta above 0, got 0"),
        (lambda: ModernHopfield(x, max_steps=0), "[ModernHopfield] expected max_steps of 1 at least and a tolerance"),
        (lambda: ModernHopfield(x, tolerance=-1), "[ModernHopfield] expected max_steps of 1 at least and a tolerance"),
        (lambda: ModernHopfield(x)(x[:, :3]), "[ModernHopfield] expected a state of shape [..., 4], got [3, 3]"),
        (lambda: ModernHopfield(x).energy(x[:, :3]), "[ModernHopfield] expected a state of shape [..., 4], got [3, 3]"),
    ):
        found = outcome(call)
        assert found is not None and found[1].startswith(text), (found, text)
