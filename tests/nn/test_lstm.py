"""What only pykernels.LSTM and LSTMCell have: peepholes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pykernels
from tests.helpers import LOW, assert_equal

from .pairs import Pair
from .test_recurrent import FORMS, HIDDEN, INPUTS, PROJ, operands, results

PAIR = Pair("LSTM")
DTYPES = [torch.float64, torch.float32, *LOW]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_way", "two_ways"])
@pytest.mark.parametrize("proj_size", [0, PROJ], ids=["plain", "projection"])
def test_peephole_of_zero_is_no_peephole(device, proj_size, bidirectional, form):
    """With zero peephole weights the module equals torch's, and those weights still receive a gradient."""
    options = {"input_size": INPUTS, "hidden_size": HIDDEN, "num_layers": 2, "dtype": torch.float64, "device": device}
    options |= {"bidirectional": bidirectional, "proj_size": proj_size}
    theirs, ours = nn.LSTM(**options), pykernels.LSTM(**options, peephole=True)
    missing = ours.load_state_dict(theirs.state_dict(), strict=False)
    suffixes = [f"_l{layer}{end}" for layer in (0, 1) for end in ("", "_reverse")[: 1 + bidirectional]]
    assert not missing.unexpected_keys
    assert sorted(missing.missing_keys) == sorted(f"weight_peephole{suffix}" for suffix in suffixes)
    for suffix in suffixes:
        weight = getattr(ours, f"weight_peephole{suffix}")
        assert weight.shape == (3, HIDDEN)
        nn.init.zeros_(weight)
    given = operands(
        PAIR, form, torch.float64, device, False, True, rows=2 * (1 + bidirectional), out=proj_size or HIDDEN
    )
    found = results(PAIR, ours, form, given, False, torch.float64)
    own = {name: found.pop(name) for name in list(found) if "peephole" in name}
    assert_equal(found, results(PAIR, theirs, form, given, False, torch.float64))
    assert all(gradient.abs().max() > 0 for gradient in own.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_peephole_cell_is_one_step_of_the_module(device, dtype):
    cell = pykernels.LSTMCell(5, 6, peephole=True, dtype=dtype, device=device)
    layer = pykernels.LSTM(5, 6, peephole=True, dtype=dtype, device=device)
    layer.load_state_dict({f"{name}_l0": p for name, p in cell.state_dict().items()})
    x, h, c = (torch.randn(3, width).to(device, dtype) for width in (5, 6, 6))
    h_next, c_next = cell(x, (h, c))
    _, (h_n, c_n) = layer(x[None], (h[None], c[None]))
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(h_next, h_n[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(c_next, c_n[0], rtol=tolerance, atol=tolerance)
    plain = pykernels.LSTMCell(5, 6, dtype=dtype, device=device)
    plain.load_state_dict({name: p for name, p in cell.state_dict().items() if "peephole" not in name})
    assert not torch.equal(h_next, plain(x, (h, c))[0])


def test_peephole_parameters():
    module = pykernels.LSTM(5, 6, 2, bidirectional=True, proj_size=2, peephole=True)
    for suffix in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        weight = getattr(module, "weight_peephole" + suffix)
        assert isinstance(weight, nn.Parameter) and weight.shape == (3, 6)
        assert 0 < weight.abs().max() <= 6**-0.5
    assert pykernels.LSTMCell(5, 6, peephole=True).weight_peephole.shape == (3, 6)
    assert not any("peephole" in name for name in pykernels.LSTM(5, 6).state_dict())
    assert sum(len(names) for names in pykernels.LSTM(5, 6, 2, peephole=True)._all_weights) == 10
    assert [len(weights) for weights in pykernels.LSTM(5, 6, 2, peephole=True).all_weights] == [5, 5]


@pytest.mark.parametrize("kind", [pykernels.LSTM, pykernels.LSTMCell])
def test_peephole_is_a_keyword_and_is_shown(kind):
    assert kind(5, 6).peephole is False and kind(5, 6, peephole=True).peephole is True
    assert "peephole=True" in repr(kind(5, 6, bias=False, peephole=True)) and "peephole" not in repr(kind(5, 6))
    with pytest.raises(TypeError, match="peephole should be of type bool, got: int"):
        kind(5, 6, peephole=1)
