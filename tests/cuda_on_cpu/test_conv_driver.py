"""The kernels of convolution, unfold and fold alone, without torch: no buffer is overrun, and no barrier can be left
out."""

from __future__ import annotations

import subprocess

import pytest

from .build import ADDRESS_SANITIZER, CONV, EXECUTOR, HERE, ROOT, UNFOLD

DRIVER = [HERE / "conv_driver.cpp", *CONV, *UNFOLD, *EXECUTOR]


def outcome(program, seed: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, str(seed)], capture_output=True, text=True, timeout=240)


def hashes(program, seed: int) -> list[str]:
    done = outcome(program, seed)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout.split()


def test_no_overrun_of_any_buffer(workshop):
    """Each buffer has the size that the launch contract gives, and AddressSanitizer watches its ends."""
    right = hashes(workshop.program("conv", DRIVER), 2)
    assert len(set(right)) == 16
    assert hashes(workshop.program("conv-asan", DRIVER, "-O0", *ADDRESS_SANITIZER), 1) == right


# By name: the file, the barrier in it, and the kernels that are made without it.
PRODUCT, SUMS = "core/conv_product.cuh", "core/conv_place_sums.cuh"
BARRIERS = {
    "before_places_are_read": (PRODUCT, "the places are there", "product_simple"),
    "before_a_product": (PRODUCT, "the tile is there, and the one before it has been used", "product_tiled"),
    "before_results_replace_tiles": (PRODUCT, "the tiles have been used", "product_simple"),
    "before_results_go_out": (PRODUCT, "the results are there", "product_simple"),
    "before_columns_are_read": (SUMS, "the columns and steps are there", "place_sums_simple"),
    "before_a_product_of_places": (SUMS, "the tile is there, and the one before it has been used", "place_sums_tiled"),
    "before_slices_replace_tiles": (SUMS, "the last tiles have been used", "place_sums_simple"),
    "before_the_sum_of_slices": (SUMS, "the slices' sums are there", "place_sums_tiled"),
    "before_the_sum_of_lines": (
        "kernels/conv_depthwise_sums.cu", "the sums of the other lines are there", "depthwise_sums"
    ),
    "before_the_convolution_that_is_pooled": ("kernels/conv_pool.cu", "the weights and patches are there", "pool"),
    "before_results_are_pooled": ("kernels/conv_pool.cu", "what is pooled is there", "pool"),
    "before_weights_are_turned": ("kernels/conv_weights.cu", "the block's weights are there", "weights"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BARRIERS))
def test_every_barrier_is_needed(workshop, name):
    """Without any one of them some result depends on the order of the threads, or a thread reads from nowhere."""
    file, comment, kernel = BARRIERS[name]
    right = hashes(workshop.program("conv", DRIVER), 0)
    text, barrier = (ROOT / "cuda" / file).read_text(), f"block_barrier();  // {comment}\n"
    assert text.count(barrier) == 1
    folder = workshop.folder / f"conv without {name}"
    changed = folder / "cuda" / file
    changed.parent.mkdir(parents=True, exist_ok=True)
    changed.write_text(text.replace(barrier, "\n"))
    source = ROOT / "cuda" / "kernels" / f"conv_{kernel}.cu"
    made = changed if changed.name == source.name else source
    objects = [workshop.compile(made, f"-I{folder}")]
    objects += [workshop.compile(other) for other in DRIVER if other != source]
    program = workshop.link(f"conv without {name} made", objects)
    assert any(outcome(program, seed).stdout.split() != right for seed in range(3))
