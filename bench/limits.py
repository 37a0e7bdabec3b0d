"""This machine's own limits, measured at the start of a run, and the bound that they set for a row.

* FMA peak, GFLOP/s, one core and all threads: a native loop of independent fused multiply-adds in registers where the
  extension module has one, otherwise the framework's matrix product (a lower bound of the peak, and marked as such).
* Copy bandwidth, MB/s: `dst.copy_(src)` over arrays far larger than the caches, bytes read plus bytes written.
* Read rate of a working set, MB/s: the sum over an array of that size again and again, the call's own cost taken off. A
  recurrent layer reads its weights once a step, from whichever cache holds them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from bench.ours import native_kernels


@dataclass(frozen=True)
class Limits:
    """The machine's limits. GFLOP/s for the peaks, MB/s for the bandwidth."""

    threads: int
    fma_peak_one: float
    fma_peak_all: float
    copy_mb_s: float
    fma_source: str

    def fma_peak(self, threads: int) -> float:
        return self.fma_peak_one if threads == 1 else self.fma_peak_all

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Work:
    """What a row has to do at the least: operations, bytes through memory, and weights read again every step.

    `flop` counts two for a multiply-add of the matrix products and nothing for the element-wise part; `memory_bytes`
    counts every input, weight and output once; `reread_bytes` is what each of `steps` steps must read again, from
    cache. `rate` is the peak of the dtype over that of float32 (float64 1/2, bf16 dot products 2).
    """

    flop: float
    memory_bytes: float
    reread_bytes: float = 0.0
    steps: int = 0
    rate: float = 1.0


@dataclass(frozen=True)
class Bound:
    """The least time the machine allows, seconds, and which limit sets it."""

    seconds: float
    by: str


def bound(work: Work, limits: Limits, threads: int) -> Bound:
    """max(flop / FMA peak, memory bytes / copy bandwidth, steps * re-read bytes / read rate of that working set)."""
    candidates = [
        Bound(work.flop / (limits.fma_peak(threads) * work.rate * 1e9), "FMA peak"),
        Bound(work.memory_bytes / (limits.copy_mb_s * 1e6), "copy bandwidth"),
    ]
    if work.reread_bytes >= 256 * 1024:
        rate = read_rate(int(work.reread_bytes), threads)
        candidates.append(Bound(work.steps * work.reread_bytes / (rate * 1e6), "reading the weights every step"))
    return max(candidates, key=lambda candidate: candidate.seconds)


@functools.cache
def measured(quick: bool = False) -> Limits:
    """Measures the limits once a process."""
    threads = torch.get_num_threads()
    seconds = 0.1 if quick else 0.5
    one, source = _fma_peak(1, seconds)
    all_threads, _ = _fma_peak(threads, seconds)
    return Limits(threads, round(one, 1), round(all_threads, 1), round(_copy_bandwidth(seconds), 0), source)


def _fma_peak(threads: int, seconds: float) -> tuple[float, str]:
    kernels = native_kernels()
    if hasattr(kernels, "measure_fma_peak"):
        return max(kernels.measure_fma_peak(threads, seconds) for _ in range(3)), "native loop"
    return _matrix_product_rate(threads, seconds), "framework's matrix product (a lower bound)"


def _matrix_product_rate(threads: int, seconds: float) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
        return 2 * 1024**3 / _best_time(lambda: torch.mm(a, b), seconds) / 1e9
    finally:
        torch.set_num_threads(before)


def _copy_bandwidth(seconds: float) -> float:
    source = torch.ones(32 * 1024 * 1024)
    target = torch.zeros_like(source)
    return 2 * source.nbytes / _best_time(lambda: target.copy_(source), seconds) / 1e6


@functools.cache
def read_rate(size: int, threads: int) -> float:
    """MB/s at which all threads read a working set of `size` bytes over and over."""
    kernels = native_kernels()
    if hasattr(kernels, "measure_read_bandwidth"):
        return float(kernels.measure_read_bandwidth(size, threads, 0.1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        array, single = torch.ones(size // 4), torch.ones(1)
        overhead = _best_time(lambda: torch.sum(single), 0.02)
        return size / max(_best_time(lambda: torch.sum(array), 0.1) - overhead, 1e-9) / 1e6
    finally:
        torch.set_num_threads(before)


def _best_time(work: Callable[[], object], seconds: float) -> float:
    """The shortest of many calls: a limit is what the machine can do undisturbed."""
    work()
    best, deadline = float("inf"), time.perf_counter() + seconds
    while True:
        begin = time.perf_counter()
        work()
        end = time.perf_counter()
        best = min(best, end - begin)
        if end > deadline:
            return best


if __name__ == "__main__":
    for name, value in measured().as_dict().items():
        print(f"{name:14} {value}")
