"""Fixtures of all tests. PYKERNELS_TEST_DEVICE (default: cpu) chooses the device of every test that takes `device`."""

from __future__ import annotations

import os

# Threads that wait for work sleep instead of spinning: ten times faster on a machine that is shared with other jobs.
# OpenMP reads this when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

MARKERS = {"isa": "a small set that is run once for every forced instruction set"}


def pytest_configure(config: pytest.Config) -> None:
    registered = {line.partition(":")[0].strip() for line in config.getini("markers")}
    for name, meaning in MARKERS.items():
        if name not in registered:
            config.addinivalue_line("markers", f"{name}: {meaning}")
    # The framework's peers must not round to TF32 when they serve as the measure.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="session")
def device() -> torch.device:
    chosen = torch.device(os.environ.get("PYKERNELS_TEST_DEVICE", "cpu"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.exit(f"PYKERNELS_TEST_DEVICE={chosen} but torch sees no such device", returncode=3)
    return chosen


@pytest.fixture(scope="session")
def cpu_only(device: torch.device) -> None:
    """For tests of what exists on processors only: thread counts, forked workers, instruction sets."""
    if device.type != "cpu":
        pytest.skip("a test of the CPU backend")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(20240607)


@pytest.fixture
def threads(cpu_only: None):
    """Call it with a count to set torch's intra-op threads; the old count returns after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
