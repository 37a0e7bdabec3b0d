"""LSTM, GRU, RNN, attention, layer norm, pooling, convolution, unfold and best matching units on a GPU:
`python -m bench.gpu --out bench/results/gpu.json`.

Needs torch with CUDA, nothing else. The peers are cuDNN for the layers and convolution (the fastest of its algorithms),
the fastest of torch's backends for attention, and torch for the rest.

Timed with CUDA events in alternating rounds, as the processor's rows are. Float32 is float32: TF32 is switched off for
both. Bound of a row: the larger of its operations over the measured matrix-product rate of its dtype and its inputs,
weights and outputs once over the measured copy bandwidth. `--dry` runs a few tiny rows on the processor, to see that
the script works.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench import ours
from bench.gpu_cases import CASES, DRY_CASES
from bench.gpu_questions import AnyCase, Question
from bench.machine import hardware_line, version
from bench.pairs import Pairing, Plan, Timer, measure, wall_clock
from bench.rows import RESULTS, by_section, line, mean_ratio

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def event_clock(work: Callable[[], object], calls: int) -> float:
    """Seconds for that many calls, between two events of the current stream."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def clock_of(device: torch.device) -> Timer:
    return event_clock if device.type == "cuda" else wall_clock


def measured_limits(device: torch.device) -> dict[str, Any]:
    """Matrix-product rate of each dtype, TFLOP/s, and copy bandwidth, MB/s: the best of a few."""
    side, clock = (8192 if device.type == "cuda" else 256), clock_of(device)
    rates = {name: product_rate(side, dtype, device, clock) for name, dtype in DTYPES.items()}
    source = torch.empty(side * side * 4, device=device).fill_(1.0)
    target = torch.empty_like(source)
    bandwidth = 2e-6 * source.nbytes / best(lambda: target.copy_(source), clock)
    return {"matmul_tflops": rates, "copy_mb_s": round(bandwidth)}


def product_rate(side: int, dtype: torch.dtype, device: torch.device, clock: Timer) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return float(f"{2e-12 * side**3 / best(lambda: torch.mm(a, b), clock):.4g}")


def best(work: Callable[[], object], clock: Timer) -> float:
    clock(work, 3)
    return min(clock(work, 3) / 3 for _ in range(5))


def facts(device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    return {
        "gpu": torch.cuda.get_device_name() if cuda else "no GPU (dry run)",
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if cuda else "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "cudnn": str(torch.backends.cudnn.version()),
        "pykernels": "stand-in (torch's own module)" if ours.is_stand_in() else version("pykernels"),
        "limits": measured_limits(device),
    }


def rows_of(
    case: AnyCase, name: str, device: torch.device, limits: dict[str, Any], plan: Plan
) -> Iterator[dict[str, Any]]:
    """The rows of a case in one dtype."""
    clock = clock_of(device)
    for question in case.questions(DTYPES[name], device):
        with torch.inference_mode(not question.grad):
            pairing = measure(question.works, plan, clock)
        yield gpu_row(question, f"{name} {case.label}", name, pairing, limits)


def gpu_row(question: Question, label: str, name: str, pairing: Pairing, limits: dict[str, Any]) -> dict[str, Any]:
    peer, work = pairing.best_peer(), question.work
    seconds, ratio = pairing.median("ours"), pairing.ratio(peer)
    peak = limits["matmul_tflops"][name] * 1e12
    floors = {
        "matrix-product rate": work.flop / peak,
        "copy bandwidth": work.memory_bytes / (limits["copy_mb_s"] * 1e6),
    }
    by = max(floors, key=lambda limit: floors[limit])
    figures = {
        "ours_ms": seconds * 1e3,
        "ratio": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "gflops": work.flop / seconds / 1e9,
        "peak_share": work.flop / seconds / peak,
        "bound_ms": floors[by] * 1e3,
        "bound_share": floors[by] / seconds,
    }
    row: dict[str, Any] = {"section": question.section, "label": label, "target": None, "why": "", "against": peer}
    row |= {key: float(f"{value:.4g}") for key, value in figures.items()}
    row["peers"] = {
        each: {"ms": float(f"{pairing.median(each) * 1e3:.4g}"), "ratio": float(f"{pairing.ratio(each).median:.4g}")}
        for each in pairing.peers
    }
    return row | {"bound_by": by, "rounds": ratio.rounds}


def run(device: torch.device, cases: list[AnyCase], names: list[str], seconds: float, plan: Plan) -> dict[str, Any]:
    """Every case in every dtype while the time lasts; what failed or was left out is listed in the report."""
    machine = facts(device)
    print(hardware_line(machine), flush=True)
    deadline = time.perf_counter() + seconds
    rows, failed, left_out = [], {}, []
    for case in cases:
        for name in names:
            label = f"{name} {case.label}"
            if time.perf_counter() > deadline:
                left_out.append(label)
                continue
            try:
                for row in rows_of(case, name, device, machine["limits"], plan):
                    rows.append(row)
                    print(line(row), flush=True)
            except (RuntimeError, NotImplementedError, AttributeError, TypeError, ValueError) as error:
                failed[label] = str(error).splitlines()[0]
                print(f"    {label}: {failed[label]}", flush=True)
    for section, group in by_section(rows).items():
        print(f"{section}: geometric mean x{mean_ratio(group):.2f} over {len(group)} rows")
    benchmarks = [{"name": f"{row['section']} {row['label']}", "extra_info": row} for row in rows]
    return {"machine_info": machine, "benchmarks": benchmarks, "failed": failed, "left_out": left_out}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="pykernels on a GPU, beside its peers.")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--seconds", type=float, default=420.0, help="time for all rows")
    parser.add_argument("--dtypes", default="bf16,fp16,fp32")
    parser.add_argument("--dry", action="store_true", help="a few tiny rows on the processor: does the script work")
    options = parser.parse_args()

    if not options.dry and not torch.cuda.is_available():
        parser.exit(1, "torch has no GPU here\n")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    device = torch.device("cpu" if options.dry else "cuda")
    cases = DRY_CASES if options.dry else CASES
    names = ["fp32"] if options.dry else options.dtypes.split(",")
    plan = Plan(budget=0.2 if options.dry else 1.5, sample=2e-3 if options.dry else 8e-3, settle=0.0, max_rounds=41)
    report = run(device, cases, names, options.seconds, plan)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {options.out.name}")


if __name__ == "__main__":
    main()
