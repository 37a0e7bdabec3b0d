"""The variants in pykernels.LSTM, GRU and RNN: parameters, what is computed in either mode, masks, attributes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, unpack_sequence

import pykernels
from pykernels import reference
from tests.helpers import assert_equal, with_gradients

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ALL = {"layer_norm": True, "zoneout": 0.3, "recurrent_dropout": 0.25, "weight_dropout": 0.4}
RANDOM = {name: value for name, value in ALL.items() if name != "layer_norm"}
every_name = pytest.mark.parametrize("name", GATES)
every_random = pytest.mark.parametrize("variant", [*({n: v} for n, v in RANDOM.items()), RANDOM], ids=str)


def made(name: str, *sizes: int, **options) -> nn.Module:
    return getattr(pykernels, name)(*(sizes or (5, 6)), **{"dtype": torch.float64, **options})


def theirs(name: str, *sizes: int, **options) -> nn.Module:
    return getattr(nn, name)(*(sizes or (5, 6)), **{"dtype": torch.float64, **options})


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (4, 3, 5), dtype=torch.float64)


def seeded(module: nn.Module, x, seed: int = 1) -> torch.Tensor:
    torch.manual_seed(seed)
    return module(x)[0]


# -- parameters -------------------------------------------------------------------------------------------------------
@every_name
def test_layer_norm_adds_parameters(name):
    """Names, shapes and first values; each layer and direction has them after its other weights."""
    module = made(name, 5, 6, num_layers=2, bidirectional=True, layer_norm=True)
    rows = GATES[name] * 6
    shapes = {"weight_ln_ih": rows, "weight_ln_hh": rows}
    if name == "LSTM":
        shapes |= {"weight_ln_c": 6, "bias_ln_c": 6}
    expected, plain = [], theirs(name, 5, 6, num_layers=2, bidirectional=True)
    for names, suffix in zip(plain._all_weights, ("_l0", "_l0_reverse", "_l1", "_l1_reverse"), strict=True):
        expected += [*names, *(own + suffix for own in shapes)]
        for own, width in shapes.items():
            parameter = getattr(module, own + suffix)
            assert isinstance(parameter, nn.Parameter) and parameter.requires_grad
            assert torch.equal(parameter, torch.full((width,), float(own != "bias_ln_c"), dtype=torch.float64))
    assert module._flat_weights_names == expected
    assert sorted(module.state_dict()) == sorted(expected)
    assert [len(weights) for weights in module.all_weights] == [4 + len(shapes)] * 4


@every_name
@pytest.mark.parametrize("options", [{}, RANDOM, {"zoneout": 0.2}], ids=str)
def test_without_layer_norm_the_parameters_are_torchs(name, options):
    """The same names, and by the same seed the same values; so a state_dict goes both ways."""
    torch.manual_seed(5)
    ours = made(name, 5, 6, num_layers=2, bidirectional=True, **options)
    torch.manual_seed(5)
    its = theirs(name, 5, 6, num_layers=2, bidirectional=True)
    assert list(ours.state_dict()) == list(its.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), its.parameters(), strict=True))
    its.load_state_dict(ours.state_dict())
    ours.load_state_dict(its.state_dict())


@every_name
def test_layer_norm_leaves_the_other_weights_as_drawn(name):
    torch.manual_seed(5)
    ours = made(name, 5, 6, num_layers=2, layer_norm=True)
    torch.manual_seed(5)
    its = theirs(name, 5, 6, num_layers=2)
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in its.state_dict().items())


@pytest.mark.parametrize("bias", [True, False])
def test_all_of_an_lstms_parameters_in_their_order(bias):
    module = made("LSTM", 5, 6, bias=bias, proj_size=2, peephole=True, layer_norm=True)
    expected = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] * bias), "weight_hr", "weight_peephole",
                "weight_ln_ih", "weight_ln_hh", "weight_ln_c", "bias_ln_c"]  # fmt: skip
    assert module._flat_weights_names == [f"{name}_l0" for name in expected]


@every_name
def test_reset_parameters(name):
    """Gains of one, shifts of zero again, and the others drawn anew between the bounds."""
    module = made(name, layer_norm=True)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(7)
    module.reset_parameters()
    for key, value in module.state_dict().items():
        if "_ln_" in key:
            assert torch.equal(value, before[key])
        else:
            assert value.abs().max() <= 6**-0.5 and value.unique().numel() > 1
            assert not torch.equal(value, before[key])


@every_name
def test_device_and_dtype_of_the_gains(name):
    module = made(name, layer_norm=True, dtype=torch.bfloat16, device="meta")
    assert {(p.dtype, p.device.type) for p in module.parameters()} == {(torch.bfloat16, "meta")}
    module.to_empty(device="cpu").reset_parameters()
    assert torch.equal(module.weight_ln_hh_l0, torch.ones_like(module.weight_ln_hh_l0))
    assert made(name, layer_norm=True, dtype=None).half().weight_ln_ih_l0.dtype == torch.float16


# -- what is computed -------------------------------------------------------------------------------------------------
@every_name
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("form", ["padded", "batch_first", "unbatched", "packed"])
def test_is_the_twin(name, training, form):
    """Results and all gradients of the twin with the module's parameters and the same seed."""
    options = {"num_layers": 2, "bidirectional": True}
    module = made(name, **options, **ALL, dropout=0.5, batch_first=form == "batch_first").train(training)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-1, 1)
    x = inputs(4, 5) if form == "unbatched" else inputs()
    sizes = torch.tensor([3, 2, 2, 1])  # of lengths 4, 3, 1

    def by_module(x):
        if form != "packed":
            return module(x)
        output, state = module(pack_padded_sequence(x, [4, 3, 1]))
        return output.data, state

    def by_twin(x):
        function, more = getattr(reference, name.lower()), {"batch_first": form == "batch_first"}
        if form == "packed":
            x, more = pack_padded_sequence(x, [4, 3, 1]).data, {"batch_sizes": sizes}
        x = x[:, None] if form == "unbatched" else x
        results = function(x, None, module._flat_weights, **options, **ALL, **more, dropout=0.5, training=training)
        return [r.squeeze(1) for r in results] if form == "unbatched" else results

    found = []
    for function in (by_module, by_twin):
        leaves = {"input": x.requires_grad_()} | dict(module.named_parameters())
        torch.manual_seed(3)
        results = torch.utils._pytree.tree_leaves(function(x))
        found.append(with_gradients({str(i): t for i, t in enumerate(results)}, leaves))
    assert_equal(*found, tolerance=1e-9)


@every_name
def test_in_evaluation_dropout_is_nothing(name):
    """The layer is torch's then, to rounding; with zoneout and layer normalisation it is not, but draws nothing."""
    its = theirs(name, num_layers=2)
    ours = made(name, num_layers=2, recurrent_dropout=0.5, weight_dropout=0.5).eval()
    ours.load_state_dict(its.state_dict())
    x = inputs()
    torch.testing.assert_close(ours(x)[0], its(x)[0], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(ours.train()(x)[0], its(x)[0])
    for options in ({"zoneout": 0.3}, {"layer_norm": True}):
        varied = made(name, num_layers=2, **options).eval()
        varied.load_state_dict(its.state_dict(), strict=False)
        before = torch.get_rng_state()
        first = varied(x)[0]
        assert torch.equal(first, varied(x)[0]) and not torch.allclose(first, its(x)[0])
        assert torch.equal(torch.get_rng_state(), before)


@every_name
@every_random
def test_masks(name, variant):
    """Of each call its own; by the same seed the same; of another module others."""
    module, x = made(name, num_layers=2, **variant), inputs()
    first = seeded(module, x)
    assert not torch.equal(first, module(x)[0])
    assert torch.equal(first, seeded(module, x)) and not torch.equal(first, seeded(module, x, 2))
    twin = copy.deepcopy(module)
    torch.manual_seed(1)
    assert torch.equal(twin(x)[0], first) and not torch.equal(module(x)[0], first)
    evaluated = module.eval()(x)[0]
    assert torch.equal(evaluated, seeded(module, x, 5)) and not torch.equal(evaluated, first)
    assert torch.equal(seeded(module.train(), x), first)


@every_name
@pytest.mark.parametrize("options", [ALL, RANDOM], ids=["all", "random"])
def test_packed_is_each_sequence_alone_in_evaluation(name, options):
    module = made(name, num_layers=2, bidirectional=True, **options).eval()
    x, lengths = inputs(7, 3, 5), [2, 7, 4]
    output, state = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
    for sample, (length, found) in enumerate(zip(lengths, unpack_sequence(output), strict=True)):
        alone, last = module(x[:length, sample])
        torch.testing.assert_close(found, alone, rtol=1e-11, atol=1e-11)
        for mine, its in zip(*(torch.utils._pytree.tree_leaves(s) for s in (state, last)), strict=True):
            torch.testing.assert_close(mine[:, sample], its, rtol=1e-11, atol=1e-11)


@every_name
def test_attributes_may_be_changed(name):
    """All but layer_norm, between calls: the module is then as one that was made with them."""
    module, x = made(name), inputs()
    plain = seeded(module, x)
    for attribute, value in RANDOM.items():
        other = made(name, **{attribute: value})
        other.load_state_dict(module.state_dict())
        setattr(module, attribute, value)
        assert torch.equal(seeded(module, x), seeded(other, x)), attribute
        assert not torch.equal(seeded(module, x), plain)
        setattr(module, attribute, 0.0)
        assert torch.equal(seeded(module, x), plain)
    if name == "LSTM":
        module.zoneout = (0.0, 0.5)
        assert not torch.equal(seeded(module, x), plain)
    module.zoneout = 1.5
    with pytest.raises(ValueError, match="zoneout should be a number in range"):
        module(x)


@every_name
def test_training_fits_a_toy(name):
    """A few steps of Adam with everything on lower the loss in evaluation; every parameter receives a gradient."""
    torch.manual_seed(0)
    options = {"layer_norm": True, "zoneout": 0.05, "recurrent_dropout": 0.05, "weight_dropout": 0.05}
    module = made(name, 3, 16, **options)
    head = nn.Linear(16, 1, dtype=torch.float64)
    x = inputs(6, 32, 3)
    target = x[..., :1].cumsum(0).tanh()
    optimiser = torch.optim.Adam([*module.parameters(), *head.parameters()], 0.01)

    def loss():
        return (head(module(x)[0]) - target).square().mean()

    module.eval()
    begin = loss().item()
    module.train()
    for _ in range(40):
        optimiser.zero_grad()
        loss().backward()
        assert all(p.grad.abs().max() > 0 for p in module.parameters())
        optimiser.step()
    module.eval()
    assert loss().item() < begin / 3
