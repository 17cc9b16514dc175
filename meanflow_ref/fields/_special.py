"""Special functions that torch lacks, or lacks a batching rule for."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

_SQRT_HALF = math.sqrt(0.5)


def log_ndtr(x: Tensor) -> Tensor:
    """Logarithm of the standard normal distribution function, in relative precision at any depth of the tail.

    ``torch.special.log_ndtr`` has no batching rule (as of torch 2.13), so it is slow and warns under ``vmap``.
    """
    deep = x < -1
    scaled = torch.special.erfcx(-_SQRT_HALF * torch.where(deep, x, -torch.ones_like(x)))
    left = torch.log(0.5 * scaled) - 0.5 * x * x
    right = torch.log1p(-0.5 * torch.special.erfc(_SQRT_HALF * torch.where(deep, torch.zeros_like(x), x)))
    return torch.where(deep, left, right)


@lru_cache(maxsize=64)
def _hankel(dim: int, terms: int = 24) -> tuple[float, ...]:
    """Coefficients of the expansion of ``sqrt(2 pi k) exp(-k) I_nu(k)`` in ``1/k``, ``nu = dim/2 - 1``."""
    four_nu_squared = (dim - 2) ** 2
    coefficients = [1.0]
    for k in range(1, terms):
        coefficients.append(-coefficients[-1] * (four_nu_squared - (2 * k - 1) ** 2) / (8 * k))
    return tuple(coefficients)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Polynomial with the given coefficients, lowest first."""
    value = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        value = value * x + coefficient
    return value


def series_limit(dim: int) -> float:
    """The concentration from which the expansion in its reciprocal is used: there its terms fall below 1e-18."""
    return max(30.0, float(dim * dim))


def sphere_mean_ratio(x: Tensor, dim: int) -> Tensor:
    """``A(k)/k`` at ``x = k^2``, where ``A`` is the mean length of a von Mises-Fisher direction of concentration k.

    ``A = I_{d/2}/I_{d/2-1}``. As a function of ``x`` the ratio is smooth at 0. Gauss's continued fraction (positive
    terms) below :func:`series_limit`, the asymptotic expansion above it.
    """
    limit = series_limit(dim)
    near = x <= limit * limit
    small = torch.where(near, x, torch.zeros_like(x))
    levels = int(0.75 * limit) + 20
    fraction = torch.full_like(x, 1.0 / (dim + 2 * levels))
    for level in reversed(range(levels)):
        fraction = 1 / (dim + 2 * level + small * fraction)
    inverse = torch.rsqrt(torch.where(near, torch.full_like(x, limit * limit), x))
    far = inverse * _polynomial(_hankel(dim + 2), inverse) / _polynomial(_hankel(dim), inverse)
    return torch.where(near, fraction, far)


def log_sphere_mean(k: Tensor, dim: int) -> Tensor:
    """``log E exp(k w_1) - k`` for ``k >= 0`` and ``w`` uniform on the unit sphere of R^dim; at most 0.

    The expectation is ``0F1(; d/2; k^2/4)``: its power series (positive terms) below :func:`series_limit`, the
    asymptotic expansion above it.
    """
    limit = series_limit(dim)
    near = k <= limit
    small = torch.where(near, k, torch.zeros_like(k))
    quarter = 0.25 * small * small
    series = torch.ones_like(k)
    for term in reversed(range(1, int(0.75 * limit) + 30)):
        series = 1 + quarter / (term * (0.5 * dim + term - 1)) * series
    large = torch.where(near, torch.full_like(k, limit), k)
    constant = 0.5 * (dim - 2) * math.log(2) + math.lgamma(0.5 * dim) - 0.5 * math.log(2 * math.pi)
    expansion = torch.log(_polynomial(_hankel(dim), 1 / large))
    far = constant - 0.5 * (dim - 1) * torch.log(large) + expansion
    return torch.where(near, torch.log(series) - small, far)


def _smooth_ratio(quotient: Tensor, series: Tensor, x: Tensor) -> Tensor:
    """``quotient`` away from 0, its Taylor series near 0, where the quotient is 0/0."""
    return torch.where(x.abs() < 1e-4, series, quotient)


def _safe(x: Tensor) -> Tensor:
    return torch.where(x == 0, torch.ones_like(x), x)


def log1p_ratio(x: Tensor) -> Tensor:
    """``log(1 + x)/x``, 1 at 0."""
    return _smooth_ratio(torch.log1p(_safe(x)) / _safe(x), 1 - x * (1 / 2 - x * (1 / 3 - x * (1 / 4 - x / 5))), x)


def expm1_ratio(x: Tensor) -> Tensor:
    """``(e^x - 1)/x``, 1 at 0."""
    return _smooth_ratio(torch.expm1(_safe(x)) / _safe(x), 1 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x / 120))), x)
