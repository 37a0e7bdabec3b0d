"""The kernels of best matching units, of sums by unit and of maps alone, without torch: no buffer is overrun, and the
result is the same however a call is laid out."""

from __future__ import annotations

import subprocess

import pytest

from .build import ADDRESS_SANITIZER, BMU, EXECUTOR, HERE, ROOT, SOM

DRIVERS = {
    "bmu": [HERE / "bmu_driver.cpp", *BMU, *EXECUTOR],
    "som": [HERE / "som_driver.cpp", *SOM, *EXECUTOR],
}


def hashes(program, seed: int) -> list[list[str]]:
    done = subprocess.run([program, str(seed)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "error" not in done.stdout, f"{done.stdout}\n{done.stderr[-4000:]}"
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("name", "count"), [("bmu", 16), ("som", 4)])
def test_no_overrun_of_any_buffer(workshop, name, count):
    """Each buffer has the size that the launch contract gives, and AddressSanitizer watches its ends."""
    right = hashes(workshop.program(name, DRIVERS[name]), 2)
    assert len({line[0] for line in right}) == count
    assert all(set(line) == {line[0]} for line in right)
    assert hashes(workshop.program(f"{name}-asan", DRIVERS[name], "-O0", *ADDRESS_SANITIZER), 1) == right


# By name: the driver, the file, the barrier in it, and the kernel that is made without it.
BARRIERS = {
    "after_the_groups": ("bmu", "core/bmu_tiles.cuh", "the groups' scores have been written", "bmu_products"),
    "after_the_units": (
        "bmu",
        "kernels/bmu_held.cu",
        "the tile is there, and the one before it has been used",
        "bmu_held",
    ),
    "after_the_warps": ("som", "kernels/som.cu", "the best of the warps have been written", "som"),
}


@pytest.mark.parametrize("name", list(BARRIERS))
def test_every_barrier_is_needed(workshop, name):
    """Without any one of them some result depends on the order of the threads."""
    driver, file, comment, kernel = BARRIERS[name]
    right = hashes(workshop.program(driver, DRIVERS[driver]), 2)
    text, barrier = (ROOT / "cuda" / file).read_text(), f"block_barrier();  // {comment}\n"
    assert text.count(barrier) == 1
    folder = workshop.folder / f"{driver} without {name}"
    changed = folder / "cuda" / file
    changed.parent.mkdir(parents=True, exist_ok=True)
    changed.write_text(text.replace(barrier, "\n"))
    source = ROOT / "cuda" / "kernels" / f"{kernel}.cu"
    made = changed if changed.name == source.name else source
    objects = [workshop.compile(made, f"-I{folder}")]
    objects += [workshop.compile(other) for other in DRIVERS[driver] if other != source]
    program = workshop.link(f"{driver} without {name} made", objects)
    for seed in range(3):
        done = subprocess.run([program, str(seed)], capture_output=True, text=True, timeout=240)
        if [line.split() for line in done.stdout.splitlines()] != right:
            return
    pytest.fail("the results are right without it")
