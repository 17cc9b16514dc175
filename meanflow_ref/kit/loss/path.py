"""Which path the states lie on, and whether the velocity is its derivative: from two runs with one seed and other data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow_ref.paths import AbstractPath, LinearPath, TrigonometricPath, VariancePreservingPath

PATHS: dict[str, Callable[[], AbstractPath]] = {
    "linear": LinearPath,
    "trigonometric": TrigonometricPath,
    "variance-preserving": VariancePreservingPath,
}


@dataclass(frozen=True)
class PathFit:
    """A recognised path.

    Attributes:
        name: Which.
        reversed: Whether data are at t = 1.
        scale: Factor that the loss puts on the data.
        misfit: Largest relative departure of alpha.
        slot: Argument that is the time of the state, ``"t"`` or, if the two are swapped, ``"r"``.

    """

    name: str
    reversed: bool
    scale: float
    misfit: float
    slot: str

    def schedules(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, sigma and their derivatives in the loss's own time, each ``(U, 1)``."""
        path = PATHS[self.name]()
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
        for slot, t in times.items():
            for back in (False, True):
                expected = path.alpha(1 - t if back else t)
                use = (expected > 0.02) & (t >= 0) & (t <= 1)
                if int(use.sum()) < 4:
                    continue
                ratio = alpha[use] / expected[use]
                scale = float(ratio.median())
                misfit = float(((alpha[use] - scale * expected[use]).abs() / max(abs(scale), 1e-3)).max())
                found.append(PathFit(name, back, scale, misfit, slot))
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
