"""pykernels.LSTM, GRU and RNN equal torch.nn's: outputs, states and every gradient over all argument combinations."""

from __future__ import annotations

import copy
import functools
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from tests.helpers import LOW, assert_equal, assert_no_worse, assert_same_bits, with_gradients

from .pairs import LAYERS, Pair, every_layer

STEPS, BATCH, INPUTS, HIDDEN, PROJ = 4, 3, 5, 6, 2
FORMS = ("padded", "unbatched", "packed", "packed_unsorted")
LENGTHS = {"packed": [4, 4, 1], "packed_unsorted": [2, 4, 3]}
# Of ReLU only float64 is compared: its derivative jumps where rounding moves a sum across zero.
SMOOTH = [pair for pair in LAYERS if not pair.nonlinearity]

layers = pytest.mark.parametrize("num_layers", [1, 2, 3])
bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
bidirectional = pytest.mark.parametrize("bidirectional", [False, True], ids=["one_way", "two_ways"])
form = pytest.mark.parametrize("form", FORMS)


def projected(pairs=LAYERS):
    """Every pair plain, and the LSTM also with a projection."""
    both = [(pair, size) for pair in pairs for size in ((0, PROJ) if pair.is_lstm else (0,))]
    return pytest.mark.parametrize("pair, proj_size", both, ids=lambda v: str(v) if isinstance(v, Pair) else f"P{v}")


def projection(proj_size: int) -> dict[str, int]:
    return {"proj_size": proj_size} if proj_size else {}


def twins(pair, dtype, device, **options) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Our module, torch's, and torch's in float64, all with the same weights."""
    theirs = pair.theirs(**options, dtype=dtype, device=device)
    ours = pair.ours(**options, dtype=dtype, device=device)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, copy.deepcopy(theirs).double()


def operands(
    pair, form, dtype, device, batch_first, states, *, rows, out, sizes=(STEPS, BATCH, INPUTS, HIDDEN)
) -> dict[str, torch.Tensor]:
    """An input (to be packed in `results`) and the states, drawn in the form asked for."""
    steps, batch, inputs, hidden = sizes
    lead = (steps,) if form == "unbatched" else (batch, steps) if batch_first else (steps, batch)
    batch_shape = () if form == "unbatched" else (batch,)
    made = {"input": torch.randn(*lead, inputs)}
    for name in pair.states if states else ():
        made[name] = torch.randn(rows, *batch_shape, hidden if name == "c0" else out)
    return {name: t.to(device, dtype) for name, t in made.items()}


def results(pair, module, form, operands, batch_first, dtype, lengths=None, seed=3) -> dict[str, torch.Tensor]:
    """Everything that the module returns, and the gradients of every operand and parameter."""
    leaves = {name: t.to(dtype).detach().requires_grad_() for name, t in operands.items()}
    x = leaves["input"]
    if form.startswith("packed"):
        lengths = lengths or LENGTHS[form]
        x = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=form == "packed")
    torch.manual_seed(seed)
    output, state = module(x, pair.hx(leaves))
    assert isinstance(state, tuple if pair.is_lstm else torch.Tensor)
    if isinstance(x, PackedSequence):
        assert isinstance(output, PackedSequence)
        for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            mine, given = getattr(output, field), getattr(x, field)
            assert mine is given or torch.equal(mine, given)
    return with_gradients(pair.named((output, state)), leaves | dict(module.named_parameters()))


def check(
    pair, form, device, dtype, judge, *, batch_first=False, states=True, train=True, sizes=None, lengths=None, **options
):
    sizes = sizes or (STEPS, BATCH, INPUTS, HIDDEN)
    modules = twins(pair, dtype, device, input_size=sizes[2], hidden_size=sizes[3], batch_first=batch_first, **options)
    rows = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    out = options.get("proj_size") or sizes[3]
    given = operands(pair, form, dtype, device, batch_first, states, rows=rows, out=out, sizes=sizes)
    found = [
        results(pair, module.train(train), form, given, batch_first, kind, lengths)
        for module, kind in zip(modules, (dtype, dtype, torch.float64), strict=True)
    ]
    judge(*found)


def exactly(ours, theirs, _truth):
    assert_equal(ours, theirs)


@form
@projected()
@bidirectional
@bias
@layers
def test_float64(device, num_layers, bias, bidirectional, pair, proj_size, form):
    options = {"num_layers": num_layers, "bias": bias, "bidirectional": bidirectional, **projection(proj_size)}
    for batch_first, states in itertools.product([False, True], repeat=2):
        check(pair, form, device, torch.float64, exactly, batch_first=batch_first, states=states, **options)


@form
@projected(SMOOTH)
@bidirectional
@bias
@layers
def test_float32(device, num_layers, bias, bidirectional, pair, proj_size, form):
    """No more than twice (gradients: three times) the error of torch's float32 against float64."""
    options = {"num_layers": num_layers, "bias": bias, "bidirectional": bidirectional, **projection(proj_size)}
    for batch_first, states in [(False, True), (True, False)]:
        check(pair, form, device, torch.float32, assert_no_worse, batch_first=batch_first, states=states, **options)


@form
@projected(SMOOTH)
@bidirectional
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_low_precision(device, dtype, num_layers, bidirectional, pair, proj_size, form):
    """No more than twice (gradients: three times) torch's error, at sizes that make the largest error typical."""
    options = {"num_layers": num_layers, "bidirectional": bidirectional, **projection(proj_size and 11)}
    lengths = {"packed": [6, 6, 5, 2, 1], "packed_unsorted": [3, 6, 1, 1, 5]}.get(form)
    how = {"batch_first": num_layers == 2, "sizes": (6, 5, 19, 23), "lengths": lengths}
    check(pair, form, device, dtype, assert_no_worse, **how, **options)


@form
@projected(SMOOTH)
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dropout", [0.3, 1.0])
@pytest.mark.parametrize("num_layers", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_dropout_draws_the_same_numbers(cpu_only, dtype, num_layers, dropout, train, pair, proj_size, form):
    options = {"num_layers": num_layers, "dropout": dropout, "bidirectional": num_layers == 2, **projection(proj_size)}
    judge = exactly if dtype == torch.float64 else assert_no_worse
    for batch_first in (False, True):
        check(pair, form, "cpu", dtype, judge, batch_first=batch_first, train=train, **options)


@pytest.mark.parametrize("pair", SMOOTH, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *LOW], ids=str)
@pytest.mark.parametrize("sizes", [(57, 33, 37, 101), (3, 1, 257, 129), (11, 17, 1, 257)], ids=str)
@bidirectional
def test_larger_odd_sizes(device, sizes, bidirectional, dtype, pair):
    judge = exactly if dtype == torch.float64 else functools.partial(assert_no_worse, floor=8)
    check(pair, "padded", device, dtype, judge, sizes=sizes, bidirectional=bidirectional)


@every_layer
@form
@bidirectional
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *LOW], ids=str)
def test_inference_gives_the_bits_of_training(device, dtype, bidirectional, form, pair):
    """Without gradients another path runs; it must give the same values, and an eval module the same as well."""
    module = pair.ours(13, 21, num_layers=2, bidirectional=bidirectional, dtype=dtype, device=device)
    x = torch.randn((4, 13) if form == "unbatched" else (4, 3, 13)).to(device, dtype)
    if form.startswith("packed"):
        x = pack_padded_sequence(x, LENGTHS[form], enforce_sorted=form == "packed")

    def values():
        return {name: t.detach() for name, t in pair.named(module(x)).items()}

    with_grad = values()
    with torch.no_grad():
        assert_same_bits(values(), with_grad)
    with torch.inference_mode():
        assert_same_bits(values(), with_grad)
    assert_same_bits((module.eval(), values())[1], with_grad)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *LOW], ids=str)
def test_one_step_at_a_time(device, dtype, pair):
    """Streaming: T single calls with the state carried equal one call over T steps."""
    module = pair.ours(7, 9, num_layers=2, dtype=dtype, device=device)
    x = torch.randn(6, 1, 7).to(device, dtype)
    whole = pair.named(module(x))
    state, parts = None, []
    for step in x.split(1):
        part, state = module(step, state)
        parts.append(part)
    streamed = pair.named((torch.cat(parts), state))
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for name, expected in whole.items():
        torch.testing.assert_close(streamed[name], expected, rtol=tolerance, atol=tolerance)


@every_layer
def test_truncated_backpropagation_through_time(device, pair):
    """The recipe: windows with the state carried and detached. Values of the whole, gradients of each window's own."""
    found = []
    for make in (pair.ours, pair.theirs):
        torch.manual_seed(3)
        module = make(5, 6, num_layers=2, batch_first=True, dtype=torch.float64).to(device)
        x = torch.randn(3, 12, 5, dtype=torch.float64).to(device)
        state, outputs = None, []
        for window in x.split(4, 1):
            output, state = module(window, state)
            output.square().sum().backward()
            state = tuple(s.detach() for s in state) if pair.is_lstm else state.detach()
            outputs.append(output.detach())
        streamed = torch.cat(outputs, 1)
        torch.testing.assert_close(streamed, module(x)[0].detach(), rtol=1e-12, atol=1e-12)
        found.append({"output": streamed} | {name: p.grad for name, p in module.named_parameters()})
    assert_equal(*found)


@every_layer
def test_no_batch(device, pair):
    """A batch of none is no error: shapes as torch's, gradients of zero."""
    for options in ({}, {"bidirectional": True, "num_layers": 2}, {"batch_first": True}, projection(PROJ)):
        if "proj_size" in options and not pair.is_lstm:
            continue
        ours, theirs, _ = twins(pair, torch.float64, device, input_size=INPUTS, hidden_size=HIDDEN, **options)
        shape = (0, STEPS, INPUTS) if options.get("batch_first") else (STEPS, 0, INPUTS)
        x = torch.zeros(shape, dtype=torch.float64, device=device, requires_grad=True)
        named = [{name: t.detach() for name, t in pair.named(module(x)).items()} for module in (ours, theirs)]
        assert_equal(*named)
        sum(t.sum() for t in pair.named(ours(x)).values()).backward()
        assert all(parameter.grad.abs().max() == 0 for parameter in ours.parameters())
