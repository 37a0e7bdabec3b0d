"""Rows that need another processor, or a process that takes itself for one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from bench.rows import read_report, report_rows

AVX2_ONLY = {"PYKERNELS_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def rows_with_avx2(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What the same benchmark gives where neither side uses more than AVX2."""
    test = request.node
    parts = test.callspec.id.split("-")
    command = [sys.executable, "-m", "bench", "-k", " and ".join([test.originalname, *parts])]
    command += ["--quick"] if request.config.getoption("--quick") else []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "child.json"
        root = Path(__file__).resolve().parent.parent
        done = subprocess.run(
            [*command, "--out", str(report)], cwd=root, env={**os.environ, **AVX2_ONLY}, capture_output=True, text=True
        )
        if done.returncode:
            pytest.fail(f"the benchmark of its own process failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return report_rows(read_report(report))
