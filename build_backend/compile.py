"""What is compiled, and how: one ninja graph for the processor modules (one per instruction set) and for `_cuda`.

Environment: MAX_JOBS (commands at a time), CXX, CXXFLAGS, LDFLAGS, FORCE_CUDA (1: `_cuda` or an error, 0: no `_cuda`),
TORCH_CUDA_ARCH_LIST (as torch reads it: "8.0 9.0a+PTX").
"""

from __future__ import annotations

import fcntl
import os
import platform
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

import torch
from torch.utils import cpp_extension

from .ninja_graph import Graph

BASELINE = ["-DCPU_CAPABILITY=DEFAULT", "-DCPU_CAPABILITY_DEFAULT"]
AVX2 = ["-DCPU_CAPABILITY=AVX2", "-DCPU_CAPABILITY_AVX2", "-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512", "-mfma", "-mf16c"]
AVX512 += ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
AVX512 += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # gcc's own AVX-512 headers
X86_FLAGS = {"baseline": BASELINE, "avx2": AVX2, "avx512": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"]}

# Values as IEEE 754 has them: no -ffast-math; and nothing from the machine that builds: no -march=native.
CXX_FLAGS = ["-std=c++20", "-O3", "-g0", "-fPIC", "-fopenmp", "-fno-math-errno", "-Wall"]
CXX_FLAGS += ["-fvisibility=hidden", "-fvisibility-inlines-hidden"]
NVCC_FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC,-fvisibility=hidden"]

OUR_INCLUDES = ["-I.", "-Icsrc"]

# No -fopenmp when linking: the OpenMP symbols resolve to the one runtime that torch has loaded.
CPU_LIBRARIES = ["-lc10", "-ltorch_cpu", "-ltorch_python"]
CUDA_LIBRARIES = ["-lc10", "-ltorch_cpu", "-lc10_cuda", "-ltorch_cuda", "-ltorch_python", "-lcudart"]

DEFAULT_CUDA_ARCHITECTURES = "8.0+PTX 9.0a"  # PTX of 9.0a would serve no other GPU
EXT_SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))


def build(root: Path, package: Path, jobs: int | None = None) -> list[Path]:
    """Compile what changed under `root`, put the shared objects into the folder `package`, and return their paths."""
    folder = Path("build", f"{sys.implementation.cache_tag}-torch-{torch.__version__}")
    (root / folder).mkdir(parents=True, exist_ok=True)
    with open(root / folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two builds in one tree take turns
        graph = Graph(root, folder)
        modules = add_cpu_modules(graph)
        if wants_cuda(root):
            modules.append(add_cuda_module(graph))
        graph.run(jobs or int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0))))
        return _deliver([root / module for module in modules], package)


def instruction_sets() -> dict[str, list[str]]:
    """The instruction sets that are built on this machine, each with its compiler flags."""
    if platform.machine() in ("x86_64", "AMD64"):
        return X86_FLAGS
    return {"baseline": BASELINE}


def add_cpu_modules(graph: Graph) -> list[Path]:
    """`_cpu_<isa>`: the kernels compiled for each instruction set, linked with the same glue."""
    compiler = [*_cxx(), *CXX_FLAGS, *_definitions(), *_includes("cpu"), *_from_environment("CXXFLAGS")]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    linker = [*_cxx(), "-shared", *libraries, *_from_environment("LDFLAGS")]
    glue = _compile(graph, ["csrc/*.cpp", "csrc/ops/*.cpp"], compiler, "glue")
    modules = []
    for isa, flags in instruction_sets().items():
        named = [*compiler, *flags, f'-DPYKERNELS_ISA="{isa}"']
        kernels = _compile(graph, ["csrc/core/*.cpp", "csrc/kernels/*.cpp"], named, isa)
        output = graph.folder / "lib" / f"_cpu_{isa}{EXT_SUFFIX}"
        modules.append(graph.link([*glue, *kernels], output, linker, CPU_LIBRARIES, f"link _cpu_{isa}"))
    return modules


def wants_cuda(root: Path) -> bool:
    """Whether `_cuda` is built: where torch has CUDA and nvcc is found, unless FORCE_CUDA decides."""
    force = os.environ.get("FORCE_CUDA", "")
    if force == "0" or not any(root.glob("cuda/ops/*.cpp")):
        return False
    missing = []
    if torch.version.cuda is None:
        missing.append(f"this torch ({torch.__version__}) is built without CUDA")
    elif cpp_extension.CUDA_HOME is None or not Path(cpp_extension.CUDA_HOME, "bin", "nvcc").is_file():
        missing.append("no nvcc is found; set CUDA_HOME")
    if missing and force:
        raise RuntimeError(f"[build] expected CUDA because of FORCE_CUDA={force}, but {missing[0]}")
    return not missing


def add_cuda_module(graph: Graph) -> Path:
    """`_cuda`: kernels by nvcc without torch's headers, glue by the C++ compiler with them."""
    cuda_home = str(cpp_extension.CUDA_HOME)
    nvcc = [f"{cuda_home}/bin/nvcc", "-ccbin", _host_compiler(), *NVCC_FLAGS, *cuda_architecture_flags(), *OUR_INCLUDES]
    includes = _includes("cuda")
    compiler = [*_cxx(), *CXX_FLAGS, *_definitions(), *includes, *_from_environment("CXXFLAGS")]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths("cuda")]
    linker = [*_cxx(), "-shared", *libraries, *_from_environment("LDFLAGS")]
    objects = _compile(graph, ["cuda/core/*.cu", "cuda/kernels/*.cu"], nvcc, "nvcc")
    glue = ["cuda/*.cpp", "cuda/core/*.cpp", "cuda/ops/*.cpp", "csrc/ops/*_check.cpp"]  # the checks are shared
    objects += _compile(graph, glue, compiler, "cuda glue")
    return graph.link(objects, graph.folder / "lib" / f"_cuda{EXT_SUFFIX}", linker, CUDA_LIBRARIES, "link _cuda")


def cuda_architecture_flags() -> list[str]:
    """nvcc's -gencode flags: TORCH_CUDA_ARCH_LIST, else the GPUs here, else sm_80, sm_90a and PTX for others."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if not wanted and torch.cuda.is_available():
        present = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        wanted = ["9.0a" if (major, minor) == (9, 0) else f"{major}.{minor}" for major, minor in sorted(present)]
    flags = []
    for name in wanted or DEFAULT_CUDA_ARCHITECTURES.split():
        number = name.removesuffix("+PTX").replace(".", "")
        if not number.rstrip("af").isdecimal():
            raise RuntimeError(f"[build] expected TORCH_CUDA_ARCH_LIST such as '8.0 9.0a+PTX', got '{name}' in it")
        targets = [f"sm_{number}"] + ([f"compute_{number}"] if name.endswith("+PTX") else [])
        flags += [f"-gencode=arch=compute_{number},code={target}" for target in targets]
    return flags


def _compile(graph: Graph, patterns: list[str], command: list[str], label: str) -> list[Path]:
    sources = [path.relative_to(graph.root) for pattern in patterns for path in sorted(graph.root.glob(pattern))]
    folder = graph.folder / label.replace(" ", "_")
    return [graph.compile(source, folder / f"{source}.o", command, f"{label} {source}") for source in sources]


def _cxx() -> list[str]:
    return shlex.split(os.environ.get("CXX", "")) or ["g++" if shutil.which("g++") else "c++"]


def _host_compiler() -> str:
    return next(word for word in _cxx() if Path(word).name != "ccache")


def _from_environment(name: str) -> list[str]:
    return shlex.split(os.environ.get(name, ""))


def _definitions() -> list[str]:
    """The C++ library's ABI as torch has it, and torch's version, so that another torch compiles everything anew."""
    abi = int(torch.compiled_with_cxx11_abi())
    return [f"-D_GLIBCXX_USE_CXX11_ABI={abi}", f'-DPYKERNELS_TORCH_VERSION="{torch.__version__}"']


def _includes(device: str) -> list[str]:
    """Our own folders by relative name, and torch's and Python's as system headers, whose warnings are not ours."""
    system = [*cpp_extension.include_paths(device), sysconfig.get_path("include")]
    return [*OUR_INCLUDES, *(argument for path in system for argument in ("-isystem", path))]


def _deliver(modules: list[Path], package: Path) -> list[Path]:
    """Copy new modules into the package by renaming, since a running process may have the old ones mapped."""
    package.mkdir(parents=True, exist_ok=True)
    delivered = [package / module.name for module in modules]
    for old in {*package.glob(f"_cpu_*{EXT_SUFFIX}"), *package.glob(f"_cuda{EXT_SUFFIX}")} - {*delivered}:
        old.unlink()
    for module, target in zip(modules, delivered, strict=True):
        if target.is_file() and target.stat().st_mtime_ns == module.stat().st_mtime_ns:
            continue
        partial = target.with_suffix(".new")
        shutil.copy2(module, partial)
        partial.replace(target)
    return delivered
