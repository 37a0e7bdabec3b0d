"""The product core alone: share of the machine's FMA peak, and the framework's own product beside it.

Ours and the peak are native loops (no Python in the timing); the framework's `mm` is called from Python, at sizes
where its call costs nothing. The share is taken by pair as well: every round measures the peak once more.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench import ours
from bench.limits import Work
from bench.pairs import Pairing, Plan, repeats_for, sample
from bench.rows import timed_row

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}

# M, K, N, dtype, weights packed beforehand, the share of the FMA peak to reach.
PRODUCTS = [
    (1024, 1024, 1024, "float32", False, 0.90),
    (32, 256, 1024, "float32", True, 0.75),
    (1024, 1024, 1024, "float64", False, None),
    (1024, 1024, 1024, "bfloat16", False, None),
]

WHY: dict[str, str] = {}


def peak_rate(dtype: str) -> float:
    """The dtype's peak over that of float32."""
    if dtype == "bfloat16":
        return 2.0 if ours.isa().endswith("bf16") else 1.0
    return {"float32": 1.0, "float64": 0.5}[dtype]


@pytest.mark.parametrize("threads", [1, torch.get_num_threads()], ids=lambda threads: f"{threads}-threads")
@pytest.mark.parametrize("product", PRODUCTS, ids=lambda product: "-".join(str(part) for part in product[:4]))
def test_core_product(product, threads, keep, plan, limits):
    rows, inner, columns, dtype, prepacked, target = product
    kernels = ours.native_kernels()
    if not hasattr(kernels, "measure_gemm"):
        pytest.skip("the extension module is not built")
    flop = 2.0 * rows * inner * columns
    a, b = torch.randn(rows, inner).to(DTYPES[dtype]), torch.randn(inner, columns).to(DTYPES[dtype])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pairing, shares = measured_product(kernels, product, threads, plan, lambda: torch.mm(a, b))
    finally:
        torch.set_num_threads(before)

    work = Work(flop, (a.numel() + b.numel() + rows * columns) * a.element_size(), rate=peak_rate(dtype))
    label = f"M{rows} K{inner} N{columns} {dtype}{' packed' if prepacked else ''}, {threads} thread{'s'[: threads > 1]}"
    row = timed_row("core-product", label, pairing, target=target, work=work, limits=limits, threads=threads, why=WHY)
    row["peak_share"] = float(f"{statistics.median(shares):.4g}")
    keep(row, pairing.seconds["ours"])


def measured_product(
    kernels: Any, product: tuple, threads: int, plan: Plan, framework: Callable[[], object]
) -> tuple[Pairing, list[float]]:
    """Rounds of (peak, ours, torch.mm); returns the last two and our share of the peak, round by round."""
    rows, inner, columns, dtype, prepacked, _ = product
    flop, pairing = 2.0 * rows * inner * columns, Pairing({"ours": [], "torch.mm": []})
    shares: list[float] = []
    repeats, seconds = repeats_for(framework, plan), max(plan.sample * 5, 0.01)
    deadline = time.perf_counter() + plan.budget
    while time.perf_counter() < deadline or len(shares) < 3:
        peak = kernels.measure_fma_peak(threads, seconds)
        rate = kernels.measure_gemm(rows, columns, inner, threads, seconds, dtype, prepacked)
        pairing.seconds["ours"].append(flop / rate / 1e9)
        pairing.seconds["torch.mm"].append(sample(framework, repeats, plan))
        shares.append(rate / (peak * peak_rate(dtype)))
    return pairing, shares
