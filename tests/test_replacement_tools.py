"""Replaced models and the tools of torch: parametrizations, copies, dtypes, compilation, several processes."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import parametrizations, parametrize, prune

import pykernels
from tests.functional.compiling import compiled, forget_what_was_compiled
from tests.helpers import assert_equal, assert_same_bits, python

from .replacements import REPLACED, TOKENS, Example, classes, every_class, is_ours, mixed, results

assert forget_what_was_compiled  # around every test
WEIGHTED = [example for example in REPLACED if list(example.make().parameters(recurse=False))]
every_weighted = pytest.mark.parametrize("example", WEIGHTED, ids=str)


# -- tensors in the place of parameters -------------------------------------------------------------------------------
class Negative(nn.Module):
    def forward(self, weight):
        return -weight

    def right_inverse(self, weight):
        return -weight


def weights(module: nn.Module) -> list[str]:
    return [name for name, p in module.named_parameters(recurse=False) if p.dim() > 1 and "bias" not in name]


def wrap(module: nn.Module, how: str) -> nn.Module:
    for name in weights(module) or ["weight"]:
        if how == "own":
            parametrize.register_parametrization(module, name, Negative())
        elif how == "old_weight_norm":
            nn.utils.weight_norm(module, name)
        elif how == "old_spectral_norm":
            nn.utils.spectral_norm(module, name)
        elif how == "pruned":
            prune.l1_unstructured(module, name, amount=0.3)
        else:
            getattr(parametrizations, how)(module, name)
    return module


WRAPS = ["own", "weight_norm", "spectral_norm", "old_weight_norm", "old_spectral_norm", "pruned"]


def can_wrap(example: Example, how: str) -> bool:
    """Norms are of matrices."""
    return how in ("own", "pruned") or bool(weights(example.make()))


@pytest.mark.parametrize(
    "example, how", [(example, how) for example in WEIGHTED for how in WRAPS if can_wrap(example, how)], ids=str
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_wrapped_weights_are_carried_over(example, how):
    """Wrapped before it is replaced, and wrapped while it is: either way the results are those of torch's module."""
    inputs = example.inputs()
    for replace_first in (False, True):
        torch.manual_seed(5)
        module, model = (example.make().eval() for _ in range(2))
        if replace_first:
            pykernels.replace(module)
        for m in (module, model):
            torch.manual_seed(6)
            wrap(m, how).eval()
        expected = results(model, *inputs)
        pykernels.replace(module)
        assert isinstance(module, example.ours) and classes(module).keys() == classes(model).keys()
        assert parametrize.is_parametrized(module) == parametrize.is_parametrized(model)
        assert [name for name, _ in module.named_parameters()] == [name for name, _ in model.named_parameters()]
        assert_equal(results(module, *inputs), expected, 1e-11)
        pykernels.restore(module)
        assert isinstance(module, example.theirs) and not is_ours(module)
        assert type(module).__name__ == type(model).__name__
        assert_same_bits(results(module, *inputs), expected)


@every_weighted
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_parametrizations_come_off_a_replaced_module(example):
    """Put on before it is replaced and taken off after, and then the module is one of ours, and restored torch's."""
    module, inputs = example.make(), example.inputs()
    before, names = results(module, *inputs), weights(module) or ["weight"]
    wrap(module, "own")
    held = copy.deepcopy(module)  # which shares the class that parametrize made
    expected = results(held, *inputs)
    pykernels.replace(module)
    with parametrize.cached():
        assert_equal(results(module, *inputs), expected, 1e-11)
    for name in names:
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        with torch.no_grad():
            getattr(module, name).neg_()  # as it was
    assert type(module) is example.ours and not parametrize.is_parametrized(module)
    assert parametrize.is_parametrized(held) and type(held).__bases__ == (example.theirs,)
    assert_equal(dict(sorted(results(module, *inputs).items())), dict(sorted(before.items())))
    assert type(pykernels.restore(module)) is example.theirs
    assert_same_bits(dict(sorted(results(module, *inputs).items())), dict(sorted(before.items())))
    assert_same_bits(results(held, *inputs), expected)


def test_setting_a_parametrized_weight():
    module = pykernels.replace(wrap(nn.LSTM(5, 6), "own"))
    value = torch.randn(24, 5)
    for change in (lambda m: m, pykernels.restore):
        change(module).weight_ih_l0 = value
        torch.testing.assert_close(module.weight_ih_l0, value)
        torch.testing.assert_close(module.parametrizations.weight_ih_l0.original, -value)
        value = value + 1


# -- copies -----------------------------------------------------------------------------------------------------------
def through_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "save": through_save}


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_a_replaced_model(how):
    """They compute the same, are restored alone, and a shared module and tied weights stay so."""
    model = mixed()
    before, kinds = results(model, TOKENS), classes(model)
    pykernels.replace(model)
    replaced = results(model, TOKENS)
    copied = COPIES[how](model)
    assert classes(copied) == classes(model)
    assert_same_bits(results(copied, TOKENS), replaced)
    pykernels.restore(copied)
    assert classes(copied) == kinds and is_ours(model.norm)
    assert copied.norm is copied.named["shared"] and copied.head[1].weight is copied.embedding.weight
    assert_same_bits(results(copied, TOKENS), before)
    assert_same_bits(results(model, TOKENS), replaced)


@pytest.mark.parametrize("how", COPIES)
@every_class
def test_copies_of_each_class(how, example):
    module, inputs = pykernels.replace(example.make()), example.inputs()
    copied = COPIES[how](module)
    assert type(copied) is example.ours and vars(copied).keys() == vars(module).keys()
    assert_same_bits(results(copied, *inputs), results(module, *inputs))
    assert type(pykernels.restore(copied)) is example.theirs
    assert_same_bits(results(copied, *inputs), results(example.make(), *inputs))


def test_deepcopy_of_a_parametrized_one():
    module = pykernels.replace(wrap(nn.GRU(5, 6), "own"))
    x = torch.randn(3, 4, 5)
    copied = copy.deepcopy(module)
    expected = module(x)[0]
    pykernels.restore(copied)
    assert not is_ours(copied) and is_ours(module)
    torch.testing.assert_close(copied(x)[0], expected)
    assert torch.equal(module(x)[0], expected)


# -- dtypes and devices -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_class
def test_low_precision(example, dtype, device):
    """Ours is as near to the results in float64 as torch's, give or take a unit in the last place of the largest."""
    module = example.make(dtype, device).eval()
    wide = copy.deepcopy(module).double()
    inputs = [t.detach() for t in example.inputs(dtype, device)]
    truth = evaluated(wide, [t.double() if t.is_floating_point() else t for t in inputs])
    try:
        theirs = evaluated(module, inputs)
    except NotImplementedError:  # torch's kernels for processors are not there for every dtype
        theirs = {name: t.to(dtype) if t.is_floating_point() else t for name, t in truth.items()}
    ours = evaluated(pykernels.replace(module), inputs)
    assert all(t.dtype == theirs[name].dtype for name, t in ours.items())
    for name, expected in truth.items():
        scale = float(expected.double().abs().max())
        error, allowed = (float((t[name].double() - expected.double()).abs().max()) for t in (ours, theirs))
        assert error <= 2 * allowed + torch.finfo(dtype).eps * scale, name
    assert type(pykernels.restore(module)) is example.theirs


def evaluated(module, inputs):
    with torch.no_grad():
        return results(module, *inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_conversion_while_replaced(dtype):
    """The model that comes back is the one that torch would have converted."""
    tokens, model, expected = TOKENS, mixed(torch.float32).eval(), mixed(torch.float32).eval().to(dtype)
    pykernels.restore(pykernels.replace(model).to(dtype))
    assert classes(model) == classes(expected)
    assert_same_bits(evaluated(model, [tokens]), evaluated(expected, [tokens]))


def test_meta_device():
    """No memory, but shapes; and filled later, while it is replaced."""
    with torch.device("meta"):
        model, tokens = mixed(), TOKENS.to("meta")
    shape = model(tokens).shape
    pykernels.replace(model)
    assert is_ours(model.norm) and model(tokens).shape == shape and model(tokens).device.type == "meta"
    expected = mixed()
    model.to_empty(device="cpu").load_state_dict(expected.state_dict())
    model.head[1].weight = model.embedding.weight
    assert_equal(results(model, TOKENS), results(expected, TOKENS))
    assert_same_bits(results(pykernels.restore(model), TOKENS), results(expected, TOKENS))


def test_training_and_evaluation_modes():
    """`train` and `eval` reach replaced modules, and dropout is drawn in the one only."""
    model, tokens = pykernels.replace(mixed(dropout=0.5)), TOKENS
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(tokens), model(tokens))
    assert_equal(results(model, tokens), results(mixed().eval(), tokens))


# -- compilation ------------------------------------------------------------------------------------------------------
def operators(counter) -> str:
    return " ".join(str(node.target) for graph in counter.graphs for node in graph.graph.nodes)


def test_compile_of_a_replaced_model():
    model = mixed()
    before = results(model, TOKENS)
    fast, counter = compiled(pykernels.replace(model))
    assert_equal(results(fast, TOKENS), before_compiled(before), 1e-11)
    for name in ("lstm", "gru", "rnn", "attention", "layer_norm"):
        assert f"pykernels.{name}_forward" in operators(counter), name


def before_compiled(found):
    """With the names that parameters have in a compiled module."""
    return {name.replace("grad ", "grad _orig_mod.", 1): tensor for name, tensor in found.items()}


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(5), nn.Linear(5, 5)

    def forward(self, x):
        return self.linear(self.norm(x))


@pytest.mark.parametrize("in_place", [False, True])
def test_replacing_in_a_compiled_model(in_place):
    """What was compiled before is compiled anew, and after `restore` the first code serves again."""
    model = Normalised()
    counter, x = CompileCounterWithBackend("aot_eager"), torch.randn(3, 5)
    if in_place:
        model.compile(backend=counter)
        fast = model
    else:
        fast = torch.compile(model, backend=counter)
    before = fast(x)
    assert counter.frame_count == 1 and "pykernels" not in operators(counter)
    pykernels.replace(fast)
    torch.testing.assert_close(fast(x), before)
    assert counter.frame_count == 2 and "pykernels.layer_norm_forward" in operators(counter)
    pykernels.restore(fast)
    assert torch.equal(fast(x), before) and counter.frame_count == 2


def test_export_of_a_replaced_model():
    model = pykernels.replace(mixed().eval())
    program = torch.export.export(model, (TOKENS,))
    assert "pykernels.lstm_forward" in str(program.graph)
    torch.testing.assert_close(program.module()(TOKENS), model(TOKENS))


def test_functional_call():
    model, other = pykernels.replace(mixed()), nn.Module()
    other = {name: p.detach() * 1.5 for name, p in model.named_parameters()}
    found = torch.func.functional_call(model, other, (TOKENS,))
    expected = torch.func.functional_call(mixed(), other, (TOKENS,))
    torch.testing.assert_close(found, expected)


# -- several processes ------------------------------------------------------------------------------------------------
RANKS = """
import logging, os, tempfile
import torch, torch.distributed as dist, torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import pykernels
from tests.replacements import TOKENS, mixed

def steps(model, tokens, change):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    for _ in range(3):
        for then in (lambda m: m, *change):
            then(model)
            optimizer.zero_grad()
            model(tokens).square().mean().backward()
            optimizer.step()
    return {name.removeprefix("module."): p.detach() for name, p in model.named_parameters()}

def rank(index, place):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://" + place, rank=index, world_size=2)
    tokens = torch.cat((TOKENS, TOKENS[:, :3]), 1)
    part, change = tokens.chunk(2, 1)[index], (pykernels.replace, pykernels.restore)
    expected = steps(mixed(), tokens, (lambda m: m,) * 2)

    model = nn.parallel.DistributedDataParallel(mixed())  # wrapped first, replaced and restored in it
    torch.testing.assert_close(steps(model, part, change), expected, rtol=1e-9, atol=1e-11)
    model = nn.parallel.DistributedDataParallel(pykernels.replace(mixed()))
    torch.testing.assert_close(steps(model, part, (lambda m: m,) * 2), expected, rtol=1e-9, atol=1e-11)
    print("replicated", flush=True)

    model = pykernels.replace(mixed())
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model.layers[0], model.encoder.layers[0], model.norm):
        fully_shard(layer, mesh=mesh)
    model(tokens).square().mean().backward()
    alone = mixed()
    alone(tokens).square().mean().backward()
    gradient = model.layers[0].weight_hh_l0.grad.full_tensor()
    torch.testing.assert_close(gradient, alone.layers[0].weight_hh_l0.grad, rtol=1e-9, atol=1e-11)
    pykernels.restore(model)  # with a warning for those that have the class of FSDP now
    assert isinstance(model.layers[0], pykernels.LSTM) and type(model.layers[1]) is nn.GRU
    sharded = fully_shard(nn.Sequential(nn.LayerNorm(8)), mesh=mesh)
    found = [entry.reason for entry in pykernels.replacements(sharded)]
    assert found == ["its parameters are of type DTensor"], found
    print("sharded", flush=True)
    dist.barrier()
    os._exit(0)

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank, (os.path.join(folder, "store"),), nprocs=2)
"""


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo")
def test_distributed(tmp_path, cpu_only):
    """DistributedDataParallel around a replaced model and replaced inside; FSDP around a replaced one."""
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    said = python([str(script)], timeout=180).stdout
    assert said.count("replicated") == said.count("sharded") == 2, said
