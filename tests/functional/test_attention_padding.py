"""Masks that only say how many keys an example has: what they mean does not depend on their being found out."""

from __future__ import annotations

import pytest
import torch

import pykernels
from pykernels.functional import scaled_dot_product_attention as ours
from pykernels.functional.attention import attention_with_weights

B, H, L, S, D = 4, 3, 21, 70, 16
LENGTHS = torch.tensor([70, 33, 0, 1])


def drawn(device, dtype=torch.float64, rows=L):
    torch.manual_seed(0)
    shapes = [(B, H, rows, D), (B, H, S, D), (B, H, S, D)]
    return [torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for shape in shapes]


def padding(form, device, dtype=torch.float64):
    shown = (torch.arange(S, device=device) < LENGTHS.to(device)[:, None])[:, None, None, :]
    if form == "bool":
        return shown
    return torch.zeros(shown.shape, dtype=dtype, device=device).masked_fill(~shown, -torch.inf)


def results(tensors, **options):
    y, lse = ours(*tensors, return_lse=True, **options)
    grads = torch.autograd.grad((y * y).sum() + lse[lse.isfinite()].sum(), tensors)
    return (y, lse, *grads)


@pytest.mark.isa
@pytest.mark.parametrize("form", ["bool", "numbers"])
@pytest.mark.parametrize("rows", [1, L])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"window": (7, 9)}], ids=str)
def test_padding_is_lengths(device, form, rows, options):
    """The same bits as lengths give, and the values of the twin."""
    tensors = drawn(device, rows=rows)
    mask = padding(form, device)
    found = results(tensors, attn_mask=mask, **options)
    for a, b in zip(found, results(tensors, lengths=(None, LENGTHS), **options), strict=True):
        if device == "cpu":
            assert torch.equal(a, b)
        torch.testing.assert_close(a, b)
    y, lse = pykernels.reference.scaled_dot_product_attention(*tensors, mask, return_lse=True, **options)
    torch.testing.assert_close(found[:2], (y, lse))


@pytest.mark.parametrize("form", ["bool", "numbers"])
def test_padding_and_lengths_hide_what_either_hides(device, form):
    tensors = drawn(device)
    other = torch.tensor([50, 40, 10, 0])
    found = results(tensors, attn_mask=padding(form, device), lengths=(None, other))
    expected = results(tensors, lengths=(None, torch.minimum(LENGTHS, other)))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("form", ["bool", "numbers"])
def test_padding_does_not_move_the_diagonal(device, form):
    """With the last row at the last key, lengths say where that is; a mask does not."""
    tensors, mask = drawn(device), padding(form, device)
    found = ours(*tensors, mask, causal="bottom-right")
    twin = pykernels.reference.scaled_dot_product_attention(*tensors, mask, causal="bottom-right")
    torch.testing.assert_close(found, twin)


@pytest.mark.parametrize("change", ["a gap", "a number", "not a number", "one row", "one head"])
def test_other_masks_are_looked_at(device, change):
    tensors, mask = drawn(device), padding("numbers", device).clone()
    if change in ("one row", "one head"):
        mask = mask.expand(B, H if change == "one head" else 1, L if change == "one row" else 1, S).clone()
        mask[0, -1, -1, 5:9] = -torch.inf
    else:
        mask[1, 0, 0, 8] = {"a gap": -torch.inf, "a number": 0.5, "not a number": torch.nan}[change]
    twin = pykernels.reference.scaled_dot_product_attention(*tensors, mask)
    torch.testing.assert_close(ours(*tensors, mask), twin, equal_nan=True)
    plain = ours(*tensors, padding("numbers", device))
    assert not torch.equal(plain.nan_to_num(), twin.nan_to_num())


def test_a_padding_mask_of_numbers_has_its_gradient(device):
    tensors, mask = drawn(device), padding("numbers", device).requires_grad_()
    (found,) = torch.autograd.grad(ours(*tensors, mask).square().sum(), mask)
    (expected,) = torch.autograd.grad(
        pykernels.reference.scaled_dot_product_attention(*tensors, mask).square().sum(), mask
    )
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 0


@pytest.mark.parametrize("average", [False, True])
def test_weights_of_padded_keys_are_zero(device, average):
    tensors = drawn(device)
    _, weights = attention_with_weights(*tensors, padding("bool", device), average=average)
    sums = weights.sum(-1)
    for b, length in enumerate(LENGTHS.tolist()):
        assert not weights[b, ..., length:].any()
        torch.testing.assert_close(sums[b], torch.full_like(sums[b], float(length > 0)))
