"""Normal data against linear algebra and 50-digit arithmetic."""

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import jvp

from meanflow_ref import formulas
from meanflow_ref.errors import DtypeError, ParameterError, ShapeError
from meanflow_ref.fields import Gaussian
from meanflow_ref.paths import LINEAR, TRIGONOMETRIC, VARIANCE_PRESERVING, AbstractPath

PATHS = [LINEAR, TRIGONOMETRIC, VARIANCE_PRESERVING]


def draw(seed: int, d: int, path: AbstractPath, n: int = 200) -> tuple[Gaussian, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, dtype=torch.float64, generator=generator)
    mean = torch.randn(d, dtype=torch.float64, generator=generator)
    field = Gaussian(mean, root @ root.mT / d + 0.05 * torch.eye(d, dtype=torch.float64), path)
    times = torch.rand(2, n, dtype=torch.float64, generator=generator)
    return field, field.sample(times.amax(0), generator), times.amin(0), times.amax(0)


@pytest.mark.parametrize("path", PATHS)
def test_velocity_and_covariance_by_conditioning_the_joint_law(path: AbstractPath) -> None:
    """(x, eps, z) is jointly normal: condition it with a linear solve."""
    field, z, _, t = draw(0, 4, path)
    alpha, sigma = path.alpha(t)[:, None, None], path.sigma(t)[:, None, None]
    identity = torch.eye(4, dtype=torch.float64)
    state = alpha**2 * field.covariance + sigma**2 * identity
    cross = torch.cat([alpha * field.covariance, sigma * identity.expand(len(t), 4, 4)], 1)  # Cov((x, eps), z)
    gain = torch.linalg.solve(state, cross.mT).mT
    offset = (z - alpha[:, :, 0] * field.mean)[..., None]
    joint = torch.block_diag(field.covariance, identity)  # type: ignore[no-untyped-call]
    mean = torch.cat([field.mean, torch.zeros(4, dtype=torch.float64)]) + (gain @ offset)[..., 0]
    covariance = joint - gain @ cross.mT
    mix = torch.cat([path.alpha_dot(t)[:, None, None] * identity, path.sigma_dot(t)[:, None, None] * identity], -1)
    v = (mix @ mean[..., None])[..., 0]
    # The solve's condition number is below 100.
    assert float(((field.velocity(z, t) - v).abs() / (1 + v.abs())).max()) < 1e-13
    expected = mix @ covariance @ mix.mT
    # The subtraction cancels: sigma' is up to 10 and enters twice.
    size = 1 + expected.abs().amax((1, 2), keepdim=True) + path.sigma_dot(t)[:, None, None] ** 2
    assert float(((field.velocity_covariance(z, t) - expected).abs() / size).max()) < 1e-13


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("h", [None, 1e-2, 1e-8, 1e-16, 0.0])
def test_identity_residual_at_most_1e_14(path: AbstractPath, h: float | None) -> None:
    """By forward-mode differentiation of the closed form; in units of 1 + |u|, the size of the terms subtracted."""
    field, z, r, t = draw(1, 4, path)
    if h is not None:
        r = (t - h).clamp(min=0)
    v = field.velocity(z, t)
    u, du_dt = jvp(field.average_velocity, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))[:2]
    residual = formulas.identity_residual(u, v, du_dt, r[:, None], t[:, None])
    assert float((residual.abs() / (1 + u.abs())).max()) <= 1e-14
    gap = (field.average_velocity(z, t, t) - v).abs() / (1 + v.abs())
    assert float(gap.max()) <= 1e-14


def exact_u(s: float, m: float, z: float, r: float, t: float) -> mp.mpf:
    """(z - phi)/(t - r) on the linear path, to 50 digits after the cancellation."""
    with mp.workdps(50 - 2 * math.frexp(t - r)[1] if abs(t - r) < 1 else 50):
        s_, m_, z_, r_, t_ = (mp.mpf(x) for x in (s, m, z, r, t))
        std_r, std_t = (mp.sqrt((1 - time) ** 2 * s_ + time**2) for time in (r_, t_))
        return (z_ - ((1 - r_) * m_ + std_r / std_t * (z_ - (1 - t_) * m_))) / (t_ - r_)


@pytest.mark.parametrize("exponent", [0, 1, 2, 4, 6, 8, 10, 12, 14, 16])
def test_no_cancellation_as_r_tends_to_t(exponent: int) -> None:
    t, z, m, s = 0.6, 1.1, 0.7, 0.3
    r = t - 10.0**-exponent if exponent else 0.0
    field = Gaussian(torch.tensor([m], dtype=torch.float64), torch.tensor([[s]], dtype=torch.float64))
    state = torch.tensor([[z]], dtype=torch.float64)
    reference = exact_u(s, m, z, r, t)
    # About ten roundings of numbers of order 1.
    assert abs(float(field.average_velocity(state, r, t)) - float(reference)) < 1e-15
    if exponent >= 8:  # the quotient that it replaces loses half the digits and more
        naive = float((state - field.flow_map(state, t, r)) / (t - r))
        assert abs(naive - float(reference)) > 1e-10


@given(s=st.floats(1e-6, 1e3), m=st.floats(-5, 5), z=st.floats(-5, 5), r=st.floats(0, 1), t=st.floats(0, 1))
def test_against_50_digits(s: float, m: float, z: float, r: float, t: float) -> None:
    """Any variance, any pair of times, r > t included."""
    field = Gaussian(torch.tensor([m], dtype=torch.float64), torch.tensor([[s]], dtype=torch.float64))
    u = float(field.average_velocity(torch.tensor([[z]], dtype=torch.float64), r, t))
    reference = exact_u(s, m, z, r, t) if r != t else exact_v(s, m, z, t)
    # v and u are sums of m and a multiple of z - (1 - t) m, each with a few roundings; the multiple's numerator
    # (t + r) - s (2 - t - r) cancels in itself, at worst to the rounding of its terms.
    std_r, std_t = (((1 - time) ** 2 * s + time**2) ** 0.5 for time in (r, t))
    terms = (t + r + s * (2 - t - r)) / (std_t * (std_t + std_r)) * (abs(z) + abs(m)) + abs(m)
    assert abs(u - float(reference)) <= 1e-15 * (1 + terms) * 4


def exact_v(s: float, m: float, z: float, t: float) -> mp.mpf:
    """Velocity on the linear path, in 50 digits."""
    with mp.workdps(50):
        s_, m_, z_, t_ = (mp.mpf(x) for x in (s, m, z, t))
        return -m_ + (t_ - (1 - t_) * s_) / ((1 - t_) ** 2 * s_ + t_**2) * (z_ - (1 - t_) * m_)


def test_the_two_forms_of_the_gain_agree() -> None:
    """The gain by sigma and by sigma squared is one formula where both are finite."""
    path, s = TRIGONOMETRIC, 0.3
    r, t = torch.tensor(0.2, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    std_r, std_t = ((path.alpha(x) ** 2 * s + path.sigma(x) ** 2).sqrt() for x in (r, t))
    alphas, sigmas = (path.alpha(r), path.alpha(t)), (path.sigma(r), path.sigma(t))
    dd_alpha = path.alpha_dd(r, t)
    by_sigma = formulas.gaussian_average_gain(s, *alphas, *sigmas, dd_alpha, path.sigma_dd(r, t), std_r, std_t)
    dd_variance = formulas.gaussian_variance_dd(s, *alphas, dd_alpha, path.sigma_squared_dd(r, t))
    assert abs(float(by_sigma - formulas.contraction_rate(dd_variance, std_r, std_t))) < 1e-15


def test_parameters_are_checked() -> None:
    mean, identity = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    with pytest.raises(ParameterError, match=r"smallest eigenvalue -0\.5"):
        Gaussian(mean, torch.tensor([[1.0, 1.5], [1.5, 1.0]], dtype=torch.float64))
    with pytest.raises(ParameterError, match="transpose"):
        Gaussian(mean, torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=torch.float64))
    with pytest.raises(ParameterError, match="NaN"):
        Gaussian(mean * float("nan"), identity)
    with pytest.raises(ShapeError, match="covariance"):
        Gaussian(torch.zeros(3, dtype=torch.float64), identity)
    with pytest.raises(ShapeError, match="mean"):
        Gaussian(torch.zeros(1, 2, dtype=torch.float64), identity)
    with pytest.raises(DtypeError, match="one dtype"):
        Gaussian(mean.float(), identity)
    with pytest.raises(DtypeError, match="floating-point"):
        Gaussian(torch.zeros(2, dtype=torch.int64), identity)


def test_lists_are_float64() -> None:
    field = Gaussian([0.0, 1.0], [[1, 0], [0, 2]])  # type: ignore[arg-type]
    assert field.mean.dtype == field.covariance.dtype == torch.float64
    assert field.dim == 2
