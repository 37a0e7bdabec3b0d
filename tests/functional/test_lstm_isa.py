"""The small set that runs once for every instruction set: `PYKERNELS_ISA=avx2 pytest -m isa`, or the last test."""

from __future__ import annotations

import os

import pytest
import torch

from pykernels import _native, functional, reference
from tests.helpers import FLAG, SEED, Case, assert_equal, assert_no_worse, assert_same_bits, drawn, python, run

pytestmark = pytest.mark.usefixtures("cpu_only")
isa = pytest.mark.isa
FORCED = os.environ.get("PYKERNELS_ISA")


@isa
def test_the_forced_one_is_what_runs():
    """The module says what it was compiled for."""
    assert _native.kernels.isa == _native.isa
    if FORCED:
        assert _native.kernels.isa == FORCED


@isa
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@drawn(
    20,
    steps=(1, 5),
    batch=(1, 19),
    inputs=(1, 70),
    hidden=(1, 70),
    bias=FLAG,
    bidirectional=FLAG,
    projection=FLAG,
    peephole=FLAG,
    packed=FLAG,
    states=FLAG,
    seed=SEED,
)
def test_against_float64(dtype, case):
    ours = run(functional.lstm, case, dtype)
    if dtype == torch.float64:
        assert_equal(ours, run(reference.lstm, case, dtype))
    else:
        truth = run(reference.lstm, case, torch.float64, draw_as=dtype)
        assert_no_worse(ours, run(reference.lstm, case, dtype), truth, floor=8)


@isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [Case(9, 33, 37, 101), Case(5, 17, 64, 256, bidirectional=True, packed=True)], ids=str)
def test_larger_sizes_and_threads(threads, case, dtype):
    found = []
    for count in (1, 2):
        threads(count)
        found.append(run(functional.lstm, case, dtype))
    assert_same_bits(*found)
    truth = run(reference.lstm, case, torch.float64, draw_as=dtype)
    assert_no_worse(found[0], run(reference.lstm, case, dtype), truth, floor=8)


@isa
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_gates_over_their_whole_range(dtype):
    """σ and tanh as exact as torch's own, plus 2 units in the last place, from flat to saturated."""
    z = torch.cat([torch.linspace(-20, 20, 1501), torch.logspace(-30, 2, 300), -torch.logspace(-30, 2, 300)]).to(dtype)
    one, none = torch.ones(1, dtype=dtype), torch.zeros(1, dtype=dtype)
    eps = torch.finfo(dtype).eps

    def cell(i=0.0, g=0.0, o=0.0, c0=None, bias=(0.0, 0.0, 0.0, 0.0)):
        """One unit a sample: the input is the pre-activation of the gates with weight 1."""
        weight = torch.tensor([[i], [0.0], [g], [o]], dtype=dtype)
        states = (none.expand(1, len(z), 1), none.expand(1, len(z), 1) if c0 is None else c0.view(1, -1, 1))
        weights = [weight, torch.zeros(4, 1, dtype=dtype), torch.tensor(bias, dtype=dtype), torch.zeros(4, dtype=dtype)]
        h, _, c = functional.lstm(z.view(1, -1, 1), states, weights)
        return h.flatten(), c.flatten()

    # i = 1 (saturated), f = 1/2 of c0 = 0: c is tanh(z)
    _, found = cell(g=1.0, bias=(1000.0, 0.0, 0.0, 0.0))
    truth = z.double().tanh()
    allowed = (z.tanh().double() - truth).abs() + 2 * eps * truth.abs() + 1e-300
    assert ((found.double() - truth).abs() <= allowed).all()

    # g = 1 (saturated): c is σ(z)
    _, found = cell(i=1.0, bias=(0.0, 0.0, 1000.0, 0.0))
    truth = z.double().sigmoid()
    allowed = (z.sigmoid().double() - truth).abs() + 2 * eps * truth.abs() + 1e-37
    assert ((found.double() - truth).abs() <= allowed).all()
    assert one.item() == 1


@pytest.mark.parametrize("name", _native.ISAS)
def test_each_instruction_set(name):
    """Runs this file's small set in a process of its own, forced to `name`."""
    if FORCED:
        pytest.skip("already forced")
    if name not in _native.available():
        pytest.skip(f"{name} is not built, or this processor lacks it")
    arguments = ["-m", "pytest", "-q", "-m", "isa", "-p", "no:cacheprovider", "tests/functional/test_lstm_isa.py"]
    done = python(arguments, timeout=300, PYKERNELS_ISA=name)
    assert " passed" in done.stdout and "skipped" not in done.stdout
