"""Paths keep their laws, and say which law a wrong one breaks."""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch import Tensor

from meanflow_ref.errors import ParameterError
from meanflow_ref.paths import (
    LINEAR,
    TRIGONOMETRIC,
    VARIANCE_PRESERVING,
    AbstractPath,
    CallablePath,
    LinearPath,
    VariancePreservingPath,
)

QUADRATIC = CallablePath(lambda t: (1 - t) ** 2, lambda t: t * (2 - t))
PATHS = [LINEAR, TRIGONOMETRIC, VARIANCE_PRESERVING, QUADRATIC]
NAMES = ["linear", "trigonometric", "variance-preserving", "callable"]

every_path = pytest.mark.parametrize("path", PATHS, ids=NAMES)


@every_path
def test_derivatives_agree_with_autograd(path: AbstractPath) -> None:
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    for f, f_dot in ((path.alpha, path.alpha_dot), (path.sigma, path.sigma_dot)):
        (slope,) = torch.autograd.grad(f(t).sum(), t)
        # Both sides are a few rounded operations of slopes up to about 10.
        torch.testing.assert_close(f_dot(t.detach()), slope, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("gap", [0.5, 1e-3, 1e-8, 1e-13, 0.0])
@every_path
def test_divided_differences_lose_no_digits(path: AbstractPath, gap: float) -> None:
    t = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    r = t - gap * t
    for f, f_dot, f_dd in (
        (path.alpha, path.alpha_dot, path.alpha_dd),
        (path.sigma, path.sigma_dot, path.sigma_dd),
        (path.transfer_time, None, path.transfer_time_dd),
    ):
        value = f_dd(r, t)
        # Mean of the derivative by 64 nodes in float64: independent, and without cancellation.
        nodes, weights = (torch.from_numpy(a) for a in __import__("numpy").polynomial.legendre.leggauss(64))
        tau = (r[:, None] + (t - r)[:, None] * (nodes + 1) / 2).requires_grad_()
        slope = f_dot(tau.detach()) if f_dot else torch.autograd.grad(f(tau).sum(), tau)[0]
        torch.testing.assert_close(value, (slope * weights / 2).sum(-1), rtol=1e-12, atol=1e-13)


def test_variance_preserving_sigma_keeps_its_digits_near_data() -> None:
    for t in (1e-1, 1e-4, 1e-9, 1e-14):
        with mpmath.workdps(40):
            tau = mpmath.mpf(t)
            log_alpha = -(tau**2) * (mpmath.mpf(20) - mpmath.mpf("0.1")) / 4 - tau * mpmath.mpf("0.1") / 2
            exact = float(mpmath.sqrt(1 - mpmath.exp(2 * log_alpha)))
        sigma = float(VARIANCE_PRESERVING.sigma(torch.tensor(t, dtype=torch.float64)))
        assert sigma == pytest.approx(exact, rel=1e-14)


@every_path
def test_the_transfer_time_is_inverted(path: AbstractPath) -> None:
    t = torch.linspace(0, 0.999, 41, dtype=torch.float64)
    torch.testing.assert_close(path.time_from_linear(path.transfer_time(t)), t, rtol=0, atol=1e-13)


@every_path
def test_the_inverse_of_the_transfer_time_is_differentiable(path: AbstractPath) -> None:
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    s = path.transfer_time(t)
    slope = torch.func.jvp(path.time_from_linear, (s,), (torch.ones_like(s),))[1]
    # Inverse function theorem.
    torch.testing.assert_close(slope, 1 / path.transfer_time_dd(t, t), rtol=1e-10, atol=0)


@every_path
def test_float32_times_give_float32(path: AbstractPath) -> None:
    t = torch.linspace(0.1, 0.9, 5)
    for value in (path.alpha(t), path.sigma(t), path.alpha_dd(t, t), path.sigma_dd(t, t), path.time_from_linear(t)):
        assert value.dtype is torch.float32


class _WrongSlope(LinearPath):
    def sigma_dot(self, t: Tensor) -> Tensor:
        return 2 * torch.ones_like(t)


class _WrongDividedDifference(LinearPath):
    def alpha_dd(self, r: Tensor, t: Tensor) -> Tensor:
        return torch.ones_like(r + t)


@pytest.mark.parametrize(
    ("build", "law"),
    [
        (lambda: CallablePath(lambda t: 1 - 0.5 * t, lambda t: t), r"alpha\(1\) = 0"),
        (lambda: CallablePath(lambda t: 0.9 * (1 - t), lambda t: t), r"alpha\(0\) = 1"),
        (lambda: CallablePath(lambda t: 1 - t, lambda t: 0.1 + 0.9 * t), r"sigma\(0\) = 0"),
        (lambda: CallablePath(lambda t: 1 - t, lambda t: 2 * t), r"sigma\(1\) = 1"),
        (lambda: CallablePath(lambda t: 1 - t, lambda t: torch.sin(8.5 * torch.pi * t)), "does not increase"),
        (_WrongSlope, "sigma_dot is the derivative of sigma"),
        (_WrongDividedDifference, r"alpha_dd\(t, t\) = alpha_dot"),
        (lambda: VariancePreservingPath(beta_min=-1.0), "0 < beta_min"),
    ],
)
def test_a_path_names_the_law_that_it_breaks(build: object, law: str) -> None:
    with pytest.raises(ParameterError, match=law):
        build()  # type: ignore[operator]
