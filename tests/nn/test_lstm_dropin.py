"""pykernels.LSTM and LSTMCell in the place of torch's: construction, state, copies, parametrizations."""

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

import pykernels
from tests.helpers import assert_equal, assert_same_bits, outcome, with_gradients

PAIRS = [(pykernels.LSTM, nn.LSTM), (pykernels.LSTMCell, nn.LSTMCell)]
pair = pytest.mark.parametrize("ours, theirs", PAIRS, ids=["LSTM", "LSTMCell"])
OPTIONS = [
    {},
    {"bias": False},
    {"num_layers": 3, "bidirectional": True, "dropout": 0.2, "batch_first": True},
    {"num_layers": 2, "proj_size": 2, "bidirectional": True},
]
CELL_OPTIONS = [{}, {"bias": False}]
CHOICES = [(*PAIRS[0], o) for o in OPTIONS] + [(*PAIRS[1], o) for o in CELL_OPTIONS]
choice = pytest.mark.parametrize("ours, theirs, options", CHOICES, ids=str)


def example(module: nn.Module, dtype=torch.float32, device="cpu") -> torch.Tensor:
    return torch.randn((4, 5) if isinstance(module, pykernels.LSTMCell | nn.LSTMCell) else (3, 4, 5)).to(device, dtype)


def flat(results) -> dict[str, torch.Tensor]:
    return {str(index): tensor.detach() for index, tensor in enumerate(torch.utils._pytree.tree_leaves(results))}


# -- construction -----------------------------------------------------------------------------------------------------
@pair
def test_takes_the_same_arguments(ours, theirs):
    """Same names, order and defaults, and `peephole` as a keyword after them."""
    base = nn.modules.rnn.RNNBase.__init__ if theirs is nn.LSTM else theirs.__init__
    expected = [p for n, p in inspect.signature(base).parameters.items() if n not in ("self", "mode")]
    values = {"input_size": 5, "hidden_size": 6, "num_layers": 2, "batch_first": True, "dropout": 0.25}
    arguments = [values.get(p.name, p.default) for p in expected]
    module, model = ours(*arguments), theirs(*arguments)
    for p in expected:
        if p.name not in ("device", "dtype"):
            assert getattr(module, p.name) == getattr(model, p.name), p.name
    assert module.peephole is False
    assert outcome(lambda: ours(*arguments, True))[0] is TypeError
    with_peephole = ours(5, 6, peephole=True)
    assert with_peephole.peephole is True


def test_is_what_torch_recognises():
    assert issubclass(pykernels.LSTM, nn.modules.rnn.RNNBase) and not issubclass(pykernels.LSTM, nn.LSTM)
    assert issubclass(pykernels.LSTMCell, nn.modules.rnn.RNNCellBase)
    assert pykernels.LSTM(2, 3).mode == "LSTM"


@choice
def test_same_seed_same_initialisation_and_names(ours, theirs, options):
    found = []
    for kind in (ours, theirs):
        torch.manual_seed(11)
        module = kind(5, 6, **options)
        found.append((list(module.named_parameters()), torch.rand(1)))
    (mine, after), (expected, after_expected) = found
    assert [name for name, _ in mine] == [name for name, _ in expected]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(mine, expected, strict=True))
    assert torch.equal(after, after_expected), "construction drew other random numbers"


@choice
def test_same_text(ours, theirs, options):
    assert repr(ours(5, 6, **options)) == repr(theirs(5, 6, **options))
    assert "peephole=True" in repr(ours(5, 6, **options, peephole=True))


def test_peephole_parameters():
    module = pykernels.LSTM(5, 6, 2, bidirectional=True, proj_size=2, peephole=True)
    for suffix in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        weight = getattr(module, "weight_peephole" + suffix)
        assert isinstance(weight, nn.Parameter) and weight.shape == (3, 6)
        assert 0 < weight.abs().max() <= 6**-0.5
    assert pykernels.LSTMCell(5, 6, peephole=True).weight_peephole.shape == (3, 6)
    assert not any("peephole" in name for name in pykernels.LSTM(5, 6).state_dict())
    assert sum(len(names) for names in pykernels.LSTM(5, 6, 2, peephole=True)._all_weights) == 10
    assert [len(weights) for weights in pykernels.LSTM(5, 6, 2, peephole=True).all_weights] == [5, 5]


# -- state and copies -------------------------------------------------------------------------------------------------
@choice
def test_state_dict_moves_both_ways(ours, theirs, options):
    there, here = theirs(5, 6, **options).double(), ours(5, 6, **options).double()
    here.load_state_dict(there.state_dict())
    x = example(here, torch.float64)
    assert_equal(flat(here.eval()(x)), flat(there.eval()(x)))
    other = theirs(5, 6, **options).double()
    other.load_state_dict(ours(5, 6, **options).double().state_dict())
    assert list(here.state_dict()) == list(there.state_dict())
    back = theirs(5, 6, **options).double().eval()
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


@pytest.mark.parametrize("peephole", [False, True], ids=["no_peephole", "peephole"])
@pytest.mark.parametrize("kind", [pykernels.LSTM, pykernels.LSTMCell])
def test_copies_compute_the_same(kind, peephole, device):
    module = kind(5, 6, peephole=peephole, device=device)
    x = example(module, device=device)
    expected = flat(module(x))
    for copied in copies(module):
        assert repr(copied) == repr(module)
        assert_same_bits(flat(copied(x)), expected)


@pytest.mark.parametrize("kind", [pykernels.LSTM, pykernels.LSTMCell])
def test_a_deep_copy_is_independent(kind):
    module = kind(5, 6)
    x, copied = example(module), copy.deepcopy(module)
    expected = flat(module(x))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(-2)
    assert_same_bits(flat(module(x)), expected)
    assert not torch.equal(flat(copied(x))["0"], expected["0"])


# -- changing parameters ----------------------------------------------------------------------------------------------
def test_updates_in_place_are_seen():
    """No stale copy of packed weights: in-place, .data and replaced parameters all count in the next call."""
    module, model = pykernels.LSTM(5, 6).double(), nn.LSTM(5, 6).double()
    x = example(module, torch.float64)

    def change_in_place(m):
        with torch.no_grad():
            m.weight_hh_l0.add_(0.25)

    def change_data(m):
        m.weight_ih_l0.data.mul_(0.5)

    def change_storage(m):
        m.bias_hh_l0.data = torch.linspace(-1, 1, 24, dtype=torch.float64)

    def replace(m):
        m.weight_hh_l0 = nn.Parameter(torch.linspace(-1, 1, 144, dtype=torch.float64).view(24, 6))

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


@pytest.mark.parametrize("other", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_moves_between_dtypes(other, device):
    module = pykernels.LSTM(5, 6, 2, device=device).to(other)
    assert all(p.dtype == other for p in module.parameters())
    assert [id(w) for w in module._flat_weights] == [id(p) for p in module.parameters()]
    output, _ = module(example(module, other, device))
    assert output.dtype == other and output.isfinite().all()


def test_meta_and_back():
    module = pykernels.LSTM(5, 6, 2, bidirectional=True, device="meta")
    model = nn.LSTM(5, 6, 2, bidirectional=True)
    module = module.to_empty(device="cpu")
    module.load_state_dict(model.state_dict())
    x = example(module)
    torch.testing.assert_close(module(x)[0], model(x)[0])


def test_meta_module_tells_shapes():
    module = pykernels.LSTM(5, 6, 2, bidirectional=True, proj_size=2, device="meta")
    output, (h_n, c_n) = module(torch.empty(7, 3, 5, device="meta"))
    assert (output.shape, h_n.shape, c_n.shape) == ((7, 3, 4), (4, 3, 2), (4, 3, 6))
    assert output.device.type == "meta"


def test_tied_weights():
    """Both directions share their weights: gradients add up as torch's do."""
    found = []
    for kind in (pykernels.LSTM, nn.LSTM):
        torch.manual_seed(5)
        module = kind(5, 6, bidirectional=True, dtype=torch.float64)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(module, f"{name}_l0_reverse", getattr(module, f"{name}_l0"))
        assert len(list(module.parameters())) == 4
        output, (h_n, c_n) = module(example(module, torch.float64))
        found.append(with_gradients({"output": output, "h_n": h_n, "c_n": c_n}, dict(module.named_parameters())))
    assert_equal(*found)


@pytest.mark.parametrize("kind, model", PAIRS, ids=["LSTM", "LSTMCell"])
@pytest.mark.parametrize("wrap", ["weight_norm", "spectral_norm", "own", "old_weight_norm"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_parametrizations(kind, model, wrap):
    """A parametrized weight is computed anew at each call, and its own parameters receive torch's gradients."""

    class Negative(nn.Module):
        def forward(self, weight):
            return -weight

    found = []
    for make in (kind, model):
        torch.manual_seed(7)
        module = make(5, 6, dtype=torch.float64)
        name = "weight_hh_l0" if make.__name__ == "LSTM" else "weight_hh"
        if wrap == "own":
            parametrize.register_parametrization(module, name, Negative())
        elif wrap == "old_weight_norm":
            nn.utils.weight_norm(module, name)
        else:
            getattr(parametrizations, wrap)(module, name)
        module.eval()
        outputs = module(example(module, torch.float64))
        found.append(with_gradients({**flat_live(outputs)}, dict(module.named_parameters())))
    assert_equal(*found)


def flat_live(results) -> dict[str, torch.Tensor]:
    return {str(index): tensor for index, tensor in enumerate(torch.utils._pytree.tree_leaves(results))}


def test_removing_a_parametrization():
    module = pykernels.LSTM(5, 6)
    x = example(module)
    before = module(x)[0]
    parametrizations.weight_norm(module, "weight_ih_l0")
    torch.testing.assert_close(module(x)[0], before)
    parametrize.remove_parametrizations(module, "weight_ih_l0")
    torch.testing.assert_close(module(x)[0], before)
    assert isinstance(module.weight_ih_l0, nn.Parameter)


def test_frozen_and_pruned_weights():
    from torch.nn.utils import prune

    found = []
    for kind in (pykernels.LSTM, nn.LSTM):
        torch.manual_seed(9)
        module = kind(5, 6, dtype=torch.float64)
        module.weight_ih_l0.requires_grad_(False)
        prune.random_unstructured(module, "weight_hh_l0", amount=0.5)
        output, _ = module(example(module, torch.float64))
        leaves = {name: p for name, p in module.named_parameters() if p.requires_grad}
        found.append(with_gradients({"output": output}, leaves))
    assert_equal(*found)


# -- tools of torch ---------------------------------------------------------------------------------------------------
def test_hooks_run_and_training_learns():
    """In a Sequential-like model with hooks, clipping and Adam, the loss curves lie on each other."""
    curves = []
    for kind in (pykernels.LSTM, nn.LSTM):
        torch.manual_seed(13)
        module, head = kind(5, 16, 2, batch_first=True, dtype=torch.float64), nn.Linear(16, 1, dtype=torch.float64)
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


def test_packed_sequence_of_pack_sequence():
    module, model = pykernels.LSTM(5, 6).double(), nn.LSTM(5, 6).double()
    module.load_state_dict(model.state_dict())
    sequences = [torch.randn(length, 5, dtype=torch.float64) for length in (2, 7, 1, 4)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    (output, state), (expected, expected_state) = module(packed), model(packed)
    assert_equal(flat([output.data, *state]), flat([expected.data, *expected_state]))
    for mine, its in zip(nn.utils.rnn.unpack_sequence(output), nn.utils.rnn.unpack_sequence(expected), strict=True):
        torch.testing.assert_close(mine, its)


def test_output_layout_of_batch_first():
    """The result of batch_first has torch's strides, so that .view() of it works where it did."""
    for options in ({}, {"bidirectional": True}, {"batch_first": True}):
        module, model = pykernels.LSTM(5, 6, **options), nn.LSTM(5, 6, **options)
        x = example(module)
        assert module(x)[0].stride() == model(x)[0].stride()
