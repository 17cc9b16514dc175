r"""The tests of a time law, each with a false-alarm probability that is a theorem and not an approximation.

Distribution functions by the Dvoretzky-Kiefer-Wolfowitz inequality with Massart's constant,
:math:`P(\sup|F_n-F|>\varepsilon)\le 2e^{-2n\varepsilon^2}` for independent rows of any law; shares by Clopper and
Pearson's exact binomial bounds; independence of two masks by the hypergeometric law given the margins.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def uniform_distance(values: Array) -> float:
    """Largest distance of the empirical distribution function from that of the uniform law on [0, 1]."""
    x = np.sort(values)
    n = len(x)
    steps = np.arange(n + 1) / n
    return float(max((steps[1:] - x).max(), (x - steps[:-1]).max()))


def distance_bound(n: int, alarm: float) -> float:
    """What the distance of ``n`` independent draws exceeds with probability at most ``alarm``."""
    return math.sqrt(math.log(2 / alarm) / (2 * n))


def share_interval(count: int, n: int, alarm: float) -> tuple[float, float]:
    """Exact confidence interval of a share; it misses the true one with probability at most ``alarm``."""
    low = float(stats.beta.ppf(alarm / 2, count, n - count + 1)) if count else 0.0
    high = float(stats.beta.ppf(1 - alarm / 2, count + 1, n - count)) if count < n else 1.0
    return low, high


def dependence(a: Mask, b: Mask) -> float:
    """Two-sided p-value of independence of two masks given how many rows each has: Fisher's exact test."""
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    return float(stats.fisher_exact(table).pvalue)


def through(cdf: Callable[[Array], Array], x: Array) -> Array:
    """``cdf(x)`` in float64, inside [0, 1]."""
    return np.clip(np.asarray(cdf(x), dtype=np.float64), 0.0, 1.0)
