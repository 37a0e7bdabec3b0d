"""The restricted Boltzmann machine's functions under vmap, opcheck, torch.compile, export and autocast."""

from __future__ import annotations

import torch
from torch.func import vmap

from pykernels import functional
from tests.helpers import with_gradients

from .compiling import compiled, forget_what_was_compiled
from .rbm_cases import Layer, Machine

assert forget_what_was_compiled  # around every test
sample_op = torch.ops.pykernels.rbm_sample.default
statistics_op = torch.ops.pykernels.rbm_contrastive_divergence.default
train_op = torch.ops.pykernels.rbm_train_.default


def test_vmap_is_a_loop(device):
    case = Layer((3, 4), 6, 20)
    x, w, b = (t.detach() for t in case.tensors(device=device).values())
    for dims, given in (((0, None, None), (x, w, b)), ((1, None, 0), (x, w, torch.stack([b, b, -b, 2 * b])))):
        for function in (
            lambda *t: functional.rbm_mean(*t),
            lambda *t: functional.rbm_sample(*t, seed=4)[1],
        ):
            found = vmap(function, dims)(*given)
            size = given[0].shape[dims[0]]
            each = [[t if d is None else t.select(d, i) for t, d in zip(given, dims, strict=True)] for i in range(size)]
            expected = torch.stack([function(*t) for t in each])
            torch.testing.assert_close(found, expected)
    data, *rest = Machine(rows=6).tensors(device=device).values()

    def statistics(part):
        return functional.rbm_contrastive_divergence(part, *rest, seed=1)[0]

    found = vmap(statistics)(data.reshape(2, 3, -1))
    torch.testing.assert_close(found, torch.stack([statistics(data[:3]), statistics(data[3:])]))


def test_opcheck(device):
    x, w, b = Layer((2, 3), 4, 5).tensors(device=device).values()
    seed = torch.tensor([3])
    for given_seed in (None, seed):
        torch.library.opcheck(sample_op, (x, w, b, given_seed, 0, False, False, 1.0))
    data, w, b, c, chain = Machine(chains=2).tensors(device=device).values()
    torch.library.opcheck(statistics_op, (data, w, b, c, chain, seed, 1, False, 1.0, 0))
    moving = [torch.zeros_like(t) for t in (w, b, c)]
    numbers = (seed, 3, 1, False, 1.0, 0.1)
    torch.library.opcheck(train_op, (data, None, w, b, c, None, None, None, None, *numbers, 0.0, 0.0, 0))
    order = torch.tensor([1, 2, 5], device=device)
    torch.library.opcheck(train_op, (data, order, w, b, c, *moving, chain, *numbers, 0.5, 0.1, 0))


def test_compile_with_shapes_that_change(device):
    _, w, b = Layer((2,), 4, 5).tensors(device=device).values()
    c = torch.randn(4, dtype=torch.float64, device=device)

    def block(x):
        p, h = functional.rbm_sample(x.sin(), w, b, seed=3)
        q, v = functional.rbm_sample(h, w, c, transposed=True, seed=3, stream=1)
        steps = functional.rbm_contrastive_divergence(x, w, c, b, seed=1)
        return p.cos(), q + v, steps[0]

    fast, counter = compiled(block, dynamic=True)
    counts = []
    for rows in (3, 6, 11):
        x = torch.rand(rows, 4, dtype=torch.float64, device=device, requires_grad=True)
        found, expected = (
            with_gradients({str(i): t for i, t in enumerate(f(x)) if t.requires_grad}, {"x": x, "w": w})
            for f in (fast, block)
        )
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor)
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1]  # (the first time torch begins again, as the temperature is a constant)


def test_training_compiles(device):
    def epochs(data, weight, b, c):
        for number in range(2):
            functional.rbm_train_(data, weight, b, c, learning_rate=0.1, batch_size=3, seed=number)
        return weight.sum()

    fast, _ = compiled(epochs)
    found, case = [], Machine()
    for function in (fast, epochs):
        tensors = list(case.tensors(device=device).values())
        found.append([function(*tensors), *tensors])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


def test_export(device):
    class Up(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(5, 4, device=device))

        def forward(self, x):
            return functional.rbm_mean(x, self.weight)

    x = torch.rand(3, 4, device=device)
    program = torch.export.export(Up(), (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2, max=64)},))
    assert sample_op in [node.target for node in program.graph.nodes]
    longer = torch.rand(9, 4, device=device)
    weight = program.state_dict["weight"]
    torch.testing.assert_close(program.module()(longer), torch.sigmoid(longer @ weight.t()))


def test_meta_tensors():
    x, w = torch.empty(3, 4, device="meta"), torch.empty(5, 4, device="meta")
    assert [t.shape for t in functional.rbm_sample(x, w, seed=1)] == [(3, 5), (3, 5)]


def test_autocast(cpu_only):
    x, w = torch.rand(3, 4), torch.randn(5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert functional.rbm_mean(x, w).dtype == torch.bfloat16
