"""What the report says about the machine: model, cores, instruction set, versions, and the limits measured at the
start.
"""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench import limits
from bench.ours import is_stand_in, isa


def processor_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for text in cpuinfo.read_text().splitlines():
            if text.lower().startswith("model name"):
                return text.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def processor_kind() -> str:
    """Model name with family and model numbers, since virtual machines often give a short name only."""
    fields = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for text in cpuinfo.read_text().split("\n\n")[0].splitlines():
            name, _, value = text.partition(":")
            fields[name.strip()] = value.strip()
    numbers = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    return processor_model() + numbers


def physical_cores() -> int:
    """Distinct (physical id, core id) pairs, or what torch would use."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return torch.get_num_threads()
    package, cores = "", set()
    for text in cpuinfo.read_text().splitlines():
        name, _, value = (part.strip() for part in text.partition(":"))
        if name == "physical id":
            package = value
        elif name == "core id":
            cores.add((package, value))
    return len(cores) or torch.get_num_threads()


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def load_note() -> str:
    """A warning when other programs keep the cores busy: ratios by pair survive much, but not everything."""
    load = os.getloadavg()[0]
    if load < 0.5:
        return ""
    return f"note: other programs are running here (load {load:.1f}); expect wide quartiles"


def facts(quick: bool = False) -> dict[str, Any]:
    """The hardware of a report. No host name, no user, no path."""
    return {
        "cpu": processor_kind(),
        "cores": physical_cores(),
        "threads": torch.get_num_threads(),
        "isa": isa(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": version("onnxruntime"),
        "pykernels": "stand-in (torch's own module)" if is_stand_in() else version("pykernels"),
        "quick": quick,
        "limits": limits.measured(quick).as_dict(),
    }


def hardware_line(machine: dict[str, Any]) -> str:
    """One sentence for captions."""
    peaks = machine["limits"]
    if "gpu" in machine:
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in peaks["matmul_tflops"].items())
        return (
            f"{machine['gpu']}; matrix product {rates} TFLOP/s, copy bandwidth {peaks['copy_mb_s'] / 1000:.0f} GB/s; "
            f"torch {machine['torch']}, CUDA {machine['cuda']}, cuDNN {machine['cudnn']}, Python {machine['python']}"
        )
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {machine['isa']}; "
        f"FMA peak {peaks['fma_peak_one']:.0f} GFLOP/s on one core and {peaks['fma_peak_all']:.0f} on all threads, "
        f"copy bandwidth {peaks['copy_mb_s']:.0f} MB/s; "
        f"torch {machine['torch']}, ONNX Runtime {machine['onnxruntime']}, Python {machine['python']}"
    )
