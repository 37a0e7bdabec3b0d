"""`pykernels.replace` and `restore`: the same modules with another class, and everything in its place."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, nn

import pykernels
from pykernels.replacement import ORIGIN, OURS, OWN
from tests.helpers import assert_equal, assert_same_bits, outcome

from .replacements import (
    EXAMPLES,
    TOKENS,
    Mixed,
    classes,
    every_class,
    every_example,
    is_ours,
    mixed,
    results,
)


# -- the table --------------------------------------------------------------------------------------------------------
def test_every_module_with_a_counterpart_is_replaced():
    """What `pykernels.nn` has by the name of a module of torch, and an example of each in these tests."""
    names = [name for name in pykernels.nn.__all__ if hasattr(nn, name)]
    assert {theirs.__name__: ours for theirs, ours in OURS.items()} == {n: getattr(pykernels.nn, n) for n in names}
    assert all(getattr(nn, name) in OURS for name in names)
    assert set(names) <= {example.name for example in EXAMPLES}
    assert {"LSTM", "GRUCell", "MultiheadAttention", "TransformerDecoderLayer", "LayerNorm"} <= set(names)


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_examples_run_in_torch(example):
    assert results(example.make(), *example.inputs())


@every_example
def test_a_replaced_module_has_what_one_made_as_ours_has(example):
    """The same attributes with the same values: else ours has one that `OWN` has to name."""
    replaced, made = pykernels.replace(example.make()), example.ours(*example.args, **example.options)
    made_has = dict(vars(made))
    has = {k: v for k, v in vars(replaced).items() if k != ORIGIN}
    assert set(has) == set(made_has)
    for name, value in made_has.items():
        if isinstance(value, (bool, int, float, str, tuple, type(None))):
            assert has[name] == value and type(has[name]) is type(value), name
    assert set(OWN.get(example.ours, ())) == set(has) - set(vars(example.make()))


def test_own_attributes_are_those_of_ours_by_default():
    for ours, attributes in OWN.items():
        made = ours(2, 3, 1)
        assert attributes == {name: getattr(made, name) for name in attributes}, ours


# -- results ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("training", [True, False])
@every_example
def test_results_and_gradients(example, training, device):
    """As before when replaced, and the same bits as before when restored."""
    module, inputs = example.make(device=device).train(training), example.inputs(device=device)
    before, text, identity = results(module, *inputs), repr(module), id(module)
    kept = dict(vars(module))
    assert pykernels.replace(module) is module and id(module) == identity
    assert type(module) is example.ours and repr(module) == text
    assert_equal(results(module, *inputs), before)
    assert pykernels.restore(module) is module
    assert type(module) is example.theirs and repr(module) == text
    assert vars(module).keys() == kept.keys()
    assert_same_bits(results(module, *inputs), before)


@every_example
def test_without_gradients(example, device):
    module, inputs = example.make(device=device).eval(), example.inputs(device=device)
    with torch.no_grad():
        before = results(module, *inputs)
        assert_equal(results(pykernels.replace(module), *inputs), before)
        assert_same_bits(results(pykernels.restore(module), *inputs), before)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_of_many_kinds(training, device):
    model, tokens = mixed().to(device).train(training), TOKENS.to(device)
    before, kinds, names = results(model, tokens), classes(model), [name for name, _ in model.named_modules()]
    pykernels.replace(model)
    assert {name for name, kind in classes(model).items() if kind is not kinds[name]} == {
        name for name, kind in kinds.items() if kind in OURS
    }
    assert [name for name, _ in model.named_modules()] == names
    assert_equal(results(model, tokens), before)
    pykernels.restore(model)
    assert classes(model) == kinds
    assert_same_bits(results(model, tokens), before)


def test_errors_are_torchs():
    """Of the module with the class that it has now: the texts are the same."""
    module = nn.LSTM(5, 6)
    wrong = [lambda: module(torch.zeros(3, 4, 7)), lambda: module(torch.zeros(3, 4, 5), torch.zeros(1, 4, 6))]
    before = [outcome(attempt) for attempt in wrong]
    pykernels.replace(module)
    assert [outcome(attempt) for attempt in wrong] == before and all(before)


# -- everything in its place ------------------------------------------------------------------------------------------
def test_state_dict_is_the_same():
    """Keys, order, values, metadata; and what was saved before loads after, and the other way round."""
    model = mixed()
    state = model.state_dict()
    before, metadata = {k: v.clone() for k, v in state.items()}, dict(state._metadata)
    pykernels.replace(model)
    after = model.state_dict()
    assert list(after) == list(before) and dict(after._metadata) == metadata
    assert all(after[name].data_ptr() == state[name].data_ptr() for name in state)
    other = pykernels.replace(Mixed().double())
    assert not other.load_state_dict(before).missing_keys
    assert_same_bits(results(other, TOKENS), results(model, TOKENS))
    pykernels.restore(other).load_state_dict(after)
    fresh = mixed()
    fresh.load_state_dict(pykernels.replace(other).state_dict())
    assert_same_bits(results(fresh, TOKENS), results(pykernels.restore(model), TOKENS))


def test_loading_into_a_replaced_model_is_undone_by_restore():
    model, other = pykernels.replace(mixed()), Mixed().double()
    model.load_state_dict(other.state_dict())
    assert_equal(results(model, TOKENS), results(other, TOKENS))
    assert_same_bits(results(pykernels.restore(model), TOKENS), results(other, TOKENS))


def test_parameters_buffers_and_modules_are_the_same_objects():
    model = mixed()
    model.layers[0].weight_hh_l0.requires_grad_(False)
    model.norm.register_buffer("count", torch.zeros(1))
    model.norm.eval()
    before = {
        "modules": [id(m) for m in model.modules()],
        "parameters": [(name, id(p), p.requires_grad) for name, p in model.named_parameters()],
        "buffers": [(name, id(b)) for name, b in model.named_buffers()],
        "training": [m.training for m in model.modules()],
        "flat": [id(weight) for weight in model.layers[0]._flat_weights],
    }
    held = model.layers[0]
    for change in (pykernels.replace, pykernels.restore):
        change(model)
        assert before == {
            "modules": [id(m) for m in model.modules()],
            "parameters": [(name, id(p), p.requires_grad) for name, p in model.named_parameters()],
            "buffers": [(name, id(b)) for name, b in model.named_buffers()],
            "training": [m.training for m in model.modules()],
            "flat": [id(weight) for weight in model.layers[0]._flat_weights],
        }
        assert model.layers[0] is held and model.named["shared"] is model.norm
        assert model.head[1].weight is model.embedding.weight


@pytest.mark.parametrize("make", [lambda p: torch.optim.Adam(p, 0.01), lambda p: torch.optim.SGD(p, 0.1, 0.9)])
def test_an_optimizer_made_before_goes_on(make):
    """Three steps, replaced, three more, restored, three more: the losses are those of torch's modules all along."""

    def losses(changes):
        model = mixed()
        optimizer, found = make(model.parameters()), []
        for change in changes:
            change(model)
            for _ in range(3):
                optimizer.zero_grad()
                loss = model(TOKENS).square().mean()
                loss.backward()
                optimizer.step()
                found.append(loss.item())
        return found, {name: p.detach() for name, p in model.named_parameters()}

    (found, weights), (expected, expected_weights) = (
        losses(changes) for changes in ((lambda m: m, pykernels.replace, pykernels.restore), (lambda m: m,) * 3)
    )
    assert found == pytest.approx(expected, rel=1e-9) and found[-1] < found[0]
    assert_equal(weights, expected_weights, 1e-7)


def test_attributes_that_somebody_set_stay():
    module = nn.LSTM(5, 6)
    module.comment, module.extra = "mine", nn.Linear(2, 2)
    pykernels.replace(module)
    assert module.comment == "mine" and isinstance(module.extra, nn.Linear)
    module.later = [1]
    pykernels.restore(module)
    assert (module.comment, module.later) == ("mine", [1]) and list(module._modules) == ["extra"]


# -- hooks ------------------------------------------------------------------------------------------------------------
def watched(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, list]:
    """The module with a hook of each kind, and what they are called with."""
    seen: list = []

    def note(label):
        def hook(_, *given):
            leaves = torch.utils._pytree.tree_leaves(given)
            seen.append((label, [x.detach().clone() if isinstance(x, Tensor) else x for x in leaves]))

        return hook

    module.register_forward_pre_hook(note("before"))
    module.register_forward_pre_hook(note("before, named"), with_kwargs=True)
    module.register_forward_pre_hook(note("first"), prepend=True)
    module.register_forward_hook(note("after"))
    module.register_forward_hook(note("after, named"), with_kwargs=True)
    module.register_forward_hook(note("always"), always_call=True)
    module.register_full_backward_pre_hook(note("backward, before"))
    module.register_full_backward_hook(note("backward"))
    return module, seen


def agree(found: list, expected: list) -> None:
    assert [label for label, _ in found] == [label for label, _ in expected]
    for (label, given), (_, given_before) in zip(found, expected, strict=True):
        assert len(given) == len(given_before), label
        for ours, theirs in zip(given, given_before, strict=True):
            if isinstance(theirs, Tensor):
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12, msg=label)
            else:
                assert ours == theirs, label


@every_class
def test_hooks_run_as_before(example):
    """As often, in the same order and with the same arguments, from hooks of each kind."""
    module, seen = watched(example.make(), example.inputs())
    results(module, *example.inputs())
    expected, seen[:] = list(seen), []
    results(pykernels.replace(module), *example.inputs())
    agree(seen, expected)
    assert len({label for label, _ in seen}) == 8
    seen[:] = []
    results(pykernels.restore(module), *example.inputs())
    agree(seen, expected)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("name", ["TransformerEncoderLayer", "TransformerDecoderLayer"])
def test_hooks_inside_a_layer_run_as_before(name, mask):
    """Of every part: dropouts and norms too, which ours otherwise does without calling them."""
    torch.manual_seed(3)
    layer, x = getattr(nn, name)(8, 2, 16, 0.0).double(), torch.randn(5, 3, 8, dtype=torch.float64)
    given = (x,) if "Encoder" in name else (x, x + 1)
    options = {("src_mask" if "Encoder" in name else "tgt_mask"): torch.randn(5, 5).double()} if mask else {}
    seen = {part: watched(module, ())[1] for part, module in layer.named_modules() if part and "out_proj" not in part}
    expected = {}
    for change in (lambda m: m, pykernels.replace, pykernels.restore):
        change(layer)(*given, **options).square().sum().backward()
        if not expected:
            expected = {part: list(calls) for part, calls in seen.items()}
            assert all(expected.values())
        for part, calls in seen.items():
            agree(calls, expected[part])
            calls.clear()


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")
def test_old_backward_hooks_run_as_before():
    module, count = nn.LayerNorm(8), []
    module.register_backward_hook(lambda *_: count.append(1))
    for change in (lambda m: m, pykernels.replace, pykernels.restore):
        change(module)(torch.randn(3, 8, requires_grad=True)).sum().backward()
    assert len(count) == 3


def test_hooks_of_the_state_run_as_before():
    module, seen = nn.LSTM(5, 6), []
    module.register_state_dict_pre_hook(lambda m, *_: seen.append(("saving", m)))
    module.register_state_dict_post_hook(lambda m, *_: seen.append(("saved", m)))
    module.register_load_state_dict_pre_hook(lambda m, *_: seen.append(("loading", m)))
    module.register_load_state_dict_post_hook(lambda m, *_: seen.append(("loaded", m)))
    for change in (lambda m: m, pykernels.replace, pykernels.restore):
        seen.clear()
        change(module).load_state_dict(module.state_dict())
        assert seen == [(what, module) for what in ("saving", "saved", "loading", "loaded")]


def test_hooks_of_all_modules_run_as_before():
    """Global hooks see the module with the class that it has now."""
    module, seen = nn.GRU(5, 6), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    try:
        for change in (lambda m: m, pykernels.replace, pykernels.restore):
            change(module)(torch.randn(2, 3, 5))
    finally:
        handle.remove()
    assert seen == [nn.GRU, pykernels.GRU, nn.GRU]


# -- again, and without -----------------------------------------------------------------------------------------------
def test_twice_and_for_nothing():
    model = mixed()
    kinds, state = classes(model), {name: set(vars(m)) for name, m in model.named_modules()}
    pykernels.restore(model)
    assert classes(model) == kinds
    pykernels.replace(model)
    replaced, all_of_it = classes(model), {name: dict(vars(m)) for name, m in model.named_modules()}
    pykernels.replace(model)
    assert classes(model) == replaced
    assert all(vars(m).keys() == all_of_it[name].keys() for name, m in model.named_modules())
    for _ in range(2):
        pykernels.restore(model)
        assert classes(model) == kinds and state == {name: set(vars(m)) for name, m in model.named_modules()}


def test_modules_made_as_ours_stay_ours():
    model = nn.Sequential(pykernels.LayerNorm(8), nn.LayerNorm(8), pykernels.TransformerEncoderLayer(8, 2))
    pykernels.replace(model)
    assert [entry.name for entry in pykernels.replacements(model)] == ["1", "2.norm1", "2.norm2"]
    pykernels.restore(model)
    assert type(model[0]) is pykernels.LayerNorm and type(model[1]) is nn.LayerNorm
    assert is_ours(model[2]) and is_ours(model[2].self_attn)


def test_signatures_name_no_module_of_the_package():
    """`pykernels.replace` is the function, whatever is imported in which order."""
    assert inspect.isfunction(pykernels.replace) and inspect.isfunction(pykernels.restore)
    assert inspect.ismodule(pykernels.replacement) and pykernels.replacement.replace is pykernels.replace
