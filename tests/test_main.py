"""`python -m pykernels`: what it says, and that the self-check finds a wrong kernel."""

from __future__ import annotations

import pytest
import torch

from pykernels import __main__ as main
from pykernels import _native, functional

from .helpers import python


@pytest.mark.isa
def test_self_check_passes():
    text = python(["-m", "pykernels"], timeout=120).stdout
    assert text.rstrip().endswith("all checks passed")
    assert "FAILED" not in text
    for dtype in ("float64", "float32", "bfloat16", "float16"):
        assert text.count(f" {dtype} ") >= 4
    loaded = [line for line in text.splitlines() if "<- loaded" in line]
    assert len(loaded) == 1 and loaded[0].startswith(f"{_native.isa} ")


def test_describes_what_is_here():
    lines = dict(main.describe())
    assert {"pykernels", "torch", "cuda", *_native.ISAS} <= set(lines)
    assert lines["torch"].startswith(torch.__version__)
    assert "threads" in lines["torch"]
    for isa in _native.ISAS:
        assert lines[isa].startswith("built") == (isa in _native.built())


def _failures(capsys) -> int:
    code = main.main()
    text = capsys.readouterr().out
    failed = sum(line.endswith("  FAILED") for line in text.splitlines())
    assert code == (1 if failed else 0)
    assert ("all checks passed" in text) == (failed == 0)
    return failed


def test_self_check_finds_wrong_results(monkeypatch, capsys):
    right = functional.lstm

    def wrong(*args, **kwargs):
        output, h_n, c_n = right(*args, **kwargs)
        return output, h_n, c_n * 1.2

    monkeypatch.setattr(functional, "lstm", wrong)
    assert _failures(capsys) == 24


def test_self_check_finds_one_wrong_element_in_a_gradient(monkeypatch, capsys):
    right = _native.kernels.lstm_backward

    def wrong(*args):
        grad_input, *others = right(*args)
        if grad_input.numel():
            grad_input.view(-1)[0] += 1.0
        return (grad_input, *others)

    monkeypatch.setattr(_native.kernels, "lstm_backward", wrong)
    assert _failures(capsys) > 0


def test_self_check_finds_nan(monkeypatch, capsys):
    right = functional.lstm

    def wrong(*args, **kwargs):
        output, h_n, c_n = right(*args, **kwargs)
        return output, torch.where(torch.arange(h_n.shape[-1]) == 3, torch.nan, h_n), c_n

    monkeypatch.setattr(functional, "lstm", wrong)
    assert _failures(capsys) == 24
