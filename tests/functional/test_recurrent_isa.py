"""The small set that runs once for every instruction set: `PYKERNELS_ISA=avx2 pytest -m isa`, or the last test."""

from __future__ import annotations

import os

import pytest
import torch

from pykernels import _native, functional
from tests.helpers import FLAGS, SEED, Case, assert_same_bits, check_values, drawn, every_kind, python, run

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
@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@drawn(20, steps=(1, 5), batch=(1, 19), inputs=(1, 70), hidden=(1, 70), seed=SEED, **FLAGS)
def test_against_float64(dtype, kind, case):
    check_values(case, dtype)


@isa
@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "case", [Case(9, 33, 37, 101), Case(5, 17, 64, 256, bidirectional=True, packed=True, reset_after=False)], ids=str
)
def test_larger_sizes_and_threads(threads, case, dtype, kind):
    case, found = case.of(kind), []
    for count in (1, 2):
        threads(count)
        found.append(run(functional, case, dtype))
    assert_same_bits(*found)
    check_values(case, dtype, ours=found[0])


@pytest.mark.parametrize("name", [name for name in _native.ISAS if name != _native.isa])
def test_each_instruction_set(name):
    """Runs the small set of all tests in a process of its own, forced to `name`. (The loaded one runs all tests.)"""
    if FORCED:
        pytest.skip("already forced")
    if name not in _native.available():
        pytest.skip(f"{name} is not built, or this processor lacks it")
    arguments = ["-m", "pytest", "-q", "-m", "isa", "-p", "no:cacheprovider", "tests"]
    done = python(arguments, timeout=300, PYKERNELS_ISA=name)
    assert " passed" in done.stdout and "skipped" not in done.stdout
