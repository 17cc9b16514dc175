"""Fields, seeded states and the amplification factor that the tests of the truth share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow_ref.fields.base import AbstractDataField
from meanflow_ref.fields.gaussian import Gaussian
from meanflow_ref.fields.mixture import GaussianMixture
from meanflow_ref.paths import LINEAR, TRIGONOMETRIC, VARIANCE_PRESERVING, AbstractPath

PATHS = {"linear": LINEAR, "trigonometric": TRIGONOMETRIC, "variance preserving": VARIANCE_PRESERVING}


def floats(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gaussian(path: AbstractPath = LINEAR) -> Gaussian:
    """Four dimensions, a full covariance."""
    factor = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    covariance = factor @ factor.T / 4 + 0.02 * torch.eye(4, dtype=torch.float64)
    return Gaussian(floats(0.5, -1.0, 0.2, 2.0), covariance, path)


def line_mixture(path: AbstractPath = LINEAR) -> GaussianMixture:
    """Three modes on a line, with a closed flow."""
    return GaussianMixture(floats(0.5, 0.3, 0.2), floats(-1.5, 0.4, 2.0), floats(0.3, 0.5, 0.2), path)


def sharp_mixture(path: AbstractPath = LINEAR) -> GaussianMixture:
    """Two narrow modes on a line: J is large between them, 9e5 and more."""
    return GaussianMixture(floats(0.5, 0.5), floats(-2.0, 2.0), floats(0.05, 0.05), path)


def plane_mixture(path: AbstractPath = LINEAR) -> GaussianMixture:
    """Three modes in the plane: no closed flow."""
    means = torch.stack([floats(-1.0, 0.5), floats(1.2, 0.3), floats(0.1, -1.1)])
    return GaussianMixture(floats(0.5, 0.3, 0.2), means, floats(0.3, 0.5, 0.4), path)


@dataclass(frozen=True)
class Cases:
    z: Tensor
    r: Tensor
    t: Tensor

    def __getitem__(self, rows: slice | Tensor) -> Cases:
        return Cases(self.z[rows], self.r[rows], self.t[rows])

    @property
    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.z, self.r, self.t

    @property
    def h(self) -> Tensor:
        return (self.t - self.r)[:, None]


def draw(field: AbstractDataField, n: int = 48, seed: int = 0) -> Cases:
    """At least 28 states from the field's law.

    Rows 0 to 7 have r = 0, half of them t = 1; 8 to 15 have r = t; 16 to 27 gaps from 1e-1 to 1e-12.
    """
    generator = torch.Generator().manual_seed(seed)
    pair = torch.rand(2, n, dtype=torch.float64, generator=generator)
    r, t = pair.amin(0), pair.amax(0)
    r[:8], t[:4] = 0, 1
    r[8:16] = t[8:16]
    gaps = 10.0 ** -torch.arange(1, 13, dtype=torch.float64)
    r[16:28] = (t[16:28] - gaps).clamp(min=0)
    return Cases(field.sample(t, generator), r, t)


def amplification(field: AbstractDataField, c: Cases) -> Tensor:
    """``1 + |J|``: how much the flow from t to r amplifies an error made on the way. ``(n,)``."""
    return 1 + field.jacobian(*c.all).abs().sum(-1).amax(-1)


def worst(difference: Tensor, scale: Tensor | float = 1.0) -> float:
    """Largest entry of a per-row difference, each row over its scale."""
    return float((difference.abs().flatten(1).amax(1) / scale).max())
