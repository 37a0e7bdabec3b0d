"""The stand-ins for the matrix instruction, the loads of its operands and the copies that are waited for."""

from __future__ import annotations

import subprocess

import pytest
import torch

from .build import EXECUTOR, HERE


@pytest.fixture(scope="module")
def driver(workshop):
    program = workshop.program("mma", [HERE / "mma_driver.cpp", *EXECUTOR])

    def run(what: str, seed: int) -> tuple[int, str]:
        done = subprocess.run([program, what, str(seed)], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout

    return run


def product() -> torch.Tensor:
    m, k, n = torch.arange(16)[:, None], torch.arange(48), torch.arange(8)
    a, b = (m + 3 * k) % 13 - 6, (5 * k[:, None] + 2 * n) % 11 - 5
    return (a @ b).float()


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("seed", range(3))
def test_product(driver, dtype, seed):
    code, said = driver(dtype, seed)
    assert code == 0, said
    values = torch.tensor([float(line) for line in said.split()]).reshape(16, 8)
    assert torch.equal(values, product())


def test_a_copy_that_is_not_waited_for_is_not_there(driver):
    code, said = driver("early", 0)
    assert code == 0 and "nan" in said


@pytest.mark.parametrize(
    ("bug", "words"),
    [("crooked", ["not aligned to 16 bytes", "mma_driver.cpp"]), ("half_warp", ["divergence", "16 wait in an instr"])],
)
def test_what_the_device_would_not_do_is_reported(driver, bug, words):
    code, said = driver(bug, 1)
    assert code == 3 and all(word in said for word in words), said
