"""The attention kernels alone, without torch: no buffer is overrun, and no barrier can be left out."""

from __future__ import annotations

import subprocess

import pytest

from .build import ADDRESS_SANITIZER, ATTENTION, EXECUTOR, HERE, ROOT

DRIVER = [HERE / "attention_driver.cpp", *ATTENTION, *EXECUTOR]


def hashes(program, seed: int) -> list[str]:
    done = subprocess.run([program, str(seed)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout.split()


def test_no_overrun_of_any_buffer(workshop):
    """Each buffer has the size that the launch contract gives, and AddressSanitizer watches its ends."""
    right = hashes(workshop.program("attention", DRIVER), 2)
    assert len(set(right)) == 9
    assert hashes(workshop.program("attention-asan", DRIVER, "-O0", *ADDRESS_SANITIZER), 1) == right


# The file, as attention_*.cu, and a barrier in it. Those that only keep something from being overwritten too early for
# the last time are not here: they are missed only where a thread waits for longer than the executor lets one wait.
BARRIERS = [
    ("forward", "the keys are there, and the values before have been used"),
    ("forward", "the values are there, and the keys have been used"),
    ("query_gradient", "the keys are there, and those before have been used"),
    ("key_gradient", "the rows are there, and those before have been used"),
    ("mask_gradient", "what was there before has been used"),
    ("mask_gradient", "rows and keys are there"),
    ("mask_gradient", "the sums of the warps have been written"),
    ("simple_backward", "the sums have been written"),
]


@pytest.mark.parametrize(("file", "comment"), BARRIERS, ids=lambda text: text.replace(" ", "_"))
def test_every_barrier_is_needed(workshop, file, comment):
    """Without any one of them some result depends on the order of the threads."""
    right = hashes(workshop.program("attention", DRIVER), 0)
    source = ROOT / "cuda" / "kernels" / f"attention_{file}.cu"
    barrier = f"block_barrier();  // {comment}\n"
    assert source.read_text().count(barrier) == 1
    changed = workshop.folder / f"without {comment}" / source.name
    changed.parent.mkdir(parents=True, exist_ok=True)
    changed.write_text(source.read_text().replace(barrier, "\n"))
    objects = [workshop.compile(other) for other in DRIVER if other != source]
    program = workshop.link(f"attention without {comment}", [workshop.compile(changed), *objects])
    assert any(hashes(program, seed) != right for seed in range(3))
