"""The executor finds planted bugs, and leaves correct kernels alone."""

from __future__ import annotations

import subprocess

import pytest
import torch

from .build import ADDRESS_SANITIZER, EXECUTOR, HERE, Workshop

SEEDS = range(6)
VALUES = list(range(192))
CORRECT = {
    "reverse": [float(64 * (i // 64) + 63 - i % 64) for i in VALUES],
    "warp_sum": [sum(VALUES[:32]) * 1.0] * 32 + [-1.0] * 160,
    "neighbour": [float(sum(VALUES[first : first + 64])) for first in (64, 128, 0) for _ in range(64)],
}


@pytest.fixture(scope="module")
def planted(workshop: Workshop):
    """Run a kernel with a bug; the exit code and the values, or the report."""
    program = workshop.program("planted", [HERE / "planted.cpp", *EXECUTOR])

    def run(kernel: str, bug: str, seed: int):
        done = subprocess.run([program, kernel, bug, str(seed)], capture_output=True, text=True, timeout=60)
        assert done.returncode in (0, 3), done.stderr
        if done.returncode == 3:
            return done.stdout
        return [float(line) for line in done.stdout.split()]

    return run


@pytest.mark.parametrize("kernel", list(CORRECT))
def test_a_correct_kernel_is_the_same_for_every_seed(planted, kernel):
    assert [planted(kernel, "none", seed) for seed in SEEDS] == [CORRECT[kernel]] * len(SEEDS)


@pytest.mark.parametrize("kernel", ["reverse", "neighbour"])
def test_a_missing_barrier_shows(planted, kernel):
    results = [str(planted(kernel, "no_barrier", seed)) for seed in SEEDS]
    assert str(CORRECT[kernel]) not in results
    assert len(set(results)) > 1


def test_a_wrong_shuffle_shows(planted):
    assert planted("warp_sum", "wrong_shuffle", 0) != CORRECT["warp_sum"]


def test_shared_memory_starts_as_not_a_number(planted):
    values = planted("reverse", "uninitialised", 0)
    wrong = [i for i, (value, right) in enumerate(zip(values, CORRECT["reverse"], strict=True)) if value != right]
    assert wrong == [58, 122, 186]
    assert all(values[i] != values[i] for i in wrong)


@pytest.mark.parametrize(
    ("kernel", "bug", "words"),
    [
        ("reverse", "early_exit", ["divergence", "63 wait at the block barrier", "1 have left the kernel"]),
        ("reverse", "two_barriers", ["divergence", "wait at two block barriers"]),
        ("warp_sum", "half_warp", ["divergence", "16 wait in a shuffle", "16 have left the kernel"]),
        ("warp_sum", "late_lane", ["divergence", "31 wait in a shuffle", "1 wait at the block barrier"]),
        ("warp_sum", "outside_lane", ["shuffle at", "not both take part"]),
        ("neighbour", "absent_block", ["divergence", "2 wait at the grid barrier", "64 have left the kernel"]),
        ("neighbour", "plain_launch", ["grid barrier", "in a launch that is not cooperative"]),
    ],
)
def test_waiting_for_what_cannot_come_is_reported(planted, kernel, bug, words):
    for seed in SEEDS:
        report = planted(kernel, bug, seed)
        assert isinstance(report, str) and report.startswith("error: ")
        assert all(word in report for word in words), report


def test_16_bit_types_round_as_torch_does(workshop):
    program = workshop.program("planted", [HERE / "planted.cpp", *EXECUTOR])
    done = subprocess.run([program, "round", "none", "0"], capture_output=True, text=True, timeout=60, check=True)
    values = torch.tensor([[float(word) for word in line.split()] for line in done.stdout.splitlines()])
    narrow, fp16, bf16 = values.unbind(1)
    assert torch.equal(fp16, narrow.half().float())
    assert torch.equal(bf16, narrow.bfloat16().float())


@pytest.mark.parametrize("bug", ["none", "shared_overrun", "global_overrun"])
def test_overruns_are_seen_by_the_address_sanitizer(workshop, bug):
    program = workshop.program("planted-asan", [HERE / "planted.cpp", *EXECUTOR], *ADDRESS_SANITIZER)
    done = subprocess.run([program, "reverse", bug, "1"], capture_output=True, text=True, timeout=60)
    if bug == "none":
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode not in (0, 3)
        assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
        assert "WRITE of size 4" in done.stderr
