"""Multi-head attention in the place of torch's: errors, and the tools of torch."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils import parametrizations

import pykernels
from pykernels import functional
from tests.functional.attention_cases import assert_equal
from tests.functional.compiling import compiled, forget_what_was_compiled
from tests.helpers import outcome, with_gradients

from .heads import FLAG, Heads, pair, slow_path

assert forget_what_was_compiled and slow_path  # around every test
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched", "ignore:The PyTorch API of nested tensors")

# -- errors and warnings ----------------------------------------------------------------------------------------------
Q, K = torch.randn(5, 3, 8), torch.randn(7, 3, 8)
HIDDEN = torch.zeros(5, 7, dtype=torch.bool)
WRONG = {
    "four dimensions": lambda m: m(Q[None], Q[None], Q[None]),
    "one dimension": lambda m: m(Q[0, 0], Q[0, 0], Q[0, 0]),
    "key of two": lambda m: m(Q, K[0], K[0]),
    "value of two": lambda m: m(Q, K, K[0]),
    "unbatched and batched": lambda m: m(Q[:, 0], K, K),
    "padding of one": lambda m: m(Q, K, K, torch.zeros(7) > 0),
    "padding of two": lambda m: m(Q[:, 0], K[:, 0], K[:, 0], torch.zeros(1, 7) > 0),
    "padding's batch": lambda m: m(Q, K, K, torch.zeros(2, 7) > 0),
    "padding's keys": lambda m: m(Q, K, K, torch.zeros(3, 6) > 0),
    "padding of int": lambda m: m(Q, K, K, torch.zeros(3, 7, dtype=torch.int64)),
    "mask of one": lambda m: m(Q, K, K, attn_mask=HIDDEN[0]),
    "mask of four": lambda m: m(Q, K, K, attn_mask=HIDDEN[None, None]),
    "mask's rows": lambda m: m(Q, K, K, attn_mask=HIDDEN[1:]),
    "mask's keys": lambda m: m(Q, K, K, attn_mask=HIDDEN[:, 1:]),
    "mask's heads": lambda m: m(Q, K, K, attn_mask=HIDDEN.expand(3, 5, 7)),
    "unbatched mask": lambda m: m(Q[:, 0], K[:, 0], K[:, 0], attn_mask=HIDDEN.expand(3, 5, 7)),
    "mask of int": lambda m: m(Q, K, K, attn_mask=HIDDEN.int()),
    "mask of uint8": lambda m: m(Q, K, K, attn_mask=HIDDEN.byte()),
    "hint alone": lambda m: m(Q, K, K, is_causal=True),
    "hint alone without weights": lambda m: m(Q, K, K, is_causal=True, need_weights=False),
    "query's size": lambda m: m(Q[..., :6], K, K),
    "key's size": lambda m: m(Q, K[..., :6], K[..., :6]),
    "value's length": lambda m: m(Q, K, K[1:]),
    "value's size": lambda m: m(Q, K, K[..., :6]),
    "dtype": lambda m: m(Q.double(), Q.double(), Q.double()),
    "dtype of key": lambda m: m(Q, K.double(), K.double()),
}


@pytest.mark.parametrize("need_weights", FLAG)
@pytest.mark.parametrize("what", WRONG)
def test_errors_are_torchs(cpu_only, what, need_weights):
    found = []
    for where in (pykernels, nn):
        module = where.MultiheadAttention(8, 2)
        preset = lambda *a, m=module, **o: m(*a, **{"need_weights": need_weights, **o})  # noqa: E731
        found.append(outcome(lambda preset=preset: WRONG[what](preset)))
    assert found[0] == found[1] and found[0] is not None


SEPARATE = {
    "value's length": lambda m: m(Q, K[..., :6], K[1:]),
    "value's batch": lambda m: m(Q, K[..., :6], K[:, 1:]),
    "key's size": lambda m: m(Q, K, K),
}


@pytest.mark.parametrize("what", SEPARATE)
def test_errors_of_separate_weights_are_torchs(cpu_only, what):
    found = [outcome(lambda w=w: SEPARATE[what](w.MultiheadAttention(8, 2, kdim=6))) for w in (pykernels, nn)]
    assert found[0] == found[1] and found[0] is not None


W, OUT, BIAS = torch.randn(24, 8), torch.eye(8), torch.randn(1, 1, 8)
FORWARD = {
    "not divisible": lambda f: f(Q, K, K, 8, 3, W, None, None, None, False, 0.0, OUT, None),
    "embed_dim": lambda f: f(Q, K, K, 6, 2, W, None, None, None, False, 0.0, OUT, None),
    "no weight": lambda f: f(Q, K, K, 8, 2, None, None, None, None, False, 0.0, OUT, None),
    "no weight for q": lambda f: f(Q, K, K, 8, 2, None, None, None, None, False, 0.0, OUT, None,
                                   use_separate_proj_weight=True),
    "no weight for v": lambda f: f(Q, K, K, 8, 2, None, None, None, None, False, 0.0, OUT, None,
                                   use_separate_proj_weight=True, q_proj_weight=OUT, k_proj_weight=OUT),
    "bias_k alone": lambda f: f(Q, K, K, 8, 2, W, None, BIAS, None, False, 0.0, OUT, None),
    "bias_v alone": lambda f: f(Q, K, K, 8, 2, W, None, None, BIAS, False, 0.0, OUT, None),
    "static_k and bias": lambda f: f(Q, K, K, 8, 2, W, None, BIAS, BIAS, False, 0.0, OUT, None, static_k=K),
    "static_v and bias": lambda f: f(Q, K, K, 8, 2, W, None, BIAS, BIAS, False, 0.0, OUT, None, static_v=K),
    "static_k's batch": lambda f: f(Q, K, K, 8, 2, W, None, None, None, False, 0.0, OUT, None, static_k=K),
    "static_v's size": lambda f: f(Q, K, K, 8, 2, W, None, None, None, False, 0.0, OUT, None,
                                   static_v=torch.randn(6, 7, 5)),
}  # fmt: skip


@pytest.mark.parametrize("what", FORWARD)
def test_errors_of_the_function_are_torchs(cpu_only, what):
    found = [outcome(lambda w=w: FORWARD[what](w.multi_head_attention_forward)) for w in (functional, F)]
    assert found[0] == found[1] and found[0] is not None


@pytest.mark.parametrize("args", [(0, 2), (8, 0), (8, 3), (8, -2)])
def test_errors_of_construction_are_torchs(args):
    found = [outcome(lambda w=w: w.MultiheadAttention(*args)) for w in (pykernels, nn)]
    assert found[0] == found[1] and found[0] is not None


def test_mismatched_masks_warn_as_in_torch(cpu_only):
    found = []
    for where in (pykernels, nn):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            where.MultiheadAttention(8, 2)(Q, K, K, torch.zeros(3, 7), attn_mask=HIDDEN)
        found.append({(w.category, str(w.message)) for w in said})
    assert found[0] == found[1] and found[0]


# -- tools of torch ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", FLAG)
def test_autocast_gives_torchs_dtypes(device, training, given):
    found, case = [], Heads(mask="float", padding="float")
    for module in pair(case, torch.float32, device):
        x = case.inputs(given, device)["query"]
        with torch.autocast(device.type, torch.bfloat16), torch.set_grad_enabled(training):
            y, weights = module.train(training)(x, x, x, **case.options(torch.float32, device))
        gradients = torch.autograd.grad(y.float().sum(), [x, *module.parameters()]) if training else ()
        found.append((y, weights, *gradients))
    assert [t.dtype for t in found[0]] == [t.dtype for t in found[1]]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.1, atol=0.1)


COMPILED = [
    Heads(),
    Heads(need_weights=False, mask="bool", causal="hint", padding="bool"),
    Heads(batch_first=False, given="apart", sizes=(6, 10), add_bias_kv=True, add_zero_attn=True, mask="float3"),
]


@pytest.mark.parametrize("case", COMPILED, ids=["self", "causal", "everything"])
def test_compile_with_shapes_that_change(device, case):
    module, model = pair(case, device=device)
    fast, counter = compiled(module)
    counts = []
    for rows in (13, 15, 18, 19):
        problem = dataclasses.replace(case, rows=rows, keys=rows + 20, average=False)
        leaves = problem.inputs(device=device)
        operands = leaves | dict(module.named_parameters())
        assert_equal(with_gradients(problem.call(fast, leaves), operands), problem.run(model, device=device), 1e-10)
        counts.append(counter.frame_count)
    assert counts[0] == 1 and counts[-1] == counts[1] <= 2, counts


@pytest.mark.parametrize("strict", FLAG, ids=["non_strict", "strict"])
@pytest.mark.parametrize("training", FLAG)
def test_export(device, strict, training):
    ours, _ = (m.train(training) for m in pair(Heads(), device=device))
    x, length = Heads().inputs(device=device)["query"].detach(), torch.export.Dim("length", min=2, max=512)
    program = torch.export.export(ours, (x, x, x), dynamic_shapes=({1: length},) * 3, strict=strict)
    longer = torch.randn(3, 11, 8, dtype=torch.float64, device=device)
    torch.testing.assert_close(program.module()(longer, longer, longer), ours(longer, longer, longer))


def test_vmap_and_functional_call(device):
    modules = [Heads(seed=seed).make(pykernels.MultiheadAttention, device=device) for seed in range(3)]
    parameters, buffers = stack_module_state(modules)
    template = Heads().make(pykernels.MultiheadAttention, device="meta")
    x = torch.randn(2, 5, 8, dtype=torch.float64, device=device)

    def loss(p, b, x):
        y, weights = functional_call(template, (p, b), (x, x, x))
        return y.sin().sum() + weights.square().sum()

    values, gradients = vmap(torch.func.grad_and_value(loss), (0, 0, None))(parameters, buffers, x)[::-1]
    for i, module in enumerate(modules):
        y, weights = module(x, x, x)
        expected = y.sin().sum() + weights.square().sum()
        torch.testing.assert_close(values[i], expected)
        found = dict(zip(gradients, torch.autograd.grad(expected, list(module.parameters())), strict=True))
        torch.testing.assert_close({n: g[i] for n, g in gradients.items()}, found)
    examples = vmap(lambda x: modules[0](x, x, x)[0])(x)
    torch.testing.assert_close(examples, modules[0](x, x, x)[0])
    assert grad(lambda x: modules[0](x, x, x)[0].sum())(x).shape == x.shape


@pytest.mark.parametrize("wrap", ["weight_norm", "orthogonal", "spectral_norm"])
def test_parametrized_weights(device, wrap):
    found, case = [], Heads(average=False)
    for module in pair(case, device=device):
        torch.manual_seed(7)
        getattr(parametrizations, wrap)(module.out_proj, "weight")
        parametrizations.weight_norm(module, "in_proj_weight")
        found.append(case.run(module.eval(), device=device))
    assert_equal(*found, 1e-9)


def test_nested_input(device):
    ours, theirs = (m.eval().requires_grad_(False) for m in pair(Heads(), torch.float32, device))
    parts = [torch.randn(n, 8, device=device) for n in (5, 2, 4)]
    x = torch.nested.nested_tensor(parts)
    torch.backends.mha.set_fastpath_enabled(True)
    found, expected = (m(x, x, x, need_weights=False) for m in (ours, theirs))
    assert found[0].is_nested and found[1] is None and expected[1] is None
    for ours_part, theirs_part, part in zip(found[0].unbind(), expected[0].unbind(), parts, strict=True):
        torch.testing.assert_close(ours_part, theirs_part)
        torch.testing.assert_close(ours_part, ours(part, part, part)[0])
    for options in ({"need_weights": True}, {"attn_mask": torch.zeros(5, 5), "need_weights": False}):
        with pytest.raises(AssertionError, match="NestedTensor"):
            ours(x, x, x, **options)


def test_scores_are_not_stored(device):
    """Of a training step at L = 512, with average weights or none."""
    module, x = (
        pykernels.MultiheadAttention(16, 4, batch_first=True, device=device),
        torch.randn(1, 512, 16, device=device),
    )
    for need_weights in FLAG:
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t, k=kept: k.update({t.data_ptr(): t}) or t, lambda t: t):
            module(x, x, x, need_weights=need_weights)
        assert max(t.numel() for t in kept.values()) < 512 * 512
