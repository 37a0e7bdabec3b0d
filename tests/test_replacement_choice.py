"""`pykernels.replace`: what is left as it is and why, what is chosen, and what is said about it."""

from __future__ import annotations

import logging
import types

import pytest
import torch
from torch import nn
from torch.utils.mkldnn import to_mkldnn

import pykernels
from pykernels import _native
from pykernels.replacement import OURS
from tests.helpers import assert_equal, assert_same_bits, outcome

from .replacements import EXAMPLES, TOKENS, classes, is_ours, mixed, results

X = torch.randn(3, 4, 5)


class OwnForward(nn.LSTM):
    def forward(self, input, hx=None):
        output, state = super().forward(input, hx)
        return output + 1, state


class OnlyAName(nn.LayerNorm):
    """Whose code may ask for its class."""


class Around(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def with_forward_on_the_object():
    layer = nn.LSTM(5, 6)
    inner = layer.forward
    layer.forward = lambda *given: inner(*given)
    return layer


def with_attribute(name, value):
    layer = nn.GRU(5, 6)
    setattr(layer, name, value)
    return layer


def traced():
    return torch.fx.symbolic_trace(Around(nn.GRU(5, 6)))


def of_a_tensor_subclass():
    class Marked(torch.Tensor):
        pass

    layer = nn.LayerNorm(5)
    layer.weight = nn.Parameter(torch.ones(5).as_subclass(Marked))
    return layer


LEFT = {
    "own forward": (lambda: OwnForward(5, 6), "a class of its own, tests.test_replacement_choice.OwnForward"),
    "subclass": (lambda: OnlyAName(5), "a class of its own, tests.test_replacement_choice.OnlyAName"),
    "forward on the object": (with_forward_on_the_object, "its forward is not that of its class"),
    "complex": (lambda: nn.LSTM(5, 6, dtype=torch.complex64), "no kernels for torch.complex64"),
    "complex norm": (lambda: nn.LayerNorm(5, dtype=torch.complex128), "no kernels for torch.complex128"),
    "tensor subclass": (of_a_tensor_subclass, "its parameters are of type Marked"),
    "attribute of ours": (
        lambda: with_attribute("zoneout", 0.5),
        "it has attributes that pykernels.GRU has for something else: zoneout",
    ),
    "module of the same name": (
        lambda: with_attribute("layer_norm", nn.LayerNorm(6)),
        "it has attributes that pykernels.GRU has for something else: layer_norm",
    ),
    "method of ours": (
        lambda: with_attribute("compute", None),
        "it has attributes that pykernels.GRU has for something else: compute",
    ),
    "dynamic quantization": (
        lambda: torch.ao.nn.quantized.dynamic.LSTM(5, 6),
        "a class of its own, torch.ao.nn.quantized.dynamic.modules.rnn.LSTM",
    ),
    "quantizable": (
        lambda: torch.ao.nn.quantizable.MultiheadAttention(4, 2),
        "a class of its own, torch.ao.nn.quantizable.modules.activation.MultiheadAttention",
    ),
}


@pytest.mark.parametrize("what", LEFT)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_left_and_logged(what, caplog):
    make, reason = LEFT[what]
    model = Around(make())
    kinds, keys = classes(model), set(vars(model.layer))
    with caplog.at_level(logging.INFO, "pykernels"):
        assert pykernels.replace(model, exclude=nn.LayerNorm if what == "module of the same name" else ()) is model
    assert type(model.layer) is kinds["layer"] and set(vars(model.layer)) == keys
    said = [(r.name, r.levelname, r.getMessage()) for r in caplog.records if "layer" in r.getMessage().rsplit(": ")[-1]]
    assert ("pykernels", "WARNING", f"left as it was ({reason}): layer") in said
    entry = next(entry for entry in pykernels.replacements(model) if entry.name == "layer")
    assert entry == ("layer", type(model.layer), "left", reason)


def test_a_subclass_with_its_own_forward_computes_as_before():
    model = nn.ModuleDict({"own": OwnForward(5, 6), "torchs": nn.LSTM(5, 6)})
    before = model["own"](X)[0]
    pykernels.replace(model)
    assert type(model["own"]) is OwnForward and type(model["torchs"]) is pykernels.LSTM
    assert torch.equal(model["own"](X)[0], before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, X)], ids=["script", "trace"])
def test_torchscript_is_left(make, caplog):
    model = make(Around(nn.LayerNorm(5)))
    before = model(X)
    pykernels.replace(model)
    assert torch.equal(model(X), before)
    assert [r.getMessage() for r in caplog.records] == ["left as it was (TorchScript): layer"]
    assert [entry.status for entry in pykernels.replacements(model)] == ["left"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mkldnn_modules_are_left():
    """Theirs are TorchScript of other names; a layer beside them gets what they give."""
    model = to_mkldnn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv1d(3, 4, 3), nn.BatchNorm2d(4), nn.LayerNorm(6)).eval())
    kinds, x = classes(model), torch.randn(1, 3, 6, 6)
    before = model[0](x.to_mkldnn()).to_dense()
    assert [entry.name for entry in pykernels.replacements(pykernels.replace(model))] == ["3"]
    assert classes(model) == kinds | {"": type(model), "3": pykernels.LayerNorm}
    assert torch.equal(model[0](x.to_mkldnn()).to_dense(), before)


def test_mkldnn_tensors_are_given_to_torch():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    x = torch.randn(1, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(pykernels.replace(model)(x.to_mkldnn()).to_dense(), pykernels.restore(model)(x))


PATCHED = {"Conv2d": ("_conv_forward", "forward"), "LayerNorm": ("forward",), "LSTM": ("forward", "permute_hidden")}


@pytest.mark.parametrize("kind, name", [(kind, name) for kind, names in PATCHED.items() for name in names])
def test_classes_of_torch_that_somebody_changed_are_left(kind, name, monkeypatch, caplog):
    theirs = getattr(nn, kind)
    example = next(example for example in EXAMPLES if example.name == kind)
    with monkeypatch.context() as patch:
        was = getattr(theirs, name)
        patch.setattr(theirs, name, lambda self, *given: was(self, *given))
        model = pykernels.replace(nn.Sequential(example.make()))
        assert type(model[0]) is theirs
    assert [r.getMessage() for r in caplog.records] == [f"left as it was (torch.nn.{kind} was changed: {name}): 0"]
    assert type(pykernels.replace(model)[0]) is example.ours


def test_classes_of_torch_that_are_drawn_otherwise_are_replaced(monkeypatch):
    """As is done to load large models."""
    for kind in (nn.Conv2d, nn.LSTM):
        monkeypatch.setattr(kind, "reset_parameters", lambda self: None)
    monkeypatch.setattr(nn.Conv2d, "__init__", lambda self, *given, was=nn.Conv2d.__init__: was(self, *given))
    model = pykernels.replace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LSTM(5, 6)))
    assert [type(module) for module in model] == [pykernels.Conv2d, pykernels.LSTM]


def test_graph_modules_are_left(caplog):
    graph = traced()
    model = nn.ModuleList([graph, nn.GRU(5, 6)])
    pykernels.replace(model)
    assert type(graph.layer) is nn.GRU and type(model[1]) is pykernels.GRU
    assert [r.getMessage() for r in caplog.records] == ["left as it was (in a torch.fx.GraphModule): 0.layer"]


def test_lazy_modules_are_left_until_they_are_called(caplog, monkeypatch):
    monkeypatch.setitem(OURS, nn.Conv2d, OURS.get(nn.Conv2d, type("Conv2d", (nn.Conv2d,), {})))
    model = nn.Sequential(nn.LazyConv2d(4, 3))
    pykernels.replace(model)
    assert type(model[0]) is nn.LazyConv2d
    assert [r.getMessage() for r in caplog.records] == ["left as it was (lazy: the first call makes it a Conv2d): 0"]
    model(torch.randn(1, 3, 5, 5))
    assert pykernels.replacements(model) == [("0", nn.Conv2d, "replaceable", "")]


def test_a_device_without_kernels(monkeypatch):
    """Where torch has a GPU and this package was built without; a module without tensors goes by the model's."""
    monkeypatch.setattr(_native, "cuda_kernels", None)
    model = nn.Sequential(nn.LayerNorm(5), nn.LayerNorm(5, elementwise_affine=False))
    assert {entry.status for entry in pykernels.replacements(model)} == {"replaceable"}
    with torch.device("meta"):
        model = nn.Sequential(nn.LayerNorm(5), nn.LayerNorm(5, elementwise_affine=False))
    assert {entry.status for entry in pykernels.replacements(model)} == {"replaceable"}
    for parameter in model.parameters():
        monkeypatch.setattr(type(parameter), "device", types.SimpleNamespace(type="cuda"))
    assert {entry.reason for entry in pykernels.replacements(model)} == {"no kernels for cuda"}
    monkeypatch.setattr(_native, "cuda_kernels", object())
    assert {entry.status for entry in pykernels.replacements(model)} == {"replaceable"}


# -- what is chosen ---------------------------------------------------------------------------------------------------
def replaced(model) -> set[str]:
    return {entry.name for entry in pykernels.replacements(model) if entry.status == "replaced"}


CHOICES = {
    "a class": ({"only": nn.LSTM}, {"layers.0"}),
    "classes": ({"only": (nn.LSTM, nn.RNN)}, {"layers.0", "named.rnn"}),
    "a base class": ({"only": nn.RNNBase}, {"layers.0", "layers.1", "named.rnn"}),
    "a name": ({"only": "layers.1"}, {"layers.1"}),
    "a name and what is inside": ({"only": "head"}, {"head.0"}),
    "a class and what is inside": ({"only": nn.ModuleDict}, {"norm", "named.rnn"}),
    "both": ({"only": ["layers", nn.LSTMCell]}, {"layers.0", "layers.1", "cell"}),
    "a shared module by its other name": ({"only": "named.shared"}, {"norm"}),
    "not": ({"only": ["layers", "named"], "exclude": [nn.GRU, "named.shared"]}, {"layers.0", "named.rnn"}),
    "a class of ours": ({"only": pykernels.LSTM}, {"layers.0"}),
    "not a class of ours": ({"only": ["layers"], "exclude": (pykernels.LSTM,)}, {"layers.1"}),
    "nothing": ({"only": []}, set()),
    "not the model": ({"exclude": ""}, set()),
}


@pytest.mark.parametrize("what", CHOICES)
def test_choice(what):
    options, expected = CHOICES[what]
    model = mixed()
    before = results(model, TOKENS)
    assert replaced(pykernels.replace(model, **options)) == expected
    assert_equal(results(model, TOKENS), before)
    assert_same_bits(results(pykernels.restore(model), TOKENS), before)


def test_parts_of_a_layer_alone():
    """Ours with torch's attention inside, and the other way round."""
    for options in ({"exclude": nn.MultiheadAttention}, {"only": nn.MultiheadAttention}, {"only": nn.LayerNorm}):
        for training in (True, False):
            model = mixed().train(training)
            before = results(model, TOKENS)
            assert replaced(pykernels.replace(model, **options))
            assert_equal(results(model, TOKENS), before)
            with torch.no_grad():
                torch.testing.assert_close(model(TOKENS), before["0"])


def test_wrong_arguments():
    model = mixed()
    expected = "[pykernels] expected a torch.nn.Module, got list"
    for function in (pykernels.replace, pykernels.restore, pykernels.replacements):
        assert outcome(lambda function=function: function([model])) == (TypeError, expected)
    for wrong, kind in (
        ([3], "int"),
        (3, "int"),
        (model.cell, "LSTMCell"),
        (model.layers, "ModuleList"),
        ([None], "NoneType"),
    ):
        expected = TypeError, f"[pykernels] expected classes and names of modules, got {kind}"
        for given in ({"only": wrong}, {"exclude": wrong}):
            assert outcome(lambda given=given: pykernels.replace(model, **given)) == expected
    expected = "[pykernels] expected classes and names of modules, got NoneType"
    assert outcome(lambda: pykernels.replace(model, exclude=None)) == (TypeError, expected)
    for wrong in ({"only": "layers.2"}, {"exclude": ["decoder"]}):
        assert outcome(lambda wrong=wrong: pykernels.replace(model, **wrong))[0] is AttributeError
    assert not any(is_ours(module) for module in model.modules())


# -- what is said -----------------------------------------------------------------------------------------------------
def test_log_of_what_is_done(caplog):
    model = nn.Sequential(nn.LSTM(5, 5), Around(nn.LayerNorm(5)), nn.LayerNorm(5), nn.Linear(5, 5))
    with caplog.at_level(logging.INFO, "pykernels"):
        pykernels.replace(model)
        pykernels.replace(model)
        pykernels.restore(model)
        pykernels.restore(model)
        pykernels.replace(model[0])
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "replaced torch.nn.LSTM by pykernels.LSTM: 0"),
        ("INFO", "replaced torch.nn.LayerNorm by pykernels.LayerNorm: 1.layer, 2"),
        ("INFO", "restored torch.nn.LSTM: 0"),
        ("INFO", "restored torch.nn.LayerNorm: 1.layer, 2"),
        ("INFO", "replaced torch.nn.LSTM by pykernels.LSTM: the model itself"),
    ]


def test_replacements_tells_what_would_be_and_what_is():
    model = nn.Sequential(nn.LSTM(5, 5), OwnForward(5, 5), nn.Linear(5, 5))
    reason = LEFT["own forward"][1]
    left = ("1", OwnForward, "left", reason)
    assert pykernels.replacements(model) == [("0", nn.LSTM, "replaceable", ""), left]
    assert type(model[0]) is nn.LSTM
    pykernels.replace(model)
    assert pykernels.replacements(model) == [("0", nn.LSTM, "replaced", ""), left]
    assert pykernels.replacements(pykernels.restore(model))[0].status == "replaceable"


# -- what restore leaves ----------------------------------------------------------------------------------------------
def test_what_torch_has_not_stays_ours(caplog):
    model = pykernels.replace(nn.Sequential(nn.LSTM(5, 5), nn.LSTM(5, 5), nn.GRU(5, 5)))
    model[0].zoneout, model[2].zoneout = 0.5, 0.5
    pykernels.restore(model)
    assert [type(layer) for layer in model] == [pykernels.LSTM, nn.LSTM, pykernels.GRU]
    assert [r.getMessage() for r in caplog.records] == [
        "not restored (torch.nn.LSTM has no zoneout): 0",
        "not restored (torch.nn.GRU has no zoneout): 2",
    ]
    model[0].zoneout = 0.0
    pykernels.restore(model)
    assert type(model[0]) is nn.LSTM and not hasattr(model[0], "zoneout")


@pytest.mark.parametrize("padding", ["full", ((1, 2), (0, 1)), [[1, 2], 1]], ids=str)
def test_a_padding_that_torch_has_not_stays_ours(padding, caplog):
    model = pykernels.replace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, padding="same")))
    x = torch.randn(1, 3, 6, 6)
    model[0].padding = padding
    before = model[0](x)
    pykernels.restore(model)
    assert [type(layer) for layer in model] == [pykernels.Conv2d, nn.Conv2d]
    assert [r.getMessage() for r in caplog.records] == [
        f"not restored (torch.nn.Conv2d has no padding of {padding!r}): 0"
    ]
    assert torch.equal(model[0](x), before)
    model[0].padding = (1, 1)
    assert type(pykernels.restore(model)[0]) is nn.Conv2d


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_modes_go_by_what_torchs_module_goes_by(mode):
    """There and back, whatever is set on the module."""
    x = torch.randn(2, 3, 6, 6)
    for attributes in (
        {"_reversed_padding_repeated_twice": [2, 2, 0, 0]},
        {"_reversed_padding_repeated_twice": [-1, 0, 1, 2]},
        {"padding": (0, 0)},
        {"padding": "full"},
    ):
        module = nn.Conv2d(3, 3, 3, padding=1, padding_mode=mode)
        vars(module).update(attributes)
        expected = module(x)
        torch.testing.assert_close(pykernels.replace(module)(x), expected)
        assert type(module) is pykernels.Conv2d and type(pykernels.restore(module)) is nn.Conv2d
        assert torch.equal(module(x), expected)


def test_another_class_since_then_stays(caplog):
    class Sharded(pykernels.LayerNorm):
        pass

    model = pykernels.replace(nn.Sequential(nn.LayerNorm(5)))
    model[0].__class__ = Sharded
    pykernels.restore(model)
    assert type(model[0]) is Sharded
    assert [r.getMessage() for r in caplog.records] == ["not restored (it has become a Sharded): 0"]
