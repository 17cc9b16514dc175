"""Interleaved timing, on a clock that the test owns."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import scipy.stats
import torch

from meanflow_ref.bench.interleaved import Timings, clock_for, interleave, median_interval


class FakeMachine:
    """A clock that steps advance, on a machine that grows slower all the while."""

    def __init__(self) -> None:
        self.now, self.load = 0.0, 1.0
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def step(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.log.append(name)
            self.now += seconds * self.load
            self.load *= 1.001

        return run


def test_pairing_cancels_the_drift_that_fools_separate_medians() -> None:
    machine = FakeMachine()
    steps = {"a": machine.step("a", 1.0), "b": machine.step("b", 2.0)}
    timings = interleave(steps, clock=machine.clock, rounds=400, warmup=0)
    # By the end the machine is 2.2 times slower; within a round it changed by 0.1 %.
    assert timings.ratio("b", "a").median == pytest.approx(2.0, rel=2e-3)
    first_b, last_a = timings.seconds["b"][0], timings.seconds["a"][-1]
    assert first_b / last_a < 1, "measured far apart, the slower method looks faster"


def test_every_round_runs_every_step_once_and_rotates_the_order() -> None:
    machine = FakeMachine()
    steps = {name: machine.step(name, 1.0) for name in "abc"}
    timings = interleave(steps, clock=machine.clock, rounds=3, warmup=1)
    assert "".join(machine.log) == "abc" + "abc" + "bca" + "cab"
    assert [len(seconds) for seconds in timings.seconds.values()] == [3, 3, 3]


def test_the_budget_ends_the_rounds_but_leaves_six(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    monkeypatch.setattr(time, "monotonic", machine.clock)
    timings = interleave({"a": machine.step("a", 1.0)}, clock=machine.clock, rounds=50, warmup=0, budget=2.5)
    assert len(timings.seconds["a"]) == 6
    timings = interleave({"a": machine.step("a", 1.0)}, clock=machine.clock, rounds=50, warmup=0, budget=20.0)
    assert 6 < len(timings.seconds["a"]) < 50


@pytest.mark.parametrize("n", [6, 7, 15, 16, 40, 101])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_interval_has_the_binomial_coverage(n: int, confidence: float) -> None:
    """Values 1..n: the ends tell the ranks k and n + 1 - k, whose coverage scipy's binomial knows."""
    interval = median_interval([float(i) for i in range(n, 0, -1)], confidence=confidence)
    k = int(interval.low)
    assert interval.high == n + 1 - k
    missed = 2 * scipy.stats.binom.cdf(k - 1, n, 0.5)
    assert interval.confidence == pytest.approx(1 - missed, abs=1e-12)
    if n > 8:
        assert missed <= 1 - confidence < 2 * scipy.stats.binom.cdf(k, n, 0.5), "k is the largest allowed"


def test_few_values_admit_their_confidence() -> None:
    three = median_interval([1.0, 2.0, 3.0])
    assert (three.low, three.median, three.high) == (1.0, 2.0, 3.0)
    assert three.confidence == pytest.approx(0.75)
    one = median_interval([5.0])
    assert (one.low, one.high, one.confidence) == (5.0, 5.0, 0.0)


def test_ratio_to_itself_is_one() -> None:
    timings = Timings({"a": [1.0, 3.0, 2.0]})
    assert timings.ratio("a", "a").low == timings.ratio("a", "a").high == 1.0
    assert timings.median("a") == 2.0


def test_clock_is_blind_to_other_programs_where_it_can_be() -> None:
    assert clock_for(torch.device("cpu")) is time.process_time
    torch.set_num_threads(2)
    assert clock_for(torch.device("cpu")) is time.perf_counter
