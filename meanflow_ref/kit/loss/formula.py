"""Which objective a loss is, from the coefficients measured, and which of its terms are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from meanflow_ref.kit.diagnosis import Diagnosis
from meanflow_ref.kit.finding import finding
from meanflow_ref.kit.loss.measure import Measured, site_rows
from meanflow_ref.kit.loss.path import sigma_floor, velocity_misfit
from meanflow_ref.kit.loss.probe import NUM_CLASSES


@dataclass
class Judgement:
    """What was concluded, by check."""

    formula: str | None = None
    # Which vector the spatial tangent is: "velocity", "guided", "unguided", "self".
    tangent: str = ""
    diagnoses: list[Diagnosis] = field(default_factory=list)
    details: dict[str, str] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)

    def find(self, check: str, name: str, observed: str, expected: str, where: str = "", **more: Any) -> None:
        """Record a finding of a check."""
        self.details[check] = observed
        self.diagnoses.append(finding(name, observed, expected, where=where, **more))


def constant(values: Tensor, tolerance: float) -> float | None:
    """The common value of a vector, or None if it varies."""
    if not len(values):
        return None
    middle = float(values.median())
    return middle if float((values - middle).abs().max()) <= tolerance * max(1.0, abs(middle)) else None


def short(value: float) -> str:
    """A number for a message; rounding errors are 0."""
    return "0" if abs(value) < 1e-6 else f"{value:+.4g}"


# ---------------------------------------------------------------- path and velocity


def judge_path(m: Measured, out: Judgement) -> Tensor | None:
    """Path, direction and velocity; returns the guidance scale of each row, or None if the path is unknown."""
    fit = m.path
    if fit is None:
        reason = (
            "the states are not alpha(t) x + sigma(t) eps of the data given"
            if m.path_misfit > 1e-3
            else "alpha(t) is of no path known here (linear, trigonometric, variance-preserving)"
        )
        out.unmeasured["path"] = reason
        return None
    out.facts |= {"path": fit.name, "time": "data_at_one" if fit.reversed else "noise_at_one"}
    if abs(fit.scale - 1) > 1e-4:
        out.facts["data_scale"] = round(fit.scale, 6)
    if fit.unit != 1:
        out.facts["time_unit"] = fit.unit
    out.details["path"] = f"{fit.name}, alpha to {fit.misfit:.0e}, {'data' if fit.reversed else 'noise'} at t = 1"
    out.errors.append(fit.misfit)
    if fit.slot == "r":
        out.find(
            "path", "R_AND_T_SWAPPED", "the state's time stands in the place that `call` names r",
            "the state's time in the place of t", m.main.where,
            cause="The network is called with r and t in the other order, or `call` names them in the wrong order.",
        )  # fmt: skip
        return None
    if fit.reversed:
        out.diagnoses.append(
            finding("TIME_REVERSED", "alpha(t) = t: data at t = 1", "data at t = 0, as in the paper", severity="note")
        )
    _, _, alpha_dot, _ = fit.schedules(m.state_time)
    expected = fit.scale * alpha_dot[:, 0] / 1.0
    usable = expected.abs() > 1e-3
    omega = torch.where(
        usable, m.slope / torch.where(usable, expected, torch.ones_like(expected)), torch.ones_like(m.t)
    )
    return omega


def judge_velocity(m: Measured, omega: Tensor, out: Judgement) -> bool:
    """Whether the velocity in the target is the derivative of the path, up to a positive scale."""
    assert m.path is not None
    tol = 10 * m.tolerance
    nonzero = omega.abs() > tol
    scale = torch.where(nonzero, omega, torch.ones_like(omega))
    misfit, offset = velocity_misfit(m.path, m.z, m.state_time, m.velocity, m.x, scale)
    if abs(offset) > 1e-3:
        out.facts["data_offset"] = round(offset, 4)
    worst = float(misfit[nonzero].max()) if bool(nonzero.any()) else 0.0
    where = m.main.where
    if bool(nonzero.any()) and bool((omega[nonzero] < 0).all()):
        turned = sigma_floor(m.z, m.state_time, -m.velocity, m.x, m.alpha, -m.slope)
        if worst < tol * 10 or turned is not None:
            out.find("velocity", "VELOCITY_SIGN", "the velocity is -dz/dt", "dz/dt of the path of the states", where)
            return False
    floor = sigma_floor(m.z, m.state_time, m.velocity, m.x, m.alpha, m.slope) if worst > tol * 10 else None
    if floor is not None:
        out.facts["sigma_min"] = round(floor, 8)
        out.details["velocity"] = f"dz/dt of the path with sigma_min = {floor:.2g}"
        return True
    if worst > tol * 10:
        out.find(
            "velocity", "PATH_TANGENT_MISMATCH", f"the velocity departs from dz/dt by {worst:.2g} (relative)",
            "v = alpha'(t) x + sigma'(t) eps of the same path", where,
        )  # fmt: skip
        return False
    out.errors.append(worst)
    out.details["velocity"] = f"dz/dt to {worst:.0e}"
    return True


# ---------------------------------------------------------------- target


def tangent_candidates(m: Measured, omega: Tensor) -> dict[str, Tensor]:
    """What the spatial tangent may be, in the setting that measured it."""
    total = m.velocity.clone()
    for site, weight in m.reads.items():
        state = site_rows(m.layout, m.trace, site, m.trace.calls[site[0]].z)
        total = total + weight[:, None] * torch.roll(state, 1, 1)
    safe = torch.where(omega.abs() > 1e-6, omega, torch.ones_like(omega))
    plain = m.velocity / safe[:, None]
    candidates = {"velocity": total, "unguided": plain} if m.reads else {"velocity": m.velocity}
    return {
        **candidates, "self": torch.roll(m.z, 1, 1), "state": m.z, "data": m.x,
        "noise": m.z + (1 - m.t[:, None]) * plain, "one": torch.ones_like(m.z),
    }  # fmt: skip


_SAID = {
    "velocity": "the velocity", "unguided": "the unguided velocity v_t", "self": "the network's own output", "state": "z",
    "data": "the data x", "noise": "the noise", "one": "ones",
}  # fmt: skip


def judge_target(m: Measured, omega: Tensor, out: Judgement) -> None:
    """Tangents and coefficient on the rows with an interval."""
    rows = m.long
    if not bool(rows.any()):
        out.formula = "flow-matching"
        out.details["target"] = "v on every row"
        return
    tol = 20 * m.tolerance
    tau = m.interval[rows]
    unit = m.path.unit if m.path else 1.0
    time, start = m.c_t[rows] / tau, m.c_r[rows] / tau
    spatial = m.spatial[rows] / (tau / unit)[:, None]
    size = spatial.abs().max()
    call = m.derivative_call()
    where = call.where if call else m.main.where
    if float(m.residual[rows].max()) > 10 * tol:
        out.unmeasured["tangent"] = "the target is not linear in the network's time derivatives"
    kinds = tangent_candidates(m, omega)
    fits = sorted(_tangent_fits(spatial, {name: value[rows] for name, value in kinds.items()}, tol))
    none = float(size) < tol
    along = None if none or not fits else fits[0]
    k_t, k_r = constant(time, tol), constant(start, tol)
    k_z = 0.0 if none else (along[1] if along else None)
    out.facts |= {
        "tangent_t": k_t if k_t is None else round(k_t, 6), "tangent_r": k_r if k_r is None else round(k_r, 6),
        "tangent_z": "0" if none else (_SAID[along[2]] if along else "unknown"),
        "coefficient": k_t if k_t is None else round(k_t, 6),
    }  # fmt: skip
    out.tangent = along[2] if along else ""
    for value, want in ((time, 1.0), (start, 0.0)):
        if float((value - want).abs().max()) < tol:
            out.errors.append(float((value - want).abs().max()))
    _name_target(m, out, where, k_z, k_r, k_t, time, spatial, tol)


def _tangent_fits(spatial: Tensor, kinds: dict[str, Tensor], tol: float) -> Iterator[tuple[int, float, str]]:
    """Candidates that the tangent is a constant multiple of, in order of preference: ``(order, factor, name)``."""
    for order, (name, value) in enumerate(kinds.items()):
        norm = (value * value).sum(1)
        factor = (spatial * value).sum(1) / norm.clamp_min(1e-12)
        rest = (spatial - factor[:, None] * value).norm(dim=1) / spatial.norm(dim=1).clamp_min(1e-12)
        use = norm > 1e-6 * norm.max()
        common = constant(factor[use], tol)
        if float(rest[use].max()) < tol and common is not None and abs(common) > tol:
            yield order, common, name


def _name_target(
    m: Measured, out: Judgement, where: str, k_z: float | None, k_r: float | None, k_t: float | None,
    time: Tensor, spatial: Tensor, tol: float,
) -> None:  # fmt: skip
    def near(value: float | None, wanted: float) -> bool:
        return value is not None and abs(value - wanted) < tol

    shown = (
        f"(z, r, t) tangent times coefficient/(t - r): z {_factor(k_z)}{_kind(out)}, r {_factor(k_r)}, t {_factor(k_t)}"
    )
    out.details["target"] = shown
    wanted = "z +1 times the velocity, r 0, t +1"
    zero = near(k_z, 0) and near(k_t, 0)
    if zero and near(k_r, 0):
        if not _discrete(m, out, where, tol):
            out.formula = "flow-matching"
            out.find(
                "coefficient", "COEFFICIENT", "no derivative term on rows with r != t: the coefficient of du/dt is 0",
                "v - (t - r) du/dt", m.main.where,
            )  # fmt: skip
        return
    if zero and near(k_r, -1):
        out.formula = "lagrangian"
        out.details["tangent"] = "d/dr alone"
        return
    if near(k_r, 0) and k_t is not None and k_z is not None and not near(k_t, 0) and not near(k_z, 0):
        _name_coefficient(m, out, where, k_z, k_t, tol)
        _name_tangent(m, out, where, shown)
        return
    if k_t is None and k_r is not None and _same_shape(m, time, spatial, out):
        _name_interval(m, out, where)
        return
    _name_pattern(m, out, where, k_z, k_r, k_t, near, shown, wanted)


def _factor(value: float | None) -> str:
    return "varies" if value is None else short(value)


def _kind(out: Judgement) -> str:
    return f" ({out.facts['tangent_z']})" if out.facts.get("tangent_z") not in {"0", None} else ""


def _name_pattern(
    m: Measured, out: Judgement, where: str, k_z: float | None, k_r: float | None, k_t: float | None,
    near: Any, shown: str, wanted: str,
) -> None:  # fmt: skip
    """Tangents that are 0 or 1 where they should not be."""
    if k_z is None and _transposed(m, out):
        out.find("tangent", "TRANSPOSED_JACOBIAN", shown, wanted, where)
        return
    one = near(abs(k_z) if k_z is not None else None, 1)
    if (k_t is not None and near(k_t, 0)) and k_r is not None and not near(k_r, 0) and k_z is not None:
        out.find("tangent", "R_AND_T_SWAPPED", shown, wanted, where)
    elif k_r is not None and not near(k_r, 0):
        out.find("tangent", "R_MOVES", shown, wanted, where)
    elif near(k_z, 0) and not near(k_t, 0):
        out.find("tangent", "SPATIAL_TANGENT_MISSING", shown, wanted, where)
    elif near(k_t, 0) and k_z is not None:
        out.find("tangent", "TIME_TANGENT_MISSING", shown, wanted, where)
    elif k_z is None and near(k_t, 1):
        out.find("tangent", "TANGENT_NOT_VELOCITY", shown, wanted, where)
    elif k_t is None and k_r is not None and one:
        _name_interval(m, out, where)
    elif k_r is None:
        out.find("tangent", "R_MOVES", shown, wanted, where)
    else:
        out.find("target", "UNKNOWN_FORMULA", shown, wanted, where)


def _transposed(m: Measured, out: Judgement) -> bool:
    """Whether J^T v, or grad(sum u) * v, stands where J v should."""
    rows = m.long
    tau = m.interval[rows][:, None]
    added = torch.roll(m.spatial[rows] / tau, 1, 1)
    v = m.velocity[rows]
    scale = v.norm(dim=1)
    back, summed = torch.roll(v, -1, 1), v
    return any(bool(((added - wrong).norm(dim=1) / scale).max() < 1e-2) for wrong in (back, summed))


def _name_coefficient(m: Measured, out: Judgement, where: str, k_z: float, k_t: float, tol: float) -> None:
    kind = out.tangent
    flipped = kind in {"velocity", "unguided", "self"} and abs(k_z + k_t) < tol * max(1, abs(k_t)) and k_t > 0
    if flipped:
        out.find(
            "tangent", "TANGENT_NOT_VELOCITY", f"the tangent along z is {short(k_z / k_t)} times {_SAID[kind]}",
            "+1 times the velocity of the target", where,
        )  # fmt: skip
        return
    if abs(k_t - 1) < tol and abs(k_z - 1) < tol:
        out.details["coefficient"] = f"1 to {max(abs(k_t - 1), abs(k_z - 1)):.0e}"
        return
    if abs(k_z - k_t) < tol * max(1.0, abs(k_t)):
        name = "INTERVAL_SIGN" if abs(k_t + 1) < tol else "COEFFICIENT"
        out.find(
            "coefficient", name, f"the target is v {-k_t:+.4g} (t - r) du/dt", "v - (t - r) du/dt", where
        )  # fmt: skip
        return
    out.find(
        "tangent", "TANGENT_NOT_VELOCITY", f"along z the tangent is {short(k_z)} times {_SAID.get(kind, '?')}, along t {short(k_t)}",
        "1 and 1", where,
    )  # fmt: skip


def _name_tangent(m: Measured, out: Judgement, where: str, shown: str) -> None:
    """The formula by the vector in the tangent."""
    kind = out.tangent
    out.details.setdefault("tangent", f"({_SAID.get(kind, '?')}, 0, 1)")
    if kind == "velocity":
        out.formula = "meanflow"
    elif kind == "self":
        out.formula = "improved-meanflow"
    elif kind == "unguided":
        out.formula = "meanflow"
        out.find(
            "tangent", "GUIDED_TARGET_UNGUIDED_TANGENT", "the target has the guided velocity, the tangent v_t",
            "the guided velocity in both", where,
        )  # fmt: skip
    else:
        out.find("tangent", "TANGENT_NOT_VELOCITY", shown, "the velocity of the target", where)


def _same_shape(m: Measured, time: Tensor, spatial: Tensor, out: Judgement) -> bool:
    """Whether space and time share one varying coefficient, as they do if only the factor t - r is wrong."""
    v = m.velocity[m.long]
    along = (spatial * v).sum(1) / (v * v).sum(1)
    rest = (spatial - along[:, None] * v).norm(dim=1) / spatial.norm(dim=1).clamp_min(1e-12)
    own = torch.roll(m.z, 1, 1)[m.long]
    own_along = (spatial * own).sum(1) / (own * own).sum(1)
    close = 1e-2
    if float(rest.max()) < close and float((along - time).abs().max()) < close * float(time.abs().max()):
        out.tangent = "velocity"
        return True
    if float((own_along - time).abs().max()) < close * float(time.abs().max()):
        out.tangent = "self"
        return True
    return False


def _name_interval(m: Measured, out: Judgement, where: str) -> None:
    r, t, c = m.r[m.long], m.t[m.long], m.c_t[m.long]
    guesses = {
        "1": torch.ones_like(t), "t": t, "r": r, "1 - r": 1 - r, "1 - t": 1 - t, "t + r": t + r, "(t - r)^2": (t - r) ** 2,
        "(t - r)/2": (t - r) / 2, "t^2 - r^2": t**2 - r**2, "(t - r)/t": (t - r) / t, "sqrt(t - r)": (t - r).abs().sqrt(),
        "1/(t - r)": 1 / (t - r),
    }  # fmt: skip
    found = "a function of r and t that is not t - r"
    for name, value in guesses.items():
        for sign in (1, -1):
            if float((c - sign * value).abs().max()) < 1e-3:
                found = f"{'-' if sign < 0 else ''}{name}"
    out.find("coefficient", "INTERVAL_NOT_T_MINUS_R", f"the coefficient of du/dt is {found}", "t - r", where)


# ---------------------------------------------------------------- relatives without a derivative


def _discrete(m: Measured, out: Judgement, where: str, tol: float) -> bool:
    """Alpha-flow and interval splitting: the target is made of the network at points inside the interval."""
    rows = m.long
    inside = []
    for site, weight in m.reads.items():
        call = m.trace.calls[site[0]]
        s_t = site_rows(m.layout, m.trace, site, call.t.reshape(-1, 1))[:, 0]
        s_r = site_rows(m.layout, m.trace, site, call.r.reshape(-1, 1))[:, 0]
        inside.append((site, weight[rows], s_r[rows], s_t[rows]))
    early = [one for one in inside if float((one[2] - m.r[rows]).abs().max()) < 1e-6]
    if not early:
        return False
    _, weight, _, s = early[0]
    r, t = m.r[rows], m.t[rows]
    share = (s - r) / (t - r)
    if float((weight - share).abs().max()) > tol:
        out.find(
            "coefficient", "COEFFICIENT", f"u at (r, s) has weight {float(weight.median()):.4g} in the target",
            f"(s - r)/(t - r) = {float(share.median()):.4g}", where,
        )  # fmt: skip
        return True
    late = [one for one in inside if one not in early and float((one[3] - t).abs().max()) < 1e-6]
    out.formula = "interval-splitting" if late else "alpha-flow"
    out.details["target"] = f"a mean over [r, s] and [s, t], weights {float(weight.median()):.3g} and the rest"
    return True


def is_x_prediction(m: Measured, out: Judgement) -> bool:
    """Whether the network's output is the data, ``u = (z - x)/t``: then all coefficients are another set."""
    fit = m.path
    if fit is None or fit.name != "linear" or fit.reversed or abs(fit.scale - 1) > 1e-3 or m.reads:
        return False
    rows = (m.t > 0.1) & (m.r > 0.03) & (m.interval > SMALL)
    if int(rows.sum()) < 4:
        return False
    t, r, z = m.t[rows][:, None], m.r[rows][:, None], m.z[rows]
    x = m.x[rows]
    v = (z - x) / t
    # du/dt depends on the output itself, so that the bias at which the gradient vanishes is t/r times further away.
    far = (t - r) * t / r
    wanted = {
        "velocity": (m.velocity[rows], x), "t": (m.c_t[rows][:, None], far),
        "r": (m.c_r[rows][:, None], torch.zeros_like(t)), "z": (m.spatial[rows], far * v),
    }  # fmt: skip
    worst = max(float(((seen - value).abs() / value.abs().clamp_min(1)).max()) for seen, value in wanted.values())
    if worst > min(50 * m.tolerance, 0.02):
        return False
    out.formula, out.tangent = "meanflow (x-prediction)", "x"
    m.gain, m.chain = m.r / m.t.clamp_min(1e-9) ** 2, m.t
    out.errors.append(worst)
    for check in ("velocity", "target", "coefficient", "tangent"):
        out.details[check] = f"as of u = (z - x)/t, to {worst:.0e}"
    out.facts["prediction"] = "x"
    return True


SMALL = 1e-6


# ---------------------------------------------------------------- guidance


def judge_guidance(m: Measured, omega: Tensor, out: Judgement) -> None:  # noqa: PLR0912
    """Scales of a guided target and what is wrong with them, as far as the loss alone can show."""
    at_end = {}
    for site, weight in m.reads.items():
        call = m.trace.calls[site[0]]
        t, r = (site_rows(m.layout, m.trace, site, x.reshape(-1, 1))[:, 0] for x in (call.t, call.r))
        if float((t - m.t).abs().max()) < 1e-6 and float((r - m.t).abs().max()) < 1e-6:
            at_end[site] = weight
    if not at_end:
        if out.formula in {"meanflow", "improved-meanflow", "flow-matching"}:
            scale = constant(omega, 1e-3)
            if scale is None or abs(scale - 1) > 20 * m.tolerance:
                seen = f"{scale:.4g}" if scale is not None else f"{float(omega.min()):.3g} to {float(omega.max()):.3g}"
                out.find(
                    "velocity", "COEFFICIENT", f"the velocity has weight {seen} in the target and no other term makes up for it",
                    "weight 1", m.main.where,
                )  # fmt: skip
        return
    same, other, null_seen = torch.zeros_like(m.t), torch.zeros_like(m.t), False
    mine = _labels(m)
    for site, weight in at_end.items():
        y = m.trace.calls[site[0]].y
        labels = None if y is None else site_rows(m.layout, m.trace, site, y.reshape(-1, 1))[:, 0]
        conditional = labels is not None and mine is not None and bool((labels == mine).all())
        null_seen = null_seen or not conditional
        if conditional:
            same = same + weight
        else:
            other = other + weight
    guided = (other.abs() > 1e-4) | (same.abs() > 1e-4)
    if not bool(guided.any()):
        return
    w, k, n = (float(x[guided].median()) for x in (omega, same, other))
    out.facts |= {"guidance_omega": round(w, 5), "guidance_kappa": round(k, 5), "guidance_null": round(n, 5)}
    out.details["guidance"] = f"{w:.4g} v + {k:.4g} u(z,t,t|y) + {n:.4g} u(z,t,t)"
    where = m.trace.calls[next(iter(at_end))[0]].where
    total = (omega + same + other)[guided]
    if not null_seen and abs(w - 1) > 1e-4:
        out.find(
            "guidance", "NULL_BRANCH_CONDITIONAL", "the unconditional branch is evaluated with the row's own label",
            f"the null label ({NUM_CLASSES})", where,
        )  # fmt: skip
    elif float((total - 1).abs().max()) > 1e-3:
        out.find(
            "guidance", "KAPPA_MISSING", f"the weights {w:.4g} + {k:.4g} + {n:.4g} add up to {float(total.median()):.4g}",
            "omega + kappa + (1 - omega - kappa) = 1", where,
        )  # fmt: skip
    elif k < 1:
        out.facts["guidance_scale"] = round(w / (1 - k), 5)
    equal = m.interval.abs() < 1e-9
    if bool(guided[~equal].any()) and bool(equal.any()) and not bool(guided[equal].any()):
        out.find("guidance", "GUIDANCE_LOST_ON_R_EQ_T", "rows with r = t have the unguided velocity",
                 "the guided velocity on every row", where)  # fmt: skip
    if mine is not None and bool((guided & (mine == NUM_CLASSES)).any()):
        out.find("guidance", "GUIDANCE_ON_NULL_ROWS", "rows whose label was dropped are guided as well",
                 "v_t on those rows, as the official code has it", where, severity="note")  # fmt: skip


def _labels(m: Measured) -> Tensor | None:
    rows = [m.trace.calls[unit.call].y for unit in m.layout.units]
    if any(y is None for y in rows):
        return None
    return torch.stack(
        [y.reshape(-1)[u.row] for y, u in zip(rows, m.layout.units, strict=True) if y is not None]
    ).double()
