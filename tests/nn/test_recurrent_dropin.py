"""The recurrent modules and cells in the place of torch's: construction, state, copies, parametrizations."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_sequence

from tests.helpers import assert_equal, assert_same_bits, outcome, with_gradients

from .pairs import CELLS, LAYERS, Pair, every_layer, every_pair

OPTIONS = [
    {},
    {"bias": False},
    {"num_layers": 3, "bidirectional": True, "dropout": 0.2, "batch_first": True},
    {"num_layers": 2, "proj_size": 2, "bidirectional": True},
]
CHOICES = [(pair, o) for pair in LAYERS for o in OPTIONS if pair.is_lstm or "proj_size" not in o]
CHOICES += [(pair, o) for pair in CELLS for o in ({}, {"bias": False})]
every_choice = pytest.mark.parametrize("pair, options", CHOICES, ids=str)
OWN = {"LSTM": {"peephole": True}, "GRU": {"reset_after": False}, "RNN": {}}


def own_options(pair: Pair) -> dict[str, bool]:
    """What ours has beyond torch's, not as it is by default. (RNNCell has nothing.)"""
    return OWN[pair.name.removesuffix("Cell")]


def flat(results) -> dict[str, torch.Tensor]:
    return {str(index): tensor.detach() for index, tensor in enumerate(torch.utils._pytree.tree_leaves(results))}


# -- construction -----------------------------------------------------------------------------------------------------
@every_pair
def test_takes_the_same_arguments(pair):
    """Same names, order and defaults by position and by name, and what only ours has as a keyword after them."""
    ours, theirs = pair.both
    base = theirs.__init__ if pair.is_cell else nn.modules.rnn.RNNBase.__init__
    expected = [p for n, p in inspect.signature(base).parameters.items() if n not in ("self", "mode")]
    if pair.name == "RNN":
        kind = inspect.Parameter
        expected.insert(3, kind("nonlinearity", kind.POSITIONAL_OR_KEYWORD, default="tanh"))
    values = {"input_size": 5, "hidden_size": 6, "num_layers": 2, "batch_first": True, "dropout": 0.25}
    values |= pair.options
    arguments = [values.get(p.name, p.default) for p in expected]
    by_name = {p.name: value for p, value in zip(expected, arguments, strict=True)}
    if pair.name in ("GRU", "RNN"):
        del by_name["proj_size"]  # which torch takes by position only, as it hands all of them on to RNNBase
    model = theirs(*arguments)
    for module in (ours(*arguments), ours(**by_name)):
        for p in expected:
            if p.name not in ("device", "dtype"):
                assert getattr(module, p.name) == getattr(model, p.name), p.name
    if not own_options(pair):
        return
    assert outcome(lambda: ours(*arguments, True))[0] is TypeError
    for name, value in own_options(pair).items():
        assert getattr(ours(5, 6), name) is (not value) and getattr(ours(5, 6, **{name: value}), name) is value


@pytest.mark.parametrize("count", range(2, 8))
@every_layer
def test_positions_are_torchs(pair, count):
    """The first arguments by position, as far as torch names them."""
    arguments = [5, 6, 2, False, True, 0.25, True][:count]
    if pair.name == "RNN":
        arguments = [5, 6, 2, "relu", False, True, 0.25][:count]
    module, model = (kind(*arguments) for kind in pair.both)
    for name in ("num_layers", "bias", "batch_first", "dropout", "bidirectional", "mode"):
        assert getattr(module, name) == getattr(model, name), name


@every_pair
def test_is_what_torch_recognises(pair):
    ours, theirs = pair.both
    base = nn.modules.rnn.RNNCellBase if pair.is_cell else nn.modules.rnn.RNNBase
    assert issubclass(ours, base) and not issubclass(ours, theirs)
    assert ours.__name__ == theirs.__name__
    if not pair.is_cell:
        assert pair.ours(2, 3).mode == pair.theirs(2, 3).mode


@every_choice
def test_same_seed_same_initialisation_and_names(pair, options):
    found = []
    for make in (pair.ours, pair.theirs):
        torch.manual_seed(11)
        module = make(5, 6, **options)
        found.append((list(module.named_parameters()), torch.rand(1)))
    (mine, after), (expected, after_expected) = found
    assert [name for name, _ in mine] == [name for name, _ in expected]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(mine, expected, strict=True))
    assert torch.equal(after, after_expected), "construction drew other random numbers"


@every_pair
def test_reset_parameters_draws_as_torch(pair):
    found = []
    for make in (pair.ours, pair.theirs):
        module = make(5, 6)
        torch.manual_seed(12)
        module.reset_parameters()
        found.append({name: p.detach() for name, p in module.named_parameters()})
    assert_same_bits(*found)


@every_choice
def test_same_text(pair, options):
    assert repr(pair.ours(5, 6, **options)) == repr(pair.theirs(5, 6, **options))
    for name, value in own_options(pair).items():
        assert f"{name}={value}" in repr(pair.ours(5, 6, **options, **{name: value}))


@every_choice
def test_has_torchs_attributes(pair, options):
    """What code that inspects a module reads: constants, the flat weights, how many parameters."""
    module, model = pair.ours(5, 6, **options), pair.theirs(5, 6, **options)
    for name in model.__constants__:
        assert getattr(module, name) == getattr(model, name), name
    if not pair.is_cell:
        assert module._flat_weights_names == model._flat_weights_names
        assert [[w.shape for w in ws] for ws in module.all_weights] == [
            [w.shape for w in ws] for ws in model.all_weights
        ]
        assert [id(w) for w in module._flat_weights] == [id(p) for p in module.parameters()]


# -- state and copies -------------------------------------------------------------------------------------------------
@every_choice
def test_state_dict_moves_both_ways(pair, options):
    there, here = pair.theirs(5, 6, **options).double(), pair.ours(5, 6, **options).double()
    here.load_state_dict(there.state_dict())
    x = pair.example(torch.float64)
    assert_equal(flat(here.eval()(x)), flat(there.eval()(x)))
    assert list(here.state_dict()) == list(there.state_dict())
    back = pair.theirs(5, 6, **options).double().eval()
    back.load_state_dict(here.state_dict())
    assert_equal(flat(back(x)), flat(there(x)))


def copies(module: nn.Module):
    yield copy.deepcopy(module)
    yield copy.copy(module)
    yield pickle.loads(pickle.dumps(module))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    yield torch.load(file, weights_only=False)


@pytest.mark.parametrize("own", [False, True], ids=["as_torchs", "own_options"])
@every_pair
def test_copies_compute_the_same(pair, own, device):
    module = pair.ours(5, 6, **own_options(pair) if own else {}, device=device)
    x = pair.example(device=device)
    expected = flat(module(x))
    for copied in copies(module):
        assert repr(copied) == repr(module)
        assert_same_bits(flat(copied(x)), expected)


@every_pair
def test_a_state_without_our_own_options(pair):
    """Pickled before an option was there, or by torch: it has the value of torch's."""
    module = pair.ours(5, 6)
    state = {name: value for name, value in module.__getstate__().items() if name not in own_options(pair)}
    restored = pair.both[0].__new__(pair.both[0])
    restored.__setstate__(state)
    x = pair.example()
    assert_same_bits(flat(restored(x)), flat(module(x)))
    assert repr(restored) == repr(module)


@every_pair
def test_a_deep_copy_is_independent(pair):
    module = pair.ours(5, 6)
    x, copied = pair.example(), copy.deepcopy(module)
    expected = flat(module(x))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(-2)
    assert_same_bits(flat(module(x)), expected)
    assert not torch.equal(flat(copied(x))["0"], expected["0"])


# -- changing parameters ----------------------------------------------------------------------------------------------
@every_layer
def test_updates_in_place_are_seen(pair):
    """No stale copy of packed weights: in-place, .data and replaced parameters all count in the next call."""
    module, model = pair.ours(5, 6).double(), pair.theirs(5, 6).double()
    x = pair.example(torch.float64)

    def change_in_place(m):
        with torch.no_grad():
            m.weight_hh_l0.add_(0.25)

    def change_data(m):
        m.weight_ih_l0.data.mul_(0.5)

    def change_storage(m):
        m.bias_hh_l0.data = torch.linspace(-1, 1, m.bias_hh_l0.numel(), dtype=torch.float64)

    def replace(m):
        weight = torch.linspace(-1, 1, m.weight_hh_l0.numel(), dtype=torch.float64)
        m.weight_hh_l0 = nn.Parameter(weight.view_as(m.weight_hh_l0))

    def step(m):
        m(x)[0].sum().backward()
        torch.optim.SGD(m.parameters(), lr=0.1).step()

    def use_numpy(m):
        m.weight_ih_l0.detach().numpy()[...] *= 0.5  # without a version bump

    model.load_state_dict(module.state_dict())
    for change in (change_in_place, change_data, change_storage, replace, step, use_numpy):
        for m in (module, model):
            m(x)  # a call before, so that anything remembered would be remembered
            with torch.no_grad():
                m(x)
            change(m)
        assert_equal(flat(module(x)), flat(model(x)))
        with torch.no_grad():
            assert_equal(flat(module(x)), flat(model(x)))


@every_layer
@pytest.mark.parametrize("other", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_moves_between_dtypes(other, device, pair):
    module = pair.ours(5, 6, num_layers=2, device=device).to(other)
    assert all(p.dtype == other for p in module.parameters())
    assert [id(w) for w in module._flat_weights] == [id(p) for p in module.parameters()]
    output, _ = module(pair.example(other, device))
    assert output.dtype == other and output.isfinite().all()


@every_layer
def test_meta_and_back(pair):
    module = pair.ours(5, 6, num_layers=2, bidirectional=True, device="meta")
    model = pair.theirs(5, 6, num_layers=2, bidirectional=True)
    module = module.to_empty(device="cpu")
    module.load_state_dict(model.state_dict())
    x = pair.example()
    torch.testing.assert_close(module(x)[0], model(x)[0])


@every_pair
def test_meta_module_tells_shapes(pair):
    options = {} if pair.is_cell else {"num_layers": 2, "bidirectional": True}
    options |= {"proj_size": 2} if pair.name == "LSTM" else {}
    module, model = pair.ours(5, 6, **options, device="meta"), pair.theirs(5, 6, **options)
    found, expected = (pair.named(m(pair.example(device=d))) for m, d in ((module, "meta"), (model, "cpu")))
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in expected.items()}
    assert all(t.device.type == "meta" for t in found.values())


@every_layer
def test_tied_weights(pair):
    """Both directions share their weights: gradients add up as torch's do."""
    found = []
    for make in (pair.ours, pair.theirs):
        torch.manual_seed(5)
        module = make(5, 6, bidirectional=True, dtype=torch.float64)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(module, f"{name}_l0_reverse", getattr(module, f"{name}_l0"))
        assert len(list(module.parameters())) == 4
        results = pair.named(module(pair.example(torch.float64)))
        found.append(with_gradients(results, dict(module.named_parameters())))
    assert_equal(*found)


@every_pair
@pytest.mark.parametrize("wrap", ["weight_norm", "spectral_norm", "own", "old_weight_norm"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_parametrizations(pair, wrap):
    """A parametrized weight is computed anew at each call, and its own parameters receive torch's gradients."""

    class Negative(nn.Module):
        def forward(self, weight):
            return -weight

    found = []
    for make in (pair.ours, pair.theirs):
        torch.manual_seed(7)
        module = make(5, 6, dtype=torch.float64)
        name = "weight_hh" if pair.is_cell else "weight_hh_l0"
        if wrap == "own":
            parametrize.register_parametrization(module, name, Negative())
        elif wrap == "old_weight_norm":
            nn.utils.weight_norm(module, name)
        else:
            getattr(parametrizations, wrap)(module, name)
        module.eval()
        results = pair.named(module(pair.example(torch.float64)))
        found.append(with_gradients(results, dict(module.named_parameters())))
    assert_equal(*found)


@every_layer
def test_removing_a_parametrization(pair):
    module = pair.ours(5, 6)
    x = pair.example()
    before = module(x)[0]
    parametrizations.weight_norm(module, "weight_ih_l0")
    torch.testing.assert_close(module(x)[0], before)
    parametrize.remove_parametrizations(module, "weight_ih_l0")
    torch.testing.assert_close(module(x)[0], before)
    assert isinstance(module.weight_ih_l0, nn.Parameter)


@every_layer
def test_frozen_and_pruned_weights(pair):
    from torch.nn.utils import prune

    found = []
    for make in (pair.ours, pair.theirs):
        torch.manual_seed(9)
        module = make(5, 6, dtype=torch.float64)
        module.weight_ih_l0.requires_grad_(False)
        prune.random_unstructured(module, "weight_hh_l0", amount=0.5)
        output, _ = module(pair.example(torch.float64))
        leaves = {name: p for name, p in module.named_parameters() if p.requires_grad}
        found.append(with_gradients({"output": output}, leaves))
    assert_equal(*found)


# -- tools of torch ---------------------------------------------------------------------------------------------------
@every_layer
def test_hooks_run_and_training_learns(pair):
    """In a Sequential-like model with hooks, clipping and Adam, the loss curves lie on each other."""
    curves = []
    for make in (pair.ours, pair.theirs):
        torch.manual_seed(13)
        module, head = make(5, 16, num_layers=2, batch_first=True).double(), nn.Linear(16, 1).double()
        seen = []
        module.register_forward_hook(lambda *_: seen.append("forward"))  # noqa: B023
        module.register_full_backward_hook(lambda *_: seen.append("backward"))  # noqa: B023
        parameters = [*module.parameters(), *head.parameters()]
        optimiser = torch.optim.Adam(parameters, lr=0.01)
        x = torch.randn(16, 9, 5, dtype=torch.float64, requires_grad=True)
        target = x.detach().sum(2).cumsum(1)[:, -1:]
        curve = []
        for _ in range(25):
            optimiser.zero_grad()
            loss = (head(module(x)[0][:, -1]) - target).square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            curve.append(loss.item())
        assert seen.count("forward") == seen.count("backward") == 25
        curves.append(curve)
    assert curves[0] == pytest.approx(curves[1], rel=1e-9)
    assert curves[0][-1] < curves[0][0] / 2


@every_layer
def test_packed_sequence_of_pack_sequence(pair):
    module, model = pair.ours(5, 6).double(), pair.theirs(5, 6).double()
    module.load_state_dict(model.state_dict())
    sequences = [torch.randn(length, 5, dtype=torch.float64) for length in (2, 7, 1, 4)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    results, expected = module(packed), model(packed)
    assert_equal(*({n: t.detach() for n, t in pair.named(r).items()} for r in (results, expected)))
    unpacked = (nn.utils.rnn.unpack_sequence(r[0]) for r in (results, expected))
    for mine, its in zip(*unpacked, strict=True):
        torch.testing.assert_close(mine, its)


@every_layer
def test_output_layout_of_batch_first(pair):
    """The result of batch_first has torch's strides, so that .view() of it works where it did."""
    for options in ({}, {"bidirectional": True}, {"batch_first": True}):
        module, model = pair.ours(5, 6, **options), pair.theirs(5, 6, **options)
        x = pair.example()
        assert module(x)[0].stride() == model(x)[0].stride()
