"""LSTM, GRU and RNN on a GPU beside cuDNN: `python -m bench.gpu --out bench/results/gpu.json`.

Needs torch with CUDA, nothing else.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from bench import ours
from bench.layers import KINDS, layer_work, pair_of_modules, training_step
from bench.limits import Work
from bench.machine import hardware_line, version
from bench.pairs import Pairing, Plan, Timer, measure, wall_clock
from bench.rows import RESULTS, by_section, line, mean_ratio

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Case:
    """One layer stack: steps, batch, inputs, hidden units, kind, layers, both directions, packed lengths."""

    steps: int
    batch: int
    inputs: int
    hidden: int
    kind: str = "LSTM"
    layers: int = 1
    bidirectional: bool = False
    packed: bool = False

    @property
    def label(self) -> str:
        marks = [f"B{self.batch} T{self.steps} I{self.inputs} H{self.hidden}"]
        marks += [f"{self.layers} layers"] if self.layers > 1 else []
        marks += ["both directions"] if self.bidirectional else []
        marks += ["packed"] if self.packed else []
        return ", ".join(marks)


# The most telling first: what does not fit in the time is left out from the end.
CASES = [
    Case(100, 64, 512, 512),
    Case(100, 64, 512, 512, "GRU"),
    Case(100, 64, 512, 512, "RNN"),
    Case(100, 16, 256, 256),
    Case(100, 64, 1024, 1024),
    Case(100, 1, 512, 512),
    Case(100, 16, 256, 256, "GRU"),
    Case(100, 16, 256, 256, "RNN"),
    Case(100, 64, 512, 512, packed=True),
    Case(100, 64, 512, 512, "GRU", packed=True),
    Case(100, 64, 512, 512, "RNN", packed=True),
    Case(100, 64, 512, 512, bidirectional=True),
    Case(100, 64, 512, 512, layers=2),
    Case(100, 64, 1024, 1024, "GRU"),
    Case(100, 64, 1024, 1024, "RNN"),
    Case(1024, 16, 768, 768),
    Case(1024, 16, 768, 768, "GRU"),
    Case(100, 64, 2048, 2048),
    Case(100, 256, 512, 512),
    Case(100, 32, 128, 128),
    Case(100, 256, 1024, 1024),
    Case(100, 1, 128, 128),
    Case(100, 1, 128, 128, "GRU"),
    Case(100, 1, 128, 128, "RNN"),
    Case(100, 1, 2048, 2048),
    Case(100, 32, 512, 512, layers=2, bidirectional=True, packed=True),
]
DRY_CASES = [Case(5, 3, 7, 9, kind) for kind in KINDS] + [Case(5, 3, 7, 9, bidirectional=True, packed=True)]


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


def input_of(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor | PackedSequence, int]:
    """The input, ready for gradients, and how many rows it has (packed: the sum of drawn lengths)."""
    x = torch.randn(case.steps, case.batch, case.inputs, device=device).to(dtype)
    if not case.packed:
        return x.requires_grad_(), case.steps * case.batch
    lengths = torch.randint(1, case.steps + 1, (case.batch,))
    lengths[0] = case.steps
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    return packed._replace(data=packed.data.detach().requires_grad_()), int(lengths.sum())


def data_of(output: torch.Tensor | PackedSequence) -> torch.Tensor:
    return output.data if isinstance(output, PackedSequence) else output


def work_of(case: Case, rows: int, size: int, training: bool) -> Work:
    """The layers' operations and bytes, added up."""
    directions = 2 if case.bidirectional else 1
    widths = [case.inputs] + [directions * case.hidden] * (case.layers - 1)
    kind = KINDS[case.kind]
    layers = [layer_work(kind, rows, case.steps, width, case.hidden, training=training, size=size) for width in widths]
    return Work(
        directions * sum(layer.flop for layer in layers), directions * sum(layer.memory_bytes for layer in layers)
    )


def rows_of(
    case: Case, name: str, device: torch.device, limits: dict[str, Any], plan: Plan
) -> Iterator[dict[str, Any]]:
    """The inference and the training row of a case; an error becomes a row that says so."""
    dtype = DTYPES[name]
    options = {"num_layers": case.layers, "bidirectional": case.bidirectional, "device": device, "dtype": dtype}
    mine, theirs = pair_of_modules(case.kind, case.inputs, case.hidden, **options)
    x, rows = input_of(case, dtype, device)
    with torch.no_grad():
        output = data_of(theirs(x)[0])
        difference = (data_of(mine(x)[0]) - output).abs().max().item() / output.abs().max().item()
    if not difference < (1e-3 if name == "fp32" else 3e-2):
        raise RuntimeError(f"output differs from torch's by {difference:.1e} of its largest value")
    grad_output = torch.randn_like(output)
    clock, size = clock_of(device), output.element_size()

    with torch.inference_mode():
        forward = measure({"ours": lambda: mine(x), "cuDNN": lambda: theirs(x)}, plan, clock)
    yield gpu_row("forward", case, name, forward, work_of(case, rows, size, False), limits)
    steps = {"ours": training_step(mine, x, grad_output), "cuDNN": training_step(theirs, x, grad_output)}
    yield gpu_row("training", case, name, measure(steps, plan, clock), work_of(case, rows, size, True), limits)


def gpu_row(
    question: str, case: Case, name: str, pairing: Pairing, work: Work, limits: dict[str, Any]
) -> dict[str, Any]:
    seconds, ratio = pairing.median("ours"), pairing.ratio("cuDNN")
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
    section = f"gpu-{KINDS[case.kind].key}-{question}"
    row: dict[str, Any] = {"section": section, "label": f"{name} {case.label}", "target": None, "why": ""}
    row |= {key: float(f"{value:.4g}") for key, value in figures.items()}
    row["peers"] = {"cuDNN": {"ms": float(f"{pairing.median('cuDNN') * 1e3:.4g}"), "ratio": row["ratio"]}}
    return row | {"bound_by": by, "rounds": ratio.rounds}


def run(device: torch.device, cases: list[Case], names: list[str], seconds: float, plan: Plan) -> dict[str, Any]:
    """Every case in every dtype while the time lasts; what failed or was left out is listed in the report."""
    machine = facts(device)
    print(hardware_line(machine), flush=True)
    deadline = time.perf_counter() + seconds
    rows, failed, left_out = [], {}, []
    for case in cases:
        for name in names:
            label = f"{name} {case.kind} {case.label}"
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
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="LSTM, GRU and RNN on a GPU beside cuDNN.")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--seconds", type=float, default=420.0, help="time for all rows")
    parser.add_argument("--dtypes", default="bf16,fp16,fp32")
    parser.add_argument("--dry", action="store_true", help="a few tiny rows on the processor: does the script work")
    options = parser.parse_args()

    if not options.dry and not torch.cuda.is_available():
        parser.exit(1, "torch has no GPU here\n")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
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
