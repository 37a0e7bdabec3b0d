"""scaled_dot_product_attention against its twin in float64 and against torch: values, gradients, accuracy."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pykernels import functional, reference
from tests.helpers import LOW, assert_no_worse, assert_same_bits, drawn, with_gradients

from .attention_cases import FEATURES, SIZES, Attention, assert_equal, call, drawn_attention, run

DTYPES = [torch.float64, torch.float32, *LOW]
attend = functional.scaled_dot_product_attention


def check_values(case: Attention, dtype: torch.dtype, device) -> None:
    ours = run(functional, case, dtype, device)
    if dtype == torch.float64:
        assert_equal(ours, run(reference, case, dtype, device))
        return
    truth = run(reference, case, torch.float64, device, draw_as=dtype)
    peer = run(reference, case, dtype, device)
    if case.mask != "none" and "S" not in case.mask_shape:
        for found in (ours, peer, truth):  # to all scores of a row alike no gradient goes: it is rounding
            found.pop("grad mask", None)
    assert_no_worse(ours, peer, truth, floor=48)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@drawn_attention(40, **SIZES, **FEATURES)
def test_against_float64(device, dtype, case):
    check_values(case, dtype, device)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@drawn_attention(150, **SIZES, **FEATURES)
def test_against_float64_more(device, dtype, case):
    check_values(case, dtype, device)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("keys", [*range(2, 36), 47, 48, 49, 63, 65, 127, 128, 129, 511, 512, 513, 1030])
def test_every_tail_of_keys(device, dtype, keys):
    for rows in (1, 7):
        check_values(Attention(1, 1, 1, rows, keys, 5, 3, seed=keys), dtype, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_single_key_is_the_result(device, dtype):
    """Its weight is one, whatever its score: no gradient goes to the scores."""
    for options in ({}, {"window": (0, 0)}):
        leaves = Attention(2, 2, 1, 9, 9 if options else 1, 33, 70).tensors(dtype, device)
        found = with_gradients({"y": attend(*leaves.values(), **options)}, leaves)
        assert_same_bits({"y": found["y"]}, {"y": leaves["value"].detach().expand_as(found["y"])})
        for name in ("query", "key"):
            assert found[f"grad {name}"].abs().max() < 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("columns", [*range(1, 36), 47, 63, 64, 65, 127, 128, 129, 200])
def test_every_tail_of_columns(device, columns):
    for dtype in (torch.float64, torch.bfloat16):
        check_values(Attention(1, 1, 1, 9, 20, columns, 4, seed=columns), dtype, device)
        check_values(Attention(1, 1, 1, 9, 20, 4, columns, seed=columns), dtype, device)


@pytest.mark.parametrize("rows", [*range(1, 30), 95, 96, 97, 191, 192, 193])
def test_every_tail_of_rows(device, rows):
    check_values(Attention(1, 1, 1, rows, 40, 8, 8, causal="bottom-right", seed=rows), torch.float64, device)


LONG = [
    Attention(1, 2, 1, 700, 1300, 16, 16),
    Attention(1, 2, 1, 700, 700, 16, 16, causal="top-left"),
    Attention(1, 1, 2, 300, 1300, 16, 16, causal="bottom-right"),
    Attention(2, 1, 1, 700, 1300, 16, 16, window=(200, 30), causal="bottom-right", lengths="both"),
    Attention(1, 1, 2, 300, 1300, 24, 16, mask="hidden", mask_shape="LS", dropout=0.1),
    Attention(1, 1, 3, 1, 5000, 64, 64),
    Attention(2, 2, 1, 2, 3000, 64, 40, mask="bool", causal="bottom-right", softcap=5.0, dropout=0.5),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LONG, ids=str)
def test_many_blocks(device, dtype, case):
    check_values(case, dtype, device)


# -- against torch ----------------------------------------------------------------------------------------------------
PLAIN = {"mask": ["none", "bool", "float"], "mask_shape": ["BHLS", "LS", "BS"], "scale": [None, 0.3]}


@drawn(60, of=Attention, **SIZES, **PLAIN, causal=[None, "top-left"], seed=(0, 2**16))
def test_equals_torch(device, case):
    """Its arguments by their places and names; rows that see something."""
    tensors = case.tensors(torch.float64, device)
    options = case.options(device)
    mask = options.get("attn_mask", tensors.get("mask"))
    if mask is not None and mask.dtype == torch.bool:
        mask = mask | (torch.arange(case.keys, device=device) == 0)
    causal = case.causal is not None
    rest = {"scale": case.scale, "enable_gqa": case.share > 1}

    def results(function, mask, causal):
        found = function(tensors["query"], tensors["key"], tensors["value"], mask, 0.0, causal, **rest)
        return with_gradients({"y": found}, tensors)

    peer_mask = mask
    if causal and mask is not None:
        seen = torch.ones(case.rows, case.keys, dtype=torch.bool, device=device).tril()
        peer_mask = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -math.inf)
    peer = results(F.scaled_dot_product_attention, peer_mask, causal and mask is None)
    assert_equal(results(attend, mask, causal), peer)


@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@drawn_attention(25, batch=(1, 2), groups=(1, 2), rows=[6, 64, 130], keys=[65, 129, 600], depth=[16, 64],
                 value_depth=[16, 64], causal=[None, "top-left"], seed=(0, 2**16))  # fmt: skip
def test_accuracy_beside_torch(device, dtype, case):
    """Error against float64: at most twice torch's in the same precision, three times for gradients."""
    tensors = {name: t.detach() for name, t in case.tensors(dtype, device).items()}

    def results(function, dtype):
        leaves = {name: t.to(dtype).requires_grad_() for name, t in tensors.items()}
        return with_gradients({"y": function(*leaves.values(), is_causal=case.causal is not None)}, leaves)

    truth = results(F.scaled_dot_product_attention, torch.float64)
    assert_no_worse(results(attend, dtype), results(F.scaled_dot_product_attention, dtype), truth, floor=2)


# -- batch dimensions -------------------------------------------------------------------------------------------------
RANKS = [
    ((4, 5), (6, 5), (6, 7)),
    ((3, 4, 5), (3, 6, 5), (3, 6, 7)),
    ((2, 3, 4, 5), (1, 3, 6, 5), (1, 3, 6, 7)),
    ((2, 3, 4, 5), (3, 6, 5), (6, 7)),
    ((2, 3, 4, 5), (2, 1, 6, 5), (2, 1, 6, 7)),
    ((2, 2, 3, 4, 5), (2, 1, 3, 6, 5), (2, 3, 6, 7)),
]


@pytest.mark.parametrize("shapes", RANKS, ids=str)
@pytest.mark.parametrize("mask", ["none", "LS", "full"])
def test_batch_dimensions_as_in_torch(device, shapes, mask):
    leaves = {
        name: torch.randn(shape, dtype=torch.float64, device=device).requires_grad_()
        for name, shape in zip(("query", "key", "value"), shapes, strict=True)
    }
    if mask != "none":
        shape = (4, 6) if mask == "LS" else (*torch.broadcast_shapes(*(s[:-2] for s in shapes)), 4, 6)
        leaves["mask"] = torch.randn(shape, dtype=torch.float64, device=device).requires_grad_()
    found = [with_gradients({"y": function(*leaves.values())}, leaves)
             for function in (attend, F.scaled_dot_product_attention)]  # fmt: skip
    assert_equal(*found)


def test_grouped_heads_of_any_rank(device):
    q, k = (
        torch.randn(6, 4, 5, dtype=torch.float64, device=device),
        torch.randn(2, 7, 5, dtype=torch.float64, device=device),
    )
    expected = F.scaled_dot_product_attention(q[None], k[None], k[None], enable_gqa=True)[0]
    torch.testing.assert_close(attend(q, k, k, enable_gqa=True), expected)
    q, k = q.expand(3, 2, 6, 4, 5), k.expand(2, 2, 7, 5)
    torch.testing.assert_close(attend(q, k, k, enable_gqa=True), expected.expand(3, 2, 6, 4, 5))


# -- meaning ----------------------------------------------------------------------------------------------------------
def test_lengths_are_the_examples_by_themselves(device):
    """And what lies beyond them is not read."""
    case = Attention(3, 2, 1, 9, 11, 6, 5, causal="bottom-right")
    q, k, v = (t.detach() for t in case.tensors(device=device).values())
    rows, keys = [9, 4, 0], [11, 7, 3]
    for b, (r, s) in enumerate(zip(rows, keys, strict=True)):
        q[b, :, r:], k[b, :, s:], v[b, :, s:] = math.nan, math.nan, math.nan
    pair = torch.tensor(rows, device=device), torch.tensor(keys, device=device)
    leaves = {"q": q.requires_grad_(), "k": k.requires_grad_(), "v": v.requires_grad_()}
    found = with_gradients({"y": attend(q, k, v, causal="bottom-right", lengths=pair)}, leaves)
    for b, (r, s) in enumerate(zip(rows, keys, strict=True)):
        own = {"q": q[b, :, :r], "k": k[b, :, :s], "v": v[b, :, :s]}
        own = {name: t.detach().requires_grad_() for name, t in own.items()}
        y = attend(*(t[None] for t in own.values()), causal="bottom-right")
        torch.testing.assert_close(found["y"][b, :, :r], y[0])
        assert torch.equal(found["y"][b, :, r:], torch.zeros_like(found["y"][b, :, r:]))
        for name, count in (("q", r), ("k", s), ("v", s)):
            beyond = found[f"grad {name}"][b, :, count:]
            assert torch.equal(beyond, torch.zeros_like(beyond)), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [3, 40])
def test_rows_that_see_nothing_are_zero(device, dtype, rows):
    q, k, v = (torch.randn(1, 2, n, 8, dtype=dtype, device=device, requires_grad=True) for n in (rows, 20, 20))
    mask = torch.ones(rows, 20, dtype=torch.bool, device=device)
    mask[1] = False
    for given in (mask, torch.zeros(rows, 20, dtype=dtype, device=device).masked_fill(~mask, -math.inf)):
        y, lse = attend(q, k, v, given, return_lse=True)
        assert torch.equal(y[:, :, 1], torch.zeros_like(y[:, :, 1])) and (lse[:, :, 1] == -math.inf).all()
        grad = torch.autograd.grad(y.float().square().sum(), (q, k, v))
        assert all(torch.isfinite(g).all() for g in grad) and not grad[0][:, :, 1].any()
        assert grad[0][:, :, 0].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [3, 40])
def test_what_is_no_number_in_a_query_stays_in_its_row(device, dtype, rows):
    q, k, v = (torch.randn(1, 2, n, 8, dtype=dtype, device=device) for n in (rows, 20, 20))
    for options in ({}, {"softcap": 3.0}, {"is_causal": True}, {"dropout_p": 0.2}):
        torch.manual_seed(1)
        clean = attend(q, k, v, **options)
        for bad in (math.nan, math.inf):
            broken = q.clone()
            broken[0, 1, 2, 3] = bad
            torch.manual_seed(1)
            y = attend(broken, k, v, **options)
            if bad != bad:
                assert torch.isnan(y[0, 1, 2]).all()
            y[0, 1, 2] = clean[0, 1, 2]
            assert torch.equal(y, clean)


def test_no_keys_no_rows_no_heads(device):
    q = torch.randn(2, 0, 4, 5, device=device, requires_grad=True)
    assert attend(q, q, q, torch.randn(4, 4, device=device)).shape == q.shape
    assert torch.autograd.grad(attend(q, q, q).sum(), q)[0].shape == q.shape
    for rows, keys in ((3, 0), (0, 3), (0, 0)):
        q, k, v = (torch.randn(2, 2, n, 4, device=device, requires_grad=True) for n in (rows, keys, keys))
        y, lse = attend(q, k, v, return_lse=True)
        assert y.shape == (2, 2, rows, 4) and not y.any() and (lse == -math.inf).all()
        assert [g.shape for g in torch.autograd.grad(y.sum(), (q, k, v))] == [q.shape, k.shape, v.shape]
    y = attend(torch.randn(1, 1, 2, 0), torch.randn(1, 1, 3, 0), torch.arange(3.0).view(1, 1, 3, 1))
    torch.testing.assert_close(y, torch.ones(1, 1, 2, 1))


def test_large_scores(device):
    """No overflow, whatever the size of the scores; and the weight goes to the largest."""
    q = torch.full((1, 1, 8, 4), 1e18, device=device)
    k = torch.stack([torch.full((4,), x) for x in (1.0, -3.0, 2.0)]).view(1, 1, 3, 4).to(device)
    v = torch.arange(3.0, device=device).view(1, 1, 3, 1)
    y, lse = attend(q, k, v, return_lse=True)
    assert torch.equal(y, torch.full_like(y, 2.0)) and torch.isfinite(lse).all()
    leaves = [t.requires_grad_() for t in (q, k, v)]
    grads = torch.autograd.grad(attend(*leaves).sum(), leaves)
    expected = torch.zeros_like(v)
    expected[:, :, 2] = 8
    assert not grads[0].any() and not grads[1].any() and torch.equal(grads[2], expected)


# -- dropout ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_dropout_drops_so_many(device, p):
    q, k = torch.zeros(1, 2, 100, 4, device=device), torch.zeros(1, 2, 1000, 4, device=device)
    weights = attend(q, k, torch.eye(1000, device=device).expand(1, 2, -1, -1), dropout_p=p) * 1000
    kept = (weights > 0).double().mean().item()
    assert abs(kept - (1 - p)) < 4 * math.sqrt(p * (1 - p) / weights.numel()) + 1e-12
    if p < 1:
        torch.testing.assert_close(weights[weights > 0], torch.full_like(weights[weights > 0], 1 / (1 - p)))


def test_dropout_follows_torchs_generator(device):
    q, k, v = (torch.randn(2, 2, 9, 4, device=device) for _ in range(3))
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(attend(q, k, v, dropout_p=0.5))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_keep_is_that_of_the_contract():
    """Against the generator written out for one element at a time."""
    seed, p = torch.tensor([987654321987]), 0.37
    keep = reference.attention_keep(seed, 2, 3, 5, 150, p, torch.device("cpu"))
    for b, h, i, j in ((0, 0, 0, 0), (1, 2, 4, 149), (0, 1, 3, 63), (1, 0, 2, 64), (0, 2, 1, 127)):
        place = (j // 64) * 16 + j % 16
        words, key = [place, i, b * 3 + h, 0], [987654321987 & 0xFFFFFFFF, 987654321987 >> 32]
        for _ in range(10):
            first, second = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
            words = [second >> 32 ^ words[1] ^ key[0], second & 0xFFFFFFFF, first >> 32 ^ words[3] ^ key[1],
                     first & 0xFFFFFFFF]  # fmt: skip
            key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
        assert keep[b, h, i, j] == (words[j % 64 // 16] >= math.floor(p * 2**32 + 0.5))


# -- threads ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LONG, ids=str)
def test_same_bits_for_any_number_of_threads(threads, dtype, case):
    found = []
    for count in (1, 2, 5):
        threads(count)
        found.append(run(functional, case, dtype))
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


@drawn_attention(40, **SIZES, **FEATURES)
def test_same_bits_for_drawn_problems(threads, case):
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(run(functional, case, torch.float32))
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


# -- memory and layout ------------------------------------------------------------------------------------------------
def test_the_result_is_laid_out_as_torchs(device):
    plain = torch.randn(2, 3, 4, 5, device=device)
    turned = plain.transpose(1, 2).contiguous().transpose(1, 2)
    for q in (plain, turned):
        assert attend(q, q, q).stride() == F.scaled_dot_product_attention(q, q, q).stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides(device, dtype):
    """Heads of one projection, a cache that is longer than what it holds, columns that are not neighbours."""
    packed = torch.randn(2, 9, 3, 4, 10, dtype=dtype, device=device)  # [B, L, qkv, H, E]
    q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
    views = {
        "heads": (q, k, v),
        "cache": (q, *(torch.cat([t, t], 2)[:, :, :9] for t in (k, v))),
        "columns": tuple(t.mT.contiguous().mT for t in (q, k, v)),
        "halves": tuple(t[..., 1::2] for t in (q, k, v)),
        "expanded": (q, k[:1, :1].expand_as(k), v[:1, :1].expand_as(v)),
        "odd": tuple(t[..., 1:8] for t in (q, k, v)),
    }
    for given in views.values():
        found = []
        for lay in (lambda t: t, torch.Tensor.contiguous):
            leaves = {str(i): lay(t.detach()).requires_grad_() for i, t in enumerate(given)}
            found.append(with_gradients({"y": attend(*leaves.values(), is_causal=True)}, leaves))
        assert_same_bits(*found)


def test_any_strides_of_a_mask(device):
    case = Attention(2, 2, 1, 9, 20)
    q, k, v = case.tensors(device=device).values()
    base = torch.randn(2, 2, 40, 18, dtype=torch.float64, device=device)
    mask = base.transpose(2, 3)[:, :, ::2, ::2]
    assert torch.equal(attend(q, k, v, mask), attend(q, k, v, mask.contiguous()))
    assert torch.equal(attend(q, k, v, mask > 0), attend(q, k, v, (mask > 0).contiguous()))


def test_call_is_covered(device):
    """A case with every feature at once equals its twin (so that the cases above are not all plain)."""
    case = Attention(2, 2, 2, 13, 40, 7, 9, "float", "HLS", "bottom-right", (9, None), 2.0, 0.3, 0.2, "both", 5)
    leaves = case.tensors(device=device)
    assert_equal(with_gradients(call(functional, case, leaves), leaves),
                 with_gradients(call(reference, case, leaves), leaves))  # fmt: skip
