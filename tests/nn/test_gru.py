"""What only pykernels.GRU and GRUCell have: the reset before the product."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, unpack_sequence

import pykernels
from tests.helpers import assert_equal, with_gradients

KINDS = (pykernels.GRU, pykernels.GRUCell)


def original(x, h, weight_ih, weight_hh, bias_ih, bias_hh):
    """One step as Cho et al. (2014) have it, written out."""
    size = weight_hh.shape[1]
    part, of_hidden = x @ weight_ih.T + bias_ih, h @ weight_hh[: 2 * size].T + bias_hh[: 2 * size]
    r = torch.sigmoid(part[:, :size] + of_hidden[:, :size])
    z = torch.sigmoid(part[:, size : 2 * size] + of_hidden[:, size:])
    n = torch.tanh(part[:, 2 * size :] + (r * h) @ weight_hh[2 * size :].T + bias_hh[2 * size :])
    return (1 - z) * n + z * h


def weights_of(module, suffix: str = "") -> list[torch.Tensor]:
    return [getattr(module, f"{name}{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_way", "two_ways"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_reset_before_is_the_equations(device, num_layers, bidirectional):
    module = pykernels.GRU(
        5, 6, num_layers, bidirectional=bidirectional, reset_after=False, dtype=torch.float64, device=device
    )
    x = torch.randn(7, 3, 5, dtype=torch.float64).to(device).requires_grad_()
    h0 = torch.randn(num_layers * (1 + bidirectional), 3, 6, dtype=torch.float64).to(device).requires_grad_()
    rows, lasts = x, []
    for layer in range(num_layers):
        ways = []
        for direction in range(1 + bidirectional):
            own = weights_of(module, f"_l{layer}" + "_reverse" * direction)
            h, outputs = h0[len(lasts)], []
            for step in rows.flip(0) if direction else rows:
                h = original(step, h, *own)
                outputs.append(h)
            lasts.append(h)
            ways.append(torch.stack(outputs[::-1] if direction else outputs))
        rows = torch.cat(ways, -1)
    leaves = {"input": x, "h0": h0} | dict(module.named_parameters())
    output, h_n = module(x, h0)
    expected = with_gradients({"output": rows, "h_n": torch.stack(lasts)}, leaves)
    assert_equal(with_gradients({"output": output, "h_n": h_n}, leaves), expected)


def test_cell_with_reset_before_is_the_equations(device):
    cell = pykernels.GRUCell(5, 6, reset_after=False, dtype=torch.float64, device=device)
    x, h = (torch.randn(3, width, dtype=torch.float64).to(device).requires_grad_() for width in (5, 6))
    leaves = {"input": x, "h": h} | dict(cell.named_parameters())
    expected = with_gradients({"h": original(x, h, *weights_of(cell))}, leaves)
    assert_equal(with_gradients({"h": cell(x, h)}, leaves), expected)
    torch.testing.assert_close(cell(x[0], h[0]), expected["h"][0], rtol=1e-12, atol=1e-12)


def test_packed_is_each_sequence_alone(device):
    module = pykernels.GRU(5, 6, 2, bidirectional=True, reset_after=False, dtype=torch.float64, device=device)
    x = torch.randn(7, 3, 5, dtype=torch.float64).to(device)
    lengths = [2, 7, 4]
    output, h_n = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
    for sample, (length, found) in enumerate(zip(lengths, unpack_sequence(output), strict=True)):
        alone, last = module(x[:length, sample])
        torch.testing.assert_close(found, alone, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(h_n[:, sample], last, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_forms_have_the_same_parameters(kind):
    """A state_dict of one goes into the other, and computes something else there."""
    after, before = kind(5, 6), kind(5, 6, reset_after=False)
    before.load_state_dict(after.state_dict())
    x = torch.randn(4, 3, 5) if kind is pykernels.GRU else torch.randn(3, 5)
    results = [torch.utils._pytree.tree_leaves(module(x))[0] for module in (after, before)]
    assert not torch.allclose(*results, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_reset_after_is_a_keyword_and_is_shown(kind):
    assert kind(5, 6).reset_after is True and kind(5, 6, reset_after=False).reset_after is False
    assert "reset_after=False" in repr(kind(5, 6, bias=False, reset_after=False)) and "reset" not in repr(kind(5, 6))
    with pytest.raises(TypeError, match="reset_after should be of type bool, got: int"):
        kind(5, 6, reset_after=1)
