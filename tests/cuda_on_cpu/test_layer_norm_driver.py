"""The layer norm kernels alone, without torch: no buffer is overrun, and no barrier can be left out."""

from __future__ import annotations

import subprocess

import pytest

from .build import ADDRESS_SANITIZER, EXECUTOR, HERE, LAYER_NORM, ROOT

DRIVER = [HERE / "layer_norm_driver.cpp", *LAYER_NORM, *EXECUTOR]


def hashes(program, seed: int) -> list[str]:
    done = subprocess.run([program, str(seed)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout.split()


def test_no_overrun_of_any_buffer(workshop):
    """Each buffer has the size that the launch contract gives, and AddressSanitizer watches its ends."""
    right = hashes(workshop.program("layer_norm", DRIVER), 2)
    assert len(set(right)) == 11
    assert hashes(workshop.program("layer_norm-asan", DRIVER, "-O0", *ADDRESS_SANITIZER), 1) == right


# By name: the file, the barrier in it, and the kernels that are made without it.
BARRIERS = {
    "before_a_row_s_sum": ("core/layer_norm.cuh", "the sums of the warps have been written", "forward"),
    "before_a_run_s_sum": ("kernels/layer_norm_backward.cu", "the sums of the warps have been written", "backward"),
    "before_the_next_sums": ("kernels/layer_norm_backward.cu", "the sums before have been read", "backward"),
    "before_the_sum_of_slices": ("kernels/layer_norm_runs.cu", "the sums of the slices have been written", "runs"),
}


@pytest.mark.parametrize("name", list(BARRIERS))
def test_every_barrier_is_needed(workshop, name):
    """Without any one of them some result depends on the order of the threads."""
    file, comment, kernel = BARRIERS[name]
    right = hashes(workshop.program("layer_norm", DRIVER), 0)
    text, barrier = (ROOT / "cuda" / file).read_text(), f"block_barrier();  // {comment}\n"
    assert text.count(barrier) == 1
    folder = workshop.folder / f"layer norm without {name}"
    changed = folder / "cuda" / file
    changed.parent.mkdir(parents=True, exist_ok=True)
    changed.write_text(text.replace(barrier, "\n"))
    source = ROOT / "cuda" / "kernels" / f"layer_norm_{kernel}.cu"
    made = changed if changed.name == source.name else source
    objects = [workshop.compile(made, f"-I{folder}")]
    objects += [workshop.compile(other) for other in DRIVER if other != source]
    program = workshop.link(f"layer norm without {name} made", objects)
    assert any(hashes(program, seed) != right for seed in range(3))
