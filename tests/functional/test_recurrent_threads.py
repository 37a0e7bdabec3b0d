"""Threads: the same bits for any number of them, many Python threads at once, the GIL released, fork."""

from __future__ import annotations

import concurrent.futures
import threading
import time

import pytest
import torch

import pykernels
from pykernels import functional
from tests.helpers import FLAGS, LOW, SEED, Case, assert_same_bits, drawn, every_kind, python, run

DTYPES = [torch.float64, torch.float32, *LOW]
LARGE = [
    Case(20, 33, 37, 101),
    Case(20, 33, 64, 256, bidirectional=True),
    Case(30, 1, 64, 257),
    Case(15, 64, 37, 96, packed=True, peephole=True),
    Case(9, 40, 70, 130, packed=True, projection=True, bidirectional=True),
    Case(20, 33, 37, 101, kind="gru"),
    Case(20, 33, 64, 256, kind="gru", bidirectional=True, reset_after=False),
    Case(30, 1, 64, 257, kind="gru"),
    Case(15, 64, 37, 96, kind="gru", packed=True, reset_after=False),
    Case(9, 40, 70, 130, kind="gru", packed=True, bidirectional=True),
    Case(20, 33, 37, 101, kind="rnn"),
    Case(20, 33, 64, 256, kind="rnn", bidirectional=True, projection=True),
    Case(30, 1, 64, 257, kind="rnn", relu=True),
    Case(9, 40, 70, 130, kind="rnn", packed=True, projection=True, bidirectional=True),
]
MODULES = ("LSTM", "GRU", "RNN")
every_module = pytest.mark.parametrize("name", MODULES)


# -- any number of threads --------------------------------------------------------------------------------------------
def same_for_all(threads, case, dtype):
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(run(functional, case, dtype))
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_same_bits_for_large_problems(threads, case, dtype):
    same_for_all(threads, case, dtype)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@drawn(15, steps=(1, 9), batch=(1, 40), inputs=(1, 70), hidden=(1, 150), seed=SEED, **FLAGS)
def test_same_bits_for_drawn_problems(threads, dtype, kind, case):
    same_for_all(threads, case, dtype)


@every_kind
def test_more_threads_than_work(threads, kind):
    """Sixteen threads for one unit and one sample; and a count that changes from call to call."""
    case, larger = Case(3, 1, 1, 1, kind=kind), Case(20, 33, 37, 101, kind=kind)
    threads(1)
    expected = run(functional, case, torch.float32)
    for count in (16, 2, 7, 1, 16):
        threads(count)
        assert_same_bits(run(functional, case, torch.float32), expected)
    threads(16)
    large = run(functional, larger, torch.float32)
    threads(1)
    assert_same_bits(run(functional, larger, torch.float32), large)


# -- many Python threads ----------------------------------------------------------------------------------------------
def test_eight_python_threads_at_once(cpu_only):
    """Training and inference in eight threads, one module of each kind shared: the bits of doing it in turn."""
    cases = [Case(9, 5 + 4 * i, 11, 23 + 16 * i, bidirectional=i % 2 == 0, packed=i % 3 == 0, seed=i) for i in range(8)]
    kinds = ("lstm", "gru", "rnn")
    cases = [case.of(kinds[i % 3]) for i, case in enumerate(cases)]
    shared = [getattr(pykernels, name)(16, 48, 2) for name in MODULES]
    inputs = [torch.randn(12, 1 + i, 16) for i in range(8)]

    def work(index):
        found = run(functional, cases[index], torch.float32)
        with torch.no_grad():
            for name, module in zip(MODULES, shared, strict=True):
                found[name] = module(inputs[index])[0]
        return found

    expected = [work(index) for index in range(8)]
    start = threading.Barrier(8)

    def all_at_once(index):
        start.wait(30)
        for _ in range(6):
            assert_same_bits(work(index), expected[index])
        return True

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(job.result(timeout=120) for job in [pool.submit(all_at_once, index) for index in range(8)])


@every_module
def test_the_gil_is_released(cpu_only, name):
    """While a long call runs, another Python thread goes on counting."""
    module = getattr(pykernels, name)(256, 512, 2)
    x = torch.randn({"LSTM": 150, "GRU": 200, "RNN": 400}[name], 32, 256)
    begun, ended = threading.Event(), threading.Event()
    times = []

    def call():
        with torch.no_grad():
            begun.set()
            times.append(time.perf_counter())
            module(x)
            times.append(time.perf_counter())
        ended.set()

    worker = threading.Thread(target=call)
    worker.start()
    begun.wait(30)
    ticks = 0
    while not ended.is_set():
        time.sleep(0.001)
        ticks += 1
    worker.join()
    took = times[1] - times[0]
    assert took > 0.02, "the call is too short to tell"
    # Held for the whole call, the GIL would let through no more than the two ticks around it.
    assert ticks > 5, f"{ticks} ticks in {took:.3f} s"


@every_module
def test_an_error_in_one_thread_leaves_the_others(cpu_only, name):
    good, bad = (getattr(pykernels, name)(5, 6) for _ in range(2))
    x = torch.randn(7, 3, 5)
    expected = good(x)[0]

    def work(index):
        for _ in range(50):
            if index % 2:
                with pytest.raises(RuntimeError):
                    bad(x[..., :4])
            else:
                assert torch.equal(good(x)[0], expected)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for job in [pool.submit(work, index) for index in range(4)]:
            job.result(timeout=100)


# -- fork -------------------------------------------------------------------------------------------------------------
FORK = """
import os, signal, sys, torch, pykernels
torch.set_num_threads({threads})
# enough work for our threads, too little for torch's own operators to start theirs
module = pykernels.{name}({width}, {width})
x = torch.randn(20, 16, {width})
def step():
    module.zero_grad()
    output, _ = module(x)
    output.sum().backward()
    return output.detach(), module.weight_hh_l0.grad.clone()
expected = step()
torch.randn(1 << 20).sin()            # torch's and our threads exist before the fork
child = os.fork()
if child == 0:
    {in_child}
    signal.alarm(40)                  # a hang ends as a signal, which the parent reports
    same = all(torch.equal(a, b) for a, b in zip(step(), expected))
    os._exit(0 if same else 3)
_, status = os.waitpid(child, 0)
assert status == 0, f"the child ended with {{os.waitstatus_to_exitcode(status)}}"
assert all(torch.equal(a, b) for a, b in zip(step(), expected))
print("fine")
"""


IN_CHILD = {"as_it_is": "pass", "one_thread": "torch.set_num_threads(1)"}
FORKS = [("LSTM", count, how) for count in (1, 2, 4) for how in IN_CHILD]
FORKS += [(name, count, "as_it_is") for name in ("GRU", "RNN") for count in (2, 4)]


@pytest.mark.parametrize("name, count, how", FORKS)
def test_fork_does_not_hang(cpu_only, name, count, how):
    """os.fork after parallel work, without telling torch: the child computes the same bits and ends."""
    width = {"LSTM": 64, "GRU": 80, "RNN": 100}[name]
    done = python(FORK.format(name=name, width=width, threads=count, in_child=IN_CHILD[how]), timeout=100)
    assert done.stdout.strip() == "fine"


def test_one_openmp_in_the_process(cpu_only):
    """The import brings no second OpenMP runtime beside torch's."""
    done = python(
        """
import torch, pykernels
for kind in (pykernels.LSTM, pykernels.GRU, pykernels.RNN):
    kind(64, 128)(torch.randn(20, 16, 64))
with open("/proc/self/maps") as maps:
    libraries = {line.split()[-1] for line in maps if "omp" in line.split()[-1].rsplit("/")[-1] and ".so" in line}
print(len(libraries), libraries)
"""
    )
    assert done.stdout.split()[0] == "1", done.stdout
