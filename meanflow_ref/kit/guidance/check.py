"""The guidance check: the measured weights against the stated scales."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from meanflow_ref.convention.grammar import parse_call, parse_returns
from meanflow_ref.errors import ParameterError
from meanflow_ref.kit.calling import describe, require_callable
from meanflow_ref.kit.diagnosis import CheckResult, Diagnosis, Report
from meanflow_ref.kit.finding import conclude, finding
from meanflow_ref.kit.guidance.weights import Weights, weights_of
from meanflow_ref.kit.loss.measure import Measured, measure
from meanflow_ref.kit.loss.run import EVENTS, Target
from meanflow_ref.objectives.guidance import Guidance

# Agreement of weights that is called equal; scales of different conventions differ by far more.
SAME = 1e-3
# Batches, so that rows with r = t, dropped labels and times on either side of an interval all occur.
BATCHES = 3


def check_guidance(
    loss: Callable[..., Any],
    call: str = "z, r, t, y",
    *,
    omega: float,
    kappa: float = 0.0,
    interval: tuple[float, float] = (0.0, 1.0),
    null_label: int | None = None,
    returns: str = "u",
    shape: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float64,
    attributes: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Report:
    """Check the guided target of a loss: ``omega v + kappa u(z,t,t|c) + (1 - omega - kappa) u(z,t,t)``. Source: mf:21.

    Another split with the same effective scale ``omega/(1 - kappa)`` is a variant, not a failure.

    Args:
        loss: ``loss(model, x, y)`` with integer labels 0 to 9.
        call: How it calls the network; with ``y``.
        omega: Stated weight of the sample velocity.
        kappa: Stated weight of the conditional network, below 1.
        interval: Times t that are meant to be guided.
        null_label: The label for no class; found by itself where a call has it in all rows.
        returns: What the network returns.
        shape: Shape of one event; a small one by default.
        dtype: Of the data.
        attributes: What the loss asks the network for besides calling it.
        seed: Of data, times and noise.

    Returns:
        A report of kind ``"guidance"``; ``measured`` holds the weights of guided and of null rows.

    Raises:
        ParameterError: If a scale is out of range or the loss raised.
        NetworkError: If the loss cannot be measured: no labels, no gradient, an unknown path.

    """
    start = time.perf_counter()
    require_callable(loss, "the loss", "loss(model, x, y)")
    # Asserts the scales' laws.
    Guidance(omega, kappa, null_label=10 if null_label is None else null_label, interval=interval)
    spec = parse_call(call)
    if "y" not in spec.letters:
        raise ParameterError(f'call="{call}" has no label.', "the letter `y`", f'call="{call}, y"')
    outputs, is_tuple = parse_returns(returns)
    event = tuple(shape) if shape is not None else EVENTS[0]
    target = Target(loss, spec, outputs, is_tuple, event, True, dtype, attributes or {}, seed)
    seeds = [100 * batch for batch in range(BATCHES)]
    measured = [measure(target, seed=one) for one in seeds]
    weights = _joined([weights_of(one, null_label, seed) for one, seed in zip(measured, seeds, strict=True)])
    judge = _Judge(weights, omega, kappa, interval, measured[0])
    judge.run()
    return conclude(
        describe(loss),
        "guidance",
        judge.checks,
        judge.diagnoses,
        variant=judge.variant,
        inconclusive=judge.inconclusive,
        measured=judge.measured,
        seconds=time.perf_counter() - start,
    )


def _joined(parts: Sequence[Weights]) -> Weights:
    names = (
        "v",
        "conditional",
        "null",
        "other",
        "tangent_v",
        "tangent_conditional",
        "tangent_null",
        "t",
        "equal",
        "dropped",
    )
    known = [part.null_label for part in parts if part.null_label is not None]
    return Weights(
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in names},
        null_label=known[0] if known else None,
    )


class _Judge:
    """Compares, in the order in which one mistake hides another."""

    def __init__(
        self, w: Weights, omega: float, kappa: float, interval: tuple[float, float], measured: Measured
    ) -> None:
        self.w, self.omega, self.kappa, self.interval = w, omega, kappa, interval
        self.where = measured.main.where
        self.checks: list[CheckResult] = []
        self.diagnoses: list[Diagnosis] = []
        self.measured: dict[str, Any] = {"null_label": w.null_label, "rows": len(w.t)}
        self.variant = self.inconclusive = False

    def run(self) -> None:
        w = self.w
        network = torch.stack([w.conditional, w.null, w.other]).abs().amax(0)
        self.guided = ((w.v - 1).abs() > SAME) | (network > SAME)
        classed = ~w.dropped
        inside = (w.t >= self.interval[0]) & (w.t <= self.interval[1]) & classed
        if self._lost_where_equal(inside):
            inside = inside & ~w.equal
        if self._off_interval(classed):
            inside = inside & self.guided
        self._scales(inside)
        self._tangent(inside & self.guided)
        self._null_rows()

    def _add(self, name: str, found: Diagnosis | None, detail: str = "") -> None:
        status = "passed" if found is None else "failed" if found.severity == "wrong" else "noted"
        self.checks.append(CheckResult(name, status, detail))  # type: ignore[arg-type]
        if found is not None:
            self.diagnoses.append(found)

    def _lost_where_equal(self, inside: Tensor) -> bool:
        equal, unequal = inside & self.w.equal, inside & ~self.w.equal
        if not bool(equal.any()) or not bool(unequal.any()):
            self.checks.append(CheckResult("rows with r = t", "skipped", "only one kind of row was drawn"))
            return False
        lost = bool(self.guided[unequal].all()) and not bool(self.guided[equal].any())
        seen = f"v alone in all {int(equal.sum())} rows with r = t, guided in all rows with r < t"
        expected = "the same guided velocity in both: u(z, t, t) is the guided v that the null branch is read from"
        found = finding("GUIDANCE_LOST_ON_R_EQ_T", seen, expected, where=self.where) if lost else None
        self._add("rows with r = t", found, f"{int(equal.sum())} rows")
        return lost

    def _off_interval(self, classed: Tensor) -> bool:
        w, (low, high) = self.w, self.interval
        rows = classed & ~w.equal if any(one.name == "GUIDANCE_LOST_ON_R_EQ_T" for one in self.diagnoses) else classed
        wanted = (w.t >= low) & (w.t <= high)
        if not bool(self.guided[rows].any()):
            self._add("interval", None, "nothing is guided")
            return False
        off = rows & (self.guided != wanted)
        found = None
        if bool(off.any()):
            times = w.t[rows & self.guided]
            seen = f"{int(off.sum())} of {int(rows.sum())} rows; guided for t in [{float(times.min()):.3f}, "
            seen += f"{float(times.max()):.3f}]"
            found = finding("GUIDANCE_INTERVAL", seen, f"guided for t in [{low:g}, {high:g}] alone", where=self.where)
        self._add("interval", found, f"[{low:g}, {high:g}]")
        return found is not None

    def _typical(self, rows: Tensor) -> tuple[float, float, float, float]:
        w = self.w
        v, c, n, o = (float(x[rows].median()) for x in (w.v, w.conditional, w.null, w.other))
        return v, c, n, o

    def _scales(self, rows: Tensor) -> None:
        w, omega, kappa = self.w, self.omega, self.kappa
        if not bool(rows.any()):
            self.checks.append(CheckResult("scales", "skipped", "no row with a class in the interval was drawn"))
            self.inconclusive = True
            return
        v, c, n, o = self._typical(rows)
        self.measured["guided rows"] = {"v": v, "conditional": c, "null": n, "other": o}
        spread = max(float((x[rows] - x[rows].median()).abs().max()) for x in (w.v, w.conditional, w.null, w.other))
        seen = f"target {v:.4g} v {c:+.4g} u(z,t,t|c) {n:+.4g} u(z,t,t)" + (
            f" {o:+.4g} u elsewhere" if abs(o) > SAME else ""
        )
        wanted = f"{omega:g} v {kappa:+g} u(z,t,t|c) {1 - omega - kappa:+g} u(z,t,t)"
        name = self._scale_name(v, c, n, o) if spread <= SAME else "UNKNOWN_FORMULA"
        if spread > SAME:
            seen += f"; differs from row to row by {spread:.2g}"
        if name == "VARIANT":
            self.variant = True
            scale = v / (1 - c)
            self.checks.append(
                CheckResult("scales", "passed", f"{seen}: another split of the effective scale {scale:.4g}")
            )
            return
        self._add("scales", finding(name, seen, wanted, where=self.where) if name else None, seen)

    def _scale_name(self, v: float, c: float, n: float, o: float) -> str:
        """The diagnosis of constant weights, "" if they are the stated ones."""
        omega, kappa = self.omega, self.kappa

        def near(a: float, b: float) -> bool:
            return abs(a - b) <= SAME

        if near(v, omega) and near(c, kappa) and near(n, 1 - omega - kappa) and near(o, 0):
            return ""
        if near(v, omega) and near(c, 1 - omega) and near(n, 0) and not near(omega, 1):
            return "NULL_BRANCH_CONDITIONAL"
        if kappa and near(v, omega) and near(n, 1 - omega) and (near(c, 0) or near(c, kappa)):
            return "KAPPA_MISSING"
        whole = near(v + c + n, 1) and near(o, 0) and c < 1
        if whole and near(v / (1 - c), omega / (1 - kappa)):
            return "VARIANT"
        return "UNKNOWN_FORMULA"

    def _tangent(self, rows: Tensor) -> None:
        w = self.w
        rows = rows & ~torch.isnan(w.tangent_v)
        if not bool(rows.any()):
            self.checks.append(CheckResult("tangent", "skipped", "no guided row with r < t was drawn"))
            self.inconclusive = True
            return
        seen = [float(x[rows].median()) for x in (w.tangent_v, w.tangent_conditional, w.tangent_null)]
        wanted = [float(x[rows].median()) for x in (w.v, w.conditional, w.null)]
        text, expected = (f"{v:.4g} v {c:+.4g} u(z,t,t|c) {n:+.4g} u(z,t,t)" for v, c, n in (seen, wanted))
        self.measured["tangent"] = dict(zip(("v", "conditional", "null"), seen, strict=True))
        found = None
        if max(abs(a - b) for a, b in zip(seen, wanted, strict=True)) > 10 * SAME:
            alone = max(abs(seen[0] - 1), abs(seen[1]), abs(seen[2])) <= 10 * SAME
            name = "GUIDED_TARGET_UNGUIDED_TANGENT" if alone else "TANGENT_NOT_VELOCITY"
            found = finding(name, f"tangent {text}", f"that of the target: {expected}", where=self.where)
        self._add("tangent", found, text)

    def _null_rows(self) -> None:
        w = self.w
        if not bool(w.dropped.any()):
            self.checks.append(CheckResult("rows without a class", "skipped", "the loss drops no labels"))
            return
        v, c, n, _ = self._typical(w.dropped)
        self.measured["null rows"] = {"v": v, "conditional": c, "null": n}
        found = None
        if bool(self.guided[w.dropped].any()):
            seen = f"target {v:.4g} v {c + n:+.4g} u(z,t,t) in rows without a class"
            found = finding("GUIDANCE_ON_NULL_ROWS", seen, "v alone, as in the official code", where=self.where)
        self._add("rows without a class", found, f"{int(w.dropped.sum())} rows")
