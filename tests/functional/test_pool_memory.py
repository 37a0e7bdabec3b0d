"""The pooling kernels under AddressSanitizer and UndefinedBehaviorSanitizer, over drawn shapes."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from build_backend import compile as build
from pykernels import _native
from tests.helpers import ROOT

SOURCES = [*sorted((ROOT / "csrc" / "kernels").glob("pool_*.cpp")), ROOT / "csrc" / "core" / "scratch.cpp"]
DRIVER = Path(__file__).with_name("pool_driver.cpp")
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]


@pytest.mark.slow
def test_kernels_keep_to_their_buffers(tmp_path, cpu_only):
    compiler = os.environ.get("CXX", "c++").split()
    flags = [f for f in build.CXX_FLAGS if f not in ("-O3", "-Wall")] + build.instruction_sets()[_native.isa]
    includes = [f"-I{ROOT}", f"-I{ROOT / 'csrc'}", *(f"-isystem{path}" for path in cpp_extension.include_paths())]
    (library,) = cpp_extension.library_paths()

    def compiled(source: Path) -> str:
        output = tmp_path / f"{source.stem}.o"
        command = [*compiler, "-O0", *flags, *includes, *SANITIZE, "-c", str(source), "-o", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
        return str(output)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, [*SOURCES, DRIVER]))
    program = str(tmp_path / "driver")
    link = [*compiler, *SANITIZE, "-fopenmp", *objects, f"-L{library}", "-lc10", "-o", program]
    done = subprocess.run(link, capture_output=True, text=True, timeout=300)
    if "cannot find" in done.stderr and "san" in done.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert done.returncode == 0, done.stderr[-4000:]
    ran = subprocess.run(
        [program, "60"],
        env={**os.environ, "LD_LIBRARY_PATH": library, "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0 and ran.stdout == "60 rounds\n", ran.stdout + ran.stderr[-6000:]
