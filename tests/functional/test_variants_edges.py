"""What the variants do at their edges: infinite gradients beside states that stay, operands that only look right."""

from __future__ import annotations

import pytest
import torch

from pykernels import LSTM, functional, reference
from tests.helpers import Case, every_kind, split


def layer(kind: str, **options):
    case = Case(kind=kind, states=False, **options)
    return split(case.tensors(requires_grad=False))


@every_kind
def test_an_infinite_gradient_stays_where_it_is(device, kind):
    """Where a state stays, its gradient goes to the state before and none to the new one: nothing is multiplied."""
    x, _, weights = layer(kind, steps=4, batch=3, hidden=9)
    found = []
    for where in (functional, reference):
        leaf = x.to(device).requires_grad_()
        torch.manual_seed(0)
        output = getattr(where, kind)(leaf, None, [w.to(device) for w in weights], zoneout=0.5, training=True)[0]
        grad = torch.zeros_like(output)
        grad[2, 1, 4] = torch.inf
        found.append(torch.autograd.grad(output, leaf, grad)[0])
    ours, truth = found
    assert torch.equal(ours[:, [0, 2]], torch.zeros_like(ours[:, [0, 2]]))
    assert torch.equal(ours[3], torch.zeros_like(ours[3]))
    assert torch.equal(truth[3], torch.zeros_like(truth[3]))


def test_weights_of_two_shapes():
    """A mask of the first direction's shape would make something of a smaller second one."""
    x, _, weights = layer("lstm", bidirectional=True, bias=False)
    weights[3] = weights[3][:, :1]
    with pytest.raises(RuntimeError, match="expected weight_hh of one shape for both directions"):
        functional.lstm(x, None, weights, bias=False, bidirectional=True, weight_dropout=0.5, training=True)


def test_a_state_of_one_dimension():
    x, _, weights = layer("gru")
    rows, sizes = x.flatten(0, 1), torch.full((x.shape[0],), x.shape[1])
    with pytest.raises(RuntimeError, match="expected 3-D states, got 1-D"):
        functional.gru(rows, x.new_zeros(6), weights, batch_sizes=sizes, recurrent_dropout=0.5, training=True)


def test_an_input_of_integers():
    x, _, weights = layer("rnn")
    with pytest.raises(RuntimeError, match=r"\[rnn\] expected input of a floating dtype"):
        functional.rnn(x.long(), None, weights, zoneout=0.5, training=True)


@every_kind
@pytest.mark.parametrize("value", [1, "yes", None], ids=str)
def test_layer_norm_is_a_bool(kind, value):
    x, _, weights = layer(kind)
    with pytest.raises(TypeError, match="layer_norm should be of type bool"):
        getattr(functional, kind)(x, None, weights, layer_norm=value)


@pytest.mark.parametrize("value", [-1.0, 0.5, 256.0])
def test_a_mask_of_bytes_holds_bytes(value):
    with pytest.raises(RuntimeError, match="expected a value that is a byte"):
        functional.random_mask(torch.empty(0), torch.tensor([1]), 0, (3,), 0.5, value, True)


def test_zoneout_is_the_modules_own():
    """Changing the list that was given changes nothing."""
    given = [0.1, 0.2]
    module = LSTM(2, 3, zoneout=given)
    given[0] = 5
    assert module.zoneout == (0.1, 0.2)
