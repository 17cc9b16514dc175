"""The fields and the seeded cases that the main job measures on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow_ref.fields.base import AbstractDataField, AbstractField, column
from meanflow_ref.fields.compose import Affine, Product
from meanflow_ref.fields.gaussian import Gaussian
from meanflow_ref.fields.guided import ClassConditional
from meanflow_ref.fields.linear import LinearFlow
from meanflow_ref.fields.mixture import GaussianMixture
from meanflow_ref.fields.shell import Shell
from meanflow_ref.fields.transfer import Transferred
from meanflow_ref.fields.uniform import UniformBoxes
from meanflow_ref.paths import LINEAR, TRIGONOMETRIC, VARIANCE_PRESERVING, AbstractPath

PATHS: dict[str, AbstractPath] = {
    "linear": LINEAR,
    "trigonometric": TRIGONOMETRIC,
    "variance preserving": VARIANCE_PRESERVING,
}


def tensor(*values: float) -> Tensor:
    """A float64 vector."""
    return torch.tensor(values, dtype=torch.float64)


def random_rotation(dim: int, seed: int = 0) -> Tensor:
    """A seeded orthogonal matrix."""
    normal = torch.randn(dim, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q: Tensor = torch.linalg.qr(normal).Q
    return q


def gaussian(path: AbstractPath = LINEAR, dim: int = 4) -> Gaussian:
    """A Gaussian with a full covariance of condition number 400."""
    q = random_rotation(dim)
    variances = torch.logspace(-2, 0.602, dim, dtype=torch.float64)
    mean = torch.linspace(-1, 1.5, dim, dtype=torch.float64)
    covariance = q @ torch.diag(variances) @ q.T
    return Gaussian(mean, (covariance + covariance.T) / 2, path)


def mixture(path: AbstractPath = LINEAR) -> GaussianMixture:
    """Three unequal modes in one dimension."""
    return GaussianMixture(tensor(0.5, 0.3, 0.2), tensor(-1.5, 0.4, 2.0), tensor(0.3, 0.5, 0.2), path)


def product(path: AbstractPath = LINEAR) -> Affine:
    """Three 1-D mixtures, rotated and shifted: a 3-D mixture of eight modes with a closed u."""
    factors = (
        GaussianMixture(tensor(0.5, 0.5), tensor(-1.0, 1.2), tensor(0.3, 0.4), path),
        GaussianMixture(tensor(0.7, 0.3), tensor(0.5, -1.5), tensor(0.2, 0.6), path),
        GaussianMixture(tensor(0.4, 0.6), tensor(0.3, -0.4), tensor(0.8, 0.3), path),
    )
    return Affine(Product(factors), random_rotation(3, seed=1), tensor(0.3, -0.2, 0.5))


def uniform(path: AbstractPath = LINEAR) -> UniformBoxes:
    """The interval [-1, 1]."""
    return UniformBoxes(tensor(-1.0)[None], tensor(1.0)[None], tensor(1.0), path)


def shell(path: AbstractPath = LINEAR) -> Shell:
    """The sphere of radius 1.3 in three dimensions."""
    return Shell(1.3, 3, path)


def transferred(path: AbstractPath = LINEAR) -> Transferred:
    """The 1-D mixture carried from the trigonometric path to ``path``."""
    return Transferred(mixture(TRIGONOMETRIC), path)


FAMILIES: dict[str, Callable[[AbstractPath], AbstractDataField]] = {
    "Gaussian, d = 4": gaussian,
    "mixture, d = 1": mixture,
    "rotated product of mixtures, d = 3": product,
    "uniform, d = 1": uniform,
    "shell, d = 3": shell,
    "transferred mixture, d = 1": transferred,
}


def spiral(path: AbstractPath = LINEAR) -> LinearFlow:
    """A rotating linear field: the only one here where d_z u is not symmetric, so that its transpose shows."""
    return LinearFlow(torch.tensor([[0.3, -2.0, 0.1], [1.4, -0.5, 0.0], [0.0, 0.7, -0.2]], dtype=torch.float64), path)


def planar_mixture(path: AbstractPath = LINEAR) -> GaussianMixture:
    """Four unequal modes in the plane: v is exact, u needs the ODE."""
    means = torch.tensor([[-1.2, 0.3], [0.8, 1.1], [0.2, -1.4], [1.6, -0.5]], dtype=torch.float64)
    return GaussianMixture(tensor(0.4, 0.3, 0.2, 0.1), means, tensor(0.3, 0.5, 0.4, 0.6), path)


def two_classes(path: AbstractPath = LINEAR) -> ClassConditional:
    """Two classes in the plane, of two modes each, with unequal priors."""
    first = torch.tensor([[-1.2, 0.3], [0.8, 1.1]], dtype=torch.float64)
    second = torch.tensor([[0.2, -1.4], [1.6, -0.5]], dtype=torch.float64)
    classes = (
        GaussianMixture(tensor(0.6, 0.4), first, tensor(0.3, 0.5), path),
        GaussianMixture(tensor(0.7, 0.3), second, tensor(0.4, 0.6), path),
    )
    return ClassConditional(classes, tensor(0.7, 0.3))


@dataclass(frozen=True)
class Cases:
    """States with their times, ``z (n, d)``, ``r (n,)``, ``t (n,)``."""

    z: Tensor
    r: Tensor
    t: Tensor

    @property
    def gap(self) -> Tensor:
        """``t - r``, ready to multiply a state."""
        return column(self.t - self.r)


def cases(field: AbstractField, n: int = 64, seed: int = 0, earliest: float = 0.0) -> Cases:
    """Draw ``n`` states from the field's own law (normal if it has none), at sorted times, awkward ones included.

    The first rows are r = t, gaps of 1e-4 to 1e-12, and the whole interval. ``earliest`` keeps times away from 0,
    where a variance-preserving path has an infinite velocity.
    """
    generator = torch.Generator().manual_seed(seed)
    pair = earliest + (1 - earliest) * torch.rand(2, n, dtype=torch.float64, generator=generator)
    r, t = pair.amin(0), pair.amax(0)
    r[:4] = t[:4]
    gaps = torch.tensor([1e-4, 1e-6, 1e-8, 1e-10, 1e-12], dtype=torch.float64)
    r[4:9] = (t[4:9] - gaps).clamp(min=earliest)
    r[9:12], t[9:12] = earliest, 1.0
    if isinstance(field, AbstractDataField):
        return Cases(field.sample(t, generator), r, t)
    return Cases(torch.randn(n, field.dim, dtype=torch.float64, generator=generator), r, t)


def amplification(field: AbstractField, c: Cases) -> Tensor:
    """``1 + |J|`` per row, the factor by which the flow map amplifies an error made at time t. Source: ref:logdet."""
    norm: Tensor = torch.linalg.matrix_norm(field.jacobian(c.z, c.r, c.t), ord=2)
    return 1 + norm
