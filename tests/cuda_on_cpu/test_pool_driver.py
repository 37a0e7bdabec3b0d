"""The pooling kernels alone, without torch: no buffer is overrun. (They have no barriers.)"""

from __future__ import annotations

import subprocess

from .build import ADDRESS_SANITIZER, EXECUTOR, HERE, POOL

DRIVER = [HERE / "pool_driver.cpp", *POOL, *EXECUTOR]


def hashes(program, seed: int) -> list[str]:
    done = subprocess.run([program, str(seed)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout.split()


def test_no_overrun_of_any_buffer(workshop):
    """Each buffer has the size that the launch contract gives, and AddressSanitizer watches its ends."""
    right = hashes(workshop.program("pool", DRIVER), 2)
    assert len(set(right)) == 7
    assert hashes(workshop.program("pool-asan", DRIVER, "-O0", *ADDRESS_SANITIZER), 1) == right
