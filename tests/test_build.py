"""Which shared object is chosen, that it is the one that runs, and that importing it changes nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pykernels import _native

from .helpers import ROOT, python

SHOW = "from pykernels import _native as n; print(n.isa, n.kernels.isa, n.kernels.__file__, n.kernels.__name__)"


def loaded(**environment: str) -> list[str]:
    return python(SHOW, **environment).stdout.split()


def import_error(code: str = "import pykernels._native", **environment: str) -> str:
    done = python(code, check=False, **environment)
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: [pykernels]"), done.stderr
    return last


@pytest.mark.parametrize("isa", _native.ISAS)
def test_forced_instruction_set_is_what_runs(isa):
    if isa not in _native.available():
        pytest.skip(f"{isa} is not available here")
    chosen, compiled_for, path, name = loaded(PYKERNELS_ISA=isa)
    assert chosen == compiled_for == isa
    assert Path(path).name.startswith(f"_cpu_{isa}.")
    assert name == "pykernels._cpu"


@pytest.mark.isa
def test_loaded_module_says_its_instruction_set():
    assert _native.kernels.isa == _native.isa
    assert Path(_native.kernels.__file__).name.startswith(f"_cpu_{_native.isa}.")


def test_best_available_is_the_default():
    assert loaded(PYKERNELS_ISA="")[0] == _native.available()[-1]


@pytest.mark.parametrize(("capability", "isa"), [("default", "baseline"), ("avx2", "avx2"), ("avx512", "avx512")])
def test_aten_cpu_capability_limits_the_choice(capability, isa):
    if isa not in _native.available():
        pytest.skip(f"{isa} is not available here")
    chosen = loaded(ATEN_CPU_CAPABILITY=capability, PYKERNELS_ISA="")[0]
    assert chosen.removesuffix("_bf16") == isa


def test_unknown_instruction_set():
    message = import_error(PYKERNELS_ISA="sse5")
    assert "expected one of baseline, avx2, avx512, avx512_bf16, got 'sse5'" in message
    assert f"available here: {', '.join(_native.available())}" in message


@pytest.mark.skipif("avx2" not in _native.built(), reason="avx2 is not built")
def test_instruction_set_that_the_processor_lacks():
    message = import_error(PYKERNELS_ISA="avx2", ATEN_CPU_CAPABILITY="default")
    assert "expected an instruction set that this processor has" in message
    assert message.endswith("got 'avx2'; available here: baseline")


def test_processor_is_asked_and_not_only_torch():
    """ATEN_CPU_CAPABILITY=avx512 makes torch believe in AVX-512 on any processor; the processor's word decides."""
    lacks = "import torch; torch.cpu._is_avx512_supported = torch.cpu._is_avx2_supported = lambda: False; "
    message = import_error(f"{lacks} import pykernels._native", PYKERNELS_ISA="avx512", ATEN_CPU_CAPABILITY="avx512")
    assert message.endswith("got 'avx512'; available here: baseline")


@pytest.fixture
def baseline_only(tmp_path):
    """A copy of the package that holds the baseline module and no other."""
    package = tmp_path / "pykernels"
    shutil.copytree(ROOT / "pykernels", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    built = next((ROOT / "pykernels").glob("_cpu_baseline.*.so"), None) or Path(_native.kernels.__file__)
    shutil.copy(built, package)
    return tmp_path


def test_instruction_set_that_is_not_built(baseline_only):
    first = f"import sys; sys.path.insert(0, {str(baseline_only)!r}); "
    message = import_error(f"{first} import pykernels._native", PYKERNELS_ISA="avx512")
    assert message.endswith("expected an instruction set that is built, got 'avx512'; available here: baseline")
    assert python(f"{first} {SHOW}", PYKERNELS_ISA="").stdout.split()[0] == "baseline"


def test_nothing_built(baseline_only):
    for path in baseline_only.rglob("*.so"):
        path.unlink()
    first = f"import sys; sys.path.insert(0, {str(baseline_only)!r}); "
    assert "got none: install" in import_error(f"{first} import pykernels._native", PYKERNELS_ISA="")


def test_unloadable_module_names_the_likely_cause(baseline_only):
    broken = next(baseline_only.rglob("*.so"))
    broken.write_bytes(b"not an object file")
    first = f"import sys; sys.path.insert(0, {str(baseline_only)!r}); "
    assert "install pykernels again" in import_error(f"{first} import pykernels._native", PYKERNELS_ISA="")


@pytest.mark.isa
def test_import_leaves_subnormals_alone():
    """Linking with -ffast-math would flush them to zero in the whole process, in every thread."""
    python("""
import ctypes, threading, torch

def check():
    for dtype, small in ((torch.float64, 1e-310), (torch.float32, 1e-40)):
        x = torch.full((1000,), small, dtype=dtype)
        assert (x * 1 != 0).all() and (x / 2 != 0).all(), dtype
    assert 1e-310 / 2 != 0.0

check()
import pykernels
check()
thread = threading.Thread(target=check)
thread.start()
thread.join()
x = torch.full((1 << 20,), 1e-310, dtype=torch.float64)  # large enough for torch's own threads
assert (x * 1 != 0).all()
""")


def test_one_openmp_runtime():
    """A second libgomp would have threads of its own, which torch.set_num_threads does not reach."""
    mapped = python("""
import torch, pykernels
torch.randn(300, 300) @ torch.randn(300, 300)
paths = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
print(*sorted(path for path in paths if "gomp" in path or "iomp" in path or "libomp" in path))
""").stdout.split()
    assert len(mapped) <= 1, mapped


def test_import_is_cheap():
    """Importing after torch loads one small module and starts nothing: no threads, no CUDA."""
    python("""
import os, torch
before = len(os.listdir("/proc/self/task"))
import pykernels._native
assert len(os.listdir("/proc/self/task")) == before
assert not torch.cuda.is_initialized()
""")
