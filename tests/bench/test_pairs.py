"""The pairing of timings: arithmetic, order, and when it stops. No test here looks at how fast anything is."""

from __future__ import annotations

import gc

import pytest

from bench.pairs import Pairing, Plan, Ratio, fastest, geometric_mean, measure, quartiles, repeats_for

INSTANT = Plan(budget=5.0, sample=0.01, settle=0.0, min_rounds=4, max_rounds=8, precision=0.01)


class Clock:
    """A timer that only pretends: each callable's call costs what the table says."""

    def __init__(self, costs: dict) -> None:
        self.costs, self.asked = costs, []

    def __call__(self, work, calls: int) -> float:
        work()
        self.asked.append(work)
        return self.costs[work] * calls


def test_ratio_is_the_median_of_the_pairs():
    ratio = Ratio.of([1.0, 2.0, 4.0], [2.0, 8.0, 4.0])
    assert (ratio.median, ratio.low, ratio.high, ratio.rounds) == (2.0, 1.5, 3.0, 3)


def test_ratio_differs_from_the_ratio_of_medians():
    """Noise that meets both timings of a pair leaves the ratio alone."""
    ours, noise = [1.0, 1.1, 0.9], [1.0, 7.0, 3.0]
    slowed = [time * factor for time, factor in zip(ours, noise, strict=True)]
    assert Ratio.of(slowed, [2 * time for time in slowed]).median == pytest.approx(2.0)


@pytest.mark.parametrize(("ours", "peer"), [([], []), ([1.0], [1.0, 2.0])])
def test_ratio_of_unpaired_timings_is_an_error(ours, peer):
    with pytest.raises(ValueError, match=r"\[Ratio.of\] expected equally many timings"):
        Ratio.of(ours, peer)


def test_best_peer_has_the_smallest_median():
    pairing = Pairing({"ours": [1.0, 1.0, 1.0], "slow": [3.0, 3.0, 0.1], "fast": [2.0, 2.0, 9.0]})
    assert pairing.ours == "ours"
    assert pairing.peers == ["slow", "fast"]
    assert pairing.best_peer() == "fast"
    assert pairing.ratio("fast").median == 2.0


def test_quartiles_and_geometric_mean():
    assert quartiles([5.0]) == (5.0, 5.0, 5.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    assert geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)


def test_rounds_alternate_and_stop_when_certain():
    works = {"ours": lambda: None, "peer": lambda: 1}
    clock = Clock({works["ours"]: 0.01, works["peer"]: 0.03})
    pairing = measure(works, INSTANT, clock)
    assert pairing.ratio("peer").median == pytest.approx(3.0)
    assert pairing.ratio("peer").rounds == INSTANT.min_rounds
    timed = clock.asked[-4 * INSTANT.min_rounds :: 2]  # each timing has an untimed one before it
    names = ["ours" if work is works["ours"] else "peer" for work in timed]
    assert names == ["ours", "peer", "peer", "ours"] * (INSTANT.min_rounds // 2)


def test_rounds_end_with_the_budget():
    works = {"ours": lambda: None, "peer": lambda: 1}
    plan = Plan(budget=0.0, sample=0.01, settle=0.0, min_rounds=50, max_rounds=99)
    assert measure(works, plan, Clock(dict.fromkeys(works.values(), 0.01))).ratio("peer").rounds == 3


def test_samples_are_filled_with_calls():
    def work():
        return None

    assert repeats_for(work, INSTANT, Clock({work: 1e-5})) == 1000
    assert repeats_for(work, INSTANT, Clock({work: 1.0})) == 1


def test_garbage_collection_is_off_while_timing_and_on_again():
    seen = []
    measure({"ours": lambda: seen.append(gc.isenabled())}, Plan(0.0, 1e-6, 0.0))
    assert seen[-1] is False
    assert gc.isenabled()


def test_fastest_way_is_found():
    quick, slow = (lambda: None), (lambda: sum(range(20000)))
    assert fastest({"slow": slow, "quick": quick}, Plan(0.5, 1e-4, 0.0)) == "quick"
