r"""Fields as plain data: exact numbers, ready to be read in any language and to be built at any precision.

A :class:`Mixture` is a normal mixture with diagonal covariances. Its numbers are taken to be exact: a float64 stands
for the rational number that it is, 0.1 for 0.1000000000000000055... Weights are any positive numbers; the law meant is
that of ``w_k / (w_1 + ... + w_K)``, computed in rational arithmetic, so that (0.5, 0.3, 0.2), whose float64 do not sum
to 1, means the same law as in :class:`meanflow_ref.fields.GaussianMixture`, which also normalises.

A :class:`Combination` is ``sum_k a_k v_k(z, t)`` of mixtures' velocities with rational ``a_k`` of sum 1: a guided
field.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from meanflow_ref import formulas
from meanflow_ref.errors import CertificationError, ParameterError, ShapeError
from meanflow_ref.truth.certified.balls import Exact

Row: TypeAlias = tuple[Fraction, ...]


@dataclass(frozen=True)
class Mixture:
    """A mixture of normal laws with diagonal covariances, as exact numbers.

    Args:
        weights: Positive numbers, K of them, of any sum: integers, floats or fractions. Stored as fractions of sum 1.
        means: K means of d numbers each; K numbers for d = 1.
        stds: Positive standard deviations: K numbers for isotropic components, or K times d. Stored as ``variances``,
            their squares in rational arithmetic.

    Raises:
        CertificationError: A weight or a deviation is not positive: the marginals would have no smooth density.
        ParameterError: A number is not finite.
        ShapeError: The shapes do not fit.

    """

    weights: tuple[Fraction, ...]
    means: tuple[tuple[Fraction, ...], ...]
    variances: tuple[tuple[Fraction, ...], ...]

    def __init__(
        self,
        weights: Sequence[Exact],
        means: Sequence[Exact] | Sequence[Sequence[Exact]],
        stds: Sequence[Exact] | Sequence[Sequence[Exact]],
    ) -> None:
        shares = [_rational(weight, "weights") for weight in weights]
        rows, spreads = [_row(mean, "means") for mean in means], [_row(std, "stds") for std in stds]
        self._set(shares, rows, [tuple(abs(s) * s for s in spread) for spread in spreads])

    @classmethod
    def from_variances(
        cls, weights: Sequence[Exact], means: Sequence[Sequence[Exact]], variances: Sequence[Sequence[Exact]]
    ) -> Mixture:
        """A mixture whose variances, and not deviations, are the exact numbers."""
        mixture = cls.__new__(cls)
        shares = [_rational(weight, "weights") for weight in weights]
        mixture._set(shares, [_row(m, "means") for m in means], [_row(v, "variances") for v in variances])
        return mixture

    def _set(self, shares: list[Fraction], means: list[Row], variances: list[Row]) -> None:
        """Check and store."""
        dims = sorted({len(mean) for mean in means})
        if not len(shares) == len(means) == len(variances) or len(dims) != 1:
            raise ShapeError(
                f"{len(shares)} weights, {len(means)} means of sizes {dims}, {len(variances)} deviations.",
                "K weights, K means of d numbers, K deviations of 1 or d numbers",
            )
        if any(len(variance) not in (1, dims[0]) for variance in variances):
            raise ShapeError(f"deviations of sizes {sorted({len(v) for v in variances})}.", f"1 or {dims[0]} each")
        if min(shares) <= 0:
            raise CertificationError(
                f"weights = {[float(share) for share in shares]}.",
                "the hypothesis that every weight is positive",
                "leave components of weight 0 out",
            )
        if min(min(variance) for variance in variances) <= 0:
            raise CertificationError(
                "a standard deviation is not positive.",
                "the hypothesis that every deviation is positive: at t = 0 a point mass has no density",
            )
        total = sum(shares)
        object.__setattr__(self, "weights", tuple(share / total for share in shares))
        object.__setattr__(self, "means", tuple(means))
        full = tuple(variance * dims[0] if len(variance) == 1 else variance for variance in variances)
        object.__setattr__(self, "variances", full)

    @property
    def dim(self) -> int:
        """Dimension d of a state."""
        return len(self.means[0])


@dataclass(frozen=True)
class Combination:
    """A linear combination of mixtures' velocities, ``sum_k a_k v_k(z, t)`` with ``sum_k a_k = 1``.

    Args:
        terms: Pairs of a coefficient and a mixture; coefficients are exact, of any sign.

    Raises:
        CertificationError: The coefficients do not sum to 1, so that the schedule transfer does not hold.
        ShapeError: The mixtures differ in dimension.

    """

    terms: tuple[tuple[Fraction, Mixture], ...]

    def __init__(self, terms: Sequence[tuple[Exact, Mixture]]) -> None:
        pairs = tuple((_rational(a, "coefficient"), mixture) for a, mixture in terms)
        if sum(a for a, _ in pairs) != 1:
            raise CertificationError(
                f"the coefficients {[str(a) for a, _ in pairs]} do not sum to 1.",
                "the hypothesis of the schedule transfer, a sum of exactly 1",
                "give fractions.Fraction, or one float64 omega by Combination.guided",
            )
        if len({mixture.dim for _, mixture in pairs}) != 1:
            raise ShapeError(f"mixtures of dimensions {sorted({m.dim for _, m in pairs})}.", "one dimension")
        object.__setattr__(self, "terms", pairs)

    @classmethod
    def guided(cls, cond: Mixture, uncond: Mixture, omega: Exact, kappa: Exact = 0) -> Combination:
        """Classifier-free guided field, ``omega' v(.|c) + (1 - omega') v`` with ``omega' = omega/(1 - kappa)``.

        The scale is computed in rational arithmetic. Source: mf:13, mf:20.
        """
        scale: Fraction = formulas.effective_guidance(_rational(omega, "omega"), _below_one(kappa))
        return cls([(scale, cond), (1 - scale, uncond)])

    @property
    def dim(self) -> int:
        """Dimension d of a state."""
        return self.terms[0][1].dim


def merge(weights: Sequence[Exact], mixtures: Sequence[Mixture]) -> Mixture:
    """The mixture of mixtures, with weights in rational arithmetic: the unconditional law of classes."""
    shares = [_rational(weight, "weights") for weight in weights]
    if len(shares) != len(mixtures):
        raise ShapeError(f"{len(shares)} weights for {len(mixtures)} mixtures.", "one weight a mixture")
    return Mixture.from_variances(
        [share * weight for share, mixture in zip(shares, mixtures, strict=True) for weight in mixture.weights],
        [mean for mixture in mixtures for mean in mixture.means],
        [variance for mixture in mixtures for variance in mixture.variances],
    )


def _rational(value: Exact, name: str) -> Fraction:
    """``value`` as a rational number."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ParameterError(f"`{name}` has the entry {value}.", "finite numbers")
    return Fraction(value)


def _below_one(kappa: Exact) -> Fraction:
    """``kappa`` if it is below 1."""
    value = _rational(kappa, "kappa")
    if value >= 1:
        raise ParameterError(f"kappa={float(value)!r}.", "kappa < 1, since the effective scale is omega/(1 - kappa)")
    return value


def _row(values: Exact | Sequence[Exact], name: str) -> Row:
    """One row of numbers."""
    return tuple(_rational(number, name) for number in (values if isinstance(values, Sequence) else (values,)))
