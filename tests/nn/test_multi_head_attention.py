"""pykernels.MultiheadAttention beside torch.nn.MultiheadAttention: construction, values, gradients, errors, tools."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations

import pykernels
from pykernels import functional
from tests.functional.attention_cases import assert_equal
from tests.functional.compiling import compiled, forget_what_was_compiled
from tests.helpers import LOW, SEED, assert_no_worse, assert_same_bits, drawn, outcome, python, with_gradients

assert forget_what_was_compiled  # around every test
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched", "ignore:The PyTorch API of nested tensors")
FLAG = [False, True]


@pytest.fixture(autouse=True)
def slow_path():
    """torch's own fast path is off, but where a test sets it."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@dataclasses.dataclass(frozen=True)
class Heads:
    """One problem: modules, inputs and masks follow from these fields."""

    batch_first: bool = True
    bias: bool = True
    add_bias_kv: bool = False
    add_zero_attn: bool = False
    sizes: tuple[int | None, int | None] = (None, None)  # kdim, vdim
    given: str = "self"  # or "memory" (key is value), "apart"
    unbatched: bool = False
    padding: str = "none"  # or "bool", "float"
    mask: str = "none"  # or "bool", "float", "bool3", "float3"
    causal: str = "none"  # the mask is, and "hint": is said to be
    need_weights: bool = True
    average: bool = True
    heads: int = 2
    batch: int = 3
    rows: int = 5
    keys: int = 7
    seed: int = 0

    @property
    def hinted(self) -> bool:
        return self.causal == "hint" and self.mask in ("bool", "float")

    def torch_is_wrong(self) -> bool:
        """With the hint its way without weights shows the appended keys to the last rows only."""
        return self.hinted and (self.add_bias_kv or self.add_zero_attn)

    def make(self, kind: Any, dtype: torch.dtype = torch.float64, device: Any = "cpu", **options: Any) -> Any:
        torch.manual_seed(self.seed)
        kdim, vdim = self.sizes if self.given != "self" else (None, None)
        options = {"bias": self.bias, "add_bias_kv": self.add_bias_kv, "add_zero_attn": self.add_zero_attn, **options}
        module = kind(4 * self.heads, self.heads, kdim=kdim, vdim=vdim, batch_first=self.batch_first, **options)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape)) if "bias" in name else None
        return module.to(device, dtype)

    def inputs(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> dict[str, torch.Tensor]:
        draw, size = torch.Generator().manual_seed(self.seed + 1), 4 * self.heads
        kdim, vdim = (s or size for s in self.sizes)
        kinds = {"self": {"query": size}, "memory": {"query": size, "key": size}}
        widths = kinds.get(self.given, {"query": size, "key": kdim, "value": vdim})
        if self.given == "memory" and kdim == vdim:
            widths["key"] = kdim
        made = {}
        for name, width in widths.items():
            length = self.rows if name == "query" else self.seen
            shape = (length, width) if self.unbatched else (self.batch, length, width)
            made[name] = torch.randn(shape, generator=draw, dtype=torch.float64)
            if not self.batch_first and not self.unbatched:
                made[name] = made[name].transpose(0, 1).contiguous()
        return {name: t.to(device, dtype).requires_grad_() for name, t in made.items()}

    @property
    def seen(self) -> int:
        return self.rows if self.given == "self" or self.hinted else self.keys

    def options(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> dict[str, Any]:
        draw = torch.Generator().manual_seed(self.seed + 2)
        found: dict[str, Any] = {"need_weights": self.need_weights, "average_attn_weights": self.average}

        def mask(
            kind, *shape
        ):  # the first key is always seen: of a row that sees nothing torch's values are no numbers
            hidden = torch.rand(shape, generator=draw) > 0.6
            hidden[..., 0] = False
            if "bool" in kind:
                return hidden.to(device)
            return (
                torch.randn(shape, generator=draw, dtype=torch.float64).masked_fill(hidden, -math.inf).to(device, dtype)
            )

        if self.padding != "none":
            found["key_padding_mask"] = mask(self.padding, *([] if self.unbatched else [self.batch]), self.seen)
        if self.hinted:
            hidden = torch.ones(self.rows, self.seen, dtype=torch.bool).triu(1)
            added = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, -math.inf)
            found["attn_mask"], found["is_causal"] = (hidden if self.mask == "bool" else added).to(device), True
        elif self.mask != "none":
            many = [self.heads * (1 if self.unbatched else self.batch)] if "3" in self.mask else []
            found["attn_mask"] = mask(self.mask, *many, self.rows, self.seen)
        return found

    def call(self, module: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        query = inputs["query"]
        key = inputs.get("key", query)
        y, weights = module(query, key, inputs.get("value", key), **self.options(query.dtype, query.device))
        assert (weights is not None) == self.need_weights
        return {"y": y} | ({} if weights is None else {"weights": weights})

    def run(self, module: Any, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> dict[str, torch.Tensor]:
        leaves = self.inputs(dtype, device)
        results = self.call(module, leaves)
        return with_gradients(results, leaves | dict(module.named_parameters()))


def pair(case: Heads, dtype: torch.dtype = torch.float64, device: Any = "cpu", **options: Any) -> tuple[Any, Any]:
    ours, theirs = (case.make(kind.MultiheadAttention, dtype, device, **options) for kind in (pykernels, nn))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


SPACE: dict[str, Any] = {
    "batch_first": FLAG,
    "bias": FLAG,
    "add_bias_kv": [False, False, True],
    "add_zero_attn": [False, False, True],
    "sizes": [(None, None), (None, None), (6, None), (None, 10), (6, 10), (6, 6)],
    "given": ["self", "memory", "apart"],
    "unbatched": [False, False, True],
    "padding": ["none", "bool", "float"],
    "mask": ["none", "bool", "float", "bool3", "float3"],
    "causal": ["none", "hint"],
    "need_weights": FLAG,
    "average": FLAG,
    "heads": (1, 3),
    "batch": (1, 3),
    "rows": [1, 4, 5, 17],
    "keys": [1, 3, 7, 20],
    "seed": SEED,
}


def sound(case: Heads) -> Heads:
    """Without what does not fit together."""
    if case.given == "memory" and case.sizes != (6, 6):  # one tensor is both
        case = dataclasses.replace(case, sizes=(None, None))
    return dataclasses.replace(case, need_weights=True) if case.torch_is_wrong() else case


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
