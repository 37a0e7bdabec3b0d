"""Compiles CUDA sources, unchanged, with the C++ compiler: the stand-ins of include/ are found first."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.utils import cpp_extension

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KERNELS = sorted((ROOT / "cuda" / "kernels").glob("*.cu"))
ATTENTION = [source for source in KERNELS if source.stem.startswith("attention")]
LAYER_NORM = [source for source in KERNELS if source.stem.startswith("layer_norm")]
POOL = [source for source in KERNELS if source.stem.startswith("pool")]
CONV = [source for source in KERNELS if source.stem.startswith("conv")]
UNFOLD = [source for source in KERNELS if source.stem.startswith("unfold")]
RBM = [source for source in KERNELS if source.stem.startswith("rbm")]
HOPFIELD = [source for source in KERNELS if source.stem.startswith("hopfield")]
BMU = [source for source in KERNELS if source.stem.startswith("bmu") or source.stem == "unit_sums"]
SOM = [source for source in KERNELS if source.stem == "som"]
RADIAL_BASIS = [source for source in KERNELS if source.stem == "radial_basis"]
OTHERS = (*ATTENTION, *LAYER_NORM, *POOL, *CONV, *UNFOLD, *RBM, *HOPFIELD, *BMU, *SOM, *RADIAL_BASIS)
RECURRENT = [source for source in KERNELS if source not in OTHERS]
GLUE = [ROOT / "cuda" / "module.cpp", *sorted((ROOT / "cuda" / "ops").glob("*.cpp"))]
CHECKS = sorted((ROOT / "csrc" / "ops").glob("*_check.cpp"))
EXECUTOR = [HERE / "executor.cpp", HERE / "fiber.cpp"]

FLAGS = ["-std=c++20", "-g0", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE", "-Wall", "-Wno-unknown-pragmas"]
INCLUDES = [f"-I{HERE / 'include'}", f"-I{HERE}", f"-I{ROOT}", f"-I{ROOT / 'csrc'}"]
TORCH = [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
ADDRESS_SANITIZER = ["-fsanitize=address", "-fno-omit-frame-pointer"]


class Workshop:
    """A folder of objects and programs that all tests (and all workers of a parallel run) share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.compiler = os.environ.get("CXX", "c++").split()

    def _make(self, output: Path, command: list[str]) -> Path:
        """Run the command that makes `output` unless it is there; a failure shows the compiler's words."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(output.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not output.exists():
                done = subprocess.run(command, capture_output=True, text=True, timeout=300)
                if done.returncode != 0:
                    output.unlink(missing_ok=True)
                    pytest.fail(f"{' '.join(command)}\n{done.stderr[-6000:]}", pytrace=False)
        return output

    def compile(self, source: Path, *options: str) -> Path:
        optimise = "-O2" if source in EXECUTOR else "-O0" if source in (*GLUE, *CHECKS) else "-O1"
        flags = [*FLAGS, optimise, *options, *INCLUDES]
        if source in (*GLUE, *CHECKS):
            flags += [argument for path in TORCH for argument in ("-isystem", path)]
        name = hashlib.sha256(" ".join([*flags, str(source)]).encode()).hexdigest()[:12]
        output = self.folder / f"{source.stem}-{name}.o"
        return self._make(output, [*self.compiler, *flags, "-x", "c++", "-c", str(source), "-o", str(output)])

    def compile_all(self, sources: Sequence[Path], *options: str) -> list[Path]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda source: self.compile(source, *options), sources))

    def program(self, name: str, sources: Sequence[Path], *options: str) -> Path:
        return self.link(name, self.compile_all(sources, *options), *options)

    def link(self, name: str, objects: Sequence[Path], *options: str) -> Path:
        output = self.folder / name
        return self._make(output, [*self.compiler, *options, *map(str, objects), "-o", str(output)])

    def module(self, name: str, sources: Sequence[Path]) -> Path:
        """A Python extension module that is linked with torch."""
        objects = map(str, self.compile_all(sources))
        output = self.folder / f"{name}.so"
        libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
        libraries += ["-lc10", "-ltorch_cpu", "-ltorch_python"]
        return self._make(output, [*self.compiler, "-shared", *objects, *libraries, "-o", str(output)])
