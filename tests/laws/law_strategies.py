"""Random problems for the laws: an exact field, states on and off its law, and times with their awkward cases.

Hypothesis draws the family, the sizes, the path, a seed, and one pair of times by itself; the numbers come from the
seed, so that an example prints as one short line and shrinks to a plain case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from meanflow_ref.fields import Affine, Gaussian, GaussianMixture, Product
from meanflow_ref.fields.base import AbstractDataField
from meanflow_ref.paths import LINEAR, TRIGONOMETRIC, VARIANCE_PRESERVING, AbstractPath, CallablePath

ROWS = 10


def _quadratic_alpha(t: Tensor) -> Tensor:
    return 1 - 0.5 * t - 0.5 * t**2


def _quadratic_sigma(t: Tensor) -> Tensor:
    return 1.4 * t - 0.4 * t**2


PATHS: tuple[AbstractPath, ...] = (
    LINEAR,
    TRIGONOMETRIC,
    VARIANCE_PRESERVING,
    CallablePath(_quadratic_alpha, _quadratic_sigma),
)


@dataclass(frozen=True)
class Problem:
    """A field with states at ``t`` and earlier times ``r``."""

    field: AbstractDataField
    z: Tensor
    r: Tensor
    t: Tensor

    @property
    def args(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.z, self.r, self.t

    @property
    def h(self) -> Tensor:
        return (self.t - self.r)[:, None]

    @property
    def v(self) -> Tensor:
        return self.field.velocity(self.z, self.t)

    @property
    def size(self) -> Tensor:
        """``1 + |v| + |z|``: what a relative rounding is relative to. ``(n,)``."""
        return 1 + self.v.abs().amax(1) + self.z.abs().amax(1)

    def __repr__(self) -> str:
        return f"Problem({self.field!r}, z={self.z.tolist()}, r={self.r.tolist()}, t={self.t.tolist()})"


def norm(matrices: Tensor) -> Tensor:
    """Largest row sum: the operator norm of the maximum norm."""
    return matrices.abs().sum(-1).amax(-1)


def amplification(p: Problem) -> Tensor:
    """``1 + |J|``: the flow from t to r carries an error made on the way with this factor at most."""
    return 1 + norm(p.field.jacobian(*p.args))


def worst(difference: Tensor, scale: Tensor | float = 1.0) -> float:
    """Largest entry, each row over its scale; NaN counts as infinite."""
    rows = difference.abs().flatten(1).amax(1) / scale
    return float(rows.nan_to_num(nan=float("inf")).max())


# ---------------------------------------------------------------- fields


def gaussian(dim: int, path: AbstractPath, seed: int) -> Gaussian:
    """Standard deviations from 0.1 to 2 along random axes."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator)).Q
    stds = 0.1 * 20 ** torch.rand(dim, dtype=torch.float64, generator=generator)
    covariance = (axes * stds**2) @ axes.mT
    mean = torch.randn(dim, dtype=torch.float64, generator=generator)
    return Gaussian(mean, (covariance + covariance.mT) / 2, path)


def mixture(dim: int, components: int, path: AbstractPath, seed: int) -> GaussianMixture:
    """Unequal weights, means of size 1.5, standard deviations from 0.2 to 1."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.softmax(torch.randn(components, dtype=torch.float64, generator=generator), 0)
    means = 1.5 * torch.randn(components, dim, dtype=torch.float64, generator=generator)
    stds = 0.2 * 5 ** torch.rand(components, dtype=torch.float64, generator=generator)
    return GaussianMixture(weights, means, stds, path)


def rotated_product(factors: int, path: AbstractPath, seed: int) -> Affine:
    """Independent 1-D mixtures of two components, rotated and shifted: a closed flow that mixes all coordinates."""
    generator = torch.Generator().manual_seed(seed)
    product = Product(tuple(mixture(1, 2, path, seed + k) for k in range(factors)))
    rotation = torch.linalg.qr(torch.randn(factors, factors, dtype=torch.float64, generator=generator)).Q
    return Affine(product, rotation, torch.randn(factors, dtype=torch.float64, generator=generator))


seeds = st.integers(0, 2**31 - 1)
paths = st.sampled_from(PATHS)
closed_fields: st.SearchStrategy[AbstractDataField] = st.one_of(
    st.builds(gaussian, st.integers(1, 4), paths, seeds),
    st.builds(mixture, st.just(1), st.integers(2, 4), paths, seeds),
    st.builds(rotated_product, st.integers(2, 3), paths, seeds),
)
# For laws that call v some thousand times: a path by automatic differentiation, or a product of fields, costs tenfold.
quick_paths = st.sampled_from(PATHS[:3])
quick_closed_fields: st.SearchStrategy[AbstractDataField] = st.one_of(
    st.builds(gaussian, st.integers(1, 4), quick_paths, seeds),
    st.builds(mixture, st.just(1), st.integers(2, 4), quick_paths, seeds),
    st.builds(rotated_product, st.just(2), st.just(LINEAR), seeds),
)
open_fields: st.SearchStrategy[AbstractDataField] = st.builds(
    mixture, st.integers(2, 3), st.integers(2, 4), paths, seeds
)


# ---------------------------------------------------------------- states and times


def problem(
    field: AbstractDataField, pair: tuple[float, float] = (0.2, 0.9), digits: int = 6, seed: int = 0
) -> Problem:
    """Ten states with their times.

    Row 0 has the given pair of times, row 1 has r = t, row 2 a gap of ``10^-digits``, row 3 the whole interval, the
    others uniform pairs. Rows 8 and 9 are off the law: far in the tails, or between the modes.
    """
    generator = torch.Generator().manual_seed(seed)
    times = torch.rand(2, ROWS, dtype=torch.float64, generator=generator)
    r, t = times.amin(0), times.amax(0)
    r[0], t[0] = min(pair), max(pair)
    r[1] = t[1]
    r[2] = (t[2] - 10.0**-digits).clamp(min=0)
    r[3], t[3] = 0, 1
    z = field.sample(t, generator)
    z[8:] = 2 * torch.randn(2, field.dim, dtype=torch.float64, generator=generator)
    return Problem(field, z, r, t)


unit_interval = st.floats(0, 1, allow_subnormal=False)
pairs = st.tuples(unit_interval, unit_interval)
digits = st.integers(2, 15)


def problems(fields: st.SearchStrategy[AbstractDataField]) -> st.SearchStrategy[Problem]:
    """Problems about one of ``fields``."""
    return st.builds(problem, fields, pairs, digits, seeds)


closed_problems = problems(closed_fields)
quick_closed_problems = problems(quick_closed_fields)
open_problems = problems(open_fields)

# A law that solves ODEs takes a second an example: a quarter of the profile's examples (6 in the suite, 125 under
# HYPOTHESIS_PROFILE=thorough).
few = settings(max_examples=max(1, settings().max_examples // 4))
fewer = settings(max_examples=max(1, settings().max_examples // 8))

# A plain problem of each kind, on which the mutants of a law must fail.
PLAIN: dict[str, Callable[[], Problem]] = {
    "gaussian": lambda: problem(gaussian(3, LINEAR, 1)),
    "mixture": lambda: problem(mixture(1, 3, TRIGONOMETRIC, 2)),
    "rotated product": lambda: problem(rotated_product(2, LINEAR, 3)),
}
