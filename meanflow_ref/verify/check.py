"""A check of the main job: a name, a function that measures, and the bound that the measurement must keep."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Check:
    """One row of the table.

    ``measure`` returns one number and must be picklable (a module-level function or a partial of one), since checks
    may run in a worker process. ``sense`` says which side of ``bound`` is good: ``"<="`` for an error, ``">="`` for a
    mutant, which must be *seen*.
    """

    group: str
    name: str
    measure: Callable[[], float]
    bound: float
    sense: Literal["<=", ">="] = "<="
    note: str = ""


@dataclass(frozen=True)
class Result:
    """What a check observed."""

    group: str
    name: str
    observed: float
    bound: float
    sense: str
    note: str
    seconds: float
    error: str = field(default="")

    @property
    def ok(self) -> bool:
        """Whether the bound holds; a NaN or an exception is a failure."""
        if self.error or math.isnan(self.observed):
            return False
        return self.observed <= self.bound if self.sense == "<=" else self.observed >= self.bound

    @property
    def margin(self) -> float:
        """How many times better than the bound; at least 1 where the check holds, infinite for an error of 0."""
        good, bad = (self.bound, self.observed) if self.sense == "<=" else (self.observed, self.bound)
        if good == bad:
            return 1.0
        return math.inf if bad == 0 else good / bad


def run_check(check: Check) -> Result:
    """Run one check; an exception becomes a failed result, so that one broken check does not hide the others."""
    start = time.perf_counter()
    observed, error = math.nan, ""
    try:
        observed = float(check.measure())
    except Exception:
        error = traceback.format_exc(limit=-4)
    return Result(
        check.group,
        check.name,
        observed,
        check.bound,
        check.sense,
        check.note,
        time.perf_counter() - start,
        error,
    )
