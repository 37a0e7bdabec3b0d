"""The kernels of the restricted Boltzmann machine alone, without torch: no buffer is overrun, and no barrier can be
left out."""

from __future__ import annotations

import subprocess

import pytest

from .build import ADDRESS_SANITIZER, EXECUTOR, HERE, RBM, ROOT

DRIVER = [HERE / "rbm_driver.cpp", *RBM, *EXECUTOR]


def hashes(program, seed: int) -> list[str]:
    done = subprocess.run([program, str(seed)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout.split()


def test_no_overrun_of_any_buffer(workshop):
    """Each buffer has the size that the launch contract gives, and AddressSanitizer watches its ends."""
    right = hashes(workshop.program("rbm", DRIVER), 2)
    assert len(set(right)) == 7
    assert hashes(workshop.program("rbm-asan", DRIVER, "-O0", *ADDRESS_SANITIZER), 1) == right


@pytest.mark.parametrize("comment", ["the last tile has been read", "this tile has been written"])
def test_every_barrier_is_needed(workshop, comment):
    """Without any one of them some result depends on the order of the threads."""
    right = hashes(workshop.program("rbm", DRIVER), 0)
    text, barrier = (ROOT / "cuda" / "core" / "rbm.cuh").read_text(), f"block_barrier();  // {comment}\n"
    assert text.count(barrier) == 1
    folder = workshop.folder / f"rbm without {comment}"
    changed = folder / "cuda" / "core" / "rbm.cuh"
    changed.parent.mkdir(parents=True, exist_ok=True)
    changed.write_text(text.replace(barrier, "\n"))
    objects = [workshop.compile(source, *([f"-I{folder}"] if source in RBM else [])) for source in DRIVER]
    program = workshop.link(f"rbm without {comment} made", objects)
    assert any(hashes(program, seed) != right for seed in range(3))
