"""Copies the committed reports' figures into README.md, between two markers (`--check` only compares).

Beside `cpu.json`, of which every shape is shown, there may be reports of other machines, `cpu-<machine>.json`: of these
README has the summary.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.machine import hardware_line
from bench.rows import RESULTS, SECTIONS, by_section, mean_ratio, read_report, report_rows

BEGIN, END = "<!-- measured: begin (python -m bench.readme) -->", "<!-- measured: end -->"
README = Path(__file__).parent.parent / "README.md"
LAYERS = ("LSTM", "GRU", "RNN")
OTHERS = (
    "lstm-layer-norm", "attention-forward", "attention-training", "attention-bf16", "attention-bf16-training",
    "attention-mask", "attention-dropout", "attention-lengths", "attention-decode", "attention-causal",
    "attention-weights", "transformer-inference", "transformer-training", "layer-norm", "layer-norm-training",
    "conv-inference", "conv-training", "conv-first", "conv-first-training", "conv-bf16", "conv-bf16-training",
    "conv-bf16-avx2", "conv-pool", "pool", "pool-training", "pool-channels-last", "pool-channels-last-training",
    "rbm", "rbm-fit", "rbm-sample",
)  # fmt: skip
QUESTIONS = ("inference", "training", "packed", "bf16", "streaming", "memory")


def table(report: Mapping[str, Any], others: Sequence[Mapping[str, Any]] = ()) -> str:
    """Markdown of the measured rows, with the hardware they came from; of the other reports the summary."""
    lines = summary(report)
    groups = by_section(report_rows(report))
    for layer in LAYERS:
        lines += shape_table(layer, groups)
    for other in others:
        lines += ["", *summary(other)]
    return "\n".join(lines)


def summary(report: Mapping[str, Any]) -> list[str]:
    """A line for each section."""
    lines = [f"Measured on {hardware_line(report['machine_info'])}.", ""]
    groups = by_section(report_rows(report))
    lines += ["| | against | slowest row | geometric mean | fastest row |", "|---|---|---|---|---|"]
    for key in (*(f"{layer.lower()}-{question}" for layer in LAYERS for question in QUESTIONS), *OTHERS):
        if key in groups:
            ratios = [row["ratio"] for row in groups[key]]
            figures = [times(min(ratios)), times(mean_ratio(groups[key])), times(max(ratios))]
            lines.append(
                f"| {SECTIONS[key].title} ({len(ratios)} rows) | {SECTIONS[key].against} | {' | '.join(figures)} |"
            )
    return lines


def shape_table(layer: str, groups: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Inference and training of a kind of layer side by side, one line a shape."""
    key = layer.lower()
    training = {row["label"]: row for row in groups.get(f"{key}-training", [])}
    rows = [(row, training.get(row["label"])) for row in groups.get(f"{key}-inference", [])]
    if not rows:
        return []
    head = f"| {layer}, float32 | inference, ms | torch | ONNX Runtime | faster by "
    head += "| training step, ms | torch | faster by |"
    lines = ["", head, "|---" * 8 + "|"]
    for row, step in rows:
        texts = [
            row["label"],
            milliseconds(row["ours_ms"]),
            *(peer_time(row, name) for name in ("torch", "ONNX Runtime")),
        ]
        texts.append(times(row["ratio"]))
        texts += (
            [milliseconds(step["ours_ms"]), peer_time(step, "torch"), times(step["ratio"])] if step else ["", "", ""]
        )
        lines.append("| " + " | ".join(texts) + " |")
    return lines


def times(ratio: float) -> str:
    return f"{ratio:.2f}×"


def milliseconds(value: float) -> str:
    return f"{value:.3g}"


def peer_time(row: Mapping[str, Any], name: str) -> str:
    return milliseconds(row["peers"][name]["ms"]) if name in row["peers"] else "–"


def replaced(text: str, measured: str) -> str:
    """The text with everything between the markers replaced. Raises ValueError where a marker is missing."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"[bench.readme] expected one {BEGIN!r} and one {END!r}")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{measured}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="fail when README.md does not show the committed report's figures"
    )
    parser.add_argument("--report", type=Path, default=RESULTS / "cpu.json")
    parser.add_argument("--readme", type=Path, default=README)
    options = parser.parse_args()

    if not options.report.exists():
        print("no report yet: run `python -m bench` first")
        return 0 if options.check else 1
    text = options.readme.read_text()
    others = sorted(options.report.parent.glob(f"{options.report.stem}-*.json"))
    fresh = replaced(text, table(read_report(options.report), [read_report(path) for path in others]))
    if fresh == text:
        print("README.md shows the figures of the report")
        return 0
    if options.check:
        print("README.md does not show the figures of the report: run `python -m bench.readme`")
        return 1
    options.readme.write_text(fresh)
    print("README.md updated")
    return 0


if __name__ == "__main__":
    sys.exit(main())
