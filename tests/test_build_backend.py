"""The build itself: the graph and how it is run, the choice of GPU architectures, the torch that a build finds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

import build_backend
from build_backend import compile as compiling
from build_backend import ninja_graph
from build_backend.ninja_graph import Graph

COMPILER = r"""
import sys
_, flag, _, _, depfile, _, source, _, output = sys.argv
text = open(source).read()
header = text.split()[1]
open("log", "a").write(source + "\n")
open(depfile, "w").write(f"{output}: {source}".replace(" b.cpp", "\\ b.cpp") + f" \\\n {header}\n")
open(output, "w").write(text + open(header).read())
if "fail" in text:
    sys.exit("error: told to fail")
"""
LINKER = "import sys; open(sys.argv[-1], 'w').write(''.join(open(p).read() for p in sys.argv[1:-2]))"


@pytest.fixture(params=["ninja", "threads"])
def build(request, tmp_path, monkeypatch):
    """Builds a tiny project (two sources with a header each) and returns the sources that were compiled."""
    if request.param == "threads":
        monkeypatch.setattr(ninja_graph, "find_ninja", lambda: None)
    elif ninja_graph.find_ninja() is None:
        pytest.skip("ninja is not here")
    (tmp_path / "compiler.py").write_text(COMPILER)
    (tmp_path / "linker.py").write_text(LINKER)
    for name in "ab":
        (tmp_path / f"{name} b.cpp").write_text(f"include {name}.h\n")
        (tmp_path / f"{name}.h").write_text(f"header {name}\n")

    def run(flag: str = "-O2") -> list[str]:
        graph = Graph(tmp_path, Path("build"))
        command = [sys.executable, "compiler.py", flag]
        sources = [Path(f"{name} b.cpp") for name in "ab"]
        objects = [graph.compile(source, Path("build", f"{source}.o"), command, "compile") for source in sources]
        graph.link(objects, Path("build", "all.so"), [sys.executable, "linker.py"], [], "link")
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        graph.run(jobs=2)
        return sorted(log.read_text().splitlines()) if log.exists() else []

    return run


def later(path: Path) -> None:
    """A change that any clock sees."""
    path.write_text(path.read_text() + "changed\n")
    time = path.stat().st_mtime_ns + 2_000_000_000
    os.utime(path, ns=(time, time))


def test_only_what_changed_is_compiled(build, tmp_path):
    assert build() == ["a b.cpp", "b b.cpp"]
    assert build() == []
    later(tmp_path / "b.h")
    assert "b b.cpp" in build()
    assert "header b\nchanged" in (tmp_path / "build" / "all.so").read_text()


def test_another_flag_compiles_everything_again(build):
    build()
    assert build("-O3") == ["a b.cpp", "b b.cpp"]


def test_a_failed_command_is_an_error(build, tmp_path):
    (tmp_path / "a b.cpp").write_text("include a.h fail\n")
    with pytest.raises(RuntimeError, match="the build failed"):
        build()


@pytest.mark.parametrize(
    ("wanted", "targets"),
    [
        ("8.0", ["compute_80,code=sm_80"]),
        ("8.0;9.0a", ["compute_80,code=sm_80", "compute_90a,code=sm_90a"]),
        ("8.6 9.0+PTX", ["compute_86,code=sm_86", "compute_90,code=sm_90", "compute_90,code=compute_90"]),
        ("12.0", ["compute_120,code=sm_120"]),
    ],
)
def test_gpu_architectures_as_torch_reads_them(monkeypatch, wanted, targets):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    assert compiling.cuda_architecture_flags() == [f"-gencode=arch={target}" for target in targets]


def test_gpu_architecture_that_is_none(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Volcano")
    with pytest.raises(RuntimeError, match=r"expected TORCH_CUDA_ARCH_LIST such as .* got 'Volcano' in it"):
        compiling.cuda_architecture_flags()


def test_gpu_architecture_of_this_machine_and_without_a_gpu(monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = " ".join(compiling.cuda_architecture_flags())
    assert "code=sm_80" in flags and "code=sm_90a" in flags and "code=compute_80" in flags
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (9, 0))
    assert compiling.cuda_architecture_flags() == ["-gencode=arch=compute_90a,code=sm_90a"]


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_cuda_cannot_be_forced_on_a_torch_without_it(monkeypatch):
    root = Path(compiling.__file__).parents[1]
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(RuntimeError, match=r"expected CUDA because of FORCE_CUDA=1, but this torch .* without CUDA"):
        compiling.wants_cuda(root)
    for value in ("", "0"):
        monkeypatch.setenv("FORCE_CUDA", value)
        assert not compiling.wants_cuda(root)


def test_backend_asks_for_torch_only_if_there_is_none(monkeypatch):
    assert build_backend._torch_requirement() == []
    monkeypatch.setattr(build_backend, "installed_torch", lambda: None)
    assert build_backend._torch_requirement() == ["torch>=2.11"]


def test_backend_finds_torch_that_an_isolated_path_hides(monkeypatch):
    """As pip runs it: the interpreter of the environment, without the environment's packages on the path."""
    folder = build_backend.installed_torch()
    assert folder is not None and (folder / "torch").is_dir()
    monkeypatch.setattr(build_backend.sys, "path", [p for p in build_backend.sys.path if "-packages" not in p])
    assert build_backend.installed_torch().samefile(Path(torch.__file__).parents[1])
