"""Interleaved timing: ratios between methods that a noisy machine cannot fake.

On a shared machine, methods timed one after another come out alike, since the machine changes more between the
blocks than the methods differ. Here every round runs every method once, each round starts with another one, and a
ratio is taken within a round, where both methods saw the same machine. The median of these ratios is reported with
an interval from their order statistics, which assumes only that rounds are independent.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Clock = Callable[[], float]


@dataclass(frozen=True)
class Ratio:
    """Median of paired ratios, inside ``[low, high]`` with probability ``confidence`` at least."""

    median: float
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Timings:
    """Seconds of every method in every round: ``seconds[name][round]``."""

    seconds: Mapping[str, Sequence[float]]

    def ratio(self, name: str, base: str, *, confidence: float = 0.95) -> Ratio:
        """Time of ``name`` over time of ``base``, paired by round."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return median_interval([a / b for a, b in pairs], confidence=confidence)

    def median(self, name: str) -> float:
        """Median seconds of ``name``; bound to this machine and this hour."""
        return statistics.median(self.seconds[name])


def median_interval(values: Sequence[float], *, confidence: float = 0.95) -> Ratio:
    """Sample median with the order-statistic interval of the population median.

    The interval ``[x_(k), x_(n+1-k)]`` misses the median with probability ``2 P(Binomial(n, 1/2) < k)``, whatever the
    distribution; k is the largest that keeps this below ``1 - confidence``. With too few values for the confidence
    asked (under 6 for 95 %), the interval is the range, and the confidence reported is what it has.
    """
    ordered, n = sorted(values), len(values)
    k, missed = 1, 2 * 0.5**n
    while k < (n + 1) // 2:
        more = missed + 2 * math.comb(n, k) * 0.5**n
        if more > 1 - confidence:
            break
        k, missed = k + 1, more
    return Ratio(statistics.median(ordered), ordered[k - 1], ordered[n - k], max(0.0, 1 - missed))


def clock_for(device: torch.device) -> Clock:
    """The clock that disturbs least: CPU time on one CPU thread, else wall time, after a CUDA device is idle."""
    if device.type == "cuda":

        def synchronised() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return synchronised
    # CPU time of one thread is blind to what other programs take; with more threads it adds them up instead.
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def interleave(
    steps: Mapping[str, Callable[[], object]],
    *,
    clock: Clock,
    rounds: int = 15,
    warmup: int = 2,
    budget: float = math.inf,
) -> Timings:
    """Run every step once a round, the order rotated by one from round to round.

    Args:
        steps: Name -> what to time.
        clock: Seconds since some origin; see :func:`clock_for`.
        rounds: Rounds at most.
        warmup: Rounds that are run first and not timed.
        budget: Wall-clock seconds after which no further round begins, once there are six.

    """
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(warmup):
        for name in names:
            steps[name]()
    start = time.monotonic()
    for index in range(rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(_time_once(steps[name], clock))
        if index >= 5 and time.monotonic() - start > budget:
            break
    return Timings(seconds)


def _time_once(step: Callable[[], object], clock: Clock) -> float:
    """Seconds of one run, without the garbage collector's."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        before = clock()
        step()
        return clock() - before
    finally:
        if collecting:
            gc.enable()
