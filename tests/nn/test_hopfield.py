"""pykernels.Hopfield: what is stored is found, by every rule; storing, forgetting, packed form, arrays, errors."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch

import pykernels
from pykernels import Hopfield, reference
from tests.helpers import outcome

from ..functional.compiling import compiled, forget_what_was_compiled

assert forget_what_was_compiled  # around every test
RULES = ["hebbian", "storkey", "pseudo_inverse"]
every_rule = pytest.mark.parametrize("rule", RULES)
FORMS = [{}, {"packed": True}, {"rule": "storkey"}, {"rule": "pseudo_inverse"}]
every_form = pytest.mark.parametrize("options", FORMS, ids=str)
TRUTH = {
    "hebbian": reference.hebbian_weight,
    "storkey": reference.storkey_weight,
    "pseudo_inverse": reference.pseudo_inverse_weight,
}


def patterns(count: int, units: int, device="cpu", dtype=torch.float32) -> torch.Tensor:
    return torch.randint(0, 2, (count, units)).to(device, dtype) * 2 - 1


def noisy(f: torch.Tensor, share: float) -> torch.Tensor:
    return torch.where(torch.rand(f.shape, device=f.device) < share, -f, f)


@every_form
@pytest.mark.parametrize("mode", ["async", "sync"])
def test_what_is_stored_is_found(device, options, mode):
    f = patterns(8, 300, device)
    net = Hopfield(300, mode=mode, device=device, **options)
    assert net.store(f) is net and net.n_patterns == 8
    start = noisy(f, 0.15)
    kept = start.clone()
    found = net(start)
    assert torch.equal(found, f) and torch.equal(start, kept) and not found.requires_grad
    assert torch.equal(net(-start), -f)  # their negatives too
    assert torch.equal(net(f[2]), f[2]) and net(f[2]).shape == (300,)
    unknown = f.clone()
    unknown[:, ::3] = 0
    assert torch.equal(net(unknown), f)
    result = net.retrieve(start)
    assert (result.period == 1).all() and (result.sweeps <= 5).all() and (net.retrieve(f).sweeps == 1).all()


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_weights_are_those_of_the_rule(device, rule, dtype):
    f = patterns(5, 40, device)
    truth = TRUTH[rule](f.double())
    net = Hopfield(40, rule=rule, device=device, dtype=dtype).store(f)
    for _ in range(2):
        assert net.weight.dtype == dtype and torch.equal(net.weight, net.weight.T)
        assert (net.weight.diagonal() == 0).all()
        tolerance = 1e-13 if dtype == torch.float64 else 2 * torch.finfo(dtype).eps
        assert (net.weight.double() - truth).abs().max() <= tolerance
        for each in (f[:2], f[2], f[3:]):  # piece by piece is the same
            net = net if net.n_patterns < 5 else Hopfield(40, rule=rule, device=device, dtype=dtype)
            net.store(each)


def test_hebbian_pieces_give_the_same_bits(device):
    f = patterns(23, 60, device)
    whole = Hopfield(60, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole.store(f)
        pieces = Hopfield(60, device=device)
        for each in f:
            pieces.store(each)
    assert torch.equal(whole.weight, pieces.weight) and torch.equal(whole.patterns, pieces.patterns)


@every_form
def test_forgetting_is_never_having_stored(device, options):
    f = patterns(6, 120, device)
    net = Hopfield(120, device=device, dtype=torch.float64, **options).store(f)
    assert net.forget(f[[1, 4]]) is net
    other = Hopfield(120, device=device, dtype=torch.float64, **options).store(f[[0, 2, 3, 5]])
    assert torch.equal(net.patterns, other.patterns)
    if net.weight is not None:
        torch.testing.assert_close(net.weight, other.weight, rtol=0, atol=1e-14)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"expected patterns that are stored, got another one \(number 1\)"):
        net.forget(f[[0, 1]])
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    net.store(f[0]).forget(f[0])
    assert net.n_patterns == 4  # once
    net.forget(f[[0, 2, 3, 5]])
    assert net.n_patterns == 0 and (net.weight is None or (net.weight == 0).all())
    state = patterns(3, 120, device)
    assert torch.equal(net(state).to(state), state)


def test_packed_is_dense(device):
    """In whole numbers: with a power of two patterns all sums of weights are exact."""
    for units, count in ((300, 16), (65, 8), (64, 1)):
        f, state = patterns(count, units, device), patterns(20, units, device)
        for mode in ("async", "sync"):
            nets = [Hopfield(units, mode=mode, packed=p, random_state=3, device=device) for p in (True, False)]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                one, other = (net.store(f).retrieve(state) for net in nets)
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
            torch.testing.assert_close(nets[0].energy(state), nets[1].energy(state))
    assert nets[0].weight is None


@every_form
def test_energy_never_rises(device, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = Hopfield(100, max_sweeps=1, device=device, dtype=torch.float64, **options).store(
            patterns(20, 100, device)
        )
    state = patterns(30, 100, device)
    energy = net.energy(state)
    if net.weight is not None:
        one = state[3].double()
        expected = -sum(float(one @ net.weight[:, j] * one[j]) for j in range(100)) / 2
        assert float(energy[3]) == pytest.approx(expected) and float(net.energy(state[3])) == pytest.approx(expected)
    for _ in range(6):
        state = net(state)
        after = net.energy(state)
        assert (after <= energy + 1e-9).all()
        energy = after


def test_two_cycles_are_told(device):
    net = Hopfield(2, mode="sync", device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net.store(torch.ones(2))
    found = net.retrieve(torch.tensor([[1.0, -1.0], [1.0, 1.0]], device=device))
    assert found.period.tolist() == [2, 1] and found.sweeps.tolist() == [2, 1]


def test_beyond_capacity_warns(cpu_only):
    for rule, capacity in (("hebbian", 13.8), ("storkey", 32.95), ("pseudo_inverse", 100)):
        net = Hopfield(100, rule=rule)
        assert net.capacity == pytest.approx(capacity, rel=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            net.store(patterns(int(capacity), 100))
        with pytest.warns(UserWarning, match=f"{int(capacity) + 1} patterns are stored, more than the"):
            net.store(patterns(1, 100))


def test_storkey_and_the_projection_hold_more(device):
    """At M = 0.2 N Hebb's rule has failed."""
    f = patterns(60, 300, device)
    stable = {}
    for rule in RULES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = Hopfield(300, rule=rule, max_sweeps=1, mode="sync", device=device).store(f)
        stable[rule] = float((net(f) == f).all(1).float().mean())
    assert stable["hebbian"] < 0.2 < stable["storkey"] and stable["pseudo_inverse"] == 1


def test_arrays_in_arrays_out(cpu_only):
    f = np.where(np.random.default_rng(0).random((4, 90)) < 0.5, -1, 1)
    net = Hopfield(90, random_state=1).store(f)
    for kind in (np.int64, np.int8, np.float32, np.float64):
        found = net(f.astype(kind))
        assert isinstance(found, np.ndarray) and found.dtype == kind and (found == f).all()
    result = net.retrieve(f[0])
    assert isinstance(result.sweeps, np.ndarray) and isinstance(net.energy(f), np.ndarray)
    for kind in (torch.int64, torch.int8, torch.float64):
        found = net(torch.from_numpy(f).to(kind))
        assert found.dtype == kind and torch.equal(found, torch.from_numpy(f).to(kind))
    assert Hopfield(20).store([[1, -1] * 10]).n_patterns == 1


def test_random_states(cpu_only):
    f = patterns(13, 100)
    state = patterns(50, 100)
    net = Hopfield(100, random_state=5).store(f)
    before = torch.get_rng_state()
    assert torch.equal(net(state), net(state)) and torch.equal(torch.get_rng_state(), before)
    net.random_state = None
    torch.manual_seed(1)
    one = net(state)
    two = net(state)
    torch.manual_seed(1)
    assert torch.equal(net(state), one) and not torch.equal(two, one)
    net.random_state = torch.Generator().manual_seed(2)
    one = net(state)
    net.random_state = torch.Generator().manual_seed(2)
    assert torch.equal(net(state), one)


@every_form
def test_is_a_module(device, options, tmp_path):
    f = patterns(5, 70, device)
    net = Hopfield(70, random_state=2, device=device, **options).store(f)
    state = patterns(9, 70, device)
    expected = net(state)
    assert not list(net.parameters())
    names = {"patterns"} if net.packed else {"patterns", "weight"}
    assert set(net.state_dict()) == names
    torch.save(net.state_dict(), tmp_path / "net.pt")
    for start in (None, patterns(2, 70, device)):
        other = Hopfield(70, random_state=2, device=device, **options)
        other = other if start is None else other.store(start)
        other.load_state_dict(torch.load(tmp_path / "net.pt"))
        assert torch.equal(other(state), expected) and other.n_patterns == 5
        assert other.forget(f[0]).n_patterns == 4
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.nn.Sequential(net)):
        assert torch.equal(other(state), expected)
    moved = copy.deepcopy(net).double()
    assert moved.patterns.dtype == torch.int64 and torch.equal(moved(state), expected)
    with pytest.raises(RuntimeError, match="size mismatch"):
        Hopfield(700, **options).load_state_dict(net.state_dict())
    assert "70" in repr(net)


@every_form
@pytest.mark.parametrize("random_state", [None, 4])
def test_compiles_whole(device, options, random_state):
    net = Hopfield(70, random_state=random_state, device=device, **options).store(patterns(5, 70, device))
    fast, counter = compiled(net)
    state = patterns(9, 70, device)
    found = []
    for function in (fast, net):
        torch.manual_seed(1)
        found.append(function(state))
    assert torch.equal(*found) and counter.frame_count == 1


def test_autocast_stores_whole_numbers(device):
    f = patterns(3, 80, device)
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        net = Hopfield(80, device=device).store(f)
        assert torch.equal(net(f), f)
    assert torch.equal(net.weight, Hopfield(80, device=device).store(f).weight)


def test_error_texts(cpu_only):
    net = Hopfield(8)
    f = patterns(2, 8)
    for call, text in (
        (lambda: Hopfield(0), "[Hopfield] expected n_units of 1 at least, got 0"),
        (
            lambda: Hopfield(8, rule="hebb"),
            "[Hopfield] expected a rule of hebbian, storkey, pseudo_inverse, got 'hebb'",
        ),
        (lambda: Hopfield(8, mode="both"), "[Hopfield] expected mode 'async' or 'sync', got 'both'"),
        (lambda: Hopfield(8, packed=True, rule="storkey"), "[Hopfield] expected the rule 'hebbian' for a packed netwo"),
        (lambda: Hopfield(8, dtype=torch.int32), "[Hopfield] expected a dtype of floating point, got torch.int32"),
        (lambda: net.store(f[:, :7]), "[Hopfield] expected patterns of shape [patterns, 8] or [8], got [2, 7]"),
        (lambda: net.store((f + 1) / 2), "[Hopfield] expected patterns of -1 and 1, got 0 and 1, which 2 * patterns "),
        (lambda: net.store(f > 0), "[Hopfield] expected patterns of -1 and 1, got 0 and 1, which 2 * patterns - 1 con"),
        (lambda: net.store(2 * f), "[Hopfield] expected patterns of -1 and 1, got other values"),
        (lambda: net.store(f * torch.nan), "[Hopfield] expected patterns of -1 and 1, got other values"),
        (lambda: net(f[:, :7]), "[Hopfield] expected a state of shape [batch, 8] or [8], got [2, 7]"),
        (lambda: net.energy(f[None]), "[Hopfield] expected a state of shape [batch, 8] or [8], got [1, 2, 8]"),
        (lambda: net.forget(f), "[Hopfield] expected patterns that are stored, got another one (number 0)"),
    ):
        found = outcome(call)
        assert found is not None and found[1].startswith(text), (found, text)
    assert net.n_patterns == 0 and (net.weight == 0).all()


def test_it_is_where_users_look(cpu_only):
    assert pykernels.nn.Hopfield is pykernels.Hopfield
