"""The compiled kernels, made once in a run of pytest."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from .build import CHECKS, EXECUTOR, GLUE, KERNELS, Workshop
from .device import Device


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # one for all workers
    return Workshop(base / "cuda_on_cpu")


@pytest.fixture(scope="session")
def device(workshop: Workshop) -> Device:
    return Device(workshop.module("_cuda", [*GLUE, *CHECKS, *KERNELS, *EXECUTOR]))


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Memory that at::empty returns holds not-a-numbers, so that what nothing writes shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
