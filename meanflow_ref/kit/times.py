"""Are the times drawn as they are meant to be? Order, range, share of r = t, law, and what a batch has in common."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meanflow_ref.errors import NonFiniteError, ParameterError, ShapeError
from meanflow_ref.kit.calling import blame, describe, require_callable, seeded
from meanflow_ref.kit.diagnosis import CheckResult, Diagnosis, Report, Severity
from meanflow_ref.kit.finding import conclude, finding
from meanflow_ref.kit.times_law import Law, as_law, recognise
from meanflow_ref.kit.times_tests import Array, Mask, dependence, distance_bound, share_interval, uniform_distance
from meanflow_ref.objectives.times import AbstractTimePair

BATCHES, ROWS = 256, 256
# Probability, over all tests together, that a right law is called wrong.
FALSE_ALARM = 1e-6
_TESTS = 6

RETURNS = ("r, t", "t, r", "t, h", "h, t", "r, t, y", "t, r, y")


@dataclass(frozen=True)
class Draws:
    """Everything drawn, in the paper's direction: each ``(batches, rows)``."""

    r: Array
    t: Array
    null: Mask | None
    # Smallest distance of two times of the type that they were drawn in.
    resolution: float

    @property
    def equal(self) -> Mask:
        """Rows with r = t."""
        return np.asarray(self.r == self.t)


def check_times(
    sample_times: Callable[[int], Any],
    law: AbstractTimePair | tuple[Callable[[Any], Any], float] | None = None,
    *,
    returns: str = "r, t",
    data_at_one: bool = False,
    null_label: int | None = None,
    seed: int = 0,
) -> Report:
    """Check a law of times from 256 batches of 256 rows.

    A right law is called wrong with probability at most 1e-6 (over the seed; rows independent, or spread more evenly
    than independent ones). Without ``law`` only order, range, shares and dependence are judged, and the law is named.

    Args:
        sample_times: ``sample_times(n)`` returns n times r and n times t, tensors or arrays of any shape of n entries.
        law: What the times should follow: a law of :mod:`meanflow_ref.objectives.times`, or ``(cdf, equal)`` with the
            distribution function of one of the two draws and the share of r = t.
        returns: What it returns, in order: ``"r, t"``, ``"t, r"``, ``"t, h"``, and ``y`` for labels.
        data_at_one: Whether their t = 0 is noise; the law is then that of 1 - t.
        null_label: The label that stands for no class, with ``y``.
        seed: Of the global generators.

    Returns:
        A report of kind ``"times"``; ``measured`` holds shares, the law's name if recognised, and the distances.

    Raises:
        ParameterError: If an option is out of range or ``sample_times`` raised.
        ShapeError: If it returns something else than n times twice.
        NonFiniteError: If a time is NaN.

    """
    start = time.perf_counter()
    require_callable(sample_times, "`sample_times`", "sample_times(n) -> (r, t)")
    if returns not in RETURNS:
        raise ParameterError(f"returns={returns!r}.", f"one of {', '.join(map(repr, RETURNS))}", "")
    wanted = None if law is None else as_law(law)
    draws = _draw(sample_times, returns, data_at_one, null_label, seed)
    judge = _Judge(draws, wanted)
    judge.run()
    return conclude(
        describe(sample_times),
        "times",
        judge.checks,
        judge.diagnoses,
        variant=wanted is None and judge.measured["law"] is None,
        formula=judge.measured["law"],
        measured=judge.measured,
        seconds=time.perf_counter() - start,
    )


# ------------------------------------------------------------ drawing


def _draw(sample: Callable[[int], Any], returns: str, data_at_one: bool, null_label: int | None, seed: int) -> Draws:
    letters = returns.split(", ")
    if ("y" in letters) != (null_label is not None):
        raise ParameterError(
            f"returns={returns!r} with null_label={null_label}.", "labels and the null label together", ""
        )
    parts: list[list[Array]] = [[] for _ in letters]
    resolution = 0.0
    with seeded(seed), blame(f"sample_times({ROWS})"):
        for _ in range(BATCHES):
            batch = sample(ROWS)
            if not isinstance(batch, tuple | list) or len(batch) != len(letters):
                raise ShapeError(
                    f"sample_times({ROWS}) returned {_described(batch)}.",
                    f"({returns}), as returns={returns!r} says",
                    "returns= one of " + ", ".join(map(repr, RETURNS)),
                )
            for part, values in zip(parts, batch, strict=True):
                part.append(_row(values))
            resolution = max(resolution, _resolution(batch[0]))
    values = dict(zip(letters, map(np.stack, parts), strict=True))
    t = values["t"]
    r = values["r"] if "r" in values else t - values["h"]
    if data_at_one:
        r, t = 1 - r, 1 - t
    null = values["y"] == null_label if "y" in values else None
    if np.isnan(r).any() or np.isnan(t).any():
        raise NonFiniteError("a time is NaN.", "times in [0, 1]", "look at how the times are drawn")
    return Draws(r, t, null, resolution)


def _row(values: Any) -> Array:
    array = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values, dtype=float)
    if array.size == 1:
        # One time for the whole batch; reported as such below.
        return np.full(ROWS, float(array.reshape(-1)[0]))
    if array.size != ROWS:
        raise ShapeError(f"sample_times({ROWS}) returned times of shape {array.shape}.", f"{ROWS} entries", "")
    return array.reshape(-1).astype(np.float64)


def _resolution(values: Any) -> float:
    if isinstance(values, Tensor) and values.is_floating_point():
        return float(torch.finfo(values.dtype).eps)
    return float(np.finfo(getattr(values, "dtype", np.float64)).eps)


def _described(batch: Any) -> str:
    if isinstance(batch, Tensor | np.ndarray):
        return f"one {type(batch).__name__} of shape {tuple(batch.shape)}"
    return f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, tuple | list) else type(batch).__name__


# ------------------------------------------------------------ judging


class _Judge:
    """Runs the tests in order and keeps what they found."""

    def __init__(self, draws: Draws, law: Law | None) -> None:
        self.draws, self.law = draws, law
        self.checks: list[CheckResult] = []
        self.diagnoses: list[Diagnosis] = []
        self.measured: dict[str, Any] = {"rows": int(draws.t.size), "false_alarm": FALSE_ALARM, "law": None}
        self.alarm = FALSE_ALARM / _TESTS

    def run(self) -> None:
        self._range()
        self._order()
        self._share()
        self._batches()
        self._labels()
        self._law()

    def _note(self, name: str, found: list[Diagnosis], detail: str) -> None:
        status = "passed"
        if found:
            status = "failed" if any(one.severity == "wrong" for one in found) else "noted"
        self.checks.append(CheckResult(name, status, detail))  # type: ignore[arg-type]
        self.diagnoses += found

    def _range(self) -> None:
        low = float(min(self.draws.r.min(), self.draws.t.min()))
        high = float(max(self.draws.r.max(), self.draws.t.max()))
        outside = float(((self.draws.t < 0) | (self.draws.t > 1) | (self.draws.r < 0) | (self.draws.r > 1)).mean())
        found = []
        if outside:
            seen = f"times range over [{low:.4g}, {high:.4g}], {100 * outside:.3g} % of rows outside [0, 1]"
            found = [finding("TIMES_OUT_OF_RANGE", seen, "times in [0, 1]")]
        self.measured["range"] = [low, high]
        self._note("times in [0, 1]", found, f"[{low:.4g}, {high:.4g}]")

    def _order(self) -> None:
        wrong = float((self.draws.r > self.draws.t).mean())
        found = []
        if wrong:
            remedy = 'check_times(..., returns="t, r") if that is their order' if wrong > 0.99 * self._unequal() else ""
            seen = f"r > t in {100 * wrong:.3g} % of rows"
            found = [finding("R_GREATER_THAN_T", seen, "r <= t in every row", remedy=remedy)]
        self.measured["r_greater_than_t"] = wrong
        self._note("r <= t", found, f"r > t in {100 * wrong:.3g} % of rows")

    def _unequal(self) -> float:
        return float((~self.draws.equal).mean())

    def _share(self) -> None:
        count, n = int(self.draws.equal.sum()), self.draws.equal.size
        share = count / n
        self.measured["equal_share"] = share
        wanted = None if self.law is None else self.law.equal
        found = []
        if share == 1 and wanted != 1:
            found.append(finding("NEVER_R_NEQ_T", f"r = t in all {n} rows", "rows with r < t, which train u"))
        if count == 0 and wanted != 0:
            found.append(finding("NEVER_R_EQ_T", f"r = t in none of {n} rows", "a share of rows with r = t"))
        if wanted is not None and not (found and found[0].name == "NEVER_R_NEQ_T"):
            found += self._share_against(wanted, count, n)
        self._note("share of r = t", found, f"{100 * share:.3g} % of {n} rows")

    def _share_against(self, wanted: float, count: int, n: int) -> list[Diagnosis]:
        low, high = self._share_bounds(count, n)
        # Rounding to a coarse type makes some pairs equal that were not.
        ties = 4 * self.draws.resolution * (1 - wanted)
        if low - ties <= wanted <= high:
            return []
        seen = f"r = t in {100 * count / n:.3g} % of rows (true share in [{low:.4f}, {high:.4f}])"
        expected = f"{100 * wanted:.3g} %"
        if low - ties <= 1 - wanted <= high:
            return [finding("RATIO_INVERTED", seen, f"{expected}: this is the share of r != t")]
        return [finding("RATIO_MISMATCH", seen, expected)]

    def _share_bounds(self, count: int, n: int) -> tuple[float, float]:
        """Bounds of the true share; batches are the sample where whole batches agree, and exact shares are rounded."""
        if self._whole_batches():
            n = BATCHES
            count = round(count / ROWS)
        low, high = share_interval(count, n, self.alarm)
        return max(0.0, low - 1 / ROWS), min(1.0, high + 1 / ROWS)

    def _whole_batches(self) -> bool:
        shares = self.draws.equal.mean(1)
        return bool(((shares == 0) | (shares == 1)).all() and shares.min() < shares.max())

    def _shared_times(self) -> bool:
        return bool((self.draws.t == self.draws.t[:, :1]).all())

    def _batches(self) -> None:
        found = []
        detail = "rows are drawn one by one"
        if self._shared_times() and np.ptp(self.draws.t) > 0:
            detail = "all rows of a batch have one t"
            seen = f"one t for all {ROWS} rows of each of {BATCHES} batches"
            found = [finding("PER_BATCH_COIN", seen, "a time of its own for every row")]
        elif self._whole_batches():
            detail = "r = t in whole batches"
            seen = f"in each of {BATCHES} batches r = t in all rows or in none"
            found = [finding("PER_BATCH_COIN", seen, "rows of both kinds in one batch")]
        elif bool((self.draws.t == self.draws.t[:1]).all()):
            detail = "all batches are the same"
            found = [finding("LAW_MISMATCH", f"all {BATCHES} batches are the same", "new times in every call")]
        self._note("rows of one batch", found, detail)

    def _labels(self) -> None:
        equal = self.draws.equal
        by_index = bool((equal == equal[:1]).all()) and 0 < equal.mean() < 1
        self.measured["equal_rows"] = "the same rows of every batch" if by_index else "random rows"
        if self.draws.null is None:
            found = []
            if by_index:
                seen = f"r = t in the same {int(equal[0].sum())} rows of every batch"
                expected = "random rows, or labels dropped in random rows: dropped by index they would coincide"
                found = [finding("MASKS_CORRELATED", seen, expected, severity="note")]
            self._note("r = t independent of the row", found, self.measured["equal_rows"])
            return
        null = self.draws.null
        moving = float((~equal)[null].mean()) if null.any() else float("nan")
        self.measured["unequal_share_of_null_rows"] = moving
        p_value = dependence(equal.reshape(-1), null.reshape(-1))
        found = []
        if p_value < self.alarm:
            seen = f"r != t in {100 * moving:.3g} % of rows without a class, {100 * self._unequal():.3g} % of all"
            found = [finding("MASKS_CORRELATED", seen, "the same share in both: two independent masks")]
        self._note("r = t independent of dropped labels", found, f"r != t in {100 * moving:.3g} % of null rows")

    def _law(self) -> None:
        t, r, equal = self._sample()
        self.measured["law"] = recognise(t, r, equal, self.alarm)
        if self.law is None:
            detail = self.measured["law"] or "none that has a name here"
            self.checks.append(
                CheckResult("law", "skipped", f"no law was given to compare with; it looks like {detail}")
            )
            return
        if any(one.name in {"TIMES_OUT_OF_RANGE", "R_GREATER_THAN_T"} for one in self.diagnoses):
            self.checks.append(CheckResult("law", "skipped", "times out of range or out of order"))
            return
        parts = {"t where r < t": t[~equal], "t where r = t": t[equal]}
        values = {name: self.law.cdf_t(x) for name, x in parts.items()}
        below = np.maximum(self.law.cdf(t[~equal]), 1e-300)
        values["r given t"] = np.clip(self.law.cdf(r[~equal]) / below, 0, 1)
        found = []
        lines = []
        for name, uniform in values.items():
            if len(uniform) < 30:
                continue
            distance = uniform_distance(uniform)
            bound = distance_bound(len(uniform), self.alarm) + 4 * self.draws.resolution
            self.measured[f"distance: {name}"] = distance
            lines.append(f"{name} {distance:.3f} <= {bound:.3f}" if distance <= bound else f"{name} {distance:.3f}")
            if distance > bound:
                seen = f"{name}: distance {distance:.3f} from the law's distribution function (bound {bound:.3f})"
                looks = f"; the times look like {self.measured['law']}" if self.measured["law"] else ""
                # A single draw in the rows with r = t is a legal choice: these rows train v, at other times.
                single = name == "t where r = t" and uniform_distance(self.law.cdf(parts[name])) <= bound
                severity: Severity = "note" if single else "wrong"
                expected = f"{self.law.name}, within sampling error"
                found.append(finding("LAW_MISMATCH", seen + looks, expected, severity=severity))
        self._note("law", sorted(found, key=lambda one: one.severity != "wrong")[:1], "; ".join(lines))

    def _sample(self) -> tuple[Array, Array, Mask]:
        """Independent rows: one a batch where a batch shares its time."""
        columns = slice(0, 1) if self._shared_times() else slice(None)
        t, r = self.draws.t[:, columns].reshape(-1), self.draws.r[:, columns].reshape(-1)
        equal = self.draws.equal[:, columns].reshape(-1)
        inside = (r >= 0) & (r <= t) & (t <= 1)
        return t[inside], r[inside], equal[inside]
