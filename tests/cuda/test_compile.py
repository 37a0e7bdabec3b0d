"""The CUDA sources compile for the GPUs that are supported, and no kernel keeps registers in memory.

Needs nvcc, but neither a GPU nor a torch that is built with CUDA.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import struct
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent.parent.parent
KERNELS = sorted((ROOT / "cuda" / "kernels").glob("*.cu"))
GLUE = [ROOT / "cuda" / "module.cpp", *sorted((ROOT / "cuda" / "ops").glob("*.cpp"))]
ARCHITECTURES = ("80", "90a")
DISPATCH = {"variant.cu", "conv.cu", "bmu.cu"}  # these choose among the kernels of other files and have none
# These multiply by matrix instructions, whose operands arrive by copies of 16 bytes; but those of GATHERED, by which
# both are gathered value by value.
TILED = {f"attention_{name}.cu" for name in ("forward", "query_gradient", "key_gradient", "mask_gradient")}
TILED |= {"conv_product_tiled.cu", "conv_place_sums_tiled.cu", "bmu_products.cu", "bmu_held.cu"}
GATHERED = re.compile(r"conv_place_sums_kernel\w+ELb0EE")
# These read whole rows, by loads of 16 bytes wherever a kernel is one for aligned rows.
ROWS = {"layer_norm_forward.cu", "layer_norm_backward.cu"}
INCLUDES = [f"-I{ROOT}", f"-I{ROOT / 'csrc'}"]


@functools.cache
def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or cpp_extension.CUDA_HOME
    places = [str(Path(home, "bin"))] if home else []
    return shutil.which("nvcc", path=os.pathsep.join([*places, os.environ.get("PATH", "")]))


pytestmark = pytest.mark.skipif(nvcc() is None, reason="no nvcc: neither CUDA_HOME/bin nor PATH has it")


def run(command: list[str]) -> str:
    """All that the command says; a failure shows it."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    said = done.stdout + done.stderr
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{said[-6000:]}", pytrace=False)
    return said


def machine_code(cubin: bytes) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Of each kernel its instructions, of 16 bytes, as two numbers of 8 (ELF: https://refspecs.linuxfoundation.org)."""
    (sections,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<3H", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQ", cubin, sections + i * size) for i in range(count)]
    for name, _, _, _, offset, length in headers:
        start = headers[names][4] + name
        text = cubin[start : cubin.index(b"\0", start)].decode()
        if text.startswith(".text."):
            words = struct.unpack_from(f"<{length // 8}Q", cubin, offset)
            yield text.removeprefix(".text."), list(zip(words[::2], words[1::2], strict=True))


def check_tiled(cubin: Path) -> None:
    """The lower 12 bits say which instruction it is; of a load, bits 9 to 11 of the upper half how much."""
    hmma, ldsm, ldgsts, sixteen_bytes = 0x23C, 0x83B, 0xFAE, 6
    kernels = dict(machine_code(cubin.read_bytes()))
    assert kernels
    for name, code in kernels.items():
        operations = [low & 0xFFF for low, _ in code]
        copies = {high >> 9 & 7 for low, high in code if low & 0xFFF == ldgsts}
        print(f"{cubin.name} {operations.count(hmma):>4} HMMA {operations.count(ldsm):>4} LDSM {name}")
        expected = set() if GATHERED.search(name) else {sixteen_bytes}
        assert operations.count(hmma) >= 16 and ldsm in operations and copies == expected, name


def check_rows(cubin: Path) -> None:
    """As above. Of the packs of a row, the kernels' names say how many columns they have."""
    load, store, sixteen_bytes = 0x981, 0x986, 6
    kernels = dict(machine_code(cubin.read_bytes()))
    single = 0
    for name, code in kernels.items():
        widest = [max(high >> 9 & 7 for low, high in code if low & 0xFFF == kind) for kind in (load, store)]
        pack = re.search(r"(?:HeldRowI\w+?|streamed\w+?kernelI(?:d|f|\d+\w+?))Li(\d+)E", name)
        assert pack, name
        single += pack[1] == "1"
        assert pack[1] == "1" or widest == [sixteen_bytes, sixteen_bytes], name
    assert 0 < 2 * single < len(kernels)


@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.name)
def test_kernels_compile_and_stay_in_registers(source, tmp_path, record_property):
    command = [str(nvcc()), "-std=c++20", "-O3", "-c", "-Xptxas", "-v", "--threads", "2", *INCLUDES]
    command += ["--keep", "--keep-dir", str(tmp_path)]
    command += [f"-gencode=arch=compute_{name},code=sm_{name}" for name in ARCHITECTURES]
    said = run([*command, str(source), "-o", str(tmp_path / "kernels.o")])
    assert "warning" not in said, said
    report = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        said,
        re.DOTALL,
    )
    assert {architecture for _, architecture, *_ in report} == (
        set() if source.name in DISPATCH else set(ARCHITECTURES)
    )
    for name, architecture, *memory, registers in report:
        record_property(f"registers of {name} on sm_{architecture}", int(registers))
        print(f"sm_{architecture} {registers:>3} registers {name}")
        assert memory == ["0", "0", "0"], (
            f"{name} on sm_{architecture}: stack frame, spill stores, spill loads {memory}"
        )
    check = check_tiled if source.name in TILED else check_rows if source.name in ROWS else None
    if check is not None:
        cubins = sorted(tmp_path.glob("*.cubin"))
        assert len(cubins) == len(ARCHITECTURES)
        for cubin in cubins:
            check(cubin)


@functools.cache
def toolkit_includes() -> list[str]:
    """The include folders that nvcc itself uses."""
    told = run([str(nvcc()), "--dryrun", "-E", str(KERNELS[0])])
    lines = [line for line in told.splitlines() if re.match(r"#\$ (SYSTEM_)?INCLUDES=", line)]
    return [path for line in lines for path in re.findall(r"(?:-I|-isystem\" \")([^\"]+)\"", line)]


@pytest.mark.parametrize("source", GLUE, ids=lambda path: path.name)
def test_glue_compiles(source, tmp_path):
    torch_includes = cpp_extension.include_paths()
    # A torch without CUDA ships these headers, but not the one that its build makes.
    made = "c10/cuda/impl/cuda_cmake_macros.h"
    if not any(Path(path, made).is_file() for path in torch_includes):
        assert torch.version.cuda is None
        (tmp_path / made).parent.mkdir(parents=True)
        (tmp_path / made).touch()
    folders = [*torch_includes, *toolkit_includes(), sysconfig.get_paths()["include"], str(tmp_path)]
    system = [argument for folder in folders for argument in ("-isystem", folder)]
    compiler = os.environ.get("CXX", "c++").split()
    said = run([*compiler, "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", *INCLUDES, *system, str(source)])
    assert "warning" not in said, said
