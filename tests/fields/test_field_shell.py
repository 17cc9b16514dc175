"""The shell against scipy's Bessel functions and noncentral chi-square law, and against elementary forms."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor
from torch.func import jacrev, vmap

from meanflow_ref.errors import ParameterError
from meanflow_ref.fields import PointMasses, Shell
from meanflow_ref.fields._special import log_ndtr, log_sphere_mean, series_limit, sphere_mean_ratio

DIMENSIONS = [1, 2, 3, 5, 8, 24]


def concentrations(dim: int) -> Tensor:
    limit = series_limit(dim)
    return torch.tensor(
        [1e-12, 1e-6, 1e-3, 0.1, 1.0, 5.0, 20.0, 0.999 * limit, limit, 1.001 * limit, 2 * limit, 1e5, 1e9],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("dim", DIMENSIONS)
def test_bessel_ratio_and_mean_against_mpmath(dim: int) -> None:
    k = concentrations(dim)
    ratio, log_mean = sphere_mean_ratio(k * k, dim), log_sphere_mean(k, dim)
    for i, value in enumerate(k.tolist()):
        with mp.workdps(50):
            kappa, nu = mp.mpf(value), mp.mpf(dim) / 2 - 1
            low, high = mp.besseli(nu, kappa), mp.besseli(nu + 1, kappa)
            reference = high / low / kappa
            log_reference = mp.log(mp.gamma(nu + 1) * (2 / kappa) ** nu * low) - kappa
            # A continued fraction of positive terms; the argument k^2 is rounded once.
            assert abs(float(mp.mpf(float(ratio[i])) / reference - 1)) < 1e-15
            # A series with up to 500 positive terms, multiplied out.
            assert abs(float(mp.mpf(float(log_mean[i])) - log_reference)) < 1e-13


@pytest.mark.parametrize("dim", DIMENSIONS)
def test_derivatives_of_the_bessel_functions(dim: int) -> None:
    """(log mean)' = A - 1 and A' = 1 - A^2 - (d - 1) A/k."""
    k = concentrations(dim)[3:-1]
    mean = k * sphere_mean_ratio(k * k, dim)
    assert float((vmap(jacrev(lambda k: log_sphere_mean(k, dim)))(k) - (mean - 1)).abs().max()) < 1e-13
    slope = vmap(jacrev(lambda k: k * sphere_mean_ratio(k * k, dim)))(k)
    assert float((slope - (1 - mean**2 - (dim - 1) * mean / k)).abs().max()) < 1e-13


def test_log_ndtr_against_mpmath() -> None:
    x = torch.linspace(-60, 8, 273, dtype=torch.float64)
    with mp.workdps(60):
        reference = [mp.log(mp.ncdf(mp.mpf(value))) for value in x.tolist()]
        errors = [abs(float(mp.mpf(a) / b - 1)) for a, b in zip(log_ndtr(x).tolist(), reference, strict=True)]
    # The argument x/sqrt(2) is rounded: relative error EPS x^2 on the right.
    assert max(errors) < 5e-14
    slope = vmap(jacrev(log_ndtr))(x)
    hazard = np.sqrt(2 / np.pi) / special.erfcx(-x.numpy() / np.sqrt(2))
    assert float(np.abs(slope.numpy() / hazard - 1).max()) < 1e-12


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_velocity_and_density_against_scipy(dim: int) -> None:
    field = Shell(1.3, dim)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(100, dim, dtype=torch.float64, generator=generator)
    t = 0.1 + 0.9 * torch.rand(100, dtype=torch.float64, generator=generator)
    rho = torch.linalg.vector_norm(z, dim=-1)
    kappa = ((1 - t) * 1.3 * rho / t**2).numpy()
    length = torch.from_numpy(special.ive(dim / 2, kappa) / special.ive(dim / 2 - 1, kappa))
    length[t == 1] = 0.0
    expected = (z - 1.3 * length[:, None] * z / rho[:, None]) / t[:, None]
    assert float(((field.velocity(z, t) - expected).abs() * t[:, None]).max()) < 1e-14 * 4
    # The squared norm over sigma^2 is noncentral chi-square.
    scaled, centre = (rho / t) ** 2, ((1 - t) * 1.3 / t) ** 2
    radial = stats.ncx2.pdf(scaled.numpy(), dim, centre.numpy()) * (2 * rho / t**2).numpy()
    area = 2 * np.pi ** (dim / 2) / special.gamma(dim / 2)
    density = radial / (area * rho.numpy() ** (dim - 1))
    assert np.allclose(field.log_density(z, t).exp().numpy(), density, rtol=1e-11)


@pytest.mark.parametrize("dim", [2, 3, 8])
def test_radial_tails_against_scipy(dim: int) -> None:
    marginals = Shell(1.3, dim)._marginals
    for t in (0.2, 0.5, 1.0):
        time = torch.full((40,), t, dtype=torch.float64)
        y = torch.linspace(0.05, 1.3 + 4 * t, 40, dtype=torch.float64)
        scaled, centre = ((y / t) ** 2).numpy(), ((1 - t) * 1.3 / t) ** 2
        law = stats.chi2(dim) if t == 1 else stats.ncx2(dim, centre)
        for side, reference in ((1.0, law.cdf(scaled)), (-1.0, law.sf(scaled))):
            tail = marginals.log_tail(y, time, torch.full_like(y, side)).exp().numpy()
            # scipy's noncentral tails are good to 1e-11 or so where they are not tiny.
            known = reference > 1e-8
            assert np.allclose(tail[known], reference[known], rtol=1e-10, atol=0)


def test_radial_tail_in_three_dimensions_is_elementary() -> None:
    """Down to a mass of 1e-300, in 60 digits: S = Phi-terms + (b/m)(phi - phi)."""
    marginals = Shell(1.3, 3)._marginals
    for t, y in ((0.3, 5.0), (0.3, 11.0), (0.5, 0.01), (0.5, 2.0), (0.05, 0.7), (0.05, 1.6)):
        with mp.workdps(80):
            b, m = mp.mpf(t), (1 - mp.mpf(t)) * mp.mpf(1.3)
            p, q = (mp.mpf(y) - m) / b, (mp.mpf(y) + m) / b
            density = (b / m) * (mp.npdf(p) - mp.npdf(q))
            above = mp.ncdf(-p) + mp.ncdf(-q) + density
            below = mp.ncdf(p) - mp.ncdf(-q) - density
            tails = [float(mp.log(below)), float(mp.log(above))]
        for side, reference in zip((1.0, -1.0), tails, strict=True):
            if reference < -1e-12:  # the tail that is not 1
                args = (torch.tensor(x, dtype=torch.float64) for x in (y, t, side))
                assert abs(float(marginals.log_tail(*args)) - reference) < 1e-13 * (1 + abs(reference))


def test_flow_ends_on_the_sphere_and_keeps_directions() -> None:
    field = Shell(1.3, 3)
    z = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    phi = field.flow_map(z, 1.0, 0.0)
    assert float((torch.linalg.vector_norm(phi, dim=-1) - 1.3).abs().max()) < 1e-14
    assert float((torch.nn.functional.cosine_similarity(z, phi, dim=-1) - 1).abs().max()) < 1e-14
    near = field.flow_map(z, 1.0, 1e-3)
    # The sphere's neighbourhood at r is of width r.
    assert float((torch.linalg.vector_norm(near, dim=-1) - 1.3).abs().max()) < 0.02


def test_centre_is_regular() -> None:
    """At z = 0 all is finite and differentiable: v = slope z with a slope that does not depend on the direction."""
    field = Shell(1.3, 3)
    zero = torch.zeros(1, 3, dtype=torch.float64)
    assert torch.equal(field.velocity(zero, 0.5), zero)
    assert torch.equal(field.average_velocity(zero, 0.2, 0.5), zero)
    slope = vmap(jacrev(lambda z: field.average_velocity(z, 0.2, 0.5)))(zero)[0]
    jacobian = torch.eye(3, dtype=torch.float64) - 0.3 * slope
    assert float((jacobian - field.jacobian(zero, 0.2, 0.5)[0]).abs().max()) < 1e-12
    tiny = torch.full((1, 3), 1e-12, dtype=torch.float64)
    assert float((field.average_velocity(tiny, 0.2, 0.5) - tiny @ slope.mT).abs().max()) < 1e-24


def test_one_dimension_is_two_points() -> None:
    ends, halves = torch.tensor([[-1.3], [1.3]], dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)
    field, points = Shell(1.3, 1), PointMasses(ends, halves)
    generator = torch.Generator().manual_seed(2)
    t = 0.1 + 0.9 * torch.rand(50, dtype=torch.float64, generator=generator)
    z = field.sample(t, generator)
    assert float(((field.velocity(z, t) - points.velocity(z, t)).abs() * t[:, None] ** 3).max()) < 1e-14
    assert float((field.log_density(z, t) - points.log_density(z, t)).abs().max()) < 1e-12
    jacobian = points.jacobian(z, t / 2, t)[:, :, 0]
    gap = field.average_velocity(z, t / 2, t) - points.average_velocity(z, t / 2, t)
    assert float((gap.abs() / (1 + jacobian)).max()) < 1e-12


def test_small_noise_and_large_concentration() -> None:
    """t = 1e-4: kappa about 1e8, where Bessel functions overflow and 1 - A is 1e-8."""
    field = Shell(1.3, 3)
    generator = torch.Generator().manual_seed(3)
    t = torch.full((20,), 1e-4, dtype=torch.float64)
    x, eps = field.sample_pair(20, generator)
    z = (1 - 1e-4) * x + 1e-4 * eps
    v = field.velocity(z, t)
    rho = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    kappa = (1 - 1e-4) * 1.3 * rho / 1e-8
    expected = (z - 1.3 * (1 - 1 / kappa) * z / rho) / 1e-4  # coth = 1 to rounding
    # (z - E x)/t: rounding over t.
    assert float((v - expected).abs().max()) < 1e-11
    u = field.average_velocity(z, t / 2, t)
    assert float((u - v).abs().max()) < 1e-2


def test_parameters_are_checked() -> None:
    with pytest.raises(ParameterError, match="radius > 0"):
        Shell(-1.0, 3)
    with pytest.raises(ParameterError, match="1 to 24"):
        Shell(1.0, 25)
    with pytest.raises(ParameterError, match="1 to 24"):
        Shell(1.0, 0)
