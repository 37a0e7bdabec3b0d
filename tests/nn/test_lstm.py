"""pykernels.LSTM equals torch.nn.LSTM: outputs, states and every gradient over all argument combinations."""

from __future__ import annotations

import copy
import functools
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import pykernels
from tests.helpers import LOW, assert_equal, assert_no_worse, assert_same_bits, with_gradients

STEPS, BATCH, INPUTS, HIDDEN, PROJ = 4, 3, 5, 6, 2
FORMS = ("padded", "unbatched", "packed", "packed_unsorted")
LENGTHS = {"packed": [4, 4, 1], "packed_unsorted": [2, 4, 3]}

layers = pytest.mark.parametrize("num_layers", [1, 2, 3])
bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
bidirectional = pytest.mark.parametrize("bidirectional", [False, True], ids=["one_way", "two_ways"])
proj_size = pytest.mark.parametrize("proj_size", [0, PROJ], ids=["plain", "projection"])
form = pytest.mark.parametrize("form", FORMS)


def twins(dtype, device, **options) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Our module, torch's, and torch's in float64, all with the same weights."""
    theirs = nn.LSTM(**options, dtype=dtype, device=device)
    ours = pykernels.LSTM(**options, dtype=dtype, device=device)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, copy.deepcopy(theirs).double()


def operands(
    form, dtype, device, batch_first, states, *, rows, out, sizes=(STEPS, BATCH, INPUTS, HIDDEN), lengths=None
):
    """An input (to be packed in `results`) and the states, drawn in the form asked for."""
    steps, batch, inputs, hidden = sizes
    shape = (
        (steps, inputs) if form == "unbatched" else (batch, steps, inputs) if batch_first else (steps, batch, inputs)
    )
    batch_shape = () if form == "unbatched" else (batch,)
    made = {"input": torch.randn(shape)}
    if states:
        made["h0"] = torch.randn(rows, *batch_shape, out)
        made["c0"] = torch.randn(rows, *batch_shape, hidden)
    return {name: t.to(device, dtype) for name, t in made.items()}


def results(module, form, operands, batch_first, dtype, lengths=None, seed=3) -> dict[str, torch.Tensor]:
    """Everything that the module returns, and the gradients of every operand and parameter."""
    leaves = {name: t.to(dtype).detach().requires_grad_() for name, t in operands.items()}
    x = leaves["input"]
    if form.startswith("packed"):
        lengths = lengths or LENGTHS[form]
        x = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=form == "packed")
    torch.manual_seed(seed)
    output, state = module(x, (leaves["h0"], leaves["c0"]) if "h0" in leaves else None)
    assert isinstance(state, tuple) and len(state) == 2
    if isinstance(x, PackedSequence):
        assert isinstance(output, PackedSequence)
        for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            mine, given = getattr(output, field), getattr(x, field)
            assert mine is given or torch.equal(mine, given)
        output = output.data
    found = {"output": output, "h_n": state[0], "c_n": state[1]}
    return with_gradients(found, leaves | dict(module.named_parameters()))


def check(
    form, device, dtype, judge, *, batch_first=False, states=True, train=True, sizes=None, lengths=None, **options
):
    steps, batch, inputs, hidden = sizes or (STEPS, BATCH, INPUTS, HIDDEN)
    ours, theirs, exact = twins(
        dtype, device, input_size=inputs, hidden_size=hidden, batch_first=batch_first, **options
    )
    rows = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    given = operands(
        form,
        dtype,
        device,
        batch_first,
        states,
        rows=rows,
        out=options.get("proj_size") or hidden,
        sizes=(steps, batch, inputs, hidden),
    )
    found = [
        results(module.train(train), form, given, batch_first, kind, lengths)
        for module, kind in ((ours, dtype), (theirs, dtype), (exact, torch.float64))
    ]
    judge(*found)


def exactly(ours, theirs, _truth):
    assert_equal(ours, theirs)


@form
@proj_size
@bidirectional
@bias
@layers
def test_float64(device, num_layers, bias, bidirectional, proj_size, form):
    options = {"num_layers": num_layers, "bias": bias, "bidirectional": bidirectional, "proj_size": proj_size}
    for batch_first, states in itertools.product([False, True], repeat=2):
        check(form, device, torch.float64, exactly, batch_first=batch_first, states=states, **options)


@form
@proj_size
@bidirectional
@bias
@layers
def test_float32(device, num_layers, bias, bidirectional, proj_size, form):
    """No more than twice (gradients: three times) the error of torch's float32 against float64."""
    options = {"num_layers": num_layers, "bias": bias, "bidirectional": bidirectional, "proj_size": proj_size}
    for batch_first, states in [(False, True), (True, False)]:
        check(form, device, torch.float32, assert_no_worse, batch_first=batch_first, states=states, **options)


@form
@proj_size
@bidirectional
@layers
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_low_precision(device, dtype, num_layers, bidirectional, proj_size, form):
    """Judged as in test_float32, with enough units for the largest error to be typical."""
    options = {"num_layers": num_layers, "bidirectional": bidirectional, "proj_size": proj_size and 11}
    lengths = {"packed": [6, 6, 5, 2, 1], "packed_unsorted": [3, 6, 1, 1, 5]}.get(form)
    sizes = (6, 5, 19, 23)
    check(form, device, dtype, assert_no_worse, batch_first=num_layers == 2, sizes=sizes, lengths=lengths, **options)


@form
@proj_size
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dropout", [0.3, 1.0])
@pytest.mark.parametrize("num_layers", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_dropout_draws_the_same_numbers(cpu_only, dtype, num_layers, dropout, train, proj_size, form):
    options = {"num_layers": num_layers, "dropout": dropout, "proj_size": proj_size, "bidirectional": num_layers == 2}
    judge = exactly if dtype == torch.float64 else assert_no_worse
    for batch_first in (False, True):
        check(form, "cpu", dtype, judge, batch_first=batch_first, train=train, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *LOW], ids=str)
@pytest.mark.parametrize("sizes", [(57, 33, 37, 101), (3, 1, 257, 129), (11, 17, 1, 257)], ids=str)
@bidirectional
def test_larger_odd_sizes(device, sizes, bidirectional, dtype):
    judge = exactly if dtype == torch.float64 else functools.partial(assert_no_worse, floor=8)
    check("padded", device, dtype, judge, sizes=sizes, bidirectional=bidirectional)


@form
@bidirectional
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *LOW], ids=str)
def test_inference_gives_the_bits_of_training(device, dtype, bidirectional, form):
    """Without gradients another path runs; it must give the same values, and an eval module the same as well."""
    module = pykernels.LSTM(13, 21, 2, bidirectional=bidirectional, dtype=dtype, device=device)
    x = torch.randn((4, 13) if form == "unbatched" else (4, 3, 13)).to(device, dtype)
    if form.startswith("packed"):
        x = pack_padded_sequence(x, LENGTHS[form], enforce_sorted=form == "packed")

    def values():
        output, (h_n, c_n) = module(x)
        return {"output": getattr(output, "data", output).detach(), "h_n": h_n.detach(), "c_n": c_n.detach()}

    with_grad = values()
    with torch.no_grad():
        assert_same_bits(values(), with_grad)
    with torch.inference_mode():
        assert_same_bits(values(), with_grad)
    assert_same_bits((module.eval(), values())[1], with_grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *LOW], ids=str)
def test_one_step_at_a_time(device, dtype):
    """Streaming: T single calls with the state carried equal one call over T steps."""
    module = pykernels.LSTM(7, 9, 2, dtype=dtype, device=device)
    x = torch.randn(6, 1, 7).to(device, dtype)
    whole, last = module(x)
    state, parts = None, []
    for step in x.split(1):
        part, state = module(step, state)
        parts.append(part)
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for streamed, expected in zip([torch.cat(parts), *state], [whole, *last], strict=True):
        torch.testing.assert_close(streamed, expected, rtol=tolerance, atol=tolerance)


@form
@bidirectional
@proj_size
def test_peephole_of_zero_is_no_peephole(device, proj_size, bidirectional, form):
    """With zero peephole weights the module equals torch's, and those weights still receive a gradient."""
    options = {"input_size": INPUTS, "hidden_size": HIDDEN, "num_layers": 2, "dtype": torch.float64, "device": device}
    options |= {"bidirectional": bidirectional, "proj_size": proj_size}
    theirs, ours = nn.LSTM(**options), pykernels.LSTM(**options, peephole=True)
    missing = ours.load_state_dict(theirs.state_dict(), strict=False)
    suffixes = [f"_l{layer}{end}" for layer in (0, 1) for end in ("", "_reverse")[: 1 + bidirectional]]
    assert not missing.unexpected_keys
    assert sorted(missing.missing_keys) == sorted(f"weight_peephole{suffix}" for suffix in suffixes)
    for suffix in suffixes:
        weight = getattr(ours, f"weight_peephole{suffix}")
        assert weight.shape == (3, HIDDEN)
        nn.init.zeros_(weight)
    given = operands(form, torch.float64, device, False, True, rows=2 * (1 + bidirectional), out=proj_size or HIDDEN)
    found = results(ours, form, given, False, torch.float64)
    own = {name: found.pop(name) for name in list(found) if "peephole" in name}
    assert_equal(found, results(theirs, form, given, False, torch.float64))
    assert all(gradient.abs().max() > 0 for gradient in own.values())


def test_no_batch(device):
    """A batch of none is no error: shapes as torch's, gradients of zero."""
    for options in ({}, {"bidirectional": True, "num_layers": 2}, {"proj_size": 2}, {"batch_first": True}):
        ours, theirs, _ = twins(torch.float64, device, input_size=INPUTS, hidden_size=HIDDEN, **options)
        shape = (0, STEPS, INPUTS) if options.get("batch_first") else (STEPS, 0, INPUTS)
        x = torch.zeros(shape, dtype=torch.float64, device=device, requires_grad=True)
        found = []
        for module in (ours, theirs):
            output, (h_n, c_n) = module(x)
            found.append({"output": output.detach(), "h_n": h_n.detach(), "c_n": c_n.detach()})
        assert_equal(*found)
        output, state = ours(x)
        (output.sum() + state[0].sum() + state[1].sum()).backward()
        assert all(parameter.grad.abs().max() == 0 for parameter in ours.parameters())
