"""pykernels.MultiheadAttention beside torch.nn.MultiheadAttention: construction, values, gradients, dropout."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import pykernels
from pykernels import functional
from tests.functional.attention_cases import assert_equal
from tests.functional.compiling import forget_what_was_compiled
from tests.helpers import LOW, assert_no_worse, assert_same_bits, drawn, python, with_gradients

from .heads import FLAG, SPACE, Heads, pair, slow_path, sound

assert forget_what_was_compiled and slow_path  # around every test
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched", "ignore:The PyTorch API of nested tensors")


# -- construction -----------------------------------------------------------------------------------------------------
def parameters_of(function) -> list[tuple[Any, ...]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_takes_the_same_arguments():
    for name in ("__init__", "forward"):
        ours, theirs = (getattr(where.MultiheadAttention, name) for where in (pykernels, nn))
        assert parameters_of(ours) == parameters_of(theirs)
    own = ("batch_first", "static_k", "static_v")
    ours, theirs = (
        [p for p in parameters_of(where.multi_head_attention_forward) if p[0] not in own] for where in (functional, F)
    )
    assert ours == theirs
    assert issubclass(pykernels.MultiheadAttention, nn.MultiheadAttention)


OPTIONS = [{}, {"bias": False}, {"kdim": 6, "vdim": 10}, {"add_bias_kv": True, "add_zero_attn": True},
           {"dropout": 0.3, "batch_first": True, "dtype": torch.float64}]  # fmt: skip
every_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


@every_option
def test_same_seed_same_initialisation_text_and_attributes(options):
    found = []
    for where in (pykernels, nn):
        torch.manual_seed(11)
        module = where.MultiheadAttention(8, 2, **options)
        found.append((module, torch.rand(1)))
    (ours, after), (theirs, after_theirs) = found
    assert_same_bits(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert torch.equal(after, after_theirs) and repr(ours) == repr(theirs)
    torch.manual_seed(12), ours._reset_parameters(), torch.manual_seed(12), theirs._reset_parameters()
    assert_same_bits(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert {n: v for n, v in vars(ours).items() if not n.startswith("_")} == {
        n: v for n, v in vars(theirs).items() if not n.startswith("_")
    }


@every_option
def test_state_dict_and_copies(options, device):
    options = {"dtype": torch.float64, **options, "dropout": 0.0}
    ours, theirs = (where.MultiheadAttention(8, 2, **options, device=device) for where in (pykernels, nn))
    ours.load_state_dict(theirs.state_dict())
    q, k, v = (torch.randn(2, 3, n, dtype=torch.float64, device=device) for n in (8, ours.kdim, ours.vdim))
    expected = theirs(q, k, v)
    back = nn.MultiheadAttention(8, 2, **options, device=device)
    back.load_state_dict(ours.state_dict())
    taken = pykernels.MultiheadAttention.taking_over(copy.deepcopy(theirs))
    assert type(taken) is pykernels.MultiheadAttention
    for module in (ours, back, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), taken):
        torch.testing.assert_close(module(q, k, v), expected)
    copied = copy.deepcopy(ours)
    with torch.no_grad():
        [p.mul_(2) for p in copied.parameters()]
    torch.testing.assert_close(ours(q, k, v), expected)


# -- values -----------------------------------------------------------------------------------------------------------
@drawn(500, of=Heads, **SPACE)
def test_values_and_gradients_are_torchs(device, case):
    case = sound(case)
    ours, theirs = pair(case, device=device)
    assert_equal(case.run(ours, device=device), case.run(theirs, device=device), 1e-10)


FAST = {**SPACE, "batch_first": [True], "add_bias_kv": [False], "add_zero_attn": [False], "given": ["self"],
        "unbatched": [False], "bias": [True], "heads": [2, 4], "padding": ["none", "bool"],
        "mask": ["none", "bool"]}  # fmt: skip


@drawn(40, of=Heads, **FAST)
def test_values_are_those_of_torchs_fast_path(device, case):
    ours, theirs = (module.eval() for module in pair(case, torch.float32, device))
    torch.backends.mha.set_fastpath_enabled(True)
    with torch.no_grad():
        found, expected = (case.call(m, case.inputs(torch.float32, device)) for m in (ours, theirs))
    assert list(found) == list(expected)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@drawn(12, of=Heads, **{**SPACE, "rows": [17, 40], "keys": [20, 65]})
def test_as_exact_as_torch(device, dtype, case):
    case = sound(case)
    low = [case.make(kind.MultiheadAttention, dtype, device) for kind in (pykernels, nn)]
    truth = copy.deepcopy(low[1]).double()
    found = [case.run(module, dtype, device) for module in low]
    wide = {n: t.detach().double().requires_grad_() for n, t in case.inputs(dtype, device).items()}
    options = {n: t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t
               for n, t in case.options(dtype, device).items()}  # fmt: skip
    key = wide.get("key", wide["query"])
    y, weights = truth(wide["query"], key, wide.get("value", key), **options)
    results = {"y": y} | ({} if weights is None else {"weights": weights})
    assert_no_worse(*found, with_gradients(results, wide | dict(truth.named_parameters())), floor=16)


@drawn(10, of=Heads, **SPACE)
def test_second_derivatives_are_torchs(device, case):
    case = sound(case)
    found = []
    for module in pair(case, device=device):
        leaves = case.inputs(device=device) | dict(module.named_parameters())
        with sdpa_kernel(SDPBackend.MATH):  # the only one of torch's that has them
            loss = sum(r.sin().sum() for r in case.call(module, leaves).values())
        first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        weighted = sum((g * torch.linspace(-1, 1, g.numel()).to(g).view(g.shape)).sum() for g in first)
        second = torch.autograd.grad(weighted, list(leaves.values()), allow_unused=True, materialize_grads=True)
        found.append({f"grad {n}": g for n, g in zip(leaves, second, strict=True)})
    assert_equal(*found, 1e-9)


def test_the_function_by_itself(device):
    q, k, v = torch.randn(3, 4, 2, 8, dtype=torch.float64, device=device)
    w, out = torch.randn(24, 8, dtype=torch.float64, device=device), torch.eye(8, dtype=torch.float64, device=device)
    args = (q, k, v, 8, 2, w, None, None, None, False, 0.0, out, None)
    static = torch.randn(2, 4, 6, 4, dtype=torch.float64, device=device)
    for options in ({}, {"static_k": static[0], "static_v": static[1]}):
        expected = F.multi_head_attention_forward(*args, **options)
        for batch_first in FLAG:
            turned = (t.transpose(0, 1) for t in (q, k, v)) if batch_first else (q, k, v)
            given = {**options, "batch_first": batch_first}
            y, weights = functional.multi_head_attention_forward(*turned, *args[3:], **given)
            torch.testing.assert_close((y.transpose(0, 1) if batch_first else y, weights), expected)


# -- rows that see nothing --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["padding", "mask", "both"])
@pytest.mark.parametrize("as_float", FLAG)
def test_a_row_that_sees_nothing_is_finite(device, kind, as_float):
    case = Heads()
    module = pair(case, device=device)[0]
    padding, mask = (
        torch.zeros(3, 5, dtype=torch.bool, device=device),
        torch.zeros(5, 5, dtype=torch.bool, device=device),
    )
    padding[1, 0 if kind == "padding" else 2 :], mask[1, : 5 if kind == "mask" else 2] = True, kind != "padding"
    if as_float:
        padding, mask = (torch.zeros_like(m, dtype=torch.float64).masked_fill(m, -math.inf) for m in (padding, mask))
    masks = {"padding": {"key_padding_mask": padding}, "mask": {"attn_mask": mask}}
    options = masks.get(kind, masks["padding"] | masks["mask"])
    leaves = case.inputs(device=device)
    x = leaves["query"]
    y, weights = module(x, x, x, **options)
    found = with_gradients({"y": y, "weights": weights}, leaves | dict(module.named_parameters()))
    assert all(t.isfinite().all() for t in found.values())
    example, row = {"padding": (1, slice(None)), "mask": (slice(None), 1)}.get(kind, (1, 1))
    assert not weights[example, row].any() and weights.sum() > 0
    torch.testing.assert_close(y[example, row], module.out_proj.bias.expand_as(y[example, row]))


@pytest.mark.parametrize("need_weights", FLAG)
@pytest.mark.parametrize("rows, keys", [(3, 0), (9, 0), (0, 9)])
def test_no_keys_or_rows(cpu_only, rows, keys, need_weights):
    """As torch's, in a process of its own, which it must not end."""
    python(
        "import torch, pykernels\n"
        "ours, theirs = (w.MultiheadAttention(8, 2) for w in (pykernels, torch.nn))\n"
        "ours.load_state_dict(theirs.state_dict())\n"
        f"q, k = torch.randn({rows}, 3, 8, requires_grad=True), torch.randn({keys}, 3, 8)\n"
        f"found, expected = (m(q, k, k, need_weights={need_weights}) for m in (ours, theirs))\n"
        "torch.testing.assert_close(found[0], expected[0])\n"
        f"assert not {need_weights} or found[1].shape == expected[1].shape\n"
        "assert not torch.autograd.grad(found[0].sum(), q)[0].any()\n"
    )


# -- dropout ----------------------------------------------------------------------------------------------------------
def test_dropout_in_training_only(device):
    case = Heads(heads=4, rows=40, average=False)
    module = case.make(pykernels.MultiheadAttention, device=device, dropout=0.3)
    x = case.inputs(device=device)["query"].detach()
    plain = module.eval()(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(plain, pair(case, device=device)[1](x, x, x, average_attn_weights=False))
    module.train()
    torch.manual_seed(5)
    y, weights = module(x, x, x, average_attn_weights=False)
    dropped = weights == 0
    assert abs(float(dropped.double().mean()) - 0.3) < 5 * math.sqrt(0.21 / dropped.numel())
    torch.testing.assert_close(weights[~dropped], (plain[1] / 0.7)[~dropped])
    value = F.linear(x, *(t.chunk(3)[2] for t in (module.in_proj_weight, module.in_proj_bias)))
    heads = weights @ value.unflatten(2, (4, 4)).transpose(1, 2)
    torch.testing.assert_close(y, module.out_proj(heads.transpose(1, 2).flatten(2)))
    torch.manual_seed(5)
    assert torch.equal(module(x, x, x, need_weights=False)[0], y)
    torch.manual_seed(5)
    torch.testing.assert_close(module(x, x, x)[1], weights.mean(1))
    many = torch.stack([module(x, x, x, need_weights=False)[0] for _ in range(300)]).detach()
    assert not torch.equal(many[0], many[1])
    deviation = many.std(0) / math.sqrt(300)
    assert ((many.mean(0) - plain[0]).abs() < 6 * deviation).all()
