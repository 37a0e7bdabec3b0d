"""How the functions of the recurrent variants draw their masks, and their errors."""

from __future__ import annotations

import math

import pytest
import torch

from pykernels import functional, reference
from tests.helpers import FLAGS, SEED, VARIED, Case, assert_equal, assert_same_bits, call, drawn, every_kind, split

ALL = {"layer_norm": True, "zoneout": (0.3, 0.2), "recurrent_dropout": 0.25, "weight_dropout": 0.3}
RANDOM = {
    "zoneout": {"zoneout": 0.4},
    "recurrent_dropout": {"recurrent_dropout": 0.25},
    "weight_dropout": {"weight_dropout": 0.4},
    "all": ALL,
}
every_random = pytest.mark.parametrize("variant", RANDOM)
PLAIN = {"lstm": functional.lstm, "gru": functional.gru, "rnn": functional.rnn}


def problem(kind: str, variant: dict, device="cpu", **sizes):
    """A case in training, and its operands."""
    case = Case(**{"steps": 5, "batch": 4, "hidden": 8, **sizes}, **variant, training=True).of(kind)
    return case, split(case.tensors(torch.float64, device, requires_grad=False))


def output(case: Case, operands, **options) -> torch.Tensor:
    """The output with whatever torch's generator gives."""
    return getattr(functional, case.kind)(*operands, **{**case.options, **options})[0]


# -- the generator ----------------------------------------------------------------------------------------------------
@every_kind
@every_random
def test_the_seed_decides(device, variant, kind):
    case, operands = problem(kind, RANDOM[variant], device, layers=2, bidirectional=True)
    torch.manual_seed(1)
    first, second = output(case, operands), output(case, operands)
    torch.manual_seed(1)
    assert torch.equal(output(case, operands), first)
    torch.manual_seed(2)
    third = output(case, operands)
    assert not torch.equal(first, second) and not torch.equal(first, third)


@every_kind
@pytest.mark.parametrize("layers", [1, 3])
def test_one_number_for_each_layer(device, layers, kind):
    """Of torch's generator of the CPU, and none where nothing is random: in evaluation, or for what is not."""
    case, operands = problem(kind, ALL, device, layers=layers)

    def numbers_drawn(**options) -> int:
        torch.manual_seed(7)
        output(case, operands, **options)
        after = torch.get_rng_state()
        torch.manual_seed(7)
        for count in range(10):
            if torch.equal(torch.get_rng_state(), after):
                return count
            torch.randint(2**63 - 1, (1,))
        raise AssertionError("more than ten")

    assert numbers_drawn() == layers
    assert numbers_drawn(training=False) == 0
    assert numbers_drawn(zoneout=0.0, recurrent_dropout=0.0, weight_dropout=0.0) == 0
    for name in ("zoneout", "recurrent_dropout", "weight_dropout"):
        others = dict.fromkeys({"zoneout", "recurrent_dropout", "weight_dropout"} - {name}, 0.0)
        assert numbers_drawn(**others) == layers, name


@every_kind
@every_random
def test_layers_and_directions_have_masks_of_their_own(device, variant, kind):
    """Equal weights and equal input in both directions of one step: what differs are the masks."""
    case, (_, hx, weights) = problem(kind, RANDOM[variant], device, steps=1, bidirectional=True)
    half = len(weights) // 2
    operands = torch.ones(1, 4, 5, dtype=torch.float64, device=device), hx, [*weights[:half], *weights[:half]]
    hx = [s[:1].expand(2, -1, -1) for s in (hx if kind == "lstm" else (hx,))]
    operands = operands[0], tuple(hx) if kind == "lstm" else hx[0], operands[2]
    forward, backward = output(case, operands).chunk(2, -1)
    assert not torch.equal(forward, backward)
    forward, backward = output(case, operands, training=False).chunk(2, -1)
    torch.testing.assert_close(forward, backward, rtol=1e-14, atol=1e-14)


def test_an_lstms_states_stay_by_themselves(device):
    """Its h and its c are masked by two draws."""
    hidden = 200
    case, (x, (h0, c0), weights) = problem("lstm", {"zoneout": 0.5}, device, steps=1, hidden=hidden)
    _, h_n, c_n = functional.lstm(x, (h0, c0), weights, zoneout=0.5, training=True)
    of_h, of_c = h_n == h0, c_n == c0
    agree = (of_h == of_c).double().mean().item()
    assert abs(agree - 0.5) < 5 * 0.5 / (4 * hidden) ** 0.5 and case.batch == 4
    for zoneout, state in (((0.5, 0.0), 1), ((0.0, 0.5), 0)):
        found = functional.lstm(x, (h0, c0), weights, zoneout=zoneout, training=True)[1:]
        assert not (found[state] == (h0, c0)[state]).any()
        assert 0.4 < (found[1 - state] == (h0, c0)[1 - state]).double().mean() < 0.6


def test_masks_of_one_call_are_independent(device):
    """What stays and what is not fed back: of one step, an RNN of which the state is tanh of what is fed back."""
    eye, h0 = torch.eye(400, dtype=torch.float64, device=device), torch.rand(1, 5, 400, dtype=torch.float64) + 0.1
    weights, x = [torch.zeros(400, 1).to(eye), eye], torch.zeros(1, 5, 1).to(eye)
    options = {"bias": False, "zoneout": 0.5, "recurrent_dropout": 0.5, "training": True}
    _, h_n = functional.rnn(x, h0.to(device), weights, **options)
    gone = h_n != h0.to(device)
    assert 900 < gone.sum() < 1100
    assert abs((h_n[gone] == 0).double().mean() - 0.5) < 0.08


@every_kind
def test_the_average_of_training_is_evaluation(device, kind):
    """Of one step with zoneout, over many draws."""
    case, (x, hx, weights) = problem(kind, {"zoneout": 0.3}, device, steps=1, batch=1, hidden=4)
    many = 20_000
    wide = [s.expand(-1, many, -1) for s in (hx if kind == "lstm" else (hx,))]
    found = getattr(functional, kind)(
        x.expand(-1, many, -1), tuple(wide) if kind == "lstm" else wide[0], weights, zoneout=0.3, training=True
    )
    expected = getattr(functional, kind)(x, hx, weights, zoneout=0.3)
    for mine, its in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine.mean(1), its[:, 0], rtol=0, atol=5 * 0.46 * 3 / many**0.5)
    assert case.steps == 1


# -- the ends ---------------------------------------------------------------------------------------------------------
@every_kind
@drawn(8, steps=(1, 5), batch=(1, 5), hidden=(3, 9), seed=SEED, **FLAGS, **VARIED)
def test_probabilities_of_zero_are_the_plain_layer(device, kind, case):
    """To the bit, also as 0, as a pair, and in training."""
    plain = Case(**{f: getattr(case, f) for f in ("steps", "batch", "hidden", "seed", "kind", *FLAGS)})
    tensors = plain.tensors(torch.float64, device)
    expected = call(functional, plain, tensors)
    for zero in (0, 0.0, (0.0, 0)) if kind == "lstm" else (0, 0.0):
        options = {"zoneout": zero, "recurrent_dropout": 0, "weight_dropout": 0.0, "training": True}
        assert_same_bits(call(functional, plain, tensors, **options), expected)


@every_kind
def test_probabilities_of_one(device, kind):
    """All stay; nothing is fed back; no recurrent weight is left."""
    case, (x, hx, weights) = problem(kind, {}, device)
    function = PLAIN[kind]
    found = function(x, hx, weights, zoneout=1.0, training=True)
    start = hx if kind == "lstm" else (hx,)
    assert all(torch.equal(mine, its) for mine, its in zip(found[1:], start, strict=True))
    assert torch.equal(found[0], start[0].expand(case.steps, -1, -1))
    evaluated = function(x, hx, weights, zoneout=1.0)
    torch.testing.assert_close(evaluated[0], found[0], rtol=1e-14, atol=1e-14)

    without = [torch.zeros_like(w) if w.shape == (case.about.gates * 8, 8) else w for w in weights]
    expected = function(x, hx, without)
    for name in ("weight_dropout", "recurrent_dropout"):
        found = function(x, hx, weights, training=True, **{name: 1.0})
        for mine, its in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-12)
            assert mine.isfinite().all()


@every_kind
def test_dropout_between_the_layers_too(device, kind):
    """Beside the variants, from the same generator, in the order of the twin; none in evaluation."""
    case, operands = problem(kind, ALL, device, layers=3, bidirectional=True)
    found = []
    for where in (functional, reference):
        torch.manual_seed(4)
        results = getattr(where, kind)(*operands, **case.options, dropout=0.5)
        found.append(dict(zip(case.about.results, results, strict=True)))
    assert_equal(*found, tolerance=1e-10)
    torch.manual_seed(4)
    assert not torch.equal(output(case, operands), found[0]["output"])
    torch.manual_seed(4)
    evaluated = output(case, operands, training=False, dropout=0.5)
    assert torch.equal(evaluated, output(case, operands, training=False))


# -- errors -----------------------------------------------------------------------------------------------------------
BAD = [-0.1, 1.5, -1, 2, math.nan, math.inf, "0.5", True, torch.tensor(0.5)]


@every_kind
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("value", BAD, ids=str)
@pytest.mark.parametrize("name", ["zoneout", "recurrent_dropout", "weight_dropout"])
def test_no_probability(name, value, training, kind):
    _, operands = problem(kind, {})
    text = rf"^{name} should be a number in range \[0, 1\] representing a probability, got "
    for where in (functional, reference):
        with pytest.raises(ValueError, match=text):
            getattr(where, kind)(*operands, **{name: value}, training=training)


@pytest.mark.parametrize("kind, value", [
    ("lstm", (0.1,)), ("lstm", (0.1, 0.2, 0.3)), ("gru", (0.1, 0.2)), ("rnn", [0.1, 0.2]), ("lstm", [0.1]),
])  # fmt: skip
def test_zoneout_of_another_number_of_states(kind, value):
    _, operands = problem(kind, {})
    with pytest.raises(ValueError, match=r"^zoneout should be a number or one for each of \d states, got [\[(]0.1"):
        getattr(functional, kind)(*operands, zoneout=value)


def test_one_zoneout_in_a_list():
    """A list of one for each state is what the numbers are."""
    for kind, value, same in (("lstm", [0.2, 0.5], (0.2, 0.5)), ("gru", [0.2], 0.2), ("rnn", (0.2,), 0.2)):
        _, operands = problem(kind, {})
        found, expected = (getattr(functional, kind)(*operands, zoneout=z)[0] for z in (value, same))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("value", [(0.1, 1.2), (-0.1, 0.0), (0.1, None)], ids=str)
def test_a_bad_one_of_a_pair(value):
    _, operands = problem("lstm", {})
    with pytest.raises(ValueError, match=r"^zoneout should be a number in range \[0, 1\]"):
        functional.lstm(*operands, zoneout=value)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_layer_norm_needs_reset_after(training):
    case = Case(kind="gru", layer_norm=True)
    operands = split(case.tensors(requires_grad=False))
    for where in (functional, reference):
        with pytest.raises(ValueError, match=r"^layer_norm needs reset_after=True"):
            where.gru(*operands, layer_norm=True, reset_after=False, training=training)


@pytest.mark.parametrize("variant", [{"layer_norm": True}, {"zoneout": 0.2}, {"recurrent_dropout": 0.2}], ids=str)
def test_jordans_network_has_no_variants(variant):
    operands = split(Case(kind="rnn", projection=True).tensors(requires_grad=False))
    for where in (functional, reference):
        with pytest.raises(ValueError, match="do not go together with projection"):
            where.rnn(*operands, projection=True, training=True, **variant)


@every_kind
def test_weights_and_states_that_do_not_fit(kind):
    """The operators' errors, whatever the function makes of its operands first."""
    case, (x, hx, weights) = problem(kind, {"zoneout": 0.2})
    function = PLAIN[kind]
    states = hx if kind == "lstm" else (hx,)
    short = [s[:, :-1] for s in states]
    wrong = [
        (x, tuple(short) if kind == "lstm" else short[0], weights),
        (x, hx, weights[:-1]),
        (x, hx, [*weights, weights[-1]]),
        (x[..., :-1], hx, weights),
        (x.float(), hx, weights),
        (x, hx, [weights[0], weights[1][:, :-1], *weights[2:]]),
    ]
    for operands in wrong:
        for variant in ({"zoneout": 0.2}, {"recurrent_dropout": 0.2}, {"weight_dropout": 0.2}):
            with pytest.raises(RuntimeError):
                function(*operands, **variant, training=True)
    assert function(x, hx, weights, zoneout=0.2)[0].shape == (case.steps, case.batch, 8)


def _with(weights, at: int, weight):
    return [*weights[:at], weight, *weights[at + 1 :]]


WRONG = {
    "one_weight": lambda x, hx, w: (x, hx, w[:1]),
    "no_biases": lambda x, hx, w: (x, hx, w[:2]),
    "input_of_one_dimension": lambda x, hx, w: (x[0, 0], None, w),
    "input_scalar": lambda x, hx, w: (x.sum(), None, w),
    "weight_hh_scalar": lambda x, hx, w: (x, hx, _with(w, 1, w[1].sum())),
    "weight_hh_float32": lambda x, hx, w: (x, hx, _with(w, 1, w[1].float())),
    "bias_ih_scalar": lambda x, hx, w: (x, hx, _with(w, 2, w[2].sum())),
    "bias_ih_of_one": lambda x, hx, w: (x, hx, _with(w, 2, w[2][:1])),
    "bias_ih_of_two_dimensions": lambda x, hx, w: (x, hx, _with(w, 2, w[2][None])),
}


NOISY = [{}, {"zoneout": 0.2}, {"recurrent_dropout": 0.2}, {"weight_dropout": 0.2}]


@pytest.mark.parametrize("name", WRONG)
def test_wrong_operands_are_runtime_errors(name):
    """As the functions say, and as without variants."""
    for kind, function in PLAIN.items():
        _, operands = problem(kind, {})
        for variant in NOISY:
            with pytest.raises(RuntimeError):
                function(*WRONG[name](*operands), **variant, training=True)


@pytest.mark.parametrize("sizes", [[], [0], [4, 5], [5, 4, 4, 4, 3, -1], [20, 1]], ids=str)
def test_wrong_batch_sizes(sizes):
    sizes = torch.tensor(sizes, dtype=torch.int64)
    for kind, function in PLAIN.items():
        _, (x, _, weights) = problem(kind, {})
        for variant in NOISY:
            with pytest.raises(RuntimeError):
                function(x.flatten(0, 1), None, weights, batch_sizes=sizes, **variant, training=True)
