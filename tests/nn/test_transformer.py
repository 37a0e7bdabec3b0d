"""The transformer layers beside torch's: values, gradients, torch's stacks, memory, tools."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

import pykernels
from tests.functional.attention_cases import assert_equal
from tests.functional.compiling import compiled, forget_what_was_compiled
from tests.helpers import LOW, assert_no_worse, assert_same_bits, distance, drawn, python, with_gradients

from .transformer_layers import FLAG, NAMES, SPACE, Layer, every_layer, pair, paths, slow_path

assert forget_what_was_compiled and paths and slow_path  # around tests
pytestmark = pytest.mark.filterwarnings(
    "ignore:Support for mismatched", "ignore:The PyTorch API of nested tensors", "ignore:enable_nested_tensor"
)


# -- construction and values ------------------------------------------------------------------------------------------
@every_layer
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"norm_first": True, "layer_norm_eps": 0.1, "dropout": 0.3},
                                     {"activation": "gelu", "batch_first": True, "dtype": torch.float64}],
                         ids=str)  # fmt: skip
def test_same_initialisation_text_and_state(device, name, options):
    found = []
    for where in (pykernels, nn):
        torch.manual_seed(11)
        found.append((getattr(where, name)(8, 2, 16, **options, device=device), torch.rand(1)))
    (ours, after), (theirs, after_theirs) = found
    assert isinstance(ours, getattr(nn, name)) and isinstance(ours.self_attn, pykernels.MultiheadAttention)
    assert_same_bits(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert torch.equal(after, after_theirs) and repr(ours) == repr(theirs)
    with torch.no_grad():
        [p.mul_(1.5) for p in ours.parameters()]
    theirs.load_state_dict(ours.state_dict())
    dtype = options.get("dtype", torch.float32)
    args = [torch.randn(5, 5, 8, device=device, dtype=dtype) for _ in range(1 + ("Decoder" in name))]
    torch.testing.assert_close(ours.eval()(*args), theirs.eval()(*args))
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(copied(*args), ours(*args)) and copied.training is ours.training
        assert isinstance(copied.self_attn, pykernels.MultiheadAttention)


@drawn(250, of=Layer, **SPACE)
def test_values_and_gradients_are_torchs(device, case):
    ours, theirs = pair(case, device=device)
    assert_equal(case.run(ours, device=device), case.run(theirs, device=device), 1e-10)


@drawn(40, of=Layer, **{**SPACE, "training": [False]})
def test_values_without_gradients(paths, device, case):
    with torch.no_grad():
        ours, theirs = (m(*case.inputs(torch.float32, device).values(), **case.options(torch.float32, device))
                        for m in pair(case, torch.float32, device))  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@drawn(10, of=Layer, **{**SPACE, "rows": [17, 40], "mask": ["none", "bool"], "padding": ["none", "bool"],
                        "activation": ["gelu", "callable"]})  # fmt: skip
def test_as_exact_as_torch(device, dtype, case):
    ours, theirs = pair(case, dtype, device)
    truth, wide = copy.deepcopy(theirs).double(), case.inputs(dtype, device)
    wide = {n: t.detach().double().requires_grad_() for n, t in wide.items()}
    expected = with_gradients({"y": truth(*wide.values(), **case.options(device=device))},
                              wide | dict(truth.named_parameters()))  # fmt: skip
    assert_no_worse(case.run(ours, dtype, device), case.run(theirs, dtype, device), expected, floor=16)


@every_layer
def test_a_row_that_sees_nothing_is_finite(device, name):
    case = Layer(name, mask="bool")
    module, leaves, options = (
        case.make(pykernels, device=device),
        case.inputs(device=device),
        case.options(device=device),
    )
    for mask in options.values():
        mask[2] = True
    found = with_gradients({"y": module(*leaves.values(), **options)}, leaves | dict(module.named_parameters()))
    assert all(t.isfinite().all() for t in found.values())


# -- inside torch's stacks --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("norm_first", FLAG)
@pytest.mark.parametrize("training", FLAG)
@pytest.mark.parametrize("nested", FLAG)
@pytest.mark.parametrize("norm", FLAG)
def test_encoder(paths, device, norm_first, training, nested, norm):
    """In eval, without gradients, torch's stack hands nested tensors to its layers, and pads with zeros."""
    case = Layer(norm_first=norm_first, padding="bool", training=training)
    stacks = []
    for layer in pair(case, torch.float32, device):
        stacks.append(nn.TransformerEncoder(layer, 3, nn.LayerNorm(8, device=device) if norm else None, nested))
    x, hidden = case.inputs(torch.float32, device)["x"], case.options(device=device)["src_key_padding_mask"]
    for grad in FLAG:
        with torch.set_grad_enabled(grad):
            ours, theirs = (stack.train(training)(x, src_key_padding_mask=hidden) for stack in stacks)
        converted = paths and nested and not training and not grad and not norm_first
        shown = slice(None) if converted or not paths or grad or training else ~hidden
        torch.testing.assert_close(ours[shown], theirs[shown], rtol=1e-4, atol=1e-5)
        assert not converted or norm or not ours[hidden].any()
    mask = nn.Transformer.generate_square_subsequent_mask(5, device=device)
    torch.testing.assert_close(*(stack(x, mask) for stack in stacks), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm_first", FLAG)
@pytest.mark.parametrize("batch_first", FLAG)
def test_transformer(device, norm_first, batch_first):
    """torch.nn.Transformer around stacks of our layers, against its own."""
    models = []
    for where in (pykernels, nn):
        stacks = {}
        for name, stack in zip(NAMES, (nn.TransformerEncoder, nn.TransformerDecoder), strict=True):
            case = Layer(name, norm_first, batch_first)
            end = nn.LayerNorm(8, device=device, dtype=torch.float64)
            stacks[f"custom_{name[11:18].lower()}"] = stack(case.make(where, device=device), 2, end)
        models.append(nn.Transformer(8, 2, batch_first=batch_first, **stacks))
    models[0].load_state_dict(models[1].state_dict())
    leaves, found = Layer(NAMES[1], norm_first, batch_first).inputs(device=device), []
    causal = nn.Transformer.generate_square_subsequent_mask(5, device=device, dtype=torch.float64)
    hidden = torch.arange(7, device=device) >= torch.tensor([7, 3, 1], device=device)[:, None]
    hidden = torch.zeros(3, 7, dtype=torch.float64, device=device).masked_fill(hidden, -math.inf)
    for model in models:
        y = model(leaves["memory"], leaves["x"], tgt_mask=causal, src_key_padding_mask=hidden,
                  memory_key_padding_mask=hidden)  # fmt: skip
        found.append(with_gradients({"y": y}, leaves | dict(model.named_parameters())))
    assert_equal(*found, 1e-10)


def test_nested_input(device):
    layer = Layer(training=False).make(pykernels, device=device)
    parts = [torch.randn(n, 8, dtype=torch.float64, device=device) for n in (5, 1, 4)]
    found = layer(torch.nested.nested_tensor(parts))
    assert found.is_nested
    for ours, part in zip(found.unbind(), parts, strict=True):
        torch.testing.assert_close(ours, layer(part))


# -- tools of torch ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("norm_first", FLAG)
@every_layer
def test_compile_with_shapes_that_change(device, name, norm_first):
    module = (case := Layer(name, norm_first, mask="causal")).make(pykernels, device=device)
    fast, counter = compiled(module)
    counts = []
    for rows in (13, 15, 18):
        problem = dataclasses.replace(case, rows=rows, keys=rows + 20)
        leaves = problem.inputs(device=device)
        found = with_gradients({"y": fast(*leaves.values(), **problem.options(device=device))},
                               leaves | dict(module.named_parameters()))  # fmt: skip
        assert_equal(found, problem.run(module, device=device), 1e-10)
        counts.append(counter.frame_count)
    assert counts[0] == 1 and counts[-1] == counts[1] <= 2, counts


def test_compiled_dropout_and_a_stack(device):
    case = Layer(dropout=0.5)
    stack = nn.TransformerEncoder(case.make(pykernels, device=device), 2, enable_nested_tensor=False)
    fast, x = compiled(stack)[0], case.inputs(device=device)["x"]
    assert not torch.equal(fast(x), fast(x))
    torch.testing.assert_close(compiled(stack.eval())[0](x), stack(x))


@pytest.mark.parametrize("strict", FLAG, ids=["non_strict", "strict"])
@every_layer
def test_export(device, name, strict):
    module = Layer(name, training=False).make(pykernels, device=device)
    inputs = tuple(t.detach() for t in Layer(name).inputs(device=device).values())
    length = torch.export.Dim("length", min=2, max=512)
    program = torch.export.export(module, inputs, dynamic_shapes=({1: length}, None)[: len(inputs)], strict=strict)
    longer = (torch.randn(3, 11, 8, dtype=torch.float64, device=device), *inputs[1:])
    torch.testing.assert_close(program.module()(*longer), module(*longer))


@every_layer
def test_ensemble_by_functional_call_and_vmap(device, name):
    modules = [Layer(name, seed=seed).make(pykernels, device=device) for seed in range(3)]
    parameters, buffers = stack_module_state(modules)
    template = Layer(name).make(pykernels, device="meta")
    inputs = tuple(t.detach() for t in Layer(name).inputs(device=device).values())
    found = vmap(lambda p, b: functional_call(template, (p, b), inputs))(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([m(*inputs) for m in modules]))


@pytest.mark.parametrize("norm_first", FLAG)
@pytest.mark.parametrize("training", FLAG)
@every_layer
def test_autocast_gives_torchs_dtypes(device, slow_path, name, training, norm_first):
    """(On processors torch's fast path goes on in bfloat16.)"""
    found, case = [], Layer(name, norm_first, training=training)
    for module in pair(case, torch.float32, device):
        leaves = case.inputs(torch.float32, device)
        with torch.autocast(device.type, torch.bfloat16), torch.set_grad_enabled(training):
            y = module(*leaves.values())
        operands = [*leaves.values(), *module.parameters()]
        found.append((y, *(torch.autograd.grad(y.float().sin().sum(), operands) if training else ())))
    assert [t.dtype for t in found[0]] == [t.dtype for t in found[1]]
    for ours, theirs in zip(*found, strict=True):
        assert distance(ours.detach(), theirs.detach(), 1.0) < 0.1


@pytest.mark.parametrize("norm_first", FLAG)
@every_layer
def test_memory_of_a_training_step(device, name, norm_first):
    """At L = 2048 what is saved is a few times the input: no scores, no masks of dropout on sums."""
    case = Layer(name, norm_first, mask="causal", dropout=0.1, heads=4, rows=2048, keys=2048)
    module, kept = case.make(pykernels, torch.float32, device), {}
    leaves, options = case.inputs(torch.float32, device), case.options(torch.float32, device)
    options = {n: o for n, o in options.items() if "memory" not in n}
    known = {
        t.data_ptr() for t in [*module.parameters(), *leaves.values(), *options.values()] if hasattr(t, "data_ptr")
    }
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({t.untyped_storage().data_ptr(): t}) or t,
                                                  lambda t: t):  # fmt: skip
        module(*leaves.values(), **options)
    sizes = [t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in known]
    assert max(sizes) < 2048 * 2048
    assert sum(sizes) < 16 * leaves["x"].numel() * 4 * (1 + ("Decoder" in name))


# -- torch's own samples ----------------------------------------------------------------------------------------------
common_modules = pytest.importorskip("torch.testing._internal.common_modules")
KINDS = {getattr(nn, n): getattr(pykernels, n) for n in ("MultiheadAttention", *NAMES)}
INFOS = {info.module_cls: info for info in common_modules.module_db if info.module_cls in KINDS}


@pytest.mark.parametrize("kind", KINDS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("training", FLAG)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_moduleinfo_samples(paths, device, kind, training, dtype):
    """ModuleInfo's inputs, with their reference functions and torch's module beside ours."""
    samples = INFOS[kind].module_inputs_func(INFOS[kind], device, dtype, requires_grad=True, training=training)
    assert samples
    for sample in samples:
        given, forward = sample.constructor_input, sample.forward_input
        given.kwargs.update({"device": device, "dtype": dtype})
        modules = [cls(*given.args, **given.kwargs).train(training) for cls in (KINDS[kind], kind)]
        modules[0].load_state_dict(modules[1].state_dict())
        for grad in FLAG:
            with torch.set_grad_enabled(grad), torch.random.fork_rng():
                if not any(isinstance(m, nn.Dropout) and m.p for m in modules[0].modules()) or not training:
                    found, expected = (m(*forward.args, **forward.kwargs) for m in modules)
                    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        if sample.reference_fn is not None:
            expected = sample.reference_fn(modules[0], *forward.args, **forward.kwargs)
            torch.testing.assert_close(modules[0](*forward.args, **forward.kwargs), expected, rtol=1e-4, atol=1e-5)


# -- processes --------------------------------------------------------------------------------------------------------
RANKS = """
import os, sys, tempfile, torch, torch.distributed as dist, torch.multiprocessing as mp
from torch import nn
import pykernels

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoder(pykernels.TransformerEncoderLayer(8, 2, 16, 0.0, dtype=torch.float64), 2)
        self.decoder = pykernels.TransformerDecoderLayer(8, 2, 16, 0.0, norm_first=True, dtype=torch.float64)
        self.attention = pykernels.DotAttention(8, 8, dtype=torch.float64)
        self.norm = pykernels.LayerNorm(8, dtype=torch.float64)
    def forward(self, x):
        h = self.encoder(x)
        return self.norm(self.attention(self.decoder(x, h), h)[0], residual=x)

def made():
    torch.manual_seed(3)
    return Model(), torch.randn(5, 8, 8, dtype=torch.float64)

def rank(index, place):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://" + place, rank=index, world_size=2)
    model, x = made()
    alone = torch.autograd.grad(model(x).sin().mean(), list(model.parameters()))
    wrapped = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):
        wrapped.zero_grad()
        wrapped(x.chunk(2, 1)[index]).sin().mean().backward()
    for parameter, expected in zip(model.parameters(), alone, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12)
    print("replicated", flush=True)
    dist.barrier()
    os._exit(0)

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank, (os.path.join(folder, "store"),), nprocs=2)
"""


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo")
def test_distributed_gradients_are_those_of_the_whole_batch(cpu_only, tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    assert python([str(tmp_path / "ranks.py")], timeout=180).stdout.count("replicated") == 2
