"""The verdict on a tape: what the loss regresses on, and the name of what is wrong. numpy alone, no torch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from meanflow_ref.kit.diagnosis import CheckResult, Diagnosis, Report
from meanflow_ref.kit.finding import conclude, finding
from meanflow_ref.kit.tape.hypotheses import Hypothesis, Parts, coefficients, hypotheses, misfit, offset_of, parts_of
from meanflow_ref.kit.tape.path import Measured, measure_path
from meanflow_ref.kit.tape.reading import Tape
from meanflow_ref.kit.tape.weight import Weight, fit_weight, per_element

# Misfit up to which a target fits, for tapes in float64 and in less; the nearest wrong target is above 1e-2.
TOLERANCE = {True: 1e-5, False: 3e-3}
NEAREST_BUG = 1e-2


def judge(tape: Tape, target: str, where: str = "") -> Report:
    """Judge a recording of a loss.

    Args:
        tape: The recording.
        target: Its name, for the report.
        where: ``file:line`` of the user's call of the network, if known.

    Returns:
        A report of kind ``"loss"``. Inconclusive where the rows do not tell: no gradient, no r < t, an unknown path.

    """
    start = time.perf_counter()
    verdict = _Verdict(tape, where)
    verdict.run()
    return conclude(
        target,
        "loss",
        verdict.checks,
        verdict.diagnoses,
        variant=verdict.variant,
        inconclusive=verdict.inconclusive,
        formula=verdict.formula,
        measured=verdict.measured,
        seconds=time.perf_counter() - start,
    )


@dataclass
class _Verdict:
    """Runs the checks in order; each adds one result."""

    tape: Tape
    where: str
    checks: list[CheckResult] = field(default_factory=list)
    diagnoses: list[Diagnosis] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    formula: str | None = None
    variant: bool = False
    inconclusive: bool = False

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.tape.precise]

    def run(self) -> None:
        self.measured["dtype"] = "float64" if self.tape.precise else "float32 or less"
        self._times()
        if not self._gradient():
            return
        path = measure_path(self.tape, self.tolerance)
        if not self._path(path):
            return
        parts = self._with_offset(parts_of(self.tape, path))
        fitted = self._target(parts)
        if fitted is not None:
            self._weight(parts, fitted)
        self._leak()

    def _add(
        self, name: str, ok: bool, detail: str, found: Diagnosis | None = None, margin: float | None = None
    ) -> None:
        note = found is not None and found.severity == "note"
        self.checks.append(CheckResult(name, "passed" if ok else "noted" if note else "failed", detail, margin))
        if found is not None:
            self.diagnoses.append(found)

    def _skip(self, reason: str, *names: str) -> None:
        self.checks += [CheckResult(name, "skipped", reason) for name in names]
        self.inconclusive = True

    def _times(self) -> None:
        r, t = self.tape.r, self.tape.t
        low, high = float(min(r.min(), t.min())), float(max(r.max(), t.max()))
        inside = low >= -1e-6 and high <= 1 + 1e-6
        seen = f"times range over [{low:.4g}, {high:.4g}]"
        self._add("times in [0, 1]", inside, seen, None if inside else finding("TIMES_OUT_OF_RANGE", seen, "[0, 1]"))
        self.measured |= {f"mean {name}": float(x.mean()) for name, x in self.tape.tangents.items() if name != "dz"}
        self.measured["equal_share"] = float((r == t).mean())

    def _gradient(self) -> bool:
        if np.abs(self.tape.g).max() > 0:
            self._add("gradient reaches u", True, "")
            return True
        found = finding("PREDICTION_DETACHED", "dL/du is 0 in every row", "a gradient", where=self.where)
        self._add("gradient reaches u", False, "dL/du is 0", found)
        self._skip("no gradient", "path", "target", "weight", "stop-gradient")
        return False

    def _path(self, measured: Measured) -> bool:
        path = measured.path
        if path is None or not len(measured.rows):
            self._skip("the states fit no known path: " + f"off by {measured.error:.2g}", "path", "target", "weight")
            return False
        self.measured |= {"path": path.name, "data_factor": measured.factor}
        if path.reversed:
            seen = "the data stand at t = 1"
            self._add("path", False, path.name, finding("TIME_REVERSED", seen, "t = 1 is noise", severity="note"))
        else:
            self._add("path", True, f"{path.name}, off by {measured.error:.1e}")
        return True

    def _with_offset(self, parts: Parts) -> Parts:
        """The parts, with the constant that the loss adds to its data where no target fits without one."""
        if min(misfit(parts, one.target) for one in hypotheses(parts)) <= self.tolerance:
            return parts
        shifted = parts_of(self.tape, measure_path(self.tape, self.tolerance, 1.0))
        offset = offset_of(parts, shifted)
        moved = parts_of(self.tape, measure_path(self.tape, self.tolerance, offset))
        if (
            abs(offset) > self.tolerance
            and min(misfit(moved, one.target) for one in hypotheses(moved)) <= self.tolerance
        ):
            self.measured["data_offset"] = offset
            return moved
        return parts

    def _target(self, parts: Parts) -> Hypothesis | None:
        if float(np.abs(parts.h).max()) < 1e-3:
            found = finding("NEVER_R_NEQ_T", "r = t in every row", "rows with r < t, which train u")
            self._add("target", False, "flow matching: r = t in every row", found)
            return None
        tried = [(misfit(parts, one.target), one) for one in hypotheses(parts)]
        error, best = min(tried, key=lambda pair: pair[0])
        fit, residual = coefficients(parts)
        self.measured |= {"coefficients": fit, "coefficients_residual": residual, "misfit": error}
        self.measured["target"] = best.text
        # The first of those that fit: legal ones come first.
        fitting = [one for error, one in tried if error <= self.tolerance]
        if not fitting:
            return self._no_target(parts, fit, residual, error)
        best = fitting[0]
        self.measured["target"] = best.text
        if best.formula == "flow-matching":
            found = finding("COEFFICIENT", "the target is v, without du/dt", "v - (t - r) du/dt", where=self.where)
            self._add("target", False, best.text, found)
            self.formula = "flow-matching"
            return best
        if best.formula:
            self.formula = best.formula
            self._add("target", True, best.text, margin=NEAREST_BUG / max(error, 1e-16))
            return best
        found = finding(best.name, f"target: {best.text}", "v - (t - r) (J v + du/dt)", where=self.where)
        self._add("target", False, best.text, found)
        return best

    def _no_target(self, parts: Parts, fit: dict[str, float], residual: float, error: float) -> Hypothesis | None:
        right = next(hypotheses(parts))
        delta = parts.u - right.target
        if delta.shape[1] > 1 and per_element(delta, parts.g):
            seen = "g/(u - target) is a function of each element's own error"
            found = finding("WEIGHT_PER_ELEMENT", seen, "one weight a sample", where=self.where)
            self._add("target", True, right.text)
            self._add("weight", False, seen, found)
            self.formula = "meanflow"
            return None
        factor = fit["J v"]
        alone = abs(fit["v"] - 1) + abs(fit["du/dt"] - factor) + abs(fit["du/dr"])
        if residual <= self.tolerance and alone <= 10 * self.tolerance:
            seen = f"v - {factor:.4g} (t - r) du/dt"
            found = finding("COEFFICIENT", seen, "v - (t - r) du/dt", where=self.where)
            self._add("target", False, seen, found)
            return Hypothesis(seen, parts.v - factor * (parts.v - right.target))
        shown = ", ".join(f"{name} {value:+.4g}" for name, value in fit.items())
        seen = f"no known target fits (nearest {error:.2g}); least squares {shown}, residual {residual:.2g}"
        found = finding("UNKNOWN_FORMULA", seen, "v +1, J v +1, du/dt +1, du/dr 0", where=self.where)
        self._add("target", False, seen, found)
        return None

    def _weight(self, parts: Parts, fitted: Hypothesis) -> None:
        delta = parts.u - fitted.target
        seen = np.linalg.norm(delta, axis=1)
        rows = seen > 1e-3 * np.median(seen)
        weight = fit_weight(delta[rows], parts.g[rows], self.tape.batch)
        if weight.error > 30 * self.tolerance:
            self.variant = True
            self._add("weight", True, f"no power of the squared error (misfit {weight.error:.1e}): a weight of its own")
            return
        text = self._name_weight(weight, delta.shape[1])
        if not weight.name:
            self._add("weight", True, text)
            return
        found = finding(weight.name, text, "(|Delta|^2 + c)^-p behind a stop-gradient", where=self.where)
        self._add("weight", False, text, found)

    def _name_weight(self, weight: Weight, dim: int) -> str:
        """Describe and record; the factor D^(p-1) says that the error is a mean over the event, with c on that scale.

        At p = 1 the two are one: S/(S + c) does not change if S and c are both divided by D.
        """
        mean = (
            abs(weight.power - 1) > 1e-3
            and abs(weight.scale * dim ** (1 - weight.power) - 1) < abs(weight.scale - 1)
            and dim > 1
        )
        eps = weight.eps / dim if mean else weight.eps
        reduction = "mean" if mean else "sum"
        self.measured |= {"weight_power": weight.power, "weight_eps": eps, "reduction": reduction}
        return f"power {weight.power:.3g}, c = {eps:.3g}, {reduction} over the event"

    def _leak(self) -> None:
        if not self.tape.gradients:
            self.checks.append(CheckResult("stop-gradient", "skipped", "the tape has no gradients of the parameters"))
            self.inconclusive = True
            return
        wanted = self.tape.network.gradients(self.tape.z, self.tape.r, self.tape.t, self.tape.g)
        pairs = [(recorded, wanted[name]) for name, recorded in self.tape.gradients.items()]
        size = max(float(np.abs(expected).max()) for _, expected in pairs)
        leak = max(float(np.abs(recorded - expected).max()) for recorded, expected in pairs) / max(size, 1e-300)
        self.measured["leak"] = leak
        ok = leak <= 10 * self.tolerance
        found = None
        if not ok:
            seen = f"the parameters' gradient differs from that through u alone by {100 * leak:.3g} %"
            found = finding("TARGET_NOT_DETACHED", seen, "0 %: the target behind a stop-gradient", where=self.where)
        self._add("stop-gradient", ok, f"leak {leak:.1e}", found)
