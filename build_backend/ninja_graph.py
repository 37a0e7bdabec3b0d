"""A build graph: commands with what they read and write; run by ninja, or by a few threads where there is no ninja."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

RULES = """\
ninja_required_version = 1.5
builddir = {folder}

rule compile
  command = $run
  description = $what
  depfile = $out.d

rule link
  command = $run
  description = $what
"""


@dataclass(frozen=True)
class Edge:
    """One command: `command` makes `output` from `inputs`; a compiler also writes what it included to `output`.d."""

    rule: str
    what: str
    output: Path
    inputs: tuple[Path, ...]
    command: tuple[str, ...]


@dataclass
class Graph:
    """All edges of a build. Paths are relative to `root`, where every command runs; records are kept in `folder`."""

    root: Path
    folder: Path
    edges: list[Edge] = field(default_factory=list)

    def compile(self, source: Path, output: Path, command: list[str], what: str) -> Path:
        arguments = (*command, "-MD", "-MF", f"{output}.d", "-c", str(source), "-o", str(output))
        self.edges.append(Edge("compile", what, output, (source,), arguments))
        return output

    def link(self, objects: list[Path], output: Path, command: list[str], libraries: list[str], what: str) -> Path:
        arguments = (*command, *map(str, objects), "-o", str(output), *libraries)
        self.edges.append(Edge("link", what, output, tuple(objects), arguments))
        return output

    def run(self, jobs: int) -> None:
        """Bring every output up to date with `jobs` commands at a time; a failure raises RuntimeError."""
        for edge in self.edges:
            (self.root / edge.output).parent.mkdir(parents=True, exist_ok=True)
        ninja = find_ninja()
        if ninja is None:
            return _run_with_threads(self, jobs)
        script = self.folder / "build.ninja"
        _write_if_changed(self.root / script, self.to_ninja())
        # cwd rather than -C: no "Entering directory" line
        if subprocess.run([ninja, "-f", str(script), "-j", str(jobs)], cwd=self.root).returncode:
            raise RuntimeError("the build failed: see the compiler's messages above")

    def to_ninja(self) -> str:
        lines = [RULES.format(folder=_escape(self.folder))]
        for edge in self.edges:
            lines += [
                f"build {_escape(edge.output)}: {edge.rule} {' '.join(map(_escape, edge.inputs))}",
                f"  run = {shlex.join(edge.command).replace('$', '$$')}",
                f"  what = {edge.what.replace('$', '$$')}",
                "",
            ]
        return "\n".join(lines)


def find_ninja() -> str | None:
    """The ninja program: beside this interpreter, on the path, or in the installed `ninja` package.

    (Always the same one: another version may not know the records of what is built.)
    """
    beside = Path(sys.executable).parent
    found = shutil.which("ninja", path=str(beside)) or shutil.which("ninja")
    if found is None and importlib.util.find_spec("ninja") is not None:
        import ninja

        found = shutil.which("ninja", path=ninja.BIN_DIR)
    return found


def _escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


def _run_with_threads(graph: Graph, jobs: int) -> None:
    """The same graph without ninja: an edge waits for those that make its inputs, and is skipped if nothing changed."""
    done: dict[Path, Future[None]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        for edge in graph.edges:  # edges come after the edges they depend on, so waiting inside the pool cannot lock
            before = [done[path] for path in edge.inputs if path in done]
            done[edge.output] = pool.submit(_bring_up_to_date, graph.root, edge, before)
    for future in done.values():
        future.result()


def _bring_up_to_date(root: Path, edge: Edge, before: list[Future[None]]) -> None:
    for future in before:
        future.result()
    record = root / f"{edge.output}.cmd"
    command = shlex.join(edge.command)
    if record.is_file() and record.read_text() == command and _is_fresh(root, edge):
        return
    print(edge.what, flush=True)
    if subprocess.run(edge.command, cwd=root).returncode:
        raise RuntimeError(f"the build failed: {command}")
    record.write_text(command)


def _is_fresh(root: Path, edge: Edge) -> bool:
    output, depfile = root / edge.output, root / f"{edge.output}.d"
    if not output.is_file() or (edge.rule == "compile" and not depfile.is_file()):
        return False
    inputs = [root / path for path in edge.inputs]
    if edge.rule == "compile":
        included = depfile.read_text().replace("\\\n", " ").replace("\\ ", "\0").partition(":")[2].split()
        inputs += [root / name.replace("\0", " ") for name in included]
    made = output.stat().st_mtime_ns
    return all(path.is_file() and path.stat().st_mtime_ns <= made for path in inputs)
