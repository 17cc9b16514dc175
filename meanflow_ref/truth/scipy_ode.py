"""Average velocity by scipy's DOP853, one row at a time: slow, plain, and sharing no code with the other routes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref._typing import VelocityField
from meanflow_ref.errors import MissingExtraError, TruthError
from meanflow_ref.truth.result import Truth

# scipy warns below 100 units of rounding, and another solver's tolerance is compared at ten times its own.
LEAST_TOLERANCE = 1e-13
LOOSER = 10.0
ROUNDING_UNITS = 32.0


def average_velocity_scipy(velocity: VelocityField, z: Tensor, r: Tensor, t: Tensor, *, tol: float = 1e-12) -> Truth:
    """Average velocity from the displacement of ``dz/dt = v(z, t)`` solved from t down to r. Source: mf:2, mf:3.

    Args:
        velocity: ``v(z, t)``.
        z: States, ``(B, d)``.
        r: End times, ``(B,)``.
        t: Times of the states, ``(B,)``.
        tol: Absolute and relative tolerance of a step *on the state*.

    Returns:
        A :class:`Truth`; its ``error`` compares with ten times the tolerance and carries the division by ``t - r``.

    Raises:
        TruthError: The solver failed.
        MissingExtraError: scipy is not installed.

    Precision: about ``(tol + eps |z|) (1 + |J|) / (t - r)``. It is a cross-check for intervals that are not short; at
    r = t it returns ``v``.

    """
    tol = max(tol, LEAST_TOLERANCE)
    eps = torch.finfo(z.dtype).eps
    evaluations = 0

    def rate(time: float, state: np.ndarray) -> np.ndarray:
        nonlocal evaluations
        evaluations += 1
        v = velocity(z.new_tensor(state)[None], z.new_tensor([time]))[0]
        return v.double().cpu().numpy()

    value, error = torch.empty_like(z), torch.empty_like(r)
    with torch.no_grad():
        for row in range(z.shape[0]):
            start, end, begin = z[row].double().cpu().numpy(), float(r[row]), float(t[row])
            if begin == end:
                value[row] = z.new_tensor(rate(begin, start))
                error[row] = ROUNDING_UNITS * eps * (1 + value[row].abs().max())
                continue
            state = _solve(rate, start, begin, end, tol)
            # As on the ODE route: looser, and from a start one tolerance away, which the flow carries as it carries
            # any error.
            rough = _solve(rate, start + tol * np.cos(np.arange(start.size)), begin, end, LOOSER * tol)
            u = formulas.average_velocity(start - state, end, begin)
            value[row] = z.new_tensor(u)
            last = (tol + ROUNDING_UNITS * eps) * (1 + np.abs(start).max())
            error[row] = (np.abs(state - rough).max() + last) / (begin - end)
    return Truth(value, error, "scipy", evaluations)


def _solve(
    rate: Callable[[float, np.ndarray], np.ndarray], start: np.ndarray, begin: float, end: float, tol: float
) -> np.ndarray:
    """State at ``end``."""
    try:
        from scipy.integrate import solve_ivp
    except ImportError as missing:
        raise MissingExtraError("scipy", "truth", "The scipy route to the average velocity") from missing

    solution = solve_ivp(rate, (begin, end), start, method="DOP853", rtol=tol, atol=tol)
    if not solution.success or not np.isfinite(solution.y[:, -1]).all():
        raise TruthError(
            f"scipy's DOP853 stopped between t = {begin:g} and r = {end:g}: {solution.message}",
            "a velocity that is smooth and finite on [r, t]",
            "raise tol, or stop at r > 0 where the data are points",
        )
    state: np.ndarray = solution.y[:, -1]
    return state
