"""torch.compile(fullgraph=True), with shapes that change, torch.export, and fake tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import pykernels
from pykernels import functional
from tests.helpers import Case, assert_equal, call, every_kind, with_gradients

from .compiling import compiled, flat, forget_what_was_compiled

assert forget_what_was_compiled  # around every test
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


MODULES = {
    "LSTM": {"peephole": True},
    "GRU": {},
    "RNN": {"nonlinearity": "relu"},
    "JordanRNN": {"output_size": 3},
}
every_module = pytest.mark.parametrize("name", MODULES)


def made(name: str, *sizes: int, **options) -> nn.Module:
    return getattr(pykernels, name)(*sizes, **{**MODULES[name], **options})


def initial_state(like: torch.Tensor, name: str, *shape: int):
    """An initial state, of an LSTM both."""
    one = like.new_full(shape, 0.25)
    return (one, one) if name.startswith("LSTM") else one


DEEP = {"num_layers": 2, "bidirectional": True, "batch_first": True}
OPTIONS = [
    ("LSTM", {"peephole": False}),
    ("LSTM", {"peephole": False, "proj_size": 3, **DEEP}),
    ("LSTM", {"bias": False}),
    ("GRU", {}),
    ("GRU", {"reset_after": False, **DEEP}),
    ("RNN", DEEP),
    ("JordanRNN", {"bias": False}),
]


@pytest.mark.parametrize("name, options", OPTIONS, ids=str)
def test_module_with_shapes_that_change(device, name, options):
    """Values and gradients as in eager; at most one more compilation when T and B begin to change, then none."""
    module = made(name, 5, 7, **options, dtype=torch.float64).to(device)
    fast, counter = compiled(module)
    counts = []
    for steps, batch in ((4, 3), (6, 2), (9, 5), (3, 7), (11, 4)):
        x = torch.randn(steps, batch, 5, dtype=torch.float64).to(device).requires_grad_()
        leaves = {"input": x} | dict(module.named_parameters())
        assert_equal(with_gradients(flat(fast(x)), leaves), with_gradients(flat(module(x)), leaves))
        counts.append(counter.frame_count)
    assert counts[0] == 1 and counts[1] <= 2 and counts[-1] == counts[1], counts


@every_module
def test_dynamic_from_the_start_never_recompiles(device, name):
    """The first call may compile twice (the compiler specialises the float `dropout`), later calls never."""
    module = made(name, 5, 7, num_layers=2).to(device)
    width = 3 if name == "JordanRNN" else 7
    fast, counter = compiled(module, dynamic=True)
    counts = []
    for steps, batch in ((4, 6), (9, 2), (11, 8), (13, 10)):
        x = torch.randn(steps, batch, 5).to(device)
        start = initial_state(x, name, 2, batch, width)
        torch.testing.assert_close(fast(x, start)[0], module(x, start)[0])
        counts.append(counter.frame_count)
    assert counts[0] <= 2 and counts[-1] == counts[0], counts


@every_module
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_packed_input(device, grad, name):
    module = made(name, 5, 7, bidirectional=True, dtype=torch.float64).to(device)

    def model(data, sizes, sorted_indices, unsorted_indices):
        output, state = module(PackedSequence(data, sizes, sorted_indices, unsorted_indices))
        return output.data, state

    fast, counter = compiled(model)
    with torch.set_grad_enabled(grad):
        for steps, lengths in ((4, [2, 4, 1]), (6, [6, 3]), (8, [8, 8, 1, 5]), (7, [1, 7, 2])):
            x = torch.randn(steps, len(lengths), 5, dtype=torch.float64).to(device)
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            expected, found = flat(model(*packed)), flat(fast(*packed))
            if grad:
                leaves = dict(module.named_parameters())
                assert_equal(with_gradients(found, leaves), with_gradients(expected, leaves))
            else:
                assert_equal(found, expected)
    assert counter.frame_count <= 3


@every_module
def test_a_packed_sequence_as_argument(device, name):
    module = made(name, 5, 7).to(device)
    x = torch.randn(6, 3, 5).to(device)
    packed = pack_padded_sequence(x, [6, 4, 1])
    fast, _ = compiled(lambda p: module(p)[0].data)
    torch.testing.assert_close(fast(packed), module(packed)[0].data)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_a_whole_model(device, name):
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 5)
            self.layers = made(name, 5, 7, num_layers=2, batch_first=True, bidirectional=True, dropout=0.5)
            self.head = nn.Linear(14, 3)

        def forward(self, tokens):
            output, state = self.layers(self.embed(tokens))
            return self.head(output), (state[0] if name == "LSTM" else state)[-1].relu()

    model = Tagger().to(device).eval()
    fast, counter = compiled(model)
    tokens = torch.randint(20, (3, 8)).to(device)
    for mine, its in zip(fast(tokens), model(tokens), strict=True):
        torch.testing.assert_close(mine, its)
    assert counter.frame_count == 1
    model.train()
    fast(tokens)[0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


CELLS = [
    ("LSTMCell", {"peephole": True}),
    ("GRUCell", {}),
    ("GRUCell", {"reset_after": False}),
    ("RNNCell", {"nonlinearity": "relu"}),
]


@pytest.mark.parametrize("name, options", CELLS, ids=str)
def test_cell(device, name, options):
    cell = getattr(pykernels, name)(5, 7, **options, dtype=torch.float64).to(device)

    def decode(x):
        carried = initial_state(x, name, 3, 7)
        for step in x.unbind(0):
            carried = cell(step, carried)
        return carried

    fast, counter = compiled(decode)
    x = torch.randn(4, 3, 5, dtype=torch.float64).to(device).requires_grad_()
    leaves = {"input": x} | dict(cell.named_parameters())
    assert_equal(with_gradients(flat(fast(x)), leaves), with_gradients(flat(decode(x)), leaves))
    assert counter.frame_count == 1


@every_kind
def test_functional_and_autocast(device, kind):
    case = Case(peephole=True, projection=True).of(kind)
    tensors = case.tensors(torch.float32, device)

    def under_autocast(*values):
        with torch.autocast(device.type, torch.bfloat16):
            return tuple(call(functional, case, dict(zip(tensors, values, strict=True))).values())

    fast, _ = compiled(under_autocast)
    for mine, its in zip(fast(*tensors.values()), under_autocast(*tensors.values()), strict=True):
        assert mine.dtype == its.dtype
        torch.testing.assert_close(mine, its)


@every_module
def test_inductor(cpu_only, name):
    """The default backend: a training step with code before and after the operator. Of compilations as above."""
    module = made(name, 5, 7)

    def loss(x):
        return module(x.sin() * 2)[0].square().mean()

    fast, counter = compiled(loss, "inductor", dynamic=True)
    counts = []
    for shape in ((4, 3, 5), (6, 2, 5)):
        x = torch.randn(shape, requires_grad=True)
        leaves = {"input": x} | dict(module.named_parameters())
        found = with_gradients({"loss": fast(x)}, leaves)
        for name, expected in with_gradients({"loss": loss(x)}, leaves).items():
            torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)
        counts.append(counter.frame_count)
    assert counts[0] <= 2 and counts[-1] == counts[0], counts


# -- export -----------------------------------------------------------------------------------------------------------
@every_module
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non_strict"])
def test_export_with_dynamic_shapes(device, strict, name, tmp_path):
    module = made(name, 5, 7, num_layers=2, bidirectional=True, batch_first=True).to(device).eval()
    x = torch.randn(3, 4, 5).to(device)
    steps, batch = torch.export.Dim("steps", min=1, max=1000), torch.export.Dim("batch", min=1, max=1000)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: batch, 1: steps},), strict=strict)
    targets = [node.target for node in program.graph.nodes]
    operator = getattr(torch.ops.pykernels, f"{name.removeprefix('Jordan').lower()}_forward").default
    assert targets.count(operator) == 2
    torch.export.save(program, tmp_path / "module.pt2")
    loaded = torch.export.load(tmp_path / "module.pt2").module()
    for shape in ((3, 4, 5), (2, 9, 5), (8, 2, 5)):
        y = torch.randn(shape).to(device)
        for mine, its in zip(flat(loaded(y)).values(), flat(module(y)).values(), strict=True):
            torch.testing.assert_close(mine, its)


@every_module
def test_make_fx_and_fake_tensors(device, name):
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    options = {"proj_size": 3} if name == "LSTM" else {}
    module = made(name, 5, 7, **options).to(device)
    x = torch.randn(4, 2, 5).to(device)
    weights = {name: p.detach() for name, p in module.named_parameters()}

    def function(t, weights):
        return torch.func.functional_call(module, weights, (t,))[0].sin()

    traced = make_fx(function, tracing_mode="symbolic")(x, weights)
    y = torch.randn(9, 3, 5).to(device)
    torch.testing.assert_close(traced(y, weights), module(y)[0].sin())
    with FakeTensorMode():
        fake = made(name, 5, 7, num_layers=2, bidirectional=True, **options)
        output, states = fake(torch.empty(4, 2, 5))
    width = 3 if name in ("LSTM", "JordanRNN") else 7
    assert output.shape == (4, 2, 2 * width)
    h_n, *c_n = torch.utils._pytree.tree_leaves(states)
    assert h_n.shape == (4, 2, width) and all(c.shape == (4, 2, 7) for c in c_n)


@every_module
def test_errors_come_through_the_compiler(device, name):
    module = made(name, 5, 7).to(device)
    fast, _ = compiled(module)
    with pytest.raises(Exception, match="input_size"):
        fast(torch.zeros(4, 3, 6, device=device))
