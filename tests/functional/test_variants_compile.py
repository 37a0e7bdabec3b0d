"""The variants under torch.compile(fullgraph=True), torch.export, fake tensors and autocast."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import pykernels
from pykernels import functional
from tests.helpers import LOW, Case, assert_equal, call, every_kind, with_gradients

from .compiling import compiled, flat, forget_what_was_compiled

assert forget_what_was_compiled  # around every test
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
NAMES = ("LSTM", "GRU", "RNN")
every_module = pytest.mark.parametrize("name", NAMES)
ALL = {"layer_norm": True, "zoneout": 0.3, "recurrent_dropout": 0.25, "weight_dropout": 0.3}
VARIANTS = {
    "layer_norm": {"layer_norm": True},
    "zoneout": {"zoneout": 0.3},
    "recurrent_dropout": {"recurrent_dropout": 0.25},
    "weight_dropout": {"weight_dropout": 0.3},
    "all": ALL,
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
CHOICES = [*((name, "all") for name in NAMES), *(("LSTM", variant) for variant in VARIANTS if variant != "all")]


def made(name: str, options, *, training: bool, dtype=torch.float64, **more) -> nn.Module:
    return getattr(pykernels, name)(5, 7, **options, **more, dtype=dtype).train(training)


def seeded(function, *args):
    torch.manual_seed(3)
    return flat(function(*args))


# -- compile ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, variant", CHOICES)
def test_in_training(device, name, variant):
    """Values and gradients of eager with the same masks, T and B changing; no compilation after the second."""
    module = made(name, VARIANTS[variant], training=True).to(device)
    fast, counter = compiled(module)
    counts = []
    for steps, batch in ((4, 3), (6, 2), (9, 5)):
        x = torch.randn(steps, batch, 5, dtype=torch.float64).to(device).requires_grad_()
        leaves = {"input": x} | dict(module.named_parameters())
        found = with_gradients(seeded(fast, x), leaves)
        assert_equal(found, with_gradients(seeded(module, x), leaves), 1e-10)
        counts.append(counter.frame_count)
    assert counts[0] == 1 and counts[1] <= 2 and counts[-1] == counts[1], counts


@every_module
def test_in_evaluation(device, name):
    module = made(name, ALL, training=False, bidirectional=True, batch_first=True).to(device)
    fast, counter = compiled(module, dynamic=True)
    with torch.no_grad():
        for steps, batch in ((4, 3), (6, 2)):
            x = torch.randn(batch, steps, 5, dtype=torch.float64).to(device)
            assert_equal(flat(fast(x)), flat(module(x)))
    assert counter.frame_count <= 2


@every_module
def test_masks_differ_from_call_to_call(device, name):
    """The graph holds no mask."""
    module = made(name, {"zoneout": 0.5}, training=True).to(device)
    fast, counter = compiled(module)
    x = torch.randn(4, 3, 5, dtype=torch.float64).to(device)
    torch.manual_seed(3)
    outputs = [fast(x)[0] for _ in range(3)]
    torch.manual_seed(3)
    assert all(torch.equal(mine, module(x)[0]) for mine in outputs)
    assert not torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[1], outputs[2])
    assert counter.frame_count == 1


@pytest.mark.parametrize("name, variant", [*((name, "all") for name in NAMES), ("GRU", "recurrent_dropout")])
def test_packed_input(device, name, variant):
    """Without initial states, too, of which the batch might be learnt."""
    module = made(name, VARIANTS[variant], training=True, bidirectional=True).to(device)

    def model(data, sizes, sorted_indices, unsorted_indices):
        output, state = module(PackedSequence(data, sizes, sorted_indices, unsorted_indices))
        return output.data, state

    fast, counter = compiled(model)
    for steps, lengths in ((4, [2, 4, 1]), (6, [6, 3])):
        x = torch.randn(steps, len(lengths), 5, dtype=torch.float64).to(device)
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        leaves = dict(module.named_parameters())
        found = with_gradients(seeded(fast, *packed), leaves)
        assert_equal(found, with_gradients(seeded(model, *packed), leaves), 1e-10)
    assert counter.frame_count <= 3


def test_attributes_that_change(device):
    """Another probability, or evaluation, is seen by the compiled module."""
    module = made("LSTM", ALL, training=True).to(device)
    fast, _ = compiled(module, "eager")
    x = torch.randn(4, 3, 5, dtype=torch.float64).to(device)
    before = seeded(fast, x)["0"]
    module.zoneout = 0.7
    assert torch.equal(seeded(fast, x)["0"], seeded(module, x)["0"]) and not torch.equal(before, seeded(fast, x)["0"])
    module.eval()
    assert torch.equal(seeded(fast, x)["0"], seeded(module, x)["0"])


@every_module
def test_inductor(cpu_only, name):
    """The default backend, with code before and after; its own generator draws the seeds of the masks."""
    module = made(name, ALL, training=True, dtype=torch.float32)

    def loss(x):
        return module(x.sin() * 2)[0].square().mean()

    fast, _ = compiled(loss, "inductor")
    x = torch.randn(4, 3, 5, requires_grad=True)
    values = [fast(x) for _ in range(2)]
    assert all(g.isfinite().all() for g in torch.autograd.grad(values[0], [x, *module.parameters()]))
    assert values[0] != values[1]


# -- export and fake tensors ------------------------------------------------------------------------------------------
@every_module
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non_strict"])
def test_export_of_an_evaluation_module(device, strict, name, tmp_path):
    module = made(name, ALL, training=False, dtype=torch.float32, num_layers=2, batch_first=True).to(device)
    x = torch.randn(3, 4, 5).to(device)
    steps, batch = torch.export.Dim("steps", min=1, max=1000), torch.export.Dim("batch", min=1, max=1000)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: batch, 1: steps},), strict=strict)
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(getattr(torch.ops.pykernels, f"{name.lower()}_variant_forward").default) == 2
    assert not any("rand" in str(target) for target in targets)
    torch.export.save(program, tmp_path / "module.pt2")
    loaded = torch.export.load(tmp_path / "module.pt2").module()
    for shape in ((3, 4, 5), (2, 9, 5)):
        y = torch.randn(shape).to(device)
        for mine, its in zip(flat(loaded(y)).values(), flat(module(y)).values(), strict=True):
            torch.testing.assert_close(mine, its)


@every_module
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_fake_and_meta_tensors(training, name):
    from torch._subclasses.fake_tensor import FakeTensorMode

    options = {**ALL, "proj_size": 3} if name == "LSTM" else ALL
    with FakeTensorMode():
        module = made(name, options, training=training, num_layers=2, bidirectional=True)
        fake = module(torch.empty(4, 2, 5, dtype=torch.float64))
    module = made(name, options, training=training, num_layers=2, bidirectional=True, device="meta")
    on_meta = module(torch.empty(4, 2, 5, dtype=torch.float64, device="meta"))
    for found in (fake, on_meta):
        output, h_n, *c_n = torch.utils._pytree.tree_leaves(found)
        width = 3 if name == "LSTM" else 7
        assert output.shape == (4, 2, 2 * width) and h_n.shape == (4, 2, width)
        assert all(c.shape == (4, 2, 7) for c in c_n)
        assert output.dtype == torch.float64 and output.device.type in ("cpu", "meta")


# -- autocast ---------------------------------------------------------------------------------------------------------
@every_module
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@every_variant
def test_autocast_is_the_low_precision(device, variant, training, dtype, name):
    """The dtypes of the plain layer, the values and gradients of the module in that precision; gradients in float32."""
    module = made(name, VARIANTS[variant], training=training, dtype=torch.float32, num_layers=2).to(device)
    plain = made(name, {}, training=training, dtype=torch.float32, num_layers=2).to(device)
    low = made(name, VARIANTS[variant], training=training, dtype=dtype, num_layers=2).to(device)
    low.load_state_dict(module.state_dict())
    x = torch.randn(5, 3, 5).to(device)
    found = []
    for which, given in ((module, x), (low, x.to(dtype))):
        leaves = {"input": given.requires_grad_()} | dict(which.named_parameters())
        torch.manual_seed(3)
        with torch.autocast(device.type, dtype, enabled=which is module):
            results, expected = flat(which(given)), flat(plain(x)) if which is module else {}
        assert which is low or [r.dtype for r in results.values()] == [r.dtype for r in expected.values()]
        found.append(with_gradients(results, leaves))
    for key, value in found[1].items():
        assert found[0][key].dtype == torch.float32 or not key.startswith("grad")
        difference = (found[0][key].double() - value.double()).norm()
        # of a GRU the gradients come in in float32, and are rounded then
        assert difference <= (0.02 * value.double().norm() if key.startswith("grad") else 0), key


@every_kind
def test_float64_under_autocast(device, kind):
    """Which autocast leaves as it is, as torch's layers do."""
    case = Case(kind=kind, training=True, **ALL)
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    with torch.autocast(device.type, torch.bfloat16):
        found = call(functional, case, tensors)
    assert_equal(found, call(functional, case, tensors))


@every_kind
def test_compiled_under_autocast(device, kind):
    case = Case(kind=kind, layer_norm=True, zoneout=0.3)
    tensors = case.tensors(torch.float32, device)

    def under_autocast(*values):
        with torch.autocast(device.type, torch.bfloat16):
            return tuple(call(functional, case, dict(zip(tensors, values, strict=True))).values())

    fast, _ = compiled(under_autocast)
    for mine, its in zip(fast(*tensors.values()), under_autocast(*tensors.values()), strict=True):
        assert mine.dtype == its.dtype
        torch.testing.assert_close(mine, its)
