"""Makes `pytest bench/` measure: collects bench_*.py, hands each row its tools, and keeps the record free of names and
paths.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench import limits as machine_limits
from bench.machine import facts, load_note
from bench.pairs import Pairing, Plan, measure
from bench.rows import line, report_rows, summary, timed_row


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench")
    group.addoption("--only", default="", help="sections whose name starts with one of these, separated by commas")
    group.addoption("--quick", action="store_true", help="a tenth of the time, for development")


def pytest_collect_file(file_path: Any, parent: pytest.Collector) -> pytest.Module | None:
    if file_path.match("bench_*.py"):
        return pytest.Module.from_parent(parent, path=file_path)
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`--only lstm-inference` keeps `test_lstm_inference`: a test function is a section of the report."""
    wanted = tuple(name.strip() for name in config.getoption("--only").split(",") if name.strip())
    if wanted:
        kept = [item for item in items if section_of(item).startswith(wanted)]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def section_of(item: pytest.Item) -> str:
    return getattr(item, "originalname", item.name).removeprefix("test_").replace("_", "-")


class Replay:
    """A clock that shows pytest-benchmark the timings that were already taken in alternating rounds."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def load(self, seconds: list[float]) -> None:
        self.ticks = [tick for duration in reversed(seconds) for tick in (duration, 0.0)]

    def __call__(self) -> float:
        return self.ticks.pop()


REPLAY = Replay()


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.benchmark(timer=REPLAY, group=section_of(item)))


@pytest.fixture
def plan(request: pytest.FixtureRequest) -> Plan:
    return Plan().quick() if request.config.getoption("--quick") else Plan()


@pytest.fixture
def limits(request: pytest.FixtureRequest) -> machine_limits.Limits:
    return machine_limits.measured(request.config.getoption("--quick"))


@pytest.fixture
def keep(request: pytest.FixtureRequest, benchmark: Any) -> Callable[[dict[str, Any], list[float]], None]:
    """Keeps a finished row: in pytest-benchmark's record and on the terminal."""

    def keep_row(row: dict[str, Any], seconds: list[float]) -> None:
        benchmark.extra_info.update(row)
        REPLAY.load(seconds)
        benchmark.pedantic(lambda: None, rounds=len(seconds))
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print("\n" + line(row), end="", flush=True)

    return keep_row


@pytest.fixture
def compare(
    keep: Callable[[dict[str, Any], list[float]], None], plan: Plan, limits: machine_limits.Limits
) -> Callable[..., Pairing]:
    """Times a row and keeps it: compare(section, label, {"ours": f, "peer": g}, target=..., work=..., grad=False)."""

    def compare_row(section: str, label: str, works: dict[str, Callable], *, grad: bool, **about: Any) -> Pairing:
        torch.manual_seed(0)
        with contextlib.nullcontext() if grad else torch.inference_mode():
            pairing = measure(works, plan)
        threads = about.pop("threads", None) or torch.get_num_threads()
        row = timed_row(section, label, pairing, limits=limits, threads=threads, **about)
        keep(row, pairing.seconds[pairing.ours])
        return pairing

    return compare_row


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    """Hardware and versions only: no host name, no path."""
    return facts(config.getoption("--quick"))


def pytest_sessionstart(session: pytest.Session) -> None:
    if busy := load_note():
        print(busy)


def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict[str, Any]:
    return {}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """The single timings of each round are dropped: the report is committed and keeps the summary."""
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
        benchmark.pop("options", None)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    rows = (
        report_rows({"benchmarks": [{"extra_info": bench.extra_info} for bench in session.benchmarks]})
        if session
        else []
    )
    if rows:
        terminalreporter.section("rows against their targets")
        for text in summary(rows):
            terminalreporter.write_line(text)
