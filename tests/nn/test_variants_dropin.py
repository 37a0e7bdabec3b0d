"""The modules with variants in the place of others: copies, state, replacement of parameters, repr, errors."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import pykernels
from tests.helpers import outcome

from .test_variants import ALL, RANDOM, every_name, inputs, made, seeded, theirs


# -- copies and replacement -------------------------------------------------------------------------------------------
def through_pickle(module):
    return pickle.loads(pickle.dumps(module))


def through_save(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@every_name
@pytest.mark.parametrize("way", [copy.deepcopy, through_pickle, through_save])
def test_copies(name, way):
    zoneout = (0.2, 0.3) if name == "LSTM" else 0.3
    module, x = made(name, num_layers=2, **{**ALL, "zoneout": zoneout}), inputs()
    with torch.no_grad():
        module.weight_ln_hh_l1.uniform_(0.5, 1.5)
    twin = way(module)
    assert torch.equal(seeded(twin, x), seeded(module, x)) and repr(twin) == repr(module)
    assert {n: getattr(twin, n) for n in ALL} == {n: getattr(module, n) for n in ALL}
    with torch.no_grad():
        twin.weight_ln_hh_l1.zero_()
    assert module.weight_ln_hh_l1.abs().min() > 0 and not torch.equal(seeded(twin, x), seeded(module, x))


@every_name
def test_state_dict_round_trip(name):
    module, other, x = made(name, **ALL), made(name, **ALL), inputs()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-1, 1)
    assert not torch.equal(seeded(module, x), seeded(other, x))
    other.load_state_dict(module.state_dict())
    assert torch.equal(seeded(module, x), seeded(other, x))
    missing = made(name, layer_norm=True).load_state_dict(theirs(name).state_dict(), strict=False)
    assert not missing.unexpected_keys and all("_ln_" in key for key in missing.missing_keys)


@every_name
def test_a_module_pickled_before_there_were_variants(name):
    """Its state has none of the attributes; it is a plain layer then."""
    module, x = made(name), inputs()
    state = {key: value for key, value in module.__dict__.items() if key not in ALL}
    old = type(module).__new__(type(module))
    old.__setstate__(copy.deepcopy(state))
    assert torch.equal(old(x)[0], module(x)[0])
    assert (old.layer_norm, old.zoneout, old.recurrent_dropout, old.weight_dropout) == (False, 0.0, 0.0, 0.0)
    assert repr(old) == repr(module)


@every_name
def test_functional_call_and_parametrizations(name):
    """Whatever stands in a parameter's place is used, the gains' too."""
    module, other, x = made(name, **ALL), made(name, **ALL), inputs()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.uniform_(-1, 1)
    parameters = {key: p.detach().clone().requires_grad_() for key, p in other.named_parameters()}
    torch.manual_seed(1)
    found = torch.func.functional_call(module, parameters, (x,))[0]
    assert torch.equal(found, seeded(other, x))
    found.sum().backward()
    assert all(p.grad is not None for p in parameters.values()) and module.weight_ln_ih_l0.grad is None

    class Twice(nn.Module):
        def forward(self, t):
            return 2 * t

    expected = copy.deepcopy(module)
    with torch.no_grad():
        expected.weight_ln_hh_l0.mul_(2)
    parametrize.register_parametrization(module, "weight_ln_hh_l0", Twice())
    assert torch.equal(seeded(module, x), seeded(expected, x))


# -- representation and errors ----------------------------------------------------------------------------------------
@every_name
def test_repr(name):
    assert not any(variant in repr(made(name)) for variant in ALL)
    text = repr(made(name, bias=False, **ALL))
    assert text.startswith(f"{name}(5, 6, bias=False")
    for variant, value in ALL.items():
        assert f", {variant}={value}" in text
    one = repr(made(name, zoneout=0.1))
    assert "zoneout=0.1" in one and "dropout" not in one and "layer_norm" not in one


def test_repr_of_a_pair_and_of_other_forms():
    text = repr(made("LSTM", peephole=True, zoneout=(0.1, 0.2)))
    assert "zoneout=(0.1, 0.2)" in text and "peephole=True" in text
    assert "reset_after=False" in repr(made("GRU", reset_after=False, zoneout=0.1))


@every_name
def test_they_are_keywords(name):
    """After torch's arguments, and not by position."""
    for attribute, value in ALL.items():
        assert getattr(made(name), attribute) == 0 and getattr(made(name, **{attribute: value}), attribute) == value
    arguments = [5, 6, 1, *(["tanh"] if name == "RNN" else []), True, False, 0.0, False, 0, None, None]
    getattr(pykernels, name)(*arguments)
    with pytest.raises(TypeError):
        getattr(pykernels, name)(*arguments, True)


@every_name
@pytest.mark.parametrize("value", [-0.1, 1.1, "0.5", True, None, float("nan")], ids=str)
@pytest.mark.parametrize("attribute", RANDOM)
def test_no_probability(name, attribute, value):
    with pytest.raises(ValueError, match=rf"^{attribute} should be a number in range \[0, 1\] representing"):
        made(name, **{attribute: value})


@every_name
@pytest.mark.parametrize("value", [1, 0, None, "yes"], ids=str)
def test_layer_norm_is_a_bool(name, value):
    with pytest.raises(TypeError, match=f"^layer_norm should be of type bool, got: {type(value).__name__}$"):
        made(name, layer_norm=value)


def test_a_zoneout_for_each_state():
    for name, value in (("LSTM", (0.1,)), ("LSTM", (0.1, 0.2, 0.3)), ("GRU", (0.1, 0.2)), ("RNN", [0.1, 0.2])):
        with pytest.raises(ValueError, match=r"^zoneout should be a number or one for each of"):
            made(name, zoneout=value)


def test_layer_norm_needs_reset_after():
    with pytest.raises(ValueError, match=r"^layer_norm needs reset_after=True"):
        made("GRU", layer_norm=True, reset_after=False)
    assert made("GRU", zoneout=0.1, reset_after=False)(inputs())[0].shape == (4, 3, 6)


@pytest.mark.parametrize("attribute", ALL)
def test_only_the_three_layers_have_them(attribute):
    for name in ("LSTMCell", "GRUCell", "RNNCell"):
        with pytest.raises(TypeError, match=attribute):
            getattr(pykernels, name)(5, 6, **{attribute: ALL[attribute]})
    with pytest.raises(TypeError, match=attribute):
        pykernels.JordanRNN(5, 6, 4, **{attribute: ALL[attribute]})


@every_name
def test_wrong_input_is_told_in_torchs_words(name):
    its, ours = theirs(name), made(name, **ALL)
    state = torch.zeros(1, 2, 6, dtype=torch.float64)
    hx = (state, state) if name == "LSTM" else state
    for given in (
        (inputs(4, 3, 6),),
        (inputs(4, 3, 5), hx),
        (inputs(5),),
        (inputs(4, 3, 5).float(),),
        (inputs(0, 3, 5),),
    ):
        assert outcome(lambda given=given: ours(*given)) == outcome(lambda given=given: its(*given)) is not None
