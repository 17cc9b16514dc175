"""The weight of a loss, from the size of its gradient against the squared error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from meanflow_ref.kit.tape.network import Array


@dataclass(frozen=True)
class Weight:
    """``g = scale B^-1 2 (S + c)^-power Delta``, or one of the wrong families.

    ``error`` is the largest relative misfit over the rows, ``name`` the diagnosis of a wrong family.
    """

    power: float
    eps: float
    scale: float
    error: float
    name: str = ""


def fit_weight(delta: Array, g: Array, batch: int) -> Weight:
    """The family and its parameters that fit best; legal ones first."""
    squares = (delta * delta).sum(1)
    size = (g * delta).sum(1) / squares * batch / 2
    if (size <= 0).any():
        return Weight(0.0, 0.0, 0.0, np.inf)
    plain = _power_law(squares, size)
    candidates = [plain]
    if abs(plain.power - 2) < 1e-3 and plain.error < 1e-2:
        # c/(S + c)^2 is the derivative of S/(S + c): p = 1 with the weight attached.
        attached = any(abs(plain.scale / (k * plain.eps) - 1) < 1e-2 for k in (1.0, 1 / delta.shape[1]) if plain.eps)
        return Weight(1.0, plain.eps, plain.scale, plain.error, "WEIGHT_NOT_DETACHED") if attached else plain
    twice = _power_law(squares**2, size / squares)
    candidates.append(Weight(twice.power, twice.eps, twice.scale, twice.error, "WEIGHT_SQUARED_TWICE"))
    return min(candidates, key=lambda one: one.error * (1.0 if not one.name else 10.0))


def _power_law(s: Array, size: Array) -> Weight:
    """``size = scale (s + c)^-p`` by least squares in logarithms over a grid of c, refined once."""
    if float(np.ptp(np.log(size))) < 1e-3:
        spread = float(np.ptp(size) / size.mean())
        return Weight(0.0, 0.0, float(size.mean()), spread)
    best = min((_at(s, size, c) for c in (0.0, *10.0 ** np.linspace(-8, 1, 73))), key=lambda one: one.error)
    step = 9 / 72
    for _ in range(8 if best.eps else 0):
        nearby = best.eps * 10.0 ** (step * np.linspace(-1, 1, 17))
        best = min((_at(s, size, float(c)) for c in nearby), key=lambda one: one.error)
        step /= 6
    return best


def _at(s: Array, size: Array, c: float) -> Weight:
    columns = np.stack([np.ones_like(s), -np.log(s + c)], 1)
    (log_scale, power), *_ = np.linalg.lstsq(columns, np.log(size), rcond=None)
    error = float(np.abs(np.expm1(columns @ [log_scale, power] - np.log(size))).max())
    return Weight(float(power), float(c), float(np.exp(log_scale)), error)


def per_element(delta: Array, g: Array) -> bool:
    """Whether each element has a weight of its own: g/Delta then is one falling function of its size alone."""
    ratio = g / delta
    if (ratio <= 0).any():
        return False
    order = np.argsort(np.abs(delta).reshape(-1))
    sizes = ratio.reshape(-1)[order]
    return bool((np.diff(sizes) <= 1e-9 * sizes[:-1]).all() and sizes[0] > 1.01 * sizes[-1])
