"""Timing callables against one another, fairly: in one process, in turn, ratio by pair.

A round times every callable once, one directly after the other, so both numbers of a pair met the same clock, the same
neighbours and the same temperature. The answer is the median over the rounds of the ratio `peer / ours` (above 1: ours
is faster) with its quartiles; medians of the times themselves are kept for the record only.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

Work = Callable[[], object]
Timer = Callable[[Work, int], float]  # seconds that so many calls take


@dataclass(frozen=True)
class Plan:
    """How long a row may take, and how finely it is measured (seconds unless said otherwise)."""

    budget: float = 8.0  # wall time of all rounds of one row
    sample: float = 4e-3  # one timing repeats its callable until it lasts about this long
    settle: float = 8e-3  # pause before a timing: a thread pool still spinning from the previous callable goes to sleep
    min_rounds: int = 9
    max_rounds: int = 121
    precision: float = 0.004  # stop early once the median ratio is known this well (standard error, relative)

    def quick(self) -> Plan:
        """A tenth of the time, for development."""
        return Plan(self.budget / 8, self.sample / 2, self.settle / 2, 5, 31, 0.02)


@dataclass(frozen=True)
class Ratio:
    """Median of `peer / ours` over the rounds, its quartiles, and how many rounds there were."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, ours: Sequence[float], peer: Sequence[float]) -> Ratio:
        """Ratios of neighbouring timings, summarised. Raises ValueError when the two do not pair up."""
        if len(ours) != len(peer) or not ours:
            raise ValueError(f"[Ratio.of] expected equally many timings, at least one, got {len(ours)} and {len(peer)}")
        ratios = [theirs / mine for mine, theirs in zip(ours, peer, strict=True)]
        low, middle, high = quartiles(ratios)
        return cls(middle, low, high, len(ratios))

    @property
    def standard_error(self) -> float:
        """Relative standard error of the median, estimated from the quartiles (1.25 * IQR / 1.35 / sqrt(n))."""
        return 1.25 * (self.high - self.low) / 1.349 / math.sqrt(self.rounds) / self.median


@dataclass
class Pairing:
    """Timings of one row: seconds per call, round by round; the first name is ours."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def ours(self) -> str:
        return next(iter(self.seconds))

    @property
    def peers(self) -> list[str]:
        return list(self.seconds)[1:]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, peer: str) -> Ratio:
        return Ratio.of(self.seconds[self.ours], self.seconds[peer])

    def best_peer(self) -> str:
        """The fastest peer by median time: the one that the row is judged against."""
        return min(self.peers, key=self.median)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile (a single value is all three)."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def wall_clock(work: Work, calls: int) -> float:
    """Seconds for that many calls, on the processor's clock."""
    clock = time.perf_counter
    begin = clock()
    for _ in range(calls):
        work()
    return clock() - begin


def measure(callables: Mapping[str, Work], plan: Plan, timer: Timer = wall_clock) -> Pairing:
    """Times the callables in alternating rounds until the ratios are known well enough or the budget is spent."""
    pairing = Pairing({name: [] for name in callables})
    deadline = time.perf_counter() + plan.budget
    repeats = {name: repeats_for(work, plan, timer) for name, work in callables.items()}
    order = list(callables)
    with _no_garbage_collection():
        for _ in range(plan.max_rounds):
            for name in order:
                pairing.seconds[name].append(sample(callables[name], repeats[name], plan, timer))
            order.reverse()  # each round runs in the opposite order, so that going first is nobody's advantage
            if _enough(pairing, plan, deadline):
                break
    return pairing


def fastest(candidates: Mapping[str, Work], plan: Plan) -> str:
    """The quickest of several ways to do the same thing, from a few rounds: how a peer is called at its cheapest."""
    short = Plan(plan.budget / 8, plan.sample / 2, plan.settle, 3, 9, 0.02)
    pairing = measure(candidates, short)
    return min(pairing.seconds, key=pairing.median)


def repeats_for(work: Work, plan: Plan, timer: Timer = wall_clock) -> int:
    """Warms the callable up and says how many calls fill one sample."""
    work()
    calls = 1
    while (elapsed := timer(work, calls)) < plan.sample / 4 and calls < 1 << 16:
        calls *= 4
    return max(1, round(calls * plan.sample / elapsed))


def sample(work: Work, repeats: int, plan: Plan, timer: Timer = wall_clock) -> float:
    """Seconds per call: pause, bring threads and caches back with untimed calls, then time `repeats` calls."""
    time.sleep(plan.settle)
    timer(work, max(1, repeats // 4))
    return timer(work, repeats) / repeats


def _enough(pairing: Pairing, plan: Plan, deadline: float) -> bool:
    rounds = len(pairing.seconds[pairing.ours])
    if rounds < 3:
        return False
    if time.perf_counter() > deadline:
        return True
    if rounds < plan.min_rounds:
        return False
    return all(pairing.ratio(peer).standard_error < plan.precision for peer in pairing.peers or [pairing.ours])


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
