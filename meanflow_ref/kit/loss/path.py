"""Which path the states lie on, and whether the velocity is its derivative: from two runs with one seed and other data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from meanflow_ref.paths import AbstractPath, LinearPath, TrigonometricPath, VariancePreservingPath

PATHS: dict[str, Callable[[], AbstractPath]] = {
    "linear": LinearPath,
    "trigonometric": TrigonometricPath,
    "variance-preserving": VariancePreservingPath,
}

# The network's time at t = 1.
UNITS = (1.0, 999.0, 1000.0)


@dataclass(frozen=True)
class PathFit:
    """A recognised path.

    Attributes:
        name: Which.
        reversed: Whether data are at t = 1.
        scale: Factor that the loss puts on the data.
        misfit: Largest relative departure of alpha.
        slot: Argument that is the time of the state, ``"t"`` or, if the two are swapped, ``"r"``.
        unit: What the network's time is at t = 1; 1000 in code that borrows a diffusion model's embedding.

    """

    name: str
    reversed: bool
    scale: float
    misfit: float
    slot: str
    unit: float = 1.0

    def schedules(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, sigma and their derivatives in the loss's own time, each ``(U, 1)``."""
        path = PATHS[self.name]()
        t = t / self.unit
        s = (1 - t if self.reversed else t)[:, None]
        sign = -1 if self.reversed else 1
        return path.alpha(s), path.sigma(s), sign * path.alpha_dot(s), sign * path.sigma_dot(s)


def alpha_of(dz: Tensor, x_1: Tensor, x_2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How a change of the data moved each state: alpha ``(U,)``, the data's row ``(U,)`` and the relative misfit."""
    dx = (x_2 - x_1).flatten(1).double()
    alpha = dz @ dx.T / (dx * dx).sum(1)
    rest = (dz[:, None] - alpha[:, :, None] * dx[None]).norm(dim=2)
    row = rest.argmin(dim=1)
    index = torch.arange(len(dz))
    return alpha[index, row], row, rest[index, row] / dx.norm(dim=1)[row]


def recognise(alpha: Tensor, times: dict[str, Tensor], tolerance: float) -> PathFit | None:
    """The path, direction and argument that explain alpha; None if none does."""
    found = []
    for name, build in PATHS.items():
        path = build()
        for (slot, raw), unit in product(times.items(), UNITS):
            t = raw / unit
            for back in (False, True):
                expected = path.alpha(1 - t if back else t)
                # The linear path goes on outside [0, 1], where a wrong law of times may lead.
                use = expected.abs() > 0.02
                if name != "linear":
                    use = use & (t >= 0) & (t <= 1)
                if int(use.sum()) < 4:
                    continue
                ratio = alpha[use] / expected[use]
                scale = float(ratio.median())
                misfit = float(((alpha[use] - scale * expected[use]).abs() / max(abs(scale), 1e-3)).max())
                found.append(PathFit(name, back, scale, misfit, slot, unit))
    found = [fit for fit in found if fit.misfit < tolerance and abs(fit.scale) > 1e-3]
    return min(found, key=lambda fit: (fit.misfit > 1e-9, fit.slot != "t", fit.misfit), default=None)


def velocity_misfit(
    fit: PathFit, z: Tensor, t: Tensor, velocity: Tensor, x: Tensor, guidance: Tensor
) -> tuple[Tensor, float]:
    """How far ``velocity / guidance`` is from dz/dt, ``(U,)`` relative, and the offset that the loss adds to the data.

    Source: fm:path, fm:conditional-velocity.
    """
    alpha, sigma, alpha_dot, sigma_dot = fit.schedules(t)
    # With z = alpha X + sigma e and v = alpha' X + sigma' e, eliminate e: X = (sigma v - sigma' z)/(sigma alpha' - ...).
    determinant = sigma * alpha_dot - alpha * sigma_dot
    data = (sigma * velocity / guidance[:, None] - sigma_dot * z) / determinant
    rest = data - fit.scale * x
    offset = float(rest.median())
    scale = velocity.abs().mean() / guidance.abs().clamp_min(1e-9)
    return ((rest - offset) * determinant / sigma.clamp_min(1e-3)).abs().amax(dim=1) / scale.clamp_min(1e-3), offset


def sigma_floor(z: Tensor, t: Tensor, velocity: Tensor, x: Tensor, alpha: Tensor, slope: Tensor) -> float | None:
    """``s`` of the path ``z = (1 - t) x + (s + (1 - s) t) eps`` of conditional flow matching, if it is that.

    There ``sigma/sigma' = t + s/(1 - s)`` on every row.
    """
    noise, drift = z - alpha[:, None] * x, velocity - slope[:, None] * x
    ratio = (noise * drift).sum(1) / (drift * drift).sum(1)
    rest = (noise - ratio[:, None] * drift).norm(dim=1) / noise.norm(dim=1)
    offset = ratio - t
    middle = float(offset.median())
    if float(rest.max()) > 1e-4 or not 0 < middle < 0.2 or float((offset - middle).abs().max()) > 1e-2 * middle + 1e-9:
        return None
    return middle / (1 + middle)
