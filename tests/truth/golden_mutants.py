"""Plain numpy and torch code with the mistakes that the vectors' flags promise to catch, and without them.

The right code here is independent of the library: textbook formulas and a Runge-Kutta integrator of fixed steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meanflow_ref.truth.golden import FieldCase, GuidedData, LossCase, MixtureData, flat

Array = NDArray[np.float64]
Velocity = Callable[[Array, float], Array]


def schedule(path: str, t: float) -> tuple[float, float, float, float]:
    """``alpha, alpha', sigma^2, sigma sigma'``."""
    if path == "linear":
        return 1 - t, -1.0, t * t, t
    if path == "trigonometric":
        a, s = math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)
        return a, -math.pi / 2 * s, s * s, math.pi / 2 * s * a
    log_alpha, rate = -t * t * (20 - 0.1) / 4 - t * 0.1 / 2, -t * (20 - 0.1) / 2 - 0.1 / 2
    a = math.exp(log_alpha)
    return a, rate * a, -math.expm1(2 * log_alpha), -rate * a * a


@dataclass(frozen=True)
class Mistakes:
    """Which mistakes a velocity makes; none by default."""

    path: str | None = None
    no_weights: bool = False
    no_norms: bool = False
    no_logs: bool = False
    prior_weights: bool = False


RIGHT = Mistakes()


def velocity(case: FieldCase, wrong: Mistakes = RIGHT) -> Velocity:
    path = wrong.path or case.path
    data = case.field
    if isinstance(data, MixtureData):
        return lambda z, t: mixture(data, path, z, t, wrong)[0]

    def guided(z: Array, t: float) -> Array:
        scale = data.omega / (1 - data.kappa)
        found = [mixture(one, path, z, t, wrong) for one in data.classes]
        levels = np.array([math.log(p) + (0 if wrong.prior_weights else level) for p, (_, level) in
                           zip(data.priors, found, strict=True)])  # fmt: skip
        shares = np.exp(levels - levels.max())
        whole = sum(share * v for share, (v, _) in zip(shares / shares.sum(), found, strict=True))
        return np.asarray(scale * found[data.label][0] + (1 - scale) * whole)

    return guided


def mixture(data: MixtureData, path: str, z: Array, t: float, wrong: Mistakes = RIGHT) -> tuple[Array, float]:
    """Velocity and log-density, up to a constant."""
    alpha, alpha_dot, variance, half_rate = schedule(path, t)
    means, stds = np.array(data.means), np.array(data.stds)
    spread = alpha**2 * stds**2 + variance
    offset = z - alpha * means
    level = -0.5 * (offset**2 / spread).sum(1)
    if not wrong.no_norms:
        level = level - 0.5 * np.log(spread).sum(1)
    if not wrong.no_weights:
        level = level + np.log(data.weights)
    top = 0.0 if wrong.no_logs else level.max()
    with np.errstate(all="ignore"):
        share = np.exp(level - top)
        total = share.sum()
        own = alpha_dot * means + (alpha * alpha_dot * stds**2 + half_rate) / spread * offset
        return (share / total) @ own, float(top + np.log(total))


def runge_kutta(v: Velocity, z: Array, r: float, t: float, steps: int) -> Array:
    """Average velocity over ``[r, t]`` by the classical method; r may exceed t."""
    h, w = t - r, np.zeros_like(z)
    if h == 0:
        return v(z, t)
    for n in range(steps):
        # Quadratic in s: short steps at the noise end's beginning cost nothing, and at the data end they are needed.
        s, e = (1 - (1 - k / steps) ** 2 for k in (n, n + 1))
        d = e - s
        k1 = v(z - h * w, t - h * s)
        k2 = v(z - h * (w + d / 2 * k1), t - h * (s + d / 2))
        k3 = v(z - h * (w + d / 2 * k2), t - h * (s + d / 2))
        k4 = v(z - h * (w + d * k3), max(0.0, t - h * e) if h > 0 else t - h * e)
        w = w + d / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return w


def values(case: FieldCase, name: str) -> Array:
    return np.array([number.float64 for number in flat(case.outputs[name])])


def distance(case: FieldCase, name: str, found: Array | float) -> float:
    """Error over ``(1 + |J|) max(1, |z|, |value|)``; infinite for NaN."""
    truth = values(case, name)
    size = max(1.0, float(np.abs(truth).max()), *map(abs, case.z)) * case.amplification
    error = float(np.abs(np.asarray(found) - truth).max()) / size
    return error if math.isfinite(error) else math.inf


# ---------------------------------------------------------------- the loss


def loss(case: LossCase, mistake: str = "") -> dict[str, Any]:
    """Algorithm 1 for one sample in torch's autograd, right or with one named mistake."""
    parameters = [
        torch.tensor(p, dtype=torch.float64).requires_grad_() for p in chain.from_iterable(case.network.layers)
    ]
    x, eps, r, t = (torch.tensor(v, dtype=torch.float64) for v in (case.x, case.eps, case.r, case.t))
    alpha, alpha_dot, variance, half_rate = schedule("linear" if mistake == "linear path" else case.path, case.t)
    sigma = math.sqrt(variance)
    z, v = alpha * x + sigma * eps, alpha_dot * x + half_rate / sigma * eps

    def net(z: Tensor, r: Tensor, t: Tensor, label: int | None = case.label) -> Tensor:
        hot = torch.zeros(case.network.classes, dtype=torch.float64)
        if label is not None:
            hot[label] = 1
        h = torch.cat([z, r[None], t[None], hot])
        for n in range(0, len(parameters), 2):
            h = parameters[n] @ h + parameters[n + 1]
            h = torch.tanh(h) if n + 2 < len(parameters) else h
        return h

    target_v = v
    if case.guidance is not None and (case.label != case.guidance[2] or mistake == "null guided"):
        omega, kappa, null = case.guidance
        null = null if case.label != null else 0
        target_v = (omega * v + kappa * net(z, t, t) + (1 - omega - kappa) * net(z, t, t, null)).detach()
    tangent = target_v if case.objective == "meanflow" else net(z, t, t).detach()
    if mistake == "sample tangent":
        tangent = v
    du = derivative(net, z, r, t, tangent, mistake)
    first, second = (t, r) if mistake == "exchanged" else (r, t)
    u = net(z, first, second)
    h = 1.0 if mistake == "no interval" else t - r
    target = target_v + h * du if mistake == "sign" else target_v - h * du
    if mistake != "leaking target":
        target = target.detach()
    squares = (u - target) ** 2
    error = squares.mean() if case.norm == "mean" and mistake != "sum" else squares.sum()
    weight = (error + case.weight_eps) ** -case.weight_power
    value = (weight if mistake == "leaking weight" else weight.detach()) * error
    gradient = torch.autograd.grad(value, parameters)
    return {
        "target": target.detach(),
        "loss": value.detach(),
        "gradient": gradient,
        "tangent": tangent,
        "du_dt": du.detach(),
    }


def derivative(net: Any, z: Tensor, r: Tensor, t: Tensor, tangent: Tensor, mistake: str) -> Tensor:
    """du/dt along ``(tangent, 0, 1)``."""
    zero, one = torch.zeros_like(r), torch.ones_like(t)
    if mistake == "difference":
        e = 1e-2
        slope: Tensor = (net(z + e * tangent, r, t + e) - net(z - e * tangent, r, t - e)) / (2 * e)
        return slope
    directions = {
        "no time": (tangent, zero, zero),
        "time of r": (tangent, one, zero),
        "both times": (tangent, one, one),
    }
    along = directions.get(mistake, (tangent, zero, one))
    du: Tensor = torch.func.jvp(net, (z, r, t), along)[1]
    return du


__all__ = ["GuidedData", "Mistakes", "distance", "loss", "runge_kutta", "schedule", "values", "velocity"]
