"""The conditional path that a tape's states lie on, measured from two runs with the same noise and different data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meanflow_ref.kit.tape.network import Array
from meanflow_ref.kit.tape.reading import Tape

_HALF_PI = np.pi / 2
Schedule = Callable[[Array], Array]


@dataclass(frozen=True)
class Path:
    """``z = alpha x + sigma eps``; ``reversed`` where the data stand at t = 1."""

    name: str
    alpha: Schedule
    sigma: Schedule
    alpha_dot: Schedule
    sigma_dot: Schedule
    reversed: bool = False


PATHS = (
    Path("linear", lambda t: 1 - t, lambda t: t, lambda t: -np.ones_like(t), np.ones_like),
    Path("linear, data at t = 1", lambda t: t, lambda t: 1 - t, np.ones_like, lambda t: -np.ones_like(t), True),
    Path(
        "trigonometric",
        lambda t: np.cos(_HALF_PI * t),
        lambda t: np.sin(_HALF_PI * t),
        lambda t: -_HALF_PI * np.sin(_HALF_PI * t),
        lambda t: _HALF_PI * np.cos(_HALF_PI * t),
    ),
    Path(
        "trigonometric, data at t = 1",
        lambda t: np.sin(_HALF_PI * t),
        lambda t: np.cos(_HALF_PI * t),
        lambda t: _HALF_PI * np.cos(_HALF_PI * t),
        lambda t: -_HALF_PI * np.sin(_HALF_PI * t),
        True,
    ),
)


@dataclass(frozen=True)
class Measured:
    """What the two runs say: the path, the factor on the data, noise and velocities of the rows that are kept."""

    path: Path | None
    error: float
    factor: float
    rows: NDArray[np.intp]
    x: Array
    eps: Array
    v: Array
    offset: float = 0.0


def measure_path(tape: Tape, tolerance: float, offset: float = 0.0) -> Measured:
    """The path, or None with the error of the nearest; rows too near either end to divide by sigma are left out.

    The two runs cannot see a constant that the loss adds to its data: ``offset`` is a guess of it.
    """
    dx, dz = tape.x_other - tape.x, tape.z_other - tape.z
    alpha = (dz * dx).sum(1) / np.maximum((dx * dx).sum(1), 1e-300)
    affine = float(np.abs(dz - alpha[:, None] * dx).max() / max(float(np.abs(dx).max()), 1e-300))
    best, best_error, factor = None, np.inf, 1.0
    for path in PATHS:
        wanted = path.alpha(tape.t)
        scale = float((alpha * wanted).sum() / max(float((wanted * wanted).sum()), 1e-300))
        error = max(float(np.abs(alpha - scale * wanted).max()), affine)
        # A factor on the data is a normalisation; 1 within rounding is none.
        if error < best_error:
            best, best_error, factor = path, error, 1.0 if abs(scale - 1) < 10 * tolerance else scale
    assert best is not None
    keep = (best.sigma(tape.t) > 0.05) & (best.alpha(tape.t) > 0.01) & (np.abs(tape.g).sum(1) > 0)
    t = tape.t[keep][:, None]
    x = factor * tape.x[keep] + offset
    eps = (tape.z[keep] - best.alpha(t) * x) / best.sigma(t)
    v = best.alpha_dot(t) * x + best.sigma_dot(t) * eps
    found = best if best_error <= 100 * tolerance else None
    return Measured(found, best_error, factor, np.flatnonzero(keep), x, eps, v, offset)
