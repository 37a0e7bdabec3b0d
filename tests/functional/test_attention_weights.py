"""The weights of attention, as an operator gives them, against the twin."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap

from pykernels import reference
from tests.helpers import LOW, assert_no_worse, assert_same_bits, drawn

from .attention_cases import FEATURES, SIZES, TINY, Attention, assert_equal
from .compiling import forget_what_was_compiled

assert forget_what_was_compiled  # around every test
forward, weigh = torch.ops.pykernels.attention_forward.default, torch.ops.pykernels.attention_weights.default
DTYPES = [torch.float64, torch.float32, *LOW]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
FLAG = [False, True]


# -- the operator: values ---------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Weights(Attention):
    average: bool = False

    def arguments(self, dtype: torch.dtype, device: Any, truth: bool = False) -> tuple[tuple[Any, ...], torch.Tensor]:
        """The operator's arguments, with the lse of a forward of float64 of operands rounded to `dtype`; the value."""
        leaves = {n: t.detach().to(torch.float64) for n, t in self.tensors(dtype, device).items()}
        options = self.options(device)
        rows, keys = options.get("lengths", (None, None))
        mask = options.get("attn_mask", leaves.get("mask"))
        left, right = (-1 if n is None else n for n in self.window or (None, None))
        right = 0 if self.causal else right
        seed = torch.tensor([self.seed]) if self.dropout else None
        rest = rows, keys, seed
        numbers = self.scale, self.softcap or 0.0, self.dropout, left, right, self.causal == "bottom-right"
        lse = forward(leaves["query"], leaves["key"], leaves["value"], mask, *rest, *numbers)[1]
        if not truth:
            leaves = {n: t.to(dtype) for n, t in leaves.items()}
            mask, lse = leaves.get("mask", mask), lse if dtype == torch.float64 else lse.float()
        return (leaves["query"], leaves["key"], mask, *rest, lse, *numbers, self.average), leaves["value"]


def check_values(case: Weights, dtype: torch.dtype, device: Any) -> None:
    args, value = case.arguments(dtype, device)
    ours, peer = {"weights": weigh(*args)}, {"weights": reference.attention_weights(*args)}
    assert ours["weights"].dtype == dtype
    if dtype == torch.float64:
        assert_equal(ours, peer)
        if not case.average:  # what the values are given
            out = forward(*args[:2], value, *args[2:6], *args[7:13])[0]
            torch.testing.assert_close(ours["weights"] @ value.repeat_interleave(case.share, 1), out)
        return
    truth = {"weights": reference.attention_weights(*case.arguments(dtype, device, truth=True)[0])}
    assert_no_worse(ours, peer, truth, floor=48)


@pytest.mark.isa
@every_dtype
@drawn(40, of=Weights, **SIZES, **FEATURES, average=FLAG)
def test_against_float64(device, dtype, case):
    check_values(case, dtype, device)


@pytest.mark.isa
@pytest.mark.parametrize("keys", [*range(1, 36), 47, 48, 49, 63, 65, 127, 128, 129, 511, 513, 1030])
def test_every_tail_of_keys(device, keys):
    for dtype in DTYPES:
        for rows, share in ((1, 1), (1, 4), (2, 2), (3, 2), (4, 1), (5, 1), (33, 1)):  # few rows (up to 4) and many
            check_values(Weights(1, 2, share, rows, keys, 7, 3, seed=keys, average=rows % 2 == 0), dtype, device)


@pytest.mark.parametrize("depth", [0, *range(1, 36), 63, 64, 65, 128, 130, 200])
def test_every_tail_of_columns(device, depth):
    for dtype in DTYPES:
        for rows in (2, 20):
            check_values(Weights(1, 2, 1, rows, 21, depth, 3, seed=depth), dtype, device)


SEEING = {**FEATURES, "dropout": [0.0]}


@drawn(60, of=Weights, **SIZES, **SEEING)
def test_weights_sum_to_one_or_are_zeros(device, case):
    args, _ = case.arguments(torch.float64, device)
    weights, blind = weigh(*args), args[6] == -math.inf
    torch.testing.assert_close(weights.sum(-1), torch.where(blind, 0.0, 1.0).double())
    assert not weights[blind].any() and (weights >= 0).all()


@every_dtype
def test_rows_that_see_nothing_are_zeros(device, dtype):
    for rows in (2, 9):
        case = Weights(3, 2, 2, rows, 11, lengths="both", causal="bottom-right", seed=2)
        args, _ = case.arguments(dtype, device)
        args = (
            *args[:3],
            torch.tensor([rows, 1, 0], device=device),
            torch.tensor([0, 11, 11], device=device),
            *args[5:],
        )
        weights = weigh(*args)
        assert not weights[0].any() and not weights[2].any() and not weights[1, :, 1:].any()
        hidden = weigh(*args[:2], torch.zeros(1, 11, dtype=torch.bool, device=device), *args[3:])
        assert not hidden.any()


@drawn(30, of=Weights, **SIZES, **FEATURES)
def test_average_is_the_mean_over_heads(device, case):
    args, _ = case.arguments(torch.float64, device)
    torch.testing.assert_close(weigh(*args[:-1], True), weigh(*args).mean(1))


@pytest.mark.parametrize("average", FLAG)
@every_dtype
def test_what_is_no_number_stays_in_its_row(device, dtype, average):
    """And keys beyond an example's length are not read."""
    for rows in (3, 20):
        case = Weights(2, 2, 1, rows, 40, average=average)
        args, _ = case.arguments(dtype, device)
        args = (*args[:4], torch.tensor([25, 31], device=device), *args[5:])
        expected = weigh(*args)
        query, key = args[0].clone(), args[1].clone()
        query[0, :, 1], key[0, :, 25:], key[1, :, 31:] = math.nan, math.nan, math.nan
        found = weigh(query, key, *args[2:])
        row = found[0, 1, :25] if average else found[0, :, 1, :25]
        assert row.isnan().all()
        found, expected = (t.movedim(-2, 1).flatten(0, 1) for t in (found, expected))
        others = torch.arange(2 * rows, device=device) != 1
        assert torch.equal(found[others], expected[others])


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)], ids=str)
@pytest.mark.parametrize("average", FLAG)
def test_empty(device, shape, average):
    batch, heads, rows, keys = shape
    q, k = torch.randn(batch, heads, rows, 5, device=device), torch.randn(batch, heads, keys, 5, device=device)
    lse = torch.full((batch, heads, rows), -math.inf, device=device)
    found = weigh(q, k, None, None, None, None, lse, None, 0.0, 0.0, -1, -1, False, average)
    assert found.shape == ((batch, rows, keys) if average else shape) and not found.any()


@every_dtype
def test_any_strides(device, dtype):
    case = Weights(2, 3, 2, 9, 20, mask="float")
    args, _ = case.arguments(dtype, device)
    expected = weigh(*args)
    for lay in (lambda t: t.mT.contiguous().mT, lambda t: torch.stack([t, t], -1)[..., 0],
                lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)):  # fmt: skip
        lse = torch.stack([args[6]] * 2, -1)[..., 0]
        assert torch.equal(weigh(lay(args[0]), lay(args[1]), lay(args[2]), *args[3:6], lse, *args[7:]), expected)


@every_dtype
@drawn(15, of=Weights, **SIZES, **FEATURES, average=FLAG)
def test_same_bits_for_any_number_of_threads(threads, dtype, case):
    args, _ = case.arguments(dtype, "cpu")
    found = []
    for count in (1, 2, 8):
        threads(count)
        found.append({"weights": weigh(*args)})
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


# -- the operator as PyTorch sees it ----------------------------------------------------------------------------------
def differentiable(case: Weights, device: Any):
    """(names, operands with gradients, the operator or its twin as a function of them)"""
    args, _ = case.arguments(torch.float64, device)
    args = (*args[:6], torch.where(args[6] == -math.inf, 0.0, args[6]), *args[7:])
    places = [i for i in (0, 1, 2, 6) if args[i] is not None and args[i].is_floating_point()]

    def of(op):
        def function(*values):
            given = dict(zip(places, values, strict=True))
            return op(*(given.get(i, a) for i, a in enumerate(args)))

        return function

    return tuple(args[i].detach().requires_grad_() for i in places), of


@drawn(12, of=Weights, **TINY, **FEATURES, average=FLAG)
def test_gradcheck_and_gradgradcheck(device, case):
    operands, of = differentiable(case, device)
    assert gradcheck(of(weigh), operands, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(of(weigh), operands)


EVERYTHING = Weights(2, 2, 2, 5, 6, 3, 4, "float", "HLS", "bottom-right", (4, None), 2.0, 0.7, 0.2, "keys", 5)
CASES = [Weights(), Weights(mask="bool", average=True), Weights(share=2, rows=1), EVERYTHING,
         dataclasses.replace(EVERYTHING, average=True)]  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES, ids=["plain", "bool", "one_row", "everything", "average"])


@every_case
def test_opcheck(device, case):
    args, _ = case.arguments(torch.float64, device)
    wanted = (0, 1, 2, 6) if case.mask == "float" else (0, 1, 6)
    torch.library.opcheck(weigh, tuple(a.requires_grad_() if i in wanted else a for i, a in enumerate(args)))


@every_case
def test_transforms(device, case):
    operands, of = differentiable(case, device)
    operands = tuple(t.detach() for t in operands)
    function, twin = of(weigh), of(reference.attention_weights)
    for index in range(len(operands)):
        ours, theirs = (grad(lambda *v, f=f: f(*v).sin().sum(), index)(*operands) for f in (function, twin))
        torch.testing.assert_close(ours, theirs)
    tangents = tuple(torch.randn_like(t) for t in operands)
    torch.testing.assert_close(jvp(function, operands, tangents), jvp(twin, operands, tangents))
    for batched in ([0], [0, 1], list(range(len(operands)))):
        many = [torch.stack([t, t / 2, t + 1], -1) if i in batched else t for i, t in enumerate(operands)]
        dims = tuple(-1 if i in batched else None for i in range(len(operands)))
        single = [[t[..., c] if i in batched else t for i, t in enumerate(many)] for c in range(3)]
        torch.testing.assert_close(vmap(function, dims)(*many), torch.stack([function(*s) for s in single]))


def test_meta_tensors_tell_shapes(cpu_only):
    args, _ = Weights(2, 2, 1, 3, 4).arguments(torch.bfloat16, "cpu")
    args = tuple(a.to("meta") if isinstance(a, torch.Tensor) else a for a in args)
    for average, shape in ((False, (2, 2, 3, 4)), (True, (2, 3, 4))):
        found = weigh(*args[:-1], average)
        assert found.shape == shape and found.dtype == torch.bfloat16 and found.is_meta


BAD: dict[str, Any] = {
    "query": (0, lambda t: t[0], "expected query of 4 dimensions, got 3"),
    "depth": (1, lambda t: t[..., :5], "expected key of shape"),
    "key's dtype": (1, lambda t: t.double(), "expected key of dtype Float like the input, got Double"),
    "mask": (2, lambda t: torch.zeros(3, 5), "mask that can be broadcast to"),
    "rows": (3, lambda t: torch.tensor([1, 99]), "expected row_lengths between 0 and 5, got 99"),
    "lengths": (4, lambda t: torch.tensor([-1, 2]), "expected key_lengths between 0 and 7, got -1"),
    "few lengths": (4, lambda t: torch.tensor([1]), "expected key_lengths of shape [2], got [1]"),
    "lse": (6, lambda t: t[..., :2], "expected lse of shape [2, 2, 5]"),
    "lse's dtype": (6, lambda t: t.double(), "expected lse of"),
    "dropout": (9, lambda p: 0.5, "expected a seed, as dropout is 0.5"),
    "scale": (7, lambda s: math.inf, "expected a finite scale, got inf"),
}


@pytest.mark.parametrize("what", BAD)
def test_errors_of_the_operator(cpu_only, what):
    place, change, text = BAD[what]
    args, _ = Weights().arguments(torch.float32, "cpu")
    with pytest.raises(RuntimeError, match=re.escape(text)):
        weigh(*(change(a) if i == place else a for i, a in enumerate(args)))
