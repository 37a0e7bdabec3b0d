"""Chooses and loads the compiled kernels: one shared object per instruction set, of which a process loads one.

    kernels        the processor module that is loaded (under the name `pykernels._cpu`): every raw kernel by name
    isa            its instruction set, one of ISAS; `reason` says why this one
    cuda_kernels   the module `pykernels._cuda`, or None; `cuda_reason` says why (not)

The best instruction set that is built and that this processor runs is taken. The environment variable
ATEN_CPU_CAPABILITY limits it as it limits torch's own kernels; PYKERNELS_ISA names one, and asking for what cannot be
had is an ImportError.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import torch

ISAS = ("baseline", "avx2", "avx512", "avx512_bf16")
"""From the least to the most demanding; a processor that runs one runs all before it."""

_FOLDER = Path(__file__).resolve().parent


def built() -> tuple[str, ...]:
    """The instruction sets whose module lies in the package."""
    return tuple(isa for isa in ISAS if _file(f"_cpu_{isa}"))


def supported() -> tuple[str, ...]:
    """The instruction sets that this processor runs, as far as ATEN_CPU_CAPABILITY lets torch use them."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512" and _processor_has("avx512"):
        return ISAS if _processor_has("avx512_bf16") else ISAS[:3]
    if capability in ("AVX2", "AVX512") and _processor_has("avx2"):
        return ISAS[:2]
    return ISAS[:1]


def available() -> tuple[str, ...]:
    """The instruction sets that are built and supported: what PYKERNELS_ISA may name here."""
    return tuple(isa for isa in built() if isa in supported())


def _file(stem: str) -> Path | None:
    candidates = (_FOLDER / f"{stem}{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def _processor_has(feature: str) -> bool:
    """What the processor itself says. (ATEN_CPU_CAPABILITY can name more than it has, and torch believes it.)"""
    ask = getattr(torch.cpu, f"_is_{feature}_supported", None)
    if ask is not None:
        return bool(ask())
    flag = {"avx512": "avx512f"}.get(feature, feature)
    try:
        with open("/proc/cpuinfo") as lines:
            return any(flag in line.split() for line in lines if line.startswith("flags"))
    except OSError:
        return False


def _choose(wanted: str | None) -> tuple[str, str]:
    """The instruction set to load, and why; `wanted` is the value of PYKERNELS_ISA."""
    can_have = available()
    if not built():
        raise ImportError(
            "[pykernels] expected compiled kernels in the package, got none: install with `pip install .`"
        )
    if not wanted:
        capability = torch.backends.cpu.get_cpu_capability()
        forced = os.environ.get("ATEN_CPU_CAPABILITY")
        limit = f"ATEN_CPU_CAPABILITY={forced}" if forced else f"this processor ({capability} for torch)"
        if not can_have:
            raise ImportError(f"[pykernels] expected a module for {limit}, got only {', '.join(built())}")
        return can_have[-1], f"the best that is built and that {limit} allows"
    if wanted in can_have:
        return wanted, f"PYKERNELS_ISA={wanted}"
    if wanted not in ISAS:
        problem = f"expected one of {', '.join(ISAS)}"
    elif wanted not in built():
        problem = "expected an instruction set that is built"
    else:
        problem = "expected an instruction set that this processor has (and ATEN_CPU_CAPABILITY allows)"
    have = ", ".join(can_have) or "none"
    raise ImportError(f"[pykernels] PYKERNELS_ISA: {problem}, got '{wanted}'; available here: {have}")


def _load(name: str, path: Path) -> ModuleType:
    """The shared object at `path` as the module pykernels.`name`, whatever the file is called."""
    spec = importlib.util.spec_from_file_location(f"pykernels.{name}", path)
    assert spec is not None and spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        hint = f"is torch {torch.__version__} another than the one it was built with? Then install pykernels again"
        raise ImportError(f"[pykernels] cannot load {path.name}: {error} ({hint})") from error
    sys.modules[spec.name] = module
    return module


def _check_torch(built_with: str | None) -> None:
    """torch's C++ interface holds within one minor version; across two, calls may crash rather than fail to load."""
    if built_with is not None and built_with.split(".")[:2] != torch.__version__.split(".")[:2]:
        need = f"expected torch {built_with}, with which this was built, got {torch.__version__}"
        raise ImportError(f"[pykernels] {need}: install pykernels again")


def _load_cuda() -> tuple[ModuleType | None, str]:
    """The CUDA module, or None, and why; nothing here starts the CUDA runtime."""
    path = _file("_cuda")
    if path is None:
        return None, "not built"
    if not torch.backends.cuda.is_built():
        return None, f"torch {torch.__version__} is built without CUDA"
    try:
        return _load("_cuda", path), f"built, and torch has CUDA {torch.version.cuda}"
    except ImportError as error:
        return None, str(error)


isa, reason = _choose(os.environ.get("PYKERNELS_ISA"))
_path = _file(f"_cpu_{isa}")
assert _path is not None
kernels = _load("_cpu", _path)
_check_torch(kernels.build_info().get("torch"))
cuda_kernels, cuda_reason = _load_cuda()
