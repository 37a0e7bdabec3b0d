"""Times every row and writes the report.

    python -m bench                                  # everything, a few minutes
    python -m bench --only lstm-inference --quick    # a part, while developing

The full run writes results/cpu.json (pytest-benchmark's record, one entry a row) and results/cpu.html. A partial or
quick run only prints, unless `--out` names a file.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import pytest

from bench import page
from bench.rows import RESULTS, SECTIONS, read_report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="sections, separated by commas: " + ", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, for development")
    parser.add_argument("--out", type=Path, help="the report to write (default: bench/results/cpu.json for a full run)")
    parser.add_argument("-k", default="", help="rows whose name matches, as in pytest")
    options = parser.parse_args()

    partial = bool(options.only or options.quick or options.k)
    out = options.out or (None if partial else RESULTS / "cpu.json")
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "report.json"
        code = run(fresh, options)
        if out is None or not fresh.exists() or not fresh.read_text():
            return code
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(fresh.read_text().rstrip() + "\n")
    page.write(read_report(out), out.with_suffix(".html"))
    print(f"wrote {out.name} and {out.with_suffix('.html').name}")
    return code


def run(report: Path, options: argparse.Namespace) -> int:
    """pytest in this process, without the plugins and settings that a test run has."""
    arguments = [
        str(Path(__file__).parent),
        "--quiet",
        "--no-header",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    arguments += ["-o", "addopts=", "--benchmark-quiet", f"--benchmark-json={report}"]
    arguments += ["--only", options.only] if options.only else []
    arguments += ["--quick"] if options.quick else []
    arguments += ["-k", options.k] if options.k else []
    return int(pytest.main(arguments))


def keep_memory() -> None:
    """Starts anew, once, with an allocator that gives no memory back to the system, as those do that PyTorch's guide
    recommends. Else a peer's large results are paged in anew with every call, in some runs and not in others: what is
    compared would be that, and not the kernels. (glibc's settings; other C libraries do not know them.)
    """
    settings = {"MALLOC_MMAP_THRESHOLD_": 1 << 30, "MALLOC_TRIM_THRESHOLD_": 1 << 32, "MALLOC_TOP_PAD_": 1 << 28}
    if not settings.keys() & os.environ.keys():
        os.environ.update({name: str(value) for name, value in settings.items()})
        os.execv(sys.executable, [sys.executable, "-m", "bench", *sys.argv[1:]])


if __name__ == "__main__":
    keep_memory()
    sys.exit(main())
