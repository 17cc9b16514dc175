r"""Conditional paths :math:`z_t = \alpha_t x + \sigma_t \varepsilon` and the transfer between them.

A path owes ``alpha``, ``sigma``, their derivatives, and their divided differences
:math:`\mathrm{DD}(f)(r,t) = (f(t)-f(r))/(t-r)` without cancellation (at r = t they are the derivatives). It asserts
its own laws when it is built.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref.errors import ParameterError
from meanflow_ref.quadrature import gauss_legendre

_HALF_PI = math.pi / 2


class AbstractPath(abc.ABC):
    """A pair of schedules on [0, 1]; t = 0 is data, t = 1 is noise. Source: fm:path.

    Laws, checked in float64 on a grid when a path is built: alpha(0) = 1, sigma(0) = 0, alpha(1) = 0 and sigma(1) = 1
    (within ``terminal_tolerance``), sigma/(alpha + sigma) strictly increasing, the derivatives are the derivatives
    and the divided differences are the divided differences.
    """

    # How far alpha(1) and sigma(1) may be from 0 and 1; non-zero for variance-preserving paths, which never quite end.
    terminal_tolerance: ClassVar[float] = 1e-12

    @abc.abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Coefficient of the data."""

    @abc.abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Coefficient of the noise."""

    @abc.abstractmethod
    def alpha_dot(self, t: Tensor) -> Tensor:
        """Derivative of ``alpha``."""

    @abc.abstractmethod
    def sigma_dot(self, t: Tensor) -> Tensor:
        """Derivative of ``sigma`` (may be infinite at t = 0)."""

    @abc.abstractmethod
    def sigma_sigma_dot(self, t: Tensor) -> Tensor:
        """Half the derivative of ``sigma**2``, finite at t = 0 even where ``sigma_dot`` is not."""

    @abc.abstractmethod
    def alpha_dd(self, r: Tensor, t: Tensor) -> Tensor:
        """Divided difference of ``alpha`` over (r, t)."""

    @abc.abstractmethod
    def sigma_dd(self, r: Tensor, t: Tensor) -> Tensor:
        """Divided difference of ``sigma`` over (r, t)."""

    def sigma_squared(self, t: Tensor) -> Tensor:
        """``sigma**2``, with a finite derivative at t = 0 even where ``sigma_dot`` is infinite."""
        return self.sigma(t) ** 2

    def sigma_squared_dd(self, r: Tensor, t: Tensor) -> Tensor:
        """Divided difference of ``sigma**2``, finite at r = t = 0 even where ``sigma_dd`` is not."""
        return self.sigma_dd(r, t) * (self.sigma(t) + self.sigma(r))

    def transfer_scale(self, t: Tensor) -> Tensor:
        """Scale ``c = alpha + sigma`` of the schedule transfer. Source: ref:transfer."""
        scale: Tensor = formulas.transfer_scale(self.alpha(t), self.sigma(t))
        return scale

    def transfer_time(self, t: Tensor) -> Tensor:
        """Linear time ``S = sigma/(alpha + sigma)`` with the same signal-to-noise ratio. Source: ref:transfer."""
        time: Tensor = formulas.transfer_time(self.alpha(t), self.sigma(t))
        return time

    def time_from_linear(self, linear_time: Tensor) -> Tensor:
        """Inverse of :meth:`transfer_time`: the time of this path at a linear time (bisection, then Newton).

        Differentiable once in ``linear_time`` by the last Newton step.
        """
        target = linear_time.detach()
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(40):
            middle = 0.5 * (low + high)
            below = self.transfer_time(middle) < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        t = 0.5 * (low + high)
        for source in (target, target, linear_time):
            slope = self.transfer_time_dd(t, t)
            t = (t + (source - self.transfer_time(t)) / slope).clamp(0, 1)
        return t

    def transfer_scale_dd(self, r: Tensor, t: Tensor) -> Tensor:
        """Divided difference of :meth:`transfer_scale`."""
        return self.alpha_dd(r, t) + self.sigma_dd(r, t)

    def transfer_time_dd(self, r: Tensor, t: Tensor) -> Tensor:
        """Divided difference of :meth:`transfer_time`: DD(b/c) = (DD(b) a_r - b_r DD(a)) / (c_r c_t)."""
        numerator = self.sigma_dd(r, t) * self.alpha(r) - self.sigma(r) * self.alpha_dd(r, t)
        return numerator / (self.transfer_scale(r) * self.transfer_scale(t))

    def __post_init__(self) -> None:
        # Like all checks of values, left out in a compiled graph.
        if not torch.compiler.is_compiling():
            self.check_laws()

    def check_laws(self) -> None:
        """Raise :class:`ParameterError` naming the law that this path breaks."""
        zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        # Away from the ends, where a variance-preserving sigma has an infinite slope.
        t = torch.linspace(0.02, 0.98, 33, dtype=torch.float64)
        r = 0.9 * t.flip(0)
        h = 1e-4
        laws: dict[str, tuple[Tensor, float]] = {
            "alpha(0) = 1": (self.alpha(zero) - 1, 1e-12),
            "sigma(0) = 0": (self.sigma(zero), 1e-12),
            "alpha(1) = 0": (self.alpha(one), self.terminal_tolerance),
            "sigma(1) = 1": (self.sigma(one) - 1, self.terminal_tolerance),
        }
        for name, f, f_dot, f_dd in (
            ("alpha", self.alpha, self.alpha_dot, self.alpha_dd),
            ("sigma", self.sigma, self.sigma_dot, self.sigma_dd),
        ):
            # Five-point central difference: truncation h^4 f'''''/30 and rounding eps/h both stay far below 1e-7.
            slope = (8 * (f(t + h) - f(t - h)) - (f(t + 2 * h) - f(t - 2 * h))) / (12 * h)
            scale = 1 + slope.abs()
            laws[f"{name}_dot is the derivative of {name}"] = ((f_dot(t) - slope) / scale, 1e-7)
            laws[f"{name}_dd(t, t) = {name}_dot(t)"] = ((f_dd(t, t) - f_dot(t)) / scale, 1e-9)
            laws[f"(t - r) {name}_dd(r, t) = {name}(t) - {name}(r)"] = (
                (t - r) * f_dd(r, t) - (f(t) - f(r)),
                1e-9,
            )
        laws["sigma_sigma_dot = sigma sigma_dot"] = (
            self.sigma_sigma_dot(t) - self.sigma(t) * self.sigma_dot(t),
            1e-9,
        )
        for law, (residual, bound) in laws.items():
            worst = float(residual.abs().max())
            if not worst <= bound:
                raise ParameterError(f"{self!r} breaks the law `{law}` by {worst:.2g}.", f"at most {bound:g}", "")
        times = self.transfer_time(torch.linspace(0, 1, 129, dtype=torch.float64))
        if not bool((times.diff() > 0).all()):
            raise ParameterError(f"{self!r}: sigma/(alpha + sigma) does not increase with t.", "noise that grows", "")


@dataclass(frozen=True)
class LinearPath(AbstractPath):
    """``z_t = (1 - t) x + t eps``, the paper's path (rectified flow)."""

    def alpha(self, t: Tensor) -> Tensor:
        """``1 - t``."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """``t``."""
        return t

    def alpha_dot(self, t: Tensor) -> Tensor:
        """``-1``."""
        return -torch.ones_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        """``1``."""
        return torch.ones_like(t)

    def sigma_sigma_dot(self, t: Tensor) -> Tensor:
        """``t``."""
        return t

    def alpha_dd(self, r: Tensor, t: Tensor) -> Tensor:
        """``-1``."""
        return -torch.ones_like(r + t)

    def sigma_dd(self, r: Tensor, t: Tensor) -> Tensor:
        """``1``."""
        return torch.ones_like(r + t)

    def time_from_linear(self, linear_time: Tensor) -> Tensor:
        """The identity."""
        return linear_time


@dataclass(frozen=True)
class TrigonometricPath(AbstractPath):
    """``z_t = cos(pi t/2) x + sin(pi t/2) eps``."""

    def alpha(self, t: Tensor) -> Tensor:
        """``cos(pi t/2)``, exactly 0 at t = 1."""
        return torch.sin(_HALF_PI * (1 - t))

    def sigma(self, t: Tensor) -> Tensor:
        """``sin(pi t/2)``."""
        return torch.sin(_HALF_PI * t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        """``-pi/2 sin(pi t/2)``."""
        return -_HALF_PI * self.sigma(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        """``pi/2 cos(pi t/2)``."""
        return _HALF_PI * self.alpha(t)

    def sigma_sigma_dot(self, t: Tensor) -> Tensor:
        """``sigma sigma'``."""
        return self.sigma(t) * self.sigma_dot(t)

    def alpha_dd(self, r: Tensor, t: Tensor) -> Tensor:
        """By ``cos t - cos r = -2 sin((t+r)/2) sin((t-r)/2)``."""
        return -_HALF_PI * torch.sin(_HALF_PI * (t + r) / 2) * _sin_ratio(_HALF_PI * (t - r) / 2)

    def sigma_dd(self, r: Tensor, t: Tensor) -> Tensor:
        """By ``sin t - sin r = 2 cos((t+r)/2) sin((t-r)/2)``."""
        return _HALF_PI * torch.cos(_HALF_PI * (t + r) / 2) * _sin_ratio(_HALF_PI * (t - r) / 2)

    def time_from_linear(self, linear_time: Tensor) -> Tensor:
        """``atan2(S, 1 - S)`` in units of a quarter turn."""
        return torch.atan2(linear_time, 1 - linear_time) / _HALF_PI


@dataclass(frozen=True)
class VariancePreservingPath(AbstractPath):
    """``alpha^2 + sigma^2 = 1`` with ``log alpha = -t^2 (beta_max - beta_min)/4 - t beta_min/2`` (VP-SDE).

    ``alpha(1)`` is small, not 0 (6.6e-3 at the default betas), and ``sigma'`` is infinite at t = 0.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    terminal_tolerance: ClassVar[float] = 0.05

    def __post_init__(self) -> None:
        if not (0 < self.beta_min <= self.beta_max < math.inf):
            raise ParameterError(f"beta_min={self.beta_min}, beta_max={self.beta_max}.", "0 < beta_min <= beta_max", "")
        super().__post_init__()

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t * t * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def _log_alpha_dot(self, t: Tensor) -> Tensor:
        return -0.5 * t * (self.beta_max - self.beta_min) - 0.5 * self.beta_min

    def alpha(self, t: Tensor) -> Tensor:
        """``exp(log alpha)``."""
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        """``sqrt(1 - alpha^2)`` without cancellation."""
        return torch.sqrt(self.sigma_squared(t))

    def sigma_squared(self, t: Tensor) -> Tensor:
        """``1 - alpha^2`` without cancellation."""
        return -torch.expm1(2 * self._log_alpha(t))

    def alpha_dot(self, t: Tensor) -> Tensor:
        """``(log alpha)' alpha``."""
        return self._log_alpha_dot(t) * self.alpha(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        """``-alpha alpha' / sigma``; infinite at t = 0."""
        return self.sigma_sigma_dot(t) / self.sigma(t)

    def sigma_sigma_dot(self, t: Tensor) -> Tensor:
        """``-alpha alpha'``, since ``sigma^2 = 1 - alpha^2``."""
        return -self._log_alpha_dot(t) * torch.exp(2 * self._log_alpha(t))

    def alpha_dd(self, r: Tensor, t: Tensor) -> Tensor:
        """``alpha_r (e^D - 1)/(t - r)`` with ``D = log alpha_t - log alpha_r`` in factored form."""
        slope = -0.25 * (t + r) * (self.beta_max - self.beta_min) - 0.5 * self.beta_min
        exponent = (t - r) * slope
        return self.alpha(r) * _expm1_ratio(exponent) * slope

    def sigma_dd(self, r: Tensor, t: Tensor) -> Tensor:
        """``DD(sigma^2)/(sigma_t + sigma_r)`` with ``sigma^2 = 1 - alpha^2``."""
        return self.sigma_squared_dd(r, t) / (self.sigma(t) + self.sigma(r))

    def sigma_squared_dd(self, r: Tensor, t: Tensor) -> Tensor:
        """``-DD(alpha^2)``."""
        return -self.alpha_dd(r, t) * (self.alpha(t) + self.alpha(r))

    def time_from_linear(self, linear_time: Tensor) -> Tensor:
        """Root of the quadratic ``log alpha(t) = log((1 - S)/sqrt((1 - S)^2 + S^2))``."""
        ratio = linear_time / (1 - linear_time)
        level = 0.5 * torch.log1p(ratio * ratio)  # -log alpha
        a, b = 0.25 * (self.beta_max - self.beta_min), 0.5 * self.beta_min
        return 2 * level / (b + torch.sqrt(b * b + 4 * a * level))


@dataclass(frozen=True)
class CallablePath(AbstractPath):
    """A path from two differentiable functions of a time tensor, ``alpha`` and ``sigma``.

    Derivatives are by forward-mode AD, divided differences by 32-node Gauss-Legendre quadrature of the derivative:
    accurate to rounding for functions analytic around [0, 1]. Both must be differentiable on the closed interval.
    """

    alpha_fn: Callable[[Tensor], Tensor]
    sigma_fn: Callable[[Tensor], Tensor]

    def alpha(self, t: Tensor) -> Tensor:
        """``alpha_fn(t)``."""
        return self.alpha_fn(t)

    def sigma(self, t: Tensor) -> Tensor:
        """``sigma_fn(t)``."""
        return self.sigma_fn(t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        """Derivative of ``alpha_fn``."""
        return _derivative(self.alpha_fn, t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        """Derivative of ``sigma_fn``."""
        return _derivative(self.sigma_fn, t)

    def sigma_sigma_dot(self, t: Tensor) -> Tensor:
        """``sigma sigma'``."""
        return self.sigma(t) * self.sigma_dot(t)

    def alpha_dd(self, r: Tensor, t: Tensor) -> Tensor:
        """Mean of ``alpha'`` over [r, t]."""
        return _mean_over(self.alpha_dot, r, t)

    def sigma_dd(self, r: Tensor, t: Tensor) -> Tensor:
        """Mean of ``sigma'`` over [r, t]."""
        return _mean_over(self.sigma_dot, r, t)


def _derivative(f: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Derivative of an elementwise function."""
    derivative: Tensor = torch.func.jvp(f, (t,), (torch.ones_like(t),))[1]
    return derivative


def _mean_over(f: Callable[[Tensor], Tensor], r: Tensor, t: Tensor) -> Tensor:
    """Mean of ``f`` over [r, t] by Gauss-Legendre quadrature."""
    nodes, weights = gauss_legendre(32, dtype=t.dtype, device=t.device)
    return (f(r[..., None] + (t - r)[..., None] * nodes) * weights).sum(-1)


def _expm1_ratio(x: Tensor) -> Tensor:
    """``(e^x - 1)/x``, 1 at 0, with an accurate derivative everywhere."""
    return _quotient_at_zero(x, x, torch.expm1, tuple(1 / math.factorial(k + 1) for k in range(15)))


def _sin_ratio(x: Tensor) -> Tensor:
    """``sin(x)/x``, 1 at 0, with an accurate derivative everywhere (that of ``torch.sinc`` loses ``1/x`` digits)."""
    return _quotient_at_zero(x, x * x, torch.sin, tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(8)))


def _quotient_at_zero(x: Tensor, variable: Tensor, f: Callable[[Tensor], Tensor], series: tuple[float, ...]) -> Tensor:
    """``f(x)/x`` for ``|x| >= 1/2`` and its power series in ``variable`` nearer to 0.

    The series is there for the derivative: that of the quotient is a difference of terms of size ``1/x``. The first
    term left out is below 1e-17 of the whole.
    """
    near = x.abs() < 0.5
    value = torch.zeros_like(x)
    for coefficient in reversed(series):
        value = value * torch.where(near, variable, torch.zeros_like(variable)) + coefficient
    far = torch.where(near, torch.ones_like(x), x)
    return torch.where(near, value, f(far) / far)


LINEAR = LinearPath()
TRIGONOMETRIC = TrigonometricPath()
VARIANCE_PRESERVING = VariancePreservingPath()
