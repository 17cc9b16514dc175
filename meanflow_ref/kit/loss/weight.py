r"""The law of the weight: ``dL/du_i = w(S_i) (u_i - target_i)``, ``S = |u - target|^2``, sampled over nine decades of S.

Families, each up to a factor: :math:`(S+c)^{-p}` (detached weight, source mf:22; with p = 1/2 also the pseudo-Huber
metric, with p = 1 log(S + c)); :math:`(S+c)^{-p-1}((1-p)S+c)`, the derivative of an attached weight times S; :math:`S\,(S^2+c)^{-p}`, the
squared norm squared again; :math:`(\sqrt S+c)^{-p}`, a weight by the norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import least_squares, minimize_scalar
from torch import Tensor

from meanflow_ref.kit.loss.measure import Measured
from meanflow_ref.kit.loss.probe import Setting
from meanflow_ref.kit.loss.run import ROWS, Run, run
from meanflow_ref.kit.loss.solve import biases, directions


@dataclass(frozen=True)
class WeightFit:
    """The weight, as far as it was recognised.

    Attributes:
        family: ``"power"``, ``"attached"``, ``"squared twice"``, ``"norm"``, ``"per element"``, ``"batch"`` or None.
        power: ``p``.
        eps: ``c``, of the summed squared norm.
        factor: What multiplies the family.
        misfit: Largest relative departure.
        detached: Whether autograd differs from the derivative of the value, so that a weight is behind a stop-gradient.
        reduction: ``"sum"``, ``"mean"``, or ``"sum or mean"`` where p = 1 makes them one.

    """

    family: str | None
    power: float
    eps: float
    factor: float
    misfit: float
    detached: bool
    reduction: str


def fit_weight(measured: Measured) -> WeightFit:  # noqa: PLR0911
    """Sample the law and name it."""
    if measured.bisected:
        detached = _is_detached(measured, 1.0)
        coupled = _couples_rows(measured)
        return WeightFit("batch" if coupled else "per element", math.nan, math.nan, math.nan, 0.0, detached, "")
    if _couples_rows(measured):
        return WeightFit("batch", math.nan, math.nan, math.nan, 0.0, True, "")
    s, w = _sample(measured)
    accurate = max(1e-5, 3 * measured.tolerance)
    detached = _is_detached(measured, 0.6)
    p, c, k, misfit = _power_law(s, w)
    size = measured.z.shape[1]
    if misfit < accurate:
        if not detached and abs(p - 2) < 1e-2:
            # w = k (S + c)^-2 is the derivative of k S / (c (S + c)): the attached weight of power 1.
            return WeightFit("attached", 1.0, c, k / c, misfit, False, _reduction(k / c, 1.0, size))
        return WeightFit("power", p, c, k, misfit, detached, _reduction(k, p, size))
    p, c, k, twice = _power_law(s**2, w / s)
    if twice < accurate:
        return WeightFit("squared twice", p, c, k, twice, detached, "sum")
    p, c, k, norm = _power_law(np.sqrt(s), w)
    if norm < accurate:
        return WeightFit("norm", p, c, k, norm, detached, "sum")
    p, c, k, attached = _attached_law(s, w)
    if attached < 10 * accurate:
        return WeightFit("attached", p, c, k, attached, detached, _reduction(k, p, size))
    return WeightFit(None, math.nan, math.nan, math.nan, min(misfit, twice, norm, attached), detached, "")


def _biased(measured: Measured, by_unit: Tensor) -> Run:
    bias = biases(measured.layout, measured.trace.calls, by_unit)
    return run(measured.target, Setting(bias=bias))


def _sample(measured: Measured) -> tuple[np.ndarray, np.ndarray]:
    """(S, w) over the decades."""
    e = directions(measured.layout, measured.z.shape[1], seed=23)
    e = e / e.norm(dim=1, keepdim=True)
    low = -6 if measured.tolerance < 1e-4 else -2
    decades = torch.linspace(low, 3, len(e), dtype=torch.float64)
    s_all, w_all = [], []
    # A row's law may depend on whether r = t: take the rows with an interval where there are enough.
    use = measured.long if int(measured.long.sum()) >= 4 else torch.ones_like(measured.long)
    if measured.gain is not None:
        use = use & (measured.gain > 0.03)
    for shift in range(4):
        s = 10 ** torch.roll(decades, shift * max(1, len(e) // 4))
        done = _biased(measured, measured.velocity + s.sqrt()[:, None] * e)
        delta = measured.layout.pick(done.calls, "u") - measured.velocity
        grad = measured.layout.pick(done.calls, "grad")
        if measured.gain is not None and measured.chain is not None:
            delta, grad = delta * measured.gain[:, None], grad * measured.chain[:, None]
        s_all.append((delta * delta).sum(1)[use])
        w_all.append(((grad * delta).sum(1) / (delta * delta).sum(1))[use])
    s_np, w_np = torch.cat(s_all).numpy(), torch.cat(w_all).numpy()
    good = w_np > 0
    return s_np[good], w_np[good]


def _power_law(s: np.ndarray, w: np.ndarray) -> tuple[float, float, float, float]:
    """Fit ``w = k (s + c)^-p``: p, c, k and the largest relative misfit."""
    if len(s) < 6:
        return math.nan, math.nan, math.nan, math.inf
    y = np.log(w)
    if float(y.max() - y.min()) < 1e-4:
        return 0.0, 0.0, float(np.exp(y.mean())), float(y.max() - y.min())

    def at(log_c: float) -> tuple[float, np.ndarray]:
        basis = np.stack([np.ones_like(s), -np.log(s + 10**log_c)], 1)
        solution, *_ = np.linalg.lstsq(basis, y, rcond=None)
        return float(np.abs(basis @ solution - y).max()), solution

    grid = np.linspace(-16, 4, 81)
    best = grid[int(np.argmin([at(c)[0] for c in grid]))]
    refined = minimize_scalar(lambda c: at(c)[0], bounds=(best - 0.3, best + 0.3), method="bounded",
                              options={"xatol": 1e-11})  # fmt: skip
    misfit, solution = at(float(refined.x))
    return float(solution[1]), float(10**refined.x), float(np.exp(min(solution[0], 700.0))), misfit


def _attached_law(s: np.ndarray, w: np.ndarray) -> tuple[float, float, float, float]:
    """Fit ``w = k (s + c)^(-p-1) ((1 - p) s + c)``."""
    best = (math.nan, math.nan, math.nan, math.inf)
    if len(s) < 6:
        return best
    y = np.log(w)

    def model(v: np.ndarray) -> np.ndarray:
        p, log_c, log_k = v
        c = np.exp(log_c)
        inner = np.maximum((1 - p) * s + c, 1e-300)
        return np.asarray(log_k - (p + 1) * np.log(s + c) + np.log(inner) - y)

    for p in (0.5, 0.75, 0.9):
        for c in (1e-6, 1e-3, 1e-1):
            done = least_squares(model, [p, math.log(c), float(y.mean())], xtol=1e-14, ftol=1e-14, gtol=1e-14)
            misfit = float(np.abs(done.fun).max())
            if misfit < best[3]:
                best = (float(done.x[0]), float(np.exp(done.x[1])), float(np.exp(done.x[2])), misfit)
    return best


def _reduction(k: float, p: float, size: int) -> str:
    """Sum or mean over a datum's elements, from the factor: ``k = 2/B`` or ``2/B D^(p-1)``."""
    q = k * ROWS / 2
    if abs(p - 1) < 1e-3:
        return "sum or mean"
    for name, expected in (("sum", 1.0), ("mean", float(size) ** (p - 1))):
        if abs(math.log(max(q, 1e-300) / expected)) < 0.02:
            return name
    return f"{q:.4g} times the sum"


def _is_detached(measured: Measured, size: float) -> bool:
    """Whether autograd differs from the derivative of the loss's value along the bias."""
    e = directions(measured.layout, measured.z.shape[1], seed=31)
    point = measured.velocity + size * e
    h = 1e-5 if measured.tolerance < 1e-4 else 1e-2
    centre = _biased(measured, point)
    slope = float((measured.layout.pick(centre.calls, "grad") * e).sum())
    plus, minus = (float(_biased(measured, point + sign * h * e).value) for sign in (1, -1))
    difference = (plus - minus) / (2 * h)
    return abs(difference - slope) > 0.02 * abs(slope)


def _couples_rows(measured: Measured) -> bool:
    """Whether the gradient of a row changes when another row's error does."""
    e = directions(measured.layout, measured.z.shape[1], seed=37)
    first = torch.arange(len(e)) < len(e) // 2
    one = _biased(measured, measured.velocity + e)
    two = _biased(measured, measured.velocity + torch.where(first[:, None], e, 3 * e))
    g1, g2 = (measured.layout.pick(done.calls, "grad")[first] for done in (one, two))
    return bool(((g1 - g2).norm(dim=1) / g1.norm(dim=1).clamp_min(1e-300)).max() > max(1e-4, 10 * measured.tolerance))
