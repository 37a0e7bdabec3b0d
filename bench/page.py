"""The report as one page: a table a section, and bars of the ratios with the target drawn in."""

from __future__ import annotations

import argparse
import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from bench.machine import hardware_line
from bench.rows import RESULTS, SECTIONS, by_section, mean_ratio, reached, read_report, report_rows

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #1b1f24; }
h2 { margin-top: 2.5rem; } .hardware, .note { color: #57606a; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #d8dee4; }
th { border-bottom: 2px solid #57606a; font-weight: 600; } th:first-child, td:first-child { text-align: left; }
.met { color: #116329; font-weight: 600; } .missed { color: #a40e26; font-weight: 600; }
.why td { text-align: left; color: #57606a; font-size: 13px; border-bottom: none; padding-left: 1.5rem; }
svg { max-width: 100%; height: auto; }
"""

METHOD = """
Every round times each callable once, one directly after the other, in one process and in alternating order; a row is
the median over the rounds of the ratio peer / ours, with the quartiles in brackets. Above 1, ours is faster. The bound
of a row is the largest of: its operations over the FMA peak (matrix products only, two a multiply-add; gates not
counted), its inputs, weights and outputs once over the copy bandwidth, and, for recurrent layers, the recurrent
weights once a step over the rate at which a working set of that size is read.
"""


def write(report: Mapping[str, Any], path: Path) -> None:
    path.write_text(render(report))


def render(report: Mapping[str, Any]) -> str:
    machine = report["machine_info"]
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>pykernels: measured</title><style>{STYLE}</style>",
        "<h1>pykernels beside its peers</h1>",
        f"<p class='hardware'>{html.escape(hardware_line(machine))}</p>",
        f"<p>{METHOD}</p>",
    ]
    if machine.get("quick"):
        parts.append("<p class='missed'>A quick run for development: wide spread, not a record.</p>")
    for key, rows in by_section(report_rows(report)).items():
        parts += section_parts(key, rows)
    return "\n".join(parts) + "\n"


def section_parts(key: str, rows: list[dict[str, Any]]) -> list[str]:
    section = SECTIONS[key]
    parts = [f"<h2 id='{key}'>{section.title}</h2>", f"<p>Against {section.against}. {mean_text(key, rows)}</p>"]
    if key.endswith("-memory"):
        return parts + [memory_table(rows)]
    return parts + [bars(key, rows), timing_table(rows)]


def mean_text(key: str, rows: list[dict[str, Any]]) -> str:
    section = SECTIONS[key]
    if section.judged != "ratio":
        return ""
    mean = mean_ratio(rows)
    if section.mean_target is None:
        return f"Geometric mean {mean:.2f}×."
    kind = "met" if mean >= section.mean_target else "missed"
    return f"Geometric mean <span class='{kind}'>{mean:.2f}×</span> (target {section.mean_target:g}×)."


def timing_table(rows: list[dict[str, Any]]) -> str:
    peers = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    head = ["", "ours, ms", *(f"{html.escape(name)}, ms" for name in peers), "ratio", "quartiles", "rounds", "target"]
    head += ["GFLOP/s", "of FMA peak", "bound, ms", "of bound", "bound set by"]
    lines = [cells(head, "th")]
    for row in rows:
        times = [f"{row['peers'][name]['ms']:.4g}" if name in row["peers"] else "" for name in peers]
        texts = [
            html.escape(row["label"]),
            f"{row['ours_ms']:.4g}",
            *times,
            judged(row, "ratio", f"{row['ratio']:.2f}×"),
        ]
        texts += [f"{row['low']:.2f}–{row['high']:.2f}", str(row["rounds"]), target_text(row), f"{row['gflops']:.4g}"]
        texts += [judged(row, "peak_share", f"{100 * row['peak_share']:.0f} %"), f"{row['bound_ms']:.4g}"]
        texts += [f"{100 * row['bound_share']:.0f} %", row["bound_by"]]
        lines.append(cells(texts))
        if row["bound_share"] < 0.7 and row["why"]:
            lines.append(f"<tr class='why'><td colspan='{len(head)}'>Below 70 %: {html.escape(row['why'])}</td></tr>")
    return "<table>" + "\n".join(lines) + "</table>"


def memory_table(rows: list[dict[str, Any]]) -> str:
    lines = [cells(["", "ours, MB", "torch, MB", "torch / ours", "target"], "th")]
    for row in rows:
        sizes = [row["ours_bytes"], row["peers"]["torch"]["bytes"]]
        texts = [f"{size / 1e6:.2f}" for size in sizes]
        lines.append(cells([row["label"], *texts, judged(row, "ratio", f"{row['ratio']:.2f}×"), target_text(row)]))
    return "<table>" + "\n".join(lines) + "</table>"


def cells(texts: list[str], tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag}>{text}</{tag}>" for text in texts) + "</tr>"


def judged(row: Mapping[str, Any], column: str, text: str) -> str:
    """The figure, coloured where the row's target speaks about this column."""
    met = reached(row)
    if met is None or SECTIONS[row["section"]].judged != column:
        return text
    return f"<span class='{'met' if met else 'missed'}'>{text}</span>"


def target_text(row: Mapping[str, Any]) -> str:
    if row["target"] is None:
        return "–"
    return f"{row['target']:g}×" if SECTIONS[row["section"]].judged == "ratio" else f"{100 * row['target']:.0f} %"


def bars(key: str, rows: list[dict[str, Any]]) -> str:
    """Horizontal bars of the judged column, whiskers for the quartiles, a tick where the row's target is; as inline
    SVG.
    """
    column = SECTIONS[key].judged
    plt.rcParams["svg.hashsalt"] = "pykernels"
    figure, axes = plt.subplots(figsize=(9, 0.8 + 0.33 * len(rows)))
    for place, row in enumerate(rows):
        colour = {True: "#2da44e", False: "#cf222e", None: "#8c959f"}[reached(row)]
        axes.barh(place, row[column], color=colour, height=0.62)
        if column == "ratio":
            whiskers = [[max(0.0, row["ratio"] - row["low"])], [max(0.0, row["high"] - row["ratio"])]]
            axes.errorbar(row["ratio"], place, xerr=whiskers, color="#1b1f24", linewidth=1, capsize=2)
        if row["target"] is not None:
            axes.plot([row["target"]] * 2, [place - 0.42, place + 0.42], color="#1b1f24", linewidth=2)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes.invert_yaxis()
    axes.axvline(1.0, color="#8c959f", linewidth=0.8, linestyle=":")
    axes.set_xlabel(
        "times faster than the peer (line: target)" if column == "ratio" else "share of the FMA peak (line: target)"
    )
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    drawing = buffer.getvalue()
    return drawing[drawing.index("<svg") :]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.page", description="Writes the page of a report.")
    parser.add_argument("report", type=Path, nargs="?", default=RESULTS / "cpu.json")
    options = parser.parse_args()
    write(read_report(options.report), options.report.with_suffix(".html"))


if __name__ == "__main__":
    main()
