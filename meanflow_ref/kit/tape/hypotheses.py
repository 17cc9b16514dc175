r"""The targets that a loss may regress on: the right ones, and the wrong ones by name.

The gradient to u of a weighted squared error is ``g = s (u - target)`` with a positive number s a row. So a target fits
if ``u - target`` is parallel to g in every row, whatever the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from meanflow_ref.kit.tape.network import Array, TanhNetwork
from meanflow_ref.kit.tape.path import Measured
from meanflow_ref.kit.tape.reading import Tape


@dataclass(frozen=True)
class Parts:
    """The terms of every target, at the rows that are kept; each ``(N, D)``."""

    u: Array
    g: Array
    v: Array
    straight: Array
    du_dr: Array
    du_dt: Array
    h: Array
    t: Array
    along: Callable[[Array], Array]
    transposed: Callable[[Array], Array]
    tangents: dict[str, Array]

    def target(self, v: Array, correction: Array) -> Array:
        """``v - h correction``."""
        return v - self.h * correction


def parts_of(tape: Tape, measured: Measured) -> Parts:
    """The terms, by the closed forms of the tape's network."""
    rows, net = measured.rows, tape.network
    at = tape.z[rows], tape.r[rows], tape.t[rows]
    return Parts(
        net.u(*at),
        tape.g[rows],
        measured.v,
        measured.eps - measured.x,
        net.derivative(*at, dr=1),
        net.derivative(*at, dt=1),
        (at[2] - at[1])[:, None],
        at[2][:, None],
        lambda direction: net.derivative(*at, dz=direction),
        lambda direction: net.transposed(*at, direction),
        _tangents(net, at, measured),
    )


def _tangents(net: TanhNetwork, at: tuple[Array, Array, Array], measured: Measured) -> dict[str, Array]:
    z, r, t = at
    return {
        "u(z, t, t)": net.u(z, t, t),
        "u(z, r, t)": net.u(z, r, t),
        "z": z,
        "x": measured.x,
        "eps": measured.eps,
        "x - eps": measured.x - measured.eps,
    }


@dataclass(frozen=True)
class Hypothesis:
    """A target with the name of what it is; ``formula`` for legal ones, ``name`` for wrong ones."""

    text: str
    target: Array
    name: str = ""
    formula: str = ""


def hypotheses(p: Parts) -> Iterator[Hypothesis]:
    """Legal targets first: among equally good fits the first one wins."""
    total = p.along(p.v) + p.du_dt
    yield Hypothesis("v - (t - r) (J v + du/dt)", p.target(p.v, total), formula="meanflow")
    improved = p.along(p.tangents["u(z, t, t)"]) + p.du_dt
    yield Hypothesis("tangent u(z, t, t)", p.target(p.v, improved), formula="improved-meanflow")
    yield Hypothesis("v alone", p.v, formula="flow-matching")
    yield Hypothesis("tangent (v, 1, 0)", p.target(p.v, p.along(p.v) + p.du_dr), "R_AND_T_SWAPPED")
    yield Hypothesis("tangent (v, 1, 1)", p.target(p.v, total + p.du_dr), "R_MOVES")
    yield Hypothesis("tangent (0, 0, 1)", p.target(p.v, p.du_dt), "SPATIAL_TANGENT_MISSING")
    yield Hypothesis("tangent (v, 0, 0)", p.target(p.v, p.along(p.v)), "TIME_TANGENT_MISSING")
    yield Hypothesis("J^T v for J v", p.target(p.v, p.transposed(p.v) + p.du_dt), "TRANSPOSED_JACOBIAN")
    yield Hypothesis("v + (t - r) du/dt", p.v + p.h * total, "INTERVAL_SIGN")
    yield Hypothesis("v - du/dt, without t - r", p.v - total, "INTERVAL_NOT_T_MINUS_R")
    yield Hypothesis("v - t du/dt", p.v - p.t * total, "INTERVAL_NOT_T_MINUS_R")
    yield from _wrong_velocities(p)
    for text, direction in p.tangents.items():
        if text != "u(z, t, t)":
            correction = p.along(direction) + p.du_dt
            yield Hypothesis(f"tangent ({text}, 0, 1)", p.target(p.v, correction), "TANGENT_NOT_VELOCITY")


def _wrong_velocities(p: Parts) -> Iterator[Hypothesis]:
    right = p.along(p.v) + p.du_dt
    yield Hypothesis("-v in target and tangent", p.target(-p.v, p.du_dt - p.along(p.v)), "VELOCITY_SIGN")
    yield Hypothesis("-v in the target", p.target(-p.v, right), "VELOCITY_SIGN")
    if not np.allclose(np.abs(p.straight), np.abs(p.v)):
        for sign, text in ((1, "eps - x"), (-1, "x - eps")):
            v = sign * p.straight
            name = "PATH_TANGENT_MISMATCH"
            yield Hypothesis(f"v = {text} on a path that is not linear", p.target(v, p.along(v) + p.du_dt), name)


def misfit(p: Parts, target: Array) -> float:
    """Largest sine of the angle between ``u - target`` and g, over rows with an error worth an angle."""
    delta = p.u - target
    g = p.g / np.linalg.norm(p.g, axis=1, keepdims=True)
    length = np.linalg.norm(delta, axis=1)
    across = np.linalg.norm(delta - (delta * g).sum(1, keepdims=True) * g, axis=1)
    seen = length > 1e-2 * np.median(length)
    return float((across[seen] / length[seen]).max()) if seen.any() else np.inf


def offset_of(without: Parts, with_one: Parts) -> float:
    """Least squares of the constant added to the data: over rows with r = t, where every target is v, or over all rows.

    Args:
        without: Parts for no offset.
        with_one: Parts for an offset of 1; everything is affine in it.

    """
    equal = np.abs(without.h[:, 0]) < 1e-9
    rows = equal if equal.sum() >= 4 else np.ones_like(equal)
    g = without.g / np.linalg.norm(without.g, axis=1, keepdims=True)

    def residual(p: Parts) -> Array:
        delta = p.u - p.target(p.v, p.along(p.v) + p.du_dt)
        return np.asarray(delta - (delta * g).sum(1, keepdims=True) * g)[rows].reshape(-1)

    start = residual(without)
    slope = residual(with_one) - start
    return float(-(start @ slope) / max(float(slope @ slope), 1e-300))


def coefficients(p: Parts) -> tuple[dict[str, float], float]:
    """Least squares of the target on v and (t - r) times J v, du/dt and du/dr, and the residual's relative size.

    The unknown scale of each row is removed by looking only across g.
    """
    g = p.g / np.linalg.norm(p.g, axis=1, keepdims=True)

    def across(x: Array) -> Array:
        return np.asarray(x - (x * g).sum(1, keepdims=True) * g).reshape(-1)

    columns = {"v": p.v, "J v": -p.h * p.along(p.v), "du/dt": -p.h * p.du_dt, "du/dr": -p.h * p.du_dr}
    matrix = np.stack([across(column) for column in columns.values()], 1)
    wanted = across(p.u)
    solution = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
    residual = float(np.linalg.norm(matrix @ solution - wanted) / max(float(np.linalg.norm(wanted)), 1e-300))
    return dict(zip(columns, map(float, solution), strict=True)), residual
