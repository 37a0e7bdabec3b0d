"""The layers of a transformer with parts that are replaced or watched; errors; dropout."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import pykernels
from tests.functional.attention_cases import assert_equal
from tests.functional.compiling import forget_what_was_compiled
from tests.helpers import outcome

from .transformer_layers import FLAG, NAMES, Layer, every_layer, pair

assert forget_what_was_compiled  # around every test
pytestmark = pytest.mark.filterwarnings(
    "ignore:Support for mismatched", "ignore:The PyTorch API of nested tensors", "ignore:enable_nested_tensor"
)

# -- parts that are replaced or watched -------------------------------------------------------------------------------
PARTS = {NAMES[0]: ["norm1", "norm2", "dropout", "dropout1", "dropout2", "linear1", "linear2", "self_attn"],
         NAMES[1]: ["norm1", "norm2", "norm3", "dropout", "dropout1", "dropout2", "dropout3", "linear1", "linear2",
                    "self_attn", "multihead_attn"]}  # fmt: skip
every_part = pytest.mark.parametrize("name, part", [(name, part) for name in NAMES for part in PARTS[name]])
HOOKS = ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
         "register_full_backward_pre_hook"]  # fmt: skip


@pytest.mark.parametrize("norm_first", FLAG)
@every_part
def test_hooks_are_called(device, name, part, norm_first):
    case = Layer(name, norm_first, dropout=0.1)
    for register in HOOKS:
        module, seen = case.make(pykernels, device=device), []
        getattr(getattr(module, part), register)(lambda *a, s=seen: s.append(a[0]))
        case.run(module, device=device)
        assert seen == [getattr(module, part)], register
    module, plain = case.make(pykernels, device=device).eval(), case.make(pykernels, device=device).eval()
    getattr(module, part).register_forward_hook(lambda m, a, out: (0 * out[0], None) if "attn" in part else 0 * out)
    assert not torch.equal(case.run(module, device=device)["y"], case.run(plain, device=device)["y"])


@pytest.mark.parametrize("norm_first", FLAG)
@every_layer
def test_global_hooks_are_called(device, name, norm_first):
    """Those of profilers and module trackers, for every part as often as in torch's layer."""
    case, found = Layer(name, norm_first, dropout=0.1), []
    for module in pair(case, device=device):
        names, seen = {m: n for n, m in module.named_modules()}, []
        handle = nn.modules.module.register_module_forward_hook(lambda m, *_, n=names, s=seen: s.append(n.get(m)))
        case.run(module, device=device)
        handle.remove()
        found.append(seen)
    assert found[0] == found[1]


@pytest.mark.parametrize("norm_first", FLAG)
@every_layer
def test_a_part_whose_forward_is_replaced(device, name, norm_first):
    """On the instance, as offloading and quantising libraries do."""
    case, found = Layer(name, norm_first), []
    for module in pair(case, device=device):
        for part in ("norm1", "dropout1", "norm2", "dropout2"):
            inner = getattr(module, part)
            inner.forward = lambda x, f=inner.forward: 2 * f(x)
        found.append(case.run(module, device=device))
    assert_equal(*found, 1e-10)


@pytest.mark.parametrize("norm_first", FLAG)
@every_layer
def test_other_norms_and_dropouts(device, name, norm_first):
    found, case = [], Layer(name, norm_first)
    for module in pair(case, device=device):
        module.norm1 = nn.RMSNorm(8, device=device, dtype=torch.float64)
        module.norm2 = pykernels.LayerNorm(8, bias=False, device=device, dtype=torch.float64)
        module.dropout1, module.dropout2 = nn.Identity(), nn.Threshold(0.1, -1.0)
        nn.utils.parametrizations.weight_norm(module.linear1)
        nn.utils.parametrize.register_parametrization(module.norm2, "weight", nn.Softplus())
        found.append(case.run(module, device=device))
    assert_equal(*found, 1e-10)


@pytest.mark.parametrize("norm_first", FLAG)
@pytest.mark.parametrize("name, block", [(NAMES[0], "_sa_block"), (NAMES[0], "_ff_block"), (NAMES[1], "_sa_block"),
                                         (NAMES[1], "_mha_block"), (NAMES[1], "_ff_block")])  # fmt: skip
def test_own_blocks_are_called(device, name, norm_first, block):
    """Of a subclass, and on the instance."""
    found, case = [], Layer(name, norm_first, mask="bool", padding="bool")

    for where in (pykernels, nn):
        kind = getattr(where, name)
        module = case.make(where, device=device)
        of_class = getattr(kind, block)
        own = lambda self, x, *a, f=of_class, **k: 2 * f(self, x.sin(), *a, **k)  # noqa: E731
        module.__class__ = type("Own", (kind,), {block: own})
        found.append(case.run(module, device=device))
        module = case.make(where, device=device)
        of_instance = getattr(module, block)
        setattr(module, block, lambda x, *a, f=of_instance, **k: 2 * f(x.sin(), *a, **k))
        assert_equal(case.run(module, device=device), found[-1])
    assert_equal(*found, 1e-10)


# -- errors -----------------------------------------------------------------------------------------------------------
X = torch.randn(3, 5, 8)
WRONG = {
    "mask of int": {"src_mask": torch.zeros(5, 5, dtype=torch.int64)},
    "padding of int": {"src_key_padding_mask": torch.zeros(3, 5, dtype=torch.int64)},
    "mask's shape": {"src_mask": torch.zeros(5, 6)},
    "padding's shape": {"src_key_padding_mask": torch.zeros(3, 6)},
    "hint alone": {"is_causal": True},
}


@pytest.mark.parametrize("what", WRONG)
def test_errors_are_torchs(cpu_only, what):
    found = [outcome(lambda m=m: m(X, **WRONG[what])) for m in pair(Layer(training=False), torch.float32)]
    assert found[0] == found[1] and found[0] is not None
    if "is_causal" not in WRONG[what]:
        rename = {"src_mask": "tgt_mask", "src_key_padding_mask": "memory_key_padding_mask"}
        given = {rename[n]: m for n, m in WRONG[what].items()}
        found = [outcome(lambda m=m: m(X, X, **given)) for m in pair(Layer(NAMES[1]), torch.float32)]
        assert found[0] == found[1] and found[0] is not None


def test_mismatched_masks_warn_as_in_torch(cpu_only):
    found = []
    for module in pair(Layer(), torch.float32):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            module(X, torch.zeros(5, 5), torch.zeros(3, 5) > 0)
        found.append({(w.category, str(w.message)) for w in said})
    assert found[0] == found[1] and found[0]


# -- dropout ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("norm_first", FLAG)
@every_layer
def test_dropout_while_training(device, name, norm_first):
    """Mean and variance are those of torch's layer; the same seed gives the same; none in eval."""
    case = Layer(name, norm_first, activation="gelu", dropout=0.3)
    ours, theirs = pair(case, device=device)
    inputs = [t.detach() for t in case.inputs(device=device).values()]
    torch.manual_seed(3)
    first, second = ours(*inputs), ours(*inputs)
    torch.manual_seed(3)
    assert torch.equal(ours(*inputs), first) and not torch.equal(first, second)
    torch.testing.assert_close(ours.eval()(*inputs), theirs.eval()(*inputs))
    many = [torch.stack([m.train()(*inputs) for _ in range(600)]).detach() for m in (ours, theirs)]
    means, variances = ([function(0) for function in (getattr(m, f) for m in many)] for f in ("mean", "var"))
    assert ((means[0] - means[1]).abs() < 6 * ((variances[0] + variances[1]) / 600).sqrt()).all()
    assert abs(float((variances[0].mean() / variances[1].mean()).log())) < 0.1


@pytest.mark.parametrize("norm_first", FLAG)
@every_layer
def test_gradients_with_dropout_are_those_of_differences(device, name, norm_first):
    case = Layer(name, norm_first, activation="gelu", dropout=0.3, rows=3, keys=4)
    module, leaves = case.make(pykernels, device=device), case.inputs(device=device)
    operands = leaves | dict(module.named_parameters())

    def loss():
        torch.manual_seed(4)
        y = module(*leaves.values())
        return (y * torch.linspace(-1, 1, y.numel()).to(y).view(y.shape)).sum()

    gradients = torch.autograd.grad(loss(), list(operands.values()))
    with torch.no_grad():
        for (label, operand), gradient in zip(operands.items(), gradients, strict=True):
            direction, step, ends = torch.randn_like(operand), 1e-6, []
            for sign in (1, -2, 1):
                operand.add_(direction, alpha=sign * step)
                ends.append(loss())
            expected = (ends[0] - ends[1]) / (2 * step)
            torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-6, msg=label)
