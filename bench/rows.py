"""A row of the report: what was timed against what, the ratio by pair, and how far the machine's own limit is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.limits import Limits, Work, bound
from bench.pairs import Pairing, geometric_mean

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Section:
    """A group of rows with one question. `mean_target` is the geometric mean that the ratios are meant to reach."""

    key: str
    title: str
    against: str
    mean_target: float | None = None
    judged: str = "ratio"  # the column that the target speaks about: "ratio" or "peak_share"


# The geometric means that inference and the training step are meant to reach.
_MEANS = {"LSTM": (1.4, 2.5), "GRU": (2.5, 4.0), "RNN": (2.5, 3.0)}


def _recurrent(name: str, inference: float, training: float) -> tuple[Section, ...]:
    key = name.lower()
    return (
        Section(f"{key}-inference", f"{name}, inference", "the better of torch and ONNX Runtime", inference),
        Section(f"{key}-training", f"{name}, training step", "torch", training),
        Section(f"{key}-packed", f"{name}, training step on packed sequences", "torch, packed"),
        Section(f"{key}-bf16", f"{name}, inference in bf16", "our own float32"),
        Section(f"{key}-streaming", f"{name}, one step of one sequence", "torch"),
        Section(f"{key}-memory", f"{name}, memory held for backward", "torch (bytes of torch / bytes of ours)"),
        *_gpu(key, name, "cuDNN through torch"),
    )


def _gpu(key: str, name: str, against: str) -> tuple[Section, ...]:
    return (
        Section(f"gpu-{key}-forward", f"{name} on the GPU, inference", against),
        Section(f"gpu-{key}-training", f"{name} on the GPU, training step", against),
    )


SECTIONS = {
    section.key: section
    for section in (
        Section("core-product", "Matrix product of the core", "the measured FMA peak", judged="peak_share"),
        *(section for name, means in _MEANS.items() for section in _recurrent(name, *means)),
        Section("attention-forward", "Attention, float32", "torch's fused attention", 2.2),
        Section("attention-training", "Attention, float32, forward and backward", "torch's fused attention", 2.2),
        Section("attention-bf16", "Attention, bf16", "torch's fused attention", 2.5),
        Section("attention-bf16-training", "Attention, bf16, forward and backward", "torch's fused attention", 2.5),
        Section("attention-mask", "Attention with a mask of numbers", "torch's fused attention"),
        Section("attention-dropout", "Attention with dropout", "torch's attention"),
        Section("attention-lengths", "Attention over padded batches", "torch's fused attention with a mask"),
        Section("attention-decode", "Attention of one row", "torch's fused attention"),
        Section("attention-causal", "Attention, causal", "our own, plain"),
        Section("layer-norm", "Layer norm of a sum", "torch: the sum, then layer norm"),
        Section("layer-norm-training", "Layer norm of a sum, forward and backward", "torch: the sum, then layer norm"),
        Section("bmu", "Best matching units", "the best of faiss, torch and scikit-learn"),
        Section("som-epochs", "Self-organising map, four epochs", "the better of fastersom and xpysom"),
        Section("pool", "Pooling", "torch"),
        Section("pool-channels-last", "Pooling, channels last", "torch"),
        Section("pool-training", "Pooling, forward and backward", "torch"),
        Section("pool-channels-last-training", "Pooling, channels last, forward and backward", "torch"),
        Section("transformer-inference", "Transformer encoder layer, inference", "torch.nn's layer, its fast path"),
        Section("transformer-training", "Transformer encoder layer, training step", "torch.nn's layer"),
        Section("attention-weights", "Multi-head attention with its weights", "torch.nn.MultiheadAttention"),
        Section("conv-inference", "Convolution, inference", "torch in the same layout", 1.1),
        Section("conv-training", "Convolution, forward and backward", "torch in the same layout", 1.2),
        Section("conv-first", "Convolution of the first layer, inference", "torch in the same layout"),
        Section(
            "conv-first-training", "Convolution of the first layer, forward and backward", "torch in the same layout"
        ),
        Section("conv-bf16", "Convolution in bf16, inference", "torch in the same layout"),
        Section("conv-bf16-training", "Convolution in bf16, forward and backward", "torch in the same layout"),
        Section("conv-bf16-avx2", "Convolution in bf16 with AVX2 only, inference", "torch in the same layout"),
        Section("conv-pool", "Convolution, ReLU and max-pooling, inference", "the same under torch.compile"),
        Section("rbm", "Restricted Boltzmann machine, an epoch of contrastive divergence", "the same in torch"),
        Section("rbm-fit", "Restricted Boltzmann machine, fit of five epochs", "scikit-learn's BernoulliRBM"),
        Section("rbm-sample", "Restricted Boltzmann machine, one side drawn given the other", "torch, one by one"),
        Section("hopfield-sync", "Hopfield network, a sweep at once", "torch: product, then signs"),
        Section("hopfield-async", "Hopfield network, a sweep in order", "torch, a loop over the units"),
        Section("hopfield-packed", "Hopfield network from its patterns' bits", "our own, from the weight"),
        *_gpu("attention", "Attention", "the fastest of torch's backends"),
        *_gpu("layer-norm", "Layer norm of a sum", "torch: the sum, then layer norm"),
        *_gpu("pool", "Pooling", "torch"),
        *_gpu("conv", "Convolution", "cuDNN through torch"),
        Section("gpu-conv-pool", "Convolution, ReLU and max pooling on the GPU", "cuDNN and torch, one by one"),
        Section("gpu-unfold", "Unfold on the GPU", "torch"),
        Section("gpu-fold", "Fold on the GPU", "torch"),
        Section("gpu-rbm", "Restricted Boltzmann machine on the GPU, an epoch", "the same in torch"),
        Section("gpu-rbm-sample", "Restricted Boltzmann machine on the GPU, one side drawn", "torch, one by one"),
        Section("gpu-hopfield-sync", "Hopfield network on the GPU, a sweep at once", "torch: product, then signs"),
        Section("gpu-hopfield-async", "Hopfield network on the GPU, a sweep in order", "torch, a loop over the units"),
        Section("gpu-bmu", "Best matching units on the GPU", "torch.cdist and argmin", 5.0),
        Section("gpu-unit-sums", "Sums by unit on the GPU", "torch's index_add"),
        Section("lstm-layer-norm", "LSTM with layer norm, training step", "the same cell in PyTorch, torch.compile"),
    )
}


def timed_row(
    section: str,
    label: str,
    pairing: Pairing,
    *,
    target: float | None,
    work: Work,
    limits: Limits,
    threads: int,
    against: str | None = None,
    why: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The row as it is kept in the report. `against` names the peer to be judged against (otherwise the fastest)."""
    judge = against or pairing.best_peer()
    seconds = pairing.median(pairing.ours)
    least = bound(work, limits, threads)
    ratio = pairing.ratio(judge)
    peak = limits.fma_peak(threads) * work.rate
    return {
        "section": section,
        "label": label,
        "threads": threads,
        "ours_ms": _round(seconds * 1e3),
        "peers": {name: _peer(pairing, name) for name in pairing.peers},
        "against": judge,
        "ratio": _round(ratio.median),
        "low": _round(ratio.low),
        "high": _round(ratio.high),
        "rounds": ratio.rounds,
        "target": target,
        "gflops": _round(work.flop / seconds / 1e9),
        "peak_share": _round(work.flop / seconds / 1e9 / peak),
        "bound_ms": _round(least.seconds * 1e3),
        "bound_by": least.by,
        "bound_share": _round(least.seconds / seconds),
        "why": (why or {}).get(f"{section} {label}", (why or {}).get(section, "")),
    }


def held_row(section: str, label: str, mine: int, theirs: int) -> dict[str, Any]:
    """A row about bytes: how many torch keeps for each that we keep."""
    ratio = _round(theirs / mine)
    return {
        "section": section,
        "label": label,
        "ours_bytes": mine,
        "peers": {"torch": {"bytes": theirs, "ratio": ratio}},
        "against": "torch",
        "ratio": ratio,
        "target": 1.0,
    }


def reached(row: Mapping[str, Any]) -> bool | None:
    """Whether the row meets its target; None where it has none."""
    if row["target"] is None:
        return None
    return row[SECTIONS[row["section"]].judged] >= row["target"]


def read_report(path: Path) -> dict[str, Any]:
    """A report as pytest-benchmark wrote it. Raises FileNotFoundError when there is none yet."""
    return json.loads(path.read_text())


def report_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [benchmark["extra_info"] for benchmark in report["benchmarks"] if "section" in benchmark["extra_info"]]


def by_section(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows grouped in the order of SECTIONS; sections without rows are left out."""
    groups: dict[str, list[dict[str, Any]]] = {key: [] for key in SECTIONS}
    for row in rows:
        groups[row["section"]].append(row)
    return {key: group for key, group in groups.items() if group}


def mean_ratio(rows: Iterable[Mapping[str, Any]]) -> float:
    return geometric_mean([row["ratio"] for row in rows])


_MARKS = {True: "ok ", False: "LOW", None: "   "}


def line(row: Mapping[str, Any]) -> str:
    """The row on one line of a terminal."""
    head = f"{_MARKS[reached(row)]} {row['section']:17} {row['label']:30}"
    if "ours_bytes" in row:
        return f"{head} {row['ours_bytes']} bytes, torch {row['peers']['torch']['bytes']}: x{row['ratio']:.3g}"
    peers = "  ".join(f"{name} {peer['ms']:9.4g} ms x{peer['ratio']:<5.3g}" for name, peer in row["peers"].items())
    target = f"target {row['target']:g}" if row["target"] is not None else ""
    quartiles = f"x{row['ratio']:<5.3g} ({row['low']:.3g}..{row['high']:.3g}, {row['rounds']})"
    limit = f"{row['gflops']:6.4g} GF {100 * row['peak_share']:3.0f}% peak {100 * row['bound_share']:3.0f}% bound"
    return f"{head} {row['ours_ms']:9.4g} ms {quartiles:28} {limit}  {target}  {peers}"


def summary(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for key, group in by_section(rows).items():
        section, judged = SECTIONS[key], [reached(row) for row in group]
        met = f"{judged.count(True)} of {len(judged) - judged.count(None)} rows at their target"
        mean = f"geometric mean x{mean_ratio(group):.2f}" if section.judged == "ratio" else ""
        target = f" (target {section.mean_target:g})" if section.mean_target else ""
        lines.append(f"{section.title}: {met}; {mean}{target}")
    return lines


def _peer(pairing: Pairing, name: str) -> dict[str, float]:
    ratio = pairing.ratio(name)
    return {
        "ms": _round(pairing.median(name) * 1e3),
        "ratio": _round(ratio.median),
        "low": _round(ratio.low),
        "high": _round(ratio.high),
    }


def _round(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")
