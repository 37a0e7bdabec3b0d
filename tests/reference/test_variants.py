"""The reference twins of the recurrent variants against loops over torch's own cells and torch.nn.LayerNorm."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from pykernels import reference
from tests.helpers import FLAGS, SEED, VARIED, Case, call, drawn, every_kind, with_gradients

CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}
LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
MARGIN = {"rtol": 1e-11, "atol": 1e-11}


def close(found, expected) -> None:
    torch.testing.assert_close(found, expected, **MARGIN)


def variant_layer(kind: str):
    return getattr(reference, f"{kind}_variant_layer")


# -- layer normalisation ----------------------------------------------------------------------------------------------
class Normalised(nn.Module):
    """One direction with layer normalisation, of torch's modules: their biases are the biases of the sums."""

    def __init__(self, case: Case, tensors: dict[str, torch.Tensor], suffix: str) -> None:
        super().__init__()
        self.kind, rows = case.kind, case.about.gates * case.hidden
        self.of_input, self.of_state = (nn.LayerNorm(rows, dtype=torch.float64) for _ in range(2))
        self.of_cell = nn.LayerNorm(case.hidden, dtype=torch.float64)
        self.weight_ih, self.weight_hh = (tensors[f"weight_{name}_l0{suffix}"] for name in ("ih", "hh"))
        for module, name in ((self.of_input, "ih"), (self.of_state, "hh")):
            module.weight.data = tensors[f"weight_ln_{name}_l0{suffix}"]
            if case.bias:
                module.bias.data = tensors[f"bias_{name}_l0{suffix}"]
        if case.kind == "lstm":
            self.of_cell.weight.data = tensors[f"weight_ln_c_l0{suffix}"]
            self.of_cell.bias.data = tensors[f"bias_ln_c_l0{suffix}"]

    def forward(self, x, h, c):
        of_x, of_h = self.of_input(x @ self.weight_ih.T), self.of_state(h @ self.weight_hh.T)
        if self.kind == "rnn":
            return torch.tanh(of_x + of_h), None
        if self.kind == "gru":
            (xr, xz, xn), (hr, hz, hn) = of_x.chunk(3, 1), of_h.chunk(3, 1)
            r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
            return (1 - z) * torch.tanh(xn + r * hn) + z * h, None
        i, f, g, o = (of_x + of_h).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.of_cell(c)), c


@every_kind
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_way", "two_ways"])
def test_layer_norm_is_torchs_modules(kind, bias, bidirectional):
    case = Case(5, 3, 4, 6, bias=bias, bidirectional=bidirectional, layer_norm=True, kind=kind)
    tensors = case.tensors(requires_grad=False)
    found = call(reference, case, tensors)
    outputs, last_h, last_c = [], [], []
    for d in range(case.directions):
        step = Normalised(case, tensors, "_reverse" * d)
        h, c, states = tensors["h0"][d], tensors["c0"][d] if kind == "lstm" else None, []
        for x in tensors["input"].flip(0) if d else tensors["input"]:
            h, c = step(x, h, c)
            states.append(h)
        outputs.append(torch.stack(states[::-1] if d else states))
        last_h.append(h)
        last_c.append(c)
    close(found["output"], torch.cat(outputs, -1).detach())
    close(found["h_n"], torch.stack(last_h).detach())
    if kind == "lstm":
        close(found["c_n"], torch.stack(last_c).detach())


# -- zoneout ----------------------------------------------------------------------------------------------------------
@every_kind
@pytest.mark.parametrize("given", ["both", "h", "c"])
def test_where_the_mask_says_so_the_state_stays_to_the_bit(kind, given):
    """And everywhere else it is what torch's cell gives; an LSTM's h comes from the new c, if that stays too."""
    if given != "both" and kind != "lstm":
        pytest.skip("one state")
    case = Case(6, 3, 4, 5, kind=kind)
    cell = CELLS[kind](4, 5, dtype=torch.float64)
    x, state = torch.randn(6, 3, 4, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    states = list(state[: len(case.about.states)])
    masks = [(torch.rand(1, 18, 5) < 0.5).to(torch.uint8) for _ in states]
    if given != "both":
        masks[given == "h"] = None
    parts = (x @ cell.weight_ih.T + cell.bias_ih).detach()
    flags = {"lstm": (True, False, False, False), "gru": (True, True, False), "rnn": (True, False, False)}[kind]
    flags = (None, *masks, *[0.0] * len(states), *flags, False)
    weights = [cell.weight_hh.detach(), cell.bias_hh.detach()]
    output, *last = variant_layer(kind)(parts, None, *(s[None] for s in states), weights, *flags)
    for t in range(6):
        # the same step alone, from the states that the loop has found
        own = [None if m is None else m[:, 3 * t : 3 * t + 3] for m in masks]
        alone = (None, *own, *flags[1 + len(own) :])
        _, *new = variant_layer(kind)(parts[t : t + 1], None, *(s[None] for s in states), weights, *alone)
        stepped = cell(x[t], tuple(states) if kind == "lstm" else states[0])
        for i, expected in enumerate(stepped if kind == "lstm" else (stepped,)):
            stays = torch.zeros(3, 5, dtype=torch.bool) if own[i] is None else own[i][0] != 0
            assert torch.equal(new[i][0][stays], states[i][stays])
            close(new[i][0][~stays], expected.detach()[~stays])
        states = [s[0] for s in new]
        assert torch.equal(states[0], output[t])
    assert all(torch.equal(one[0], other) for one, other in zip(last, states, strict=True))


@every_kind
def test_in_training_each_unit_stays_or_goes(kind):
    """Through the function: every output is bitwise the one before, or that of torch's cell; as often as it says."""
    case = Case(40, 8, 4, 10, zoneout=(0.3, 0.0), training=True).of(kind)
    tensors = case.tensors(requires_grad=False)
    if kind == "lstm":
        # a cell that forgets everything: h follows from the last h alone
        tensors["bias_ih_l0"][10:20] = -1e4
    output = call(reference, case, tensors)["output"]
    before = torch.cat([tensors["h0"], output[:-1]]).flatten(0, 1)
    cell = CELLS[kind](4, 10, dtype=torch.float64)
    cell.load_state_dict({name: tensors[f"{name}_l0"] for name in cell.state_dict()})
    hx = (before, torch.zeros_like(before)) if kind == "lstm" else before
    new = cell(tensors["input"].flatten(0, 1), hx)
    new = (new[0] if kind == "lstm" else new).detach().view_as(output)
    stays = output == before.view_as(output)
    close(output[~stays], new[~stays])
    assert abs(stays.double().mean() - 0.3) < 0.04  # of 3200: five deviations
    assert stays.any(0).all() and not stays.all(0).any()  # each unit at each step anew
    assert abs(stays[:, 0].double().mean() - stays[:, 1].double().mean()) < 0.2 and (stays[:, 0] != stays[:, 1]).any()


@every_kind
@pytest.mark.parametrize("share", [0.3, (0.2, 0.6), (0.0, 0.5)], ids=str)
def test_in_evaluation_the_state_is_the_expectation(kind, share):
    """z * before + (1 - z) * new at every step."""
    case = Case(6, 3, 4, 5, zoneout=share).of(kind)
    tensors = case.tensors(requires_grad=False)
    found = call(reference, case, tensors)
    shares = share if isinstance(share, tuple) else (share, share)
    cell = CELLS[kind](4, 5, dtype=torch.float64)
    cell.load_state_dict({name: tensors[f"{name}_l0"] for name in cell.state_dict()})
    states, outputs = [tensors[name][0] for name in case.about.states], []
    for x in tensors["input"]:
        new = cell(x, tuple(states) if kind == "lstm" else states[0])
        new = new if kind == "lstm" else (new,)
        states = [z * s + (1 - z) * n for z, s, n in zip(shares, states, new, strict=False)]
        outputs.append(states[0])
    close(found["output"], torch.stack(outputs).detach())
    for name, state in zip(case.about.results[1:], states, strict=True):
        close(found[name][0], state.detach())


# -- dropout ----------------------------------------------------------------------------------------------------------
@every_kind
def test_recurrent_dropout_is_one_mask_for_all_steps(kind):
    """Cells made to compute only a function of what is fed back show the mask: 0 or 1 / (1 - p), the same each step."""
    hidden, eye, off = 40, torch.eye(40, dtype=torch.float64), torch.zeros(40, 40, dtype=torch.float64)
    rows = {"lstm": [off, off, eye, off], "gru": [off, off, eye], "rnn": [eye]}[kind]
    large = {"lstm": [1e4, -1e4, 0, 1e4], "gru": [1e4, -1e4, 0], "rnn": [0]}[kind]  # gates of exactly 1 or 0
    bias = torch.tensor(large, dtype=torch.float64).repeat_interleave(hidden)
    weights = [torch.zeros(len(rows) * hidden, 1, dtype=torch.float64), torch.cat(rows), bias, 0 * bias]
    h0 = torch.rand(1, 4, hidden, dtype=torch.float64) * 0.5 + 0.4
    hx = (h0, torch.zeros_like(h0)) if kind == "lstm" else h0
    x = torch.zeros(5, 4, 1, dtype=torch.float64)
    output = getattr(reference, kind)(x, hx, weights, recurrent_dropout=0.25, training=True)[0]
    fed = torch.atanh(torch.atanh(output) if kind == "lstm" else output)
    before = torch.cat([h0, output[:-1]])
    zero = fed[0] == 0
    assert 0.12 < zero.double().mean() < 0.4  # of 160: about four deviations
    assert torch.equal(fed == 0, zero.expand(5, -1, -1))
    close((fed / before)[:, ~zero], torch.full_like(fed[:, ~zero], 1 / 0.75))
    assert (zero[0] != zero[1]).any()  # each sequence has its own


@every_kind
def test_a_mask_on_the_state_is_one_for_torchs_cell(kind):
    """What is fed back is masked, but not the state that a GRU keeps."""
    cell, case = CELLS[kind](4, 5, dtype=torch.float64), Case(kind=kind)
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    states = list(torch.randn(2, 1, 3, 5, dtype=torch.float64)[: len(case.about.states)])
    scale = (torch.rand(1, 3, 5) < 0.6).double() / 0.6
    flags = {"lstm": (True, False, False, False), "gru": (True, True, False), "rnn": (True, False, False)}[kind]
    flags = (scale, *[None] * len(states), *[0.0] * len(states), *flags, False)
    parts = x @ cell.weight_ih.T + cell.bias_ih
    output, *_ = variant_layer(kind)(parts, None, *states, [cell.weight_hh, cell.bias_hh], *flags)
    h, *c = (s[0] for s in states)
    for t in range(6):
        fed = scale[0] * h
        if kind == "lstm":
            h, *c = cell(x[t], (fed, *c))
        elif kind == "rnn":
            h = cell(x[t], fed)
        else:
            _, z, _ = (parts[t] + fed @ cell.weight_hh.T + cell.bias_hh).chunk(3, 1)
            h = cell(x[t], fed) + torch.sigmoid(z) * (h - fed)
        close(output[t], h)


@every_kind
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_way", "two_ways"])
def test_weight_dropout_is_the_plain_layer_with_masked_weights(kind, bidirectional):
    """Where a weight has no gradient it is zero; the others are divided by 1 - p; torch's layer gives the same then."""
    case = Case(6, 4, 4, 9, 2, bidirectional=bidirectional, weight_dropout=0.4, training=True, kind=kind)
    tensors = case.tensors()
    found = with_gradients(call(reference, case, tensors), tensors)
    layer = LAYERS[kind](4, 9, 2, bidirectional=bidirectional, dtype=torch.float64)
    weights = {name: t.detach().clone() for name, t in tensors.items() if name in layer.state_dict()}
    for name in weights:
        kept = found[f"grad {name}"] != 0
        if name.startswith("weight_hh"):
            assert 0.45 < kept.double().mean() < 0.75
            weights[name] = torch.where(kept, weights[name] / 0.6, 0.0)
        else:
            assert kept.all()
    layer.load_state_dict(weights)
    states = [tensors[name] for name in case.about.states]
    output, h_n = layer(tensors["input"], tuple(states) if kind == "lstm" else states[0])
    close(found["output"], output.detach())
    close(found["h_n"], (h_n[0] if kind == "lstm" else h_n).detach())


# -- altogether -------------------------------------------------------------------------------------------------------
@every_kind
@drawn(10, steps=(1, 4), batch=(1, 4), hidden=(1, 6), seed=SEED, **FLAGS, recurrent_dropout=[0.0, 0.3],
       weight_dropout=[0.0, 0.3])  # fmt: skip
def test_dropout_is_nothing_in_evaluation(kind, case):
    plain = dataclasses.replace(case, recurrent_dropout=0.0, weight_dropout=0.0)
    tensors = case.tensors(requires_grad=False)
    found, expected = call(reference, case, tensors), call(reference, plain, tensors)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@every_kind
@drawn(6, steps=(1, 3), batch=(1, 2), inputs=(1, 2), hidden=(3, 4), seed=SEED, **FLAGS, **VARIED)
def test_is_differentiable_twice(kind, case):
    tensors = case.tensors()

    def outputs(*values):
        return tuple(call(reference, case, dict(zip(tensors, values, strict=True))).values())

    assert torch.autograd.gradcheck(outputs, tuple(tensors.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(outputs, tuple(tensors.values()), fast_mode=True)
