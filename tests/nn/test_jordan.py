"""pykernels.JordanRNN: a loop over matrices, its parameters, packed input, streaming and wrong arguments."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import pykernels
from tests.helpers import LOW, assert_equal, assert_same_bits, with_gradients

NONLINEARITIES = {"tanh": torch.tanh, "relu": torch.relu}
I, H, O = 5, 7, 4  # noqa: E741
every_function = pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
every_direction = pytest.mark.parametrize("bidirectional", [False, True], ids=["one_way", "two_ways"])


def made(device="cpu", dtype=torch.float64, **options) -> pykernels.JordanRNN:
    return pykernels.JordanRNN(I, H, O, **options, dtype=dtype, device=device)


def written_out(module, x: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """h = f(W_ih x + b_ih + W_hh o' + b_hh), o = W_ho h + b_ho, in a loop over x [T, B, I]; start [L*D, B, O]."""
    function, lasts = NONLINEARITIES[module.nonlinearity], []
    for layer in range(module.num_layers):
        ways = []
        for direction in range(1 + module.bidirectional):
            w = {
                name: getattr(module, f"{name}_l{layer}" + "_reverse" * direction, torch.zeros((), dtype=x.dtype))
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_ho", "bias_ho")
            }
            o, outputs = start[len(lasts)], []
            for step in x.flip(0) if direction else x:
                h = function(step @ w["weight_ih"].T + w["bias_ih"] + o @ w["weight_hh"].T + w["bias_hh"])
                o = h @ w["weight_ho"].T + w["bias_ho"]
                outputs.append(o)
            lasts.append(o)
            ways.append(torch.stack(outputs[::-1] if direction else outputs))
        x = torch.cat(ways, -1)
    return x, torch.stack(lasts)


# -- values -----------------------------------------------------------------------------------------------------------
@every_function
@every_direction
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_is_the_equations(device, bias, num_layers, bidirectional, nonlinearity):
    options = {"bias": bias, "num_layers": num_layers, "bidirectional": bidirectional, "nonlinearity": nonlinearity}
    module = made(device, **options)
    x = torch.randn(6, 3, I, dtype=torch.float64).to(device).requires_grad_()
    start = torch.randn(num_layers * (1 + bidirectional), 3, O, dtype=torch.float64).to(device).requires_grad_()
    leaves = {"input": x, "o0": start} | dict(module.named_parameters())
    for given in (start, None):
        output, o_n = module(x, given)
        expected = written_out(module, x, start if given is not None else 0 * start)
        found = with_gradients({"output": output, "o_n": o_n} | {"anchor": start.sum()}, leaves)
        assert_equal(
            found, with_gradients(dict(zip(("output", "o_n"), expected, strict=True)) | {"anchor": start.sum()}, leaves)
        )


@every_direction
@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
def test_in_other_dtypes(device, bidirectional, dtype):
    module = made(device, dtype, num_layers=2, bidirectional=bidirectional)
    x = torch.randn(6, 3, I).to(device, dtype)
    exact = copy.deepcopy(module).double()
    expected = exact(x.double())
    for found, truth in zip(module(x), expected, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), truth, rtol=0, atol=16 * torch.finfo(dtype).eps)
    with torch.no_grad():
        assert torch.equal(module(x)[0], module.train(False)(x)[0])


@every_direction
@pytest.mark.parametrize("enforce_sorted", [True, False], ids=["sorted", "unsorted"])
def test_packed_sequences_and_their_last_outputs(device, enforce_sorted, bidirectional):
    """Many-to-one: o_n is each sequence's own last output, in the order in which the sequences were given."""
    module = made(device, bidirectional=bidirectional)
    lengths = [7, 4, 2] if enforce_sorted else [2, 7, 4]
    x = torch.randn(7, 3, I, dtype=torch.float64).to(device)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
    output, o_n = module(packed)
    assert isinstance(output, PackedSequence) and torch.equal(output.batch_sizes, packed.batch_sizes)
    padded, found_lengths = pad_packed_sequence(output)
    assert found_lengths.tolist() == lengths and padded.shape == (7, 3, O * (1 + bidirectional))
    for sample, length in enumerate(lengths):
        alone, last = module(x[:length, sample])
        torch.testing.assert_close(padded[:length, sample], alone, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(o_n[:, sample], last, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(o_n[0, sample], padded[length - 1, sample, :O], rtol=0, atol=0)
        if bidirectional:
            torch.testing.assert_close(o_n[1, sample], padded[0, sample, O:], rtol=0, atol=0)


def test_batch_first_and_unbatched(device):
    module, turned = made(device, num_layers=2), made(device, num_layers=2, batch_first=True)
    turned.load_state_dict(module.state_dict())
    x = torch.randn(6, 3, I, dtype=torch.float64).to(device)
    start = torch.randn(2, 3, O, dtype=torch.float64).to(device)
    output, o_n = module(x, start)
    turned_output, turned_o_n = turned(x.transpose(0, 1), start)
    assert_same_bits({"output": turned_output.transpose(0, 1), "o_n": turned_o_n}, {"output": output, "o_n": o_n})
    alone, last = module(x[:, 1], start[:, 1])
    assert alone.shape == (6, O) and last.shape == (2, O)
    torch.testing.assert_close(alone, output[:, 1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, o_n[:, 1], rtol=1e-12, atol=1e-12)


def test_streaming(device):
    module = made(device, num_layers=2)
    x = torch.randn(8, 3, I, dtype=torch.float64).to(device)
    whole, last = module(x)
    state, parts = None, []
    for piece in x.split(3):
        part, state = module(piece, state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(state, last, rtol=1e-13, atol=1e-13)


def test_dropout_is_between_layers(device):
    module = made(device, num_layers=3, dropout=0.5)
    x = torch.randn(6, 3, I, dtype=torch.float64).to(device)
    assert not torch.equal(module(x)[0], module(x)[0])
    layers = []
    for k in range(3):
        layer = pykernels.JordanRNN(I if k == 0 else O, H, O, dtype=torch.float64, device=device)
        own = {n: p for n, p in module.state_dict().items() if n.endswith(f"_l{k}")}
        layer.load_state_dict({name.replace(f"_l{k}", "_l0"): p for name, p in own.items()})
        layers.append(layer)
    torch.manual_seed(4)
    found, _ = module(x)
    torch.manual_seed(4)
    for k, layer in enumerate(layers):
        x = layer(x)[0]
        x = torch.dropout(x, 0.5, True) if k < 2 else x
    torch.testing.assert_close(found, x, rtol=1e-12, atol=1e-12)
    assert torch.equal(module.eval()(x[..., :1].expand(-1, -1, I))[0], module(x[..., :1].expand(-1, -1, I))[0])


@pytest.mark.parametrize("shape", [(3, 0, I), (1, 1, I)], ids=str)
def test_empty_and_smallest(device, shape):
    module = made(device)
    output, o_n = module(torch.zeros(shape, dtype=torch.float64, device=device))
    assert output.shape == (*shape[:2], O) and o_n.shape == (1, shape[1], O)
    (output.sum() + o_n.sum()).backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in module.parameters())


@pytest.mark.parametrize("outputs", [1, H, 2 * H])
def test_any_number_of_outputs(device, outputs):
    """Also as many as hidden units, and more."""
    module = pykernels.JordanRNN(I, H, outputs, num_layers=2, bidirectional=True, dtype=torch.float64, device=device)
    x = torch.randn(4, 2, I, dtype=torch.float64).to(device)
    found, expected = module(x), written_out(module, x, x.new_zeros(4, 2, outputs))
    for mine, its in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-12)


# -- the module -------------------------------------------------------------------------------------------------------
def test_parameters():
    module = made(num_layers=2, bidirectional=True)
    shapes = {}
    for end, width in (("_l0", I), ("_l0_reverse", I), ("_l1", 2 * O), ("_l1_reverse", 2 * O)):
        shapes |= {
            f"weight_ih{end}": (H, width),
            f"weight_hh{end}": (H, O),
            f"bias_ih{end}": (H,),
            f"bias_hh{end}": (H,),
        }
        shapes |= {f"weight_ho{end}": (O, H), f"bias_ho{end}": (O,)}
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == shapes
    assert list(module.state_dict()) == list(shapes)
    assert [id(w) for w in module._flat_weights] == [id(p) for p in module.parameters()]
    for name, parameter in module.named_parameters():
        assert 0 < parameter.abs().max() <= H**-0.5, name
    assert not any("bias" in name for name in made(bias=False).state_dict())
    torch.manual_seed(1)
    module.reset_parameters()
    torch.manual_seed(1)
    assert_same_bits(dict(made(num_layers=2, bidirectional=True).named_parameters()), dict(module.named_parameters()))


def test_arguments():
    """(input_size, hidden_size, output_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional)."""
    module = pykernels.JordanRNN(I, H, O, 2, "relu", False, True, 0.25, True)
    assert (module.input_size, module.hidden_size, module.output_size, module.num_layers) == (I, H, O, 2)
    assert (module.nonlinearity, module.bias, module.batch_first, module.dropout) == ("relu", False, True, 0.25)
    assert module.bidirectional and isinstance(module, nn.modules.rnn.RNNBase)
    assert f"{I}, {H}, " in repr(module) and str(O) in repr(module) and "relu" in repr(module)
    assert "relu" not in repr(made())


@pytest.mark.parametrize(
    "arguments, error",
    [
        ((I, H), TypeError),
        ((I, H, 0), ValueError),
        ((I, H, -1), ValueError),
        ((I, H, 4.0), TypeError),
        ((I, H, "4"), TypeError),
        ((0, H, O), ValueError),
        ((I, 0, O), ValueError),
        ((I, H, O, 0), ValueError),
        ((I, H, O, 1, "sin"), ValueError),
        ((I, H, O, 1, "tanh", 1), TypeError),
        ((I, H, O, 1, "tanh", True, 0), TypeError),
        ((I, H, O, 1, "tanh", True, False, 1.5), ValueError),
    ],
    ids=str,
)
def test_bad_arguments(arguments, error):
    with pytest.raises(error):
        pykernels.JordanRNN(*arguments)


X = torch.zeros(4, 3, I)
BAD_CALLS = {
    "width": ("Expected 5, got 6", lambda m: m(torch.zeros(4, 3, I + 1))),
    "rank": ("Expected input to be 2D or 3D, got 1D", lambda m: m(torch.zeros(I))),
    "state_of_the_hidden_width": (
        r"Expected hidden size \(1, 3, 4\), got \[1, 3, 7\]",
        lambda m: m(X, torch.zeros(1, 3, H)),
    ),
    "state_batch": (r"Expected hidden size \(1, 3, 4\), got \[1, 2, 4\]", lambda m: m(X, torch.zeros(1, 2, O))),
    "state_rows": (r"Expected hidden size \(1, 3, 4\), got \[2, 3, 4\]", lambda m: m(X, torch.zeros(2, 3, O))),
    "state_rank": ("hx should also be 3-D but got 2-D", lambda m: m(X, torch.zeros(1, O))),
    "unbatched_state_rank": ("hx should also be 2-D but got 3-D", lambda m: m(torch.zeros(4, I), torch.zeros(1, 1, O))),
    "no_steps": ("Expected sequence length to be larger than 0", lambda m: m(torch.zeros(0, 3, I))),
    "float64": ("input dtype .* does not match weight dtype", lambda m: m(X.double())),
    "meta": ("not at the same device", lambda m: m(X.to("meta"))),
    "packed_width": ("Expected 5, got 6", lambda m: m(pack_padded_sequence(torch.zeros(4, 2, I + 1), [4, 2]))),
    "packed_state": (
        r"Expected hidden size \(1, 2, 4\), got \[1, 2, 7\]",
        lambda m: m(pack_padded_sequence(X[:, :2], [4, 2]), torch.zeros(1, 2, H)),
    ),
}


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input(name, grad):
    """The errors of torch.nn.RNN, with the widths that this module has."""
    text, attempt = BAD_CALLS[name]
    module = made(dtype=torch.float32)
    with torch.set_grad_enabled(grad), pytest.raises((RuntimeError, ValueError), match=text):
        attempt(module)


def test_copies(device):
    module = made(device, nonlinearity="relu", num_layers=2)
    x = torch.randn(4, 3, I, dtype=torch.float64).to(device)
    for copied in (copy.deepcopy(module), copy.copy(module), pickle.loads(pickle.dumps(module))):
        assert repr(copied) == repr(module)
        assert torch.equal(copied(x)[0], module(x)[0])


def test_moves_and_meta():
    module = made(dtype=torch.float32, num_layers=2)
    assert module.double()(torch.zeros(2, 1, I).double())[0].dtype == torch.float64
    empty = made("meta", num_layers=2, bidirectional=True)
    output, o_n = empty(torch.empty(4, 3, I, device="meta", dtype=torch.float64))
    assert output.shape == (4, 3, 2 * O) and o_n.shape == (4, 3, O) and output.is_meta
