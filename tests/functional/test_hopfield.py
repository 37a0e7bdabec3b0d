"""Hopfield sweeps against the twin: bit by bit where sums are exact; orders, ties, threads, transforms, errors."""

from __future__ import annotations

import dataclasses
import functools
import random

import pytest
import torch
from torch.func import vmap

from pykernels import functional, reference
from pykernels.functional._hopfield_ops import packed_op, retrieve_op
from tests.helpers import LOW, drawn, outcome, python

from .compiling import compiled, forget_what_was_compiled
from .hopfield_cases import SPACE, Net
from .operators import kernels

assert forget_what_was_compiled  # around every test
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *LOW], ids=str)
every_mode = pytest.mark.parametrize("mode", ["async", "sync"])


def dense(case, dtype, device="cpu", symmetric=False):
    orders = case.orders(device).values()
    given = (case.weight(dtype, device), case.state(dtype, device), *orders, case.most, case.mode == "sync", symmetric)
    return kernels(device).hopfield_retrieve(*given)


def packed(case, dtype, device="cpu"):
    given = (case.state(dtype, device), *case.orders(device).values(), case.most, case.mode == "sync")
    return kernels(device).hopfield_packed_retrieve(reference.pack_signs(case.stored()).to(device), *given)


def twin(case, dtype):
    return reference.hopfield_retrieve(
        case.weight(dtype), case.state(dtype), case.mode, **case.orders(), max_sweeps=case.most
    )


def same(found, expected):
    return all(a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu()) for a, b in zip(found, expected, strict=True))


# -- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.isa
@every_dtype
@drawn(60, of=Net, **SPACE)
def test_is_the_twin(device, dtype, case):
    expected = twin(case, dtype)
    assert same(dense(case, dtype, device), expected)
    if case.kind != "any":
        assert same(dense(case, dtype, device, symmetric=True), expected)
    if case.kind == "stored":
        assert same(packed(case, dtype, device), expected)


@pytest.mark.isa
@every_dtype
def test_many_rows_and_units(device, dtype):
    """More rows than pass a table, go together or are kept at one time; fields of more than one run; many patterns."""
    cases = [Net(70, 1100, 5, most=2, seed=1), Net(600, 70, 4, most=2, seed=2), Net(300, 3, 130, most=3, seed=3)]
    for case in cases:
        for mode in ("async", "sync"):
            case = dataclasses.replace(case, mode=mode)
            alone = dataclasses.replace(case, mode=mode)
            found = dense(case, dtype, device)
            if case.patterns * case.units < 2**11 or dtype.itemsize > 2:
                assert same(packed(alone, dtype, device), found)
            at = torch.randint(case.batch, (3,))
            given = case.weight(dtype), case.state(dtype)[at], mode
            expected = reference.hopfield_retrieve(*given, **case.orders(), max_sweeps=case.most)
            assert same([t[at] for t in (t.cpu() for t in found)], expected)


def test_fields_are_right_where_sums_round(device):
    """States at once are the signs of the fields, wherever those are not near zero; one by one, energy falls."""
    for units, batch in ((129, 40), (257, 5), (64, 1)):
        weight = torch.randn(units, units, device=device)
        state = torch.randn(batch, units, device=device).sign()
        fields = state.double() @ weight.double().T
        found = functional.hopfield_update(weight, state, "sync")
        clear = fields.abs() > 1e-4
        assert clear.float().mean() > 0.99 and torch.equal(found[clear].double(), fields[clear].sign())
        weight = weight + weight.T
        result = functional.hopfield_retrieve(weight.fill_diagonal_(0), state, symmetric=True)
        wide = weight.double()
        before, after = (-((y.double() @ wide) * y).sum(-1) / 2 for y in (state, result.state))
        assert (result.period == 1).all() and (after <= before + 1e-3).all()
        fields = result.state.double() @ wide
        assert (fields * result.state >= -1e-3).all()


@every_mode
def test_negated_states_end_negated(device, mode):
    """Exactly: fields of negated states are negated fields, in any rounding."""
    weight = torch.randn(83, 83, device=device)
    weight = weight + weight.T
    for rows in (1, 30):
        state = torch.randn(rows, 83, device=device).sign()
        order = None if mode == "sync" else torch.randperm(83).to(device)
        one, other = (functional.hopfield_retrieve(weight, s, mode, order) for s in (state, -state))
        assert torch.equal(one.state, -other.state) and torch.equal(one.sweeps, other.sweeps)


@every_dtype
@every_mode
def test_zero_fields_and_not_a_numbers_change_nothing(device, dtype, mode):
    for rows in (2, 20):
        state = torch.randn(rows, 40, device=device).sign().to(dtype)
        for weight in (torch.zeros(40, 40), torch.full((40, 40), torch.nan)):
            found = functional.hopfield_retrieve(weight.to(device, dtype), state, mode)
            assert torch.equal(found.state, state) and (found.period == 1).all() and (found.sweeps == 1).all()
        weight = torch.ones(40, 40, device=device, dtype=dtype)
        weight[3] = torch.nan  # of unit 3 the field
        found = functional.hopfield_update(weight, state, "sync")
        assert torch.equal(found[:, 3], state[:, 3])
        state[1, 5] = torch.nan
        assert torch.equal(functional.hopfield_update(weight, state, mode)[1].isnan(), state[1].isnan())


def test_infinite_weights(device):
    weight = torch.randn(50, 50, device=device)
    weight[4, 7], weight[9, 3], weight[9, 4] = torch.inf, torch.inf, -torch.inf
    state = torch.ones(16, 50, device=device)
    found = functional.hopfield_update(weight, state, "sync")
    assert (found[:, 4] == 1).all() and (found[:, 9] == 1).all()  # the second is no number
    assert (functional.hopfield_update(weight, -state, "sync")[:, 4] == -1).all()


@pytest.mark.isa
@every_dtype
def test_same_bits_for_any_number_of_threads(threads, dtype):
    for units, rows in ((400, 3), (300, 90), (129, 40)):
        weight = torch.randn(units, units).to(dtype)
        for w in (weight, weight + weight.T):
            state = torch.randn(rows, units).sign().to(dtype)
            for mode in ("async", "sync"):
                found = []
                for count in (1, 2, 3):
                    threads(count)
                    torch.manual_seed(3)
                    found.append(functional.hopfield_retrieve(w, state, mode, max_sweeps=4))
                assert same(found[1], found[0]) and same(found[2], found[0])
        bits = torch.randint(-(2**62), 2**62, (70, -(-units // 64)))
        found = []
        for count in (1, 2, 3):
            threads(count)
            torch.manual_seed(3)
            found.append(functional.hopfield_packed_retrieve(bits, state))
        assert same(found[1], found[0]) and same(found[2], found[0])


def test_drawn_orders_come_from_torchs_generator(device):
    weight = torch.randn(60, 60, device=device)
    state = torch.randn(4, 60, device=device).sign()

    def found(**options):
        return functional.hopfield_retrieve(weight, state, max_sweeps=1, **options).state

    def seeded(seed):
        torch.manual_seed(seed)
        return found()

    assert torch.equal(seeded(1), seeded(1)) and not torch.equal(seeded(1), seeded(2))
    one, other = (found(generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, other)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    functional.hopfield_update(weight, state, "sync")
    functional.hopfield_update(weight, state, order=torch.arange(60).to(device))
    assert torch.equal(torch.get_rng_state(), before)


def test_states_of_one_row(device):
    case = Net(50, 1)
    weight, state = case.weight(torch.float32, device), case.state(torch.float32, device)
    order = torch.arange(50).to(device)
    rows, one = (functional.hopfield_retrieve(weight, s, order=order) for s in (state, state[0]))
    assert one.state.shape == (50,) and one.sweeps.shape == () and same(one, [t[0] for t in rows])
    assert not torch.equal(one.state, state[0]) and state.abs().eq(1).all()  # the state given is as it was


def test_in_forked_workers(cpu_only):
    python(
        "import os, torch\nfrom pykernels import functional as F\n"
        "w = torch.randn(300, 300); y = torch.randn(40, 300).sign(); o = torch.randperm(300)\n"
        "a = F.hopfield_update(w, y, order=o)\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(0 if torch.equal(F.hopfield_update(w, y, order=o), a) else 1)\n"
        "assert os.waitpid(pid, 0)[1] == 0"
    )


# -- transforms -------------------------------------------------------------------------------------------------------
def test_there_are_no_gradients(device):
    weight = torch.randn(20, 20, device=device, requires_grad=True)
    state = torch.randn(3, 20, device=device).sign().requires_grad_()
    bits = reference.pack_signs(state.detach())
    for found in (
        functional.hopfield_retrieve(weight, state),
        functional.hopfield_packed_retrieve(bits, state),
        retrieve_op(weight, state, None, None, 3, True, False),
        packed_op(bits, state, None, None, 3, True),
    ):
        assert not found[0].requires_grad
    assert not functional.hopfield_update(weight, state).requires_grad


@every_mode
def test_opcheck(device, mode):
    case = Net(33, 4, mode=mode)
    state = case.state(torch.float64, device).requires_grad_()
    bits = reference.pack_signs(case.stored()).to(device)
    for order in ("drawn", "shared", "own"):
        case = dataclasses.replace(case, order=order)
        rest = (*case.orders(device).values(), 5, mode == "sync")
        torch.library.opcheck(retrieve_op, (case.weight(torch.float64, device), state, *rest, False))
        torch.library.opcheck(packed_op, (bits, state, *rest))


def test_compile_with_shapes_that_change(device):
    def block(weight, state):
        return functional.hopfield_retrieve(weight * 2, state).state + 1, functional.hopfield_update(
            weight, state, "sync"
        )

    fast, counter = compiled(block, dynamic=True)
    for units, rows in ((20, 3), (33, 4), (50, 9)):
        weight = torch.randn(units, units, device=device)
        weight = weight + weight.T
        state = torch.randn(rows, units, device=device).sign()
        results = []
        for function in (fast, block):
            torch.manual_seed(1)
            results.append(function(weight, state))
        assert same(*results)
    assert counter.frame_count == 1


def test_vmap(device):
    weights = torch.randn(3, 20, 20, device=device)
    states = torch.randn(3, 5, 20, device=device).sign()
    orders = torch.stack([torch.randperm(20) for _ in range(3)]).to(device)
    own = torch.rand(5, 20).argsort(-1).to(device)
    bits = reference.pack_signs(torch.randn(4, 20)).to(device)
    F = functional
    for function, given, dims in (
        (lambda w, y: F.hopfield_retrieve(w, y, "sync"), (weights[0], states), (None, 0)),
        (lambda w, y: F.hopfield_retrieve(w, y, "sync"), (weights, states), (0, 0)),
        (lambda w, y: F.hopfield_retrieve(w, y, "sync"), (weights, states[0]), (0, None)),
        (lambda w, y, o: F.hopfield_retrieve(w, y, order=o), (weights[0], states, orders[0]), (None, 0, None)),
        (lambda w, y, o: F.hopfield_retrieve(w, y, order=o), (weights[0], states, orders), (None, 0, 0)),
        (lambda w, y, o: F.hopfield_retrieve(w, y, order=o), (weights[0], states, own), (None, 0, None)),
        (lambda w, y, o: F.hopfield_retrieve(w, y, order=o), (weights, states.movedim(0, 1), orders[0]), (0, 1, None)),
        (lambda p, y: F.hopfield_packed_retrieve(p, y, "sync"), (bits, states), (None, 0)),
    ):
        found = vmap(function, dims)(*given)
        for i in range(3):
            each = [t if d is None else t.select(d, i) for t, d in zip(given, dims, strict=True)]
            assert same([t[i] for t in found], function(*each))


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non_strict"])
def test_export(device, strict):
    class Module(torch.nn.Module):
        def forward(self, weight, state):
            return functional.hopfield_retrieve(weight, state, "sync").state

    weight, state = torch.randn(20, 20, device=device), torch.randn(3, 20, device=device).sign()
    shapes = {"weight": None, "state": {0: torch.export.Dim("batch", min=2, max=64)}}
    program = torch.export.export(Module(), (weight, state), dynamic_shapes=shapes, strict=strict)
    longer = torch.randn(7, 20, device=device).sign()
    assert torch.equal(program.module()(weight, longer), Module()(weight, longer))


# -- errors -----------------------------------------------------------------------------------------------------------
W, Y, ORDER = torch.randn(8, 8), torch.ones(3, 8), torch.arange(8)
B = torch.zeros(2, 1, dtype=torch.int64)


def test_error_texts(cpu_only):
    update = functools.partial(functional.hopfield_update, W, Y)
    for call, text in (
        (lambda: update("at once"), "[hopfield] expected mode 'async' or 'sync', got 'at once'"),
        (lambda: functional.hopfield_update(W, Y[None]), "[hopfield] expected a state of 1 or 2 dimensions, got 3"),
        (lambda: update(order=ORDER.int()), "[hopfield] expected order of int64, got Int"),
        (lambda: update(order=ORDER[:7]), "[hopfield] expected order of shape [8] or [3, 8], got [7]"),
        (lambda: update(order=ORDER.expand(2, 8)), "[hopfield] expected order of shape [8] or [3, 8], got [2, 8]"),
        (lambda: update(order=ORDER - 1), "[hopfield] expected order to name units, 0 to 7, got -1"),
        (lambda: update(order=ORDER + 1), "[hopfield] expected order to name units, 0 to 7, got 8"),
        (lambda: update("sync", ORDER), "[hopfield] expected no order, as all units change at once"),
        (lambda: functional.hopfield_update(W.int(), Y), "[hopfield] expected a weight of dtype float32, float64, bfl"),
        (lambda: functional.hopfield_update(W[:7], Y), "[hopfield] expected a weight of shape [units, units], got [7"),
        (lambda: functional.hopfield_update(W, Y.double()), "[hopfield] expected a state of dtype Float like the wei"),
        (lambda: functional.hopfield_update(W, Y[:, :7]), "[hopfield] expected a state of shape [batch, 8], got [3, 7"),
        (lambda: functional.hopfield_retrieve(W, Y, max_sweeps=-1), "[hopfield] expected a number of sweeps, got -1"),
        (lambda: functional.hopfield_packed_retrieve(B.int(), Y), "[hopfield] expected packed patterns of int64 and "),
        (lambda: functional.hopfield_packed_retrieve(B[:, :0], Y), "[hopfield] expected packed patterns of int64 and "),
        (lambda: functional.hopfield_packed_retrieve(B, Y.int()), "[hopfield] expected a state of dtype float32, flo"),
        (
            lambda: functional.hopfield_packed_retrieve(B[:1, :].expand(2**28, 1), Y),
            "[hopfield] expected patterns times units below 2^30, got 268435456 times 8",
        ),
        (lambda: functional.hopfield_update(W, Y.to("meta")), "[hopfield] expected "),
    ):
        found = outcome(call)
        assert found is not None and found[1].startswith(text), (found, text)


def test_bad_calls_of_the_operators_raise(cpu_only):
    good = [W, Y, ORDER, None, 3, False, False]
    faults = [
        [W[0], W.int(), W[:, :5], W.double(), W.to_sparse()],
        [Y[0], Y.int(), Y[:, :5], Y.double(), Y[None]],
        [None, ORDER.int(), ORDER[:3], ORDER + 5, ORDER[None, None], ORDER.expand(2, 8)],
        [torch.tensor([1]), torch.tensor([1.0]), torch.tensor([1, 2])],
        [-1, 2**40],
        [True],
        [],
    ]
    draw = random.Random(1)
    assert retrieve_op(*good)[0].shape == Y.shape
    for _ in range(200):
        at = draw.randrange(6)
        wrong = [draw.choice(faults[i]) if i == at else g for i, g in enumerate(good)]
        assert outcome(lambda wrong=wrong: retrieve_op(*wrong)) is not None
        assert outcome(lambda wrong=wrong: kernels("cpu").hopfield_retrieve(*wrong)) is not None
