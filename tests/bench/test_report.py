"""From rows to the report: bounds, the page, the README's figures, and no names or paths in the record."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import limits, page, readme
from bench.layers import GRU, LSTM, RNN, layer_work
from bench.machine import facts
from bench.memory import held_for_backward, saved_tensor_bytes
from bench.pairs import Pairing
from bench.rows import SECTIONS, by_section, held_row, line, mean_ratio, reached, report_rows, summary, timed_row

ROOT = Path(__file__).parents[2]
LIMITS = limits.Limits(2, 1000.0, 2000.0, 40_000.0, "invented")


@pytest.fixture
def report(monkeypatch):
    """Two rows a section, timings invented: ours takes 2 ms, torch 6 ms, ONNX Runtime 3 ms."""
    monkeypatch.setattr(limits, "read_rate", lambda size, threads: 100_000.0)
    pairing = Pairing({"ours": [2e-3] * 3, "torch": [6e-3] * 3, "ONNX Runtime": [3e-3] * 3})
    work = layer_work(LSTM, 3200, 100, 128, 256)
    about = {"target": 1.1, "work": work, "limits": LIMITS, "threads": 2}
    rows = [timed_row("lstm-inference", label, pairing, **about) for label in ("B1 H64", "B2 H64")]
    slow = timed_row("lstm-training", "B1 H64", pairing, **about | {"target": 9.0}, why={"lstm-training": "one <step>"})
    rows += [slow, held_row("lstm-memory", "B1 H64", 1000, 3000)]
    rows += [timed_row("gru-inference", "B1 H64", pairing, **about)]
    machine = {
        "cpu": "Some Processor",
        "cores": 2,
        "threads": 2,
        "isa": "avx512",
        "torch": "2.13.0",
        "onnxruntime": "1.31.1",
        "python": "3.11.7",
        "limits": LIMITS.as_dict(),
    }
    return {"machine_info": machine, "benchmarks": [{"extra_info": row} for row in rows]}


def test_row_is_judged_against_the_better_peer(report):
    row = report_rows(report)[0]
    assert row["against"] == "ONNX Runtime"
    assert row["ratio"] == 1.5
    assert row["peers"]["torch"]["ratio"] == 3.0
    assert reached(row) is True
    assert reached(report_rows(report)[2]) is False
    assert "ok" in line(row)


def test_operations_bytes_and_bound(monkeypatch):
    work = layer_work(LSTM, 3200, 100, 128, 256)
    assert work.flop == 2 * 3200 * 1024 * 384
    assert work.memory_bytes == 4 * (1024 * (384 + 2) + 3200 * 384)
    assert layer_work(LSTM, 3200, 100, 128, 256, training=True).flop == 3 * work.flop
    assert (
        layer_work(GRU, 3200, 100, 128, 256).flop == 3 * layer_work(RNN, 3200, 100, 128, 256).flop == work.flop * 3 / 4
    )
    monkeypatch.setattr(limits, "read_rate", lambda size, threads: 100_000.0)
    assert limits.bound(work, LIMITS, 2) == limits.Bound(work.flop / 2000e9, "FMA peak")
    monkeypatch.setattr(limits, "read_rate", lambda size, threads: 1.0)
    assert limits.bound(work, LIMITS, 2).by == "reading the weights every step"


def test_sections_keep_their_order_and_means(report):
    groups = by_section(report_rows(report))
    assert list(groups) == ["lstm-inference", "lstm-training", "lstm-memory", "gru-inference"]
    assert mean_ratio(groups["lstm-inference"]) == pytest.approx(1.5)
    assert "2 of 2 rows at their target; geometric mean x1.50 (target 1.4)" in summary(report_rows(report))[0]


def test_page_has_every_row_its_bars_and_the_reason(report):
    text = page.render(report)
    assert text.count("<svg") == 3
    assert "1.50×" in text
    assert "Below 70 %: one &lt;step&gt;" in text
    assert "Some Processor" in text
    assert page.render(report) == text


def test_readme_shows_the_report(report, tmp_path, monkeypatch, capsys):
    record, target = tmp_path / "cpu.json", tmp_path / "README.md"
    record.write_text(json.dumps(report))
    target.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["readme", "--report", str(record), "--readme", str(target), *arguments])
        return readme.main()

    assert run("--check") == 1
    assert run() == 0
    assert run("--check") == 0
    text = target.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| B1 H64 | 2 | 6 | 3 | 1.50× | 2 | 6 | 1.50× |" in text
    assert "\n\n| GRU, float32 |" in text
    assert "| B1 H64 | 2 | 6 | 3 | 1.50× |  |  |  |" in text
    target.write_text(text.replace("1.50×", "9.99×"))
    assert run("--check") == 1


def test_readme_without_markers_is_an_error():
    with pytest.raises(ValueError, match=r"\[bench.readme\] expected one"):
        readme.replaced("no markers", "table")


def test_readme_of_the_project_shows_the_committed_report():
    """The same check as in `make lint`: the README's figures are the report's."""
    answer = subprocess.run([sys.executable, "-m", "bench.readme", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_swap_in_the_readme_runs():
    """The lines of code in README.md, as they stand there."""
    pytest.importorskip("pykernels")
    code = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code, names)
    x = torch.randn(5, 3, 128)
    torch.testing.assert_close(names["ours"](x)[0], names["theirs"](x)[0], rtol=1e-4, atol=1e-5)


def test_facts_name_hardware_and_nothing_private(monkeypatch):
    monkeypatch.setattr(limits, "measured", lambda quick=False: LIMITS)
    text = json.dumps(facts())
    assert platform.node() not in text or platform.node() in ("", "localhost")
    assert str(ROOT) not in text and str(Path.home()) not in text


def test_bytes_held_for_backward_are_counted():
    """relu keeps its output, tanh too, a product its operands; torch's own record agrees."""
    linear, x = torch.nn.Linear(64, 32), torch.randn(16, 64, requires_grad=True)
    layers = torch.nn.Sequential(linear, torch.nn.Tanh(), torch.nn.Linear(32, 8))
    assert held_for_backward(layers, x) == saved_tensor_bytes(layers, x) == 16 * 32 * 4


def test_bytes_held_outside_of_the_allocator_are_counted():
    class Keeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(torch.frombuffer(bytearray(4000), dtype=torch.float32))
            return x * 2

        @staticmethod
        def backward(ctx, grad_output):
            return grad_output * 2

    class Doubled(torch.nn.Module):
        def forward(self, x):
            return Keeps.apply(x)

    assert held_for_backward(Doubled(), torch.ones(3, requires_grad=True)) == 4000


@pytest.mark.parametrize(
    ("name", "options"),
    [("LSTM", {}), ("GRU", {}), ("RNN", {}), ("RNN", {"nonlinearity": "relu"})],
    ids=["LSTM", "GRU", "RNN-tanh", "RNN-relu"],
)
def test_onnx_node_gives_torchs_output(name, options):
    """`onnx_ways` compares with torch's output before it returns anything, and must notice when they differ."""
    pytest.importorskip("onnxruntime")
    from bench import peers

    module, x = getattr(torch.nn, name)(5, 7, **options), torch.randn(4, 3, 5)
    ways = peers.onnx_ways(module, x, 1)
    assert set(ways) == {"run", "binding"}
    with pytest.raises(RuntimeError, match=r"\[onnx_ways\] expected torch's output"):
        peers._check_same(module(x)[0].detach().numpy() + 1e-3, module, x, "run")


def test_gpu_script_runs_dry(tmp_path):
    out = tmp_path / "gpu.json"
    subprocess.run([sys.executable, "-m", "bench.gpu", "--dry", "--out", str(out)], cwd=ROOT, check=True)
    report = json.loads(out.read_text())
    assert report["failed"] == {}
    found = {row["section"] for row in report_rows(report)}
    kinds = ("lstm", "gru", "rnn", "attention", "layer-norm", "pool", "conv")
    expected = {f"gpu-{kind}-{question}" for kind in kinds for question in ("forward", "training")}
    expected |= {"gpu-hopfield-sync", "gpu-hopfield-async"}
    assert found == expected | {"gpu-conv-pool", "gpu-unfold", "gpu-fold"}
    assert "cuDNN" in page.render(report)


def test_every_bench_is_collected_under_a_section_of_the_report():
    """A mistake in a table of shapes would show only when the benches run, which takes minutes."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "bench",
        "--collect-only",
        "-q",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
    ]
    answer = subprocess.run([*command, "-p", "no:xdist"], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    functions = {line.split("::")[1].split("[")[0] for line in answer.stdout.splitlines() if "::" in line}
    found = {name.removeprefix("test_").removesuffix("_relu").replace("_", "-") for name in functions}
    assert found == {key for key in SECTIONS if not key.startswith("gpu-") and key != "rnn-memory"}
