"""The recurrent kernels alone, without torch: no buffer is overrun, and no barrier can be left out."""

from __future__ import annotations

import subprocess

import pytest

from .build import ADDRESS_SANITIZER, EXECUTOR, HERE, RECURRENT, ROOT

DRIVER = [HERE / "recurrent_driver.cpp", HERE / "variant_driver.cpp", *RECURRENT, *EXECUTOR]


def hashes(program, kind: str, seed: int) -> list[str]:
    done = subprocess.run([program, kind, str(seed)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout.split()


@pytest.mark.parametrize("kind", [f"{kind}{way}" for kind in ("lstm", "gru", "rnn") for way in ("", "_variant")])
def test_no_overrun_of_any_buffer(workshop, kind):
    """Each buffer has the size that the launch contract gives, and AddressSanitizer watches its ends."""
    program = workshop.program("recurrent-asan", DRIVER, *ADDRESS_SANITIZER)
    assert hashes(program, kind, 1) == hashes(workshop.program("recurrent", DRIVER), kind, 2)


TILES, PHASES, ROWS = "core/product.cuh", "core/recurrence.cuh", "core/variant.cuh"
# By name: the file, the barrier in it, and the kernel that is made without it. The barrier after a row's sums have been
# read is not here: it is missed only where a warp is at its next sum before another thread has read the last one, and
# the executor hardly ever lets a thread wait for so long.
BARRIERS = {
    "before_a_tile": (TILES, "block_barrier();  // the last tile has been read", "lstm_forward"),
    "after_a_tile": (TILES, "block_barrier();  // this tile has been written", "gru_backward"),
    "before_a_total": (ROWS, "block_barrier();  // the sums of the warps have been written", "lstm_variant_forward"),
} | {
    f"between_phases_of_{source.stem}": (PHASES, "rows_barrier(counters);", source.stem)
    for source in RECURRENT
    if source.stem.endswith(("forward", "backward"))
}


@pytest.mark.parametrize("name", list(BARRIERS))
def test_every_barrier_is_needed(workshop, name):
    """Without any one of them some result depends on the order of the threads."""
    file, barrier, kernel = BARRIERS[name]
    kind = kernel.rsplit("_", 1)[0]
    right = hashes(workshop.program("recurrent", DRIVER), kind, 0)
    text = (ROOT / "cuda" / file).read_text()
    assert text.count(barrier) == 1
    folder = workshop.folder / f"without_{name}"
    changed = folder / "cuda" / file
    changed.parent.mkdir(parents=True, exist_ok=True)
    changed.write_text(text.replace(barrier, ""))

    # The changed one first: of a function that several objects have, the linker takes the first.
    objects = [workshop.compile(ROOT / "cuda" / "kernels" / f"{kernel}.cu", f"-I{folder}")]
    objects += [workshop.compile(source) for source in DRIVER if source.stem != kernel]
    program = workshop.link(f"recurrent_without_{name}", objects)
    assert any(hashes(program, kind, seed) != right for seed in range(3))
