"""The law that times should follow, and the name of the law that they do follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import special

from meanflow_ref.errors import ParameterError
from meanflow_ref.kit.times_tests import Array, Mask, distance_bound, through, uniform_distance
from meanflow_ref.objectives.times import AbstractTimePair


@dataclass(frozen=True)
class Law:
    """A sorted pair of two independent draws, with r = t in a share of the rows.

    Attributes:
        name: For messages.
        single: Distribution function of one draw.
        equal: Share of r = t.

    """

    name: str
    single: Callable[[Array], Array]
    equal: float

    def cdf(self, x: Array) -> Array:
        """Distribution function of one draw."""
        return through(self.single, x)

    def cdf_t(self, x: Array) -> Array:
        """That of t, the larger of two."""
        return self.cdf(x) ** 2


def as_law(law: object) -> Law:
    """A law from what the user gave.

    Raises:
        ParameterError: If it is neither a time law nor ``(cdf, equal)``, or the function is no distribution function.

    """
    if isinstance(law, AbstractTimePair):

        def single(x: Array) -> Array:
            return law.cdf(torch.from_numpy(np.ascontiguousarray(x))).numpy()

        return Law(repr(law), single, law.equal_share)
    if isinstance(law, tuple) and len(law) == 2 and callable(law[0]) and isinstance(law[1], int | float):
        return _from_function(law[0], float(law[1]))
    raise ParameterError(
        f"law={law!r}.",
        "a law of meanflow_ref.objectives.times, or (cdf, equal) with the distribution function of one draw",
        "law=meanflow_ref.LogitNormalPair(-0.4, 1.0, equal=0.75)",
    )


def _from_function(cdf: Callable[[Any], Any], equal: float) -> Law:
    grid = np.linspace(0, 1, 65)
    values = np.asarray(cdf(grid), dtype=float)
    lawful = values.shape == grid.shape and abs(values[0]) < 1e-6 and abs(values[-1] - 1) < 1e-6
    if not lawful or (np.diff(values) < -1e-9).any():
        raise ParameterError("the law's function is no distribution function on [0, 1].", "0 at 0, rising, 1 at 1", "")
    if not 0 <= equal <= 1:
        raise ParameterError(f"the law's share of r = t is {equal}.", "a share, in [0, 1]", "")
    return Law(f"the given law with equal={equal:g}", cdf, equal)


def recognise(t: Array, r: Array, equal: Mask, alarm: float) -> str | None:
    """Name of a known law that the rows with r < t agree with (those with r = t, where there are no others)."""
    rows = ~equal if (~equal).sum() >= 30 else equal
    t, r = t[rows], r[rows]
    if len(t) < 30:
        return None
    inner = (t > 0) & (t < 1)
    # The logits of two sorted draws together are those of two unsorted ones.
    both = np.concatenate([t[inner], r[inner & (r > 0)]])
    logits = special.logit(both[(both > 0) & (both < 1)])
    mean, std = (float(logits.mean()), float(logits.std())) if len(logits) else (0.0, 1.0)
    mean, std = round(mean, 1), max(round(std, 1), 0.1)
    singles: dict[str, Callable[[Array], Array]] = {
        "uniform": lambda x: x,
        f"logit-normal({mean:g}, {std:g})": lambda x: special.ndtr((special.logit(x) - mean) / std),
    }
    bound = distance_bound(len(t), alarm) + 1e-3
    for name, single in singles.items():
        first, last = through(single, r), through(single, t)
        share = np.clip(first / np.maximum(last, 1e-300), 0, 1)
        if (~equal).sum() < 30:
            for kind, values in (("single draw", last), ("larger of two draws", last**2)):
                if uniform_distance(values) <= bound:
                    return f"{name}, {kind}, r = t"
        elif max(uniform_distance(last**2), uniform_distance(share)) <= bound:
            return f"{name}, sorted pair"
        elif uniform_distance(np.clip(r / np.maximum(t, 1e-300), 0, 1)) <= bound:
            for kind, values in (("t", last), ("t, the larger of two draws,", last**2)):
                if uniform_distance(values) <= bound:
                    return f"{name} {kind} and r uniform on [0, t]"
    return None
