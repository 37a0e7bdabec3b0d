"""The `_cuda` module on the processor, and how what it returns is judged."""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

# Largest difference, as a share of the largest entry of the truth plus one.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}
WHOLE_SHARED_MEMORY = 227 * 1024


class Device:
    """The `_cuda` module on the processor, and the settings of the executor."""

    def __init__(self, path: Path) -> None:
        loader = importlib.machinery.ExtensionFileLoader("_cuda", str(path))
        spec = importlib.util.spec_from_loader("_cuda", loader)
        assert spec is not None
        self.kernels = importlib.util.module_from_spec(spec)
        loader.exec_module(self.kernels)
        self._library = ctypes.CDLL(str(path))
        self._library.cuda_on_cpu_launches.restype = ctypes.c_int64

    def configure(self, seed: int, resident_blocks: int = 256, shared_limit: int = WHOLE_SHARED_MEMORY) -> None:
        self._library.cuda_on_cpu_configure(
            ctypes.c_uint64(seed), ctypes.c_int64(resident_blocks), ctypes.c_uint64(shared_limit)
        )

    def cooperative_launches(self) -> int:
        """Since the last call."""
        return self._library.cuda_on_cpu_launches(1)

    def launches(self) -> int:
        """Others since the last call."""
        return self._library.cuda_on_cpu_launches(0)


def plans(hidden: int) -> list[tuple[int, int]]:
    """Resident blocks and shared memory that lead to each plan: weights in shared memory or streamed, all row blocks
    at once or in turn, a launch a step."""
    return [(256, WHOLE_SHARED_MEMORY), (256, 34_000), (2 * -(-hidden // 8), WHOLE_SHARED_MEMORY), (0, 34_000)]


def assert_near(actual: dict[str, Tensor], truth: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Each tensor of `truth` (float64), in the dtype, within its tolerance; a not-a-number only where it has one."""
    for name, expected in truth.items():
        tensor = actual[name]
        assert tensor.dtype == dtype and tensor.shape == expected.shape, name
        assert torch.equal(tensor.isnan(), expected.isnan()), name
        error = float((tensor.double() - expected).nan_to_num().abs().max() / (expected.nan_to_num().abs().max() + 1))
        assert error <= TOLERANCE[dtype], f"{name} is off by {error:.3g}"
