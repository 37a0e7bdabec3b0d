"""The compiled kernels, made once in a run of pytest."""

from __future__ import annotations

import os

import pytest

from .build import Workshop


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # one for all workers
    return Workshop(base / "cuda_on_cpu")
