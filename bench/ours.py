"""Where the benches find this library; without a build, torch's own modules stand in, and the report says so."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch


@functools.cache
def library() -> Any:
    """The package, or torch.nn where it is not built."""
    if native_kernels() is None:
        return torch.nn
    return importlib.import_module("pykernels")


def is_stand_in() -> bool:
    return library() is torch.nn


@functools.cache
def native_kernels() -> Any:
    """The loaded extension module with the raw kernels, or None."""
    try:
        _native = importlib.import_module("pykernels._native")
    except ImportError:
        return None
    return getattr(_native, "kernels", None) if hasattr(importlib.import_module("pykernels"), "LSTM") else None


def isa() -> str:
    """The instruction set of the loaded extension module."""
    return str(getattr(native_kernels(), "isa", "none"))
