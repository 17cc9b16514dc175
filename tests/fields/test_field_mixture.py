"""Mixtures against integration over the data, 60-digit roots, and their own derivatives of high order."""

from __future__ import annotations

import itertools

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor
from torch.func import hessian, jvp, vmap

from meanflow_ref.errors import ParameterError, ShapeError
from meanflow_ref.fields import GaussianMixture
from meanflow_ref.fields.mixture import MixtureMarginals
from meanflow_ref.fields.quantile import segment_average, transport
from meanflow_ref.paths import LINEAR, TRIGONOMETRIC, VARIANCE_PRESERVING, AbstractPath
from meanflow_ref.truth import average_velocity

EPS = 2.0**-52


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def three(scale: float = 1.0, path: AbstractPath = LINEAR) -> GaussianMixture:
    return GaussianMixture(tensor(0.5, 0.3, 0.2), tensor(-1.5, 0.4, 2.0), scale * tensor(0.3, 0.5, 0.2), path)


def exact_u(field: GaussianMixture, z: float, r: float, t: float) -> float:
    """(z - phi)/(t - r) on the linear path by Newton's iteration on the smaller tail, in 60 digits."""
    with mp.workdps(60):
        parts = [
            (mp.mpf(w), mp.mpf(m), mp.mpf(s))
            for w, m, s in zip(field.weights.tolist(), field.means.tolist(), field.stds.tolist(), strict=True)
        ]
        total = sum(w for w, _, _ in parts)

        def scores(y: mp.mpf, time: mp.mpf) -> list[tuple[mp.mpf, mp.mpf, mp.mpf]]:
            stds = [mp.sqrt((1 - time) ** 2 * s**2 + time**2) for _, _, s in parts]
            return [(w / total, (y - (1 - time) * m) / std, std) for (w, m, _), std in zip(parts, stds, strict=True)]

        z_, r_, t_ = mp.mpf(z), mp.mpf(r), mp.mpf(t)
        below, above = (sum(w * mp.ncdf(side * q) for w, q, _ in scores(z_, t_)) for side in (1, -1))
        side, target = (1, below) if below < above else (-1, above)
        y = mp.mpf(float(field.flow_map(tensor(z)[None], t, r)))
        for _ in range(30):
            at = scores(y, r_)
            excess = sum(w * mp.ncdf(side * q) for w, q, _ in at) - target
            step = side * excess / sum(w * mp.npdf(q) / std for w, q, std in at)
            y -= step
            if abs(step) < mp.mpf(10) ** -30:
                return float((z_ - y) / (t_ - r_))
        raise AssertionError("the reference did not converge")


@pytest.mark.parametrize("h", [1.0, 0.3, 0.04, 0.03, 1e-3, 1e-6, 1e-9, 1e-12, 1e-15])
@pytest.mark.parametrize("scale", [1.0, 0.1, 0.003])
def test_average_velocity_against_60_digits(scale: float, h: float) -> None:
    field, generator = three(scale), torch.Generator().manual_seed(0)
    t = h + (1 - h) * torch.rand(12, dtype=torch.float64, generator=generator)
    r = (t - h).clamp(min=0)
    z = field.sample(t, generator)
    u, jacobian = field.average_velocity(z, r, t), field.jacobian(z, r, t)
    for i in range(12):
        if r[i] == t[i]:
            continue
        reference = exact_u(field, float(z[i]), float(r[i]), float(t[i]))
        # phi carries a few roundings times 1 + J, and the division by h (at least 2^-5) magnifies them.
        bound = 8 * EPS * (1 + float(jacobian[i])) * (1 + abs(float(z[i]))) / max(min(h, 1.0), 2.0**-5)
        assert abs(float(u[i]) - reference) < bound


@pytest.mark.parametrize("z", [5.0, 10.0, 20.0, 30.0, -38.0])
@pytest.mark.parametrize(("r", "t"), [(0.2, 0.9), (0.0, 1.0), (0.58, 0.6), (0.6 - 1e-12, 0.6)])
def test_far_tails(z: float, r: float, t: float) -> None:
    """Down to a mass of 1e-1000."""
    field = three()
    u = float(field.average_velocity(tensor(z)[None], r, t))
    reference = exact_u(field, z, r, t)
    assert abs(u - reference) < 16 * EPS * abs(z) / max(t - r, 2.0**-5)


def test_tail_at_a_hundred_is_finite_and_keeps_its_quantile() -> None:
    """log F = -6152 here, where an inverse of the normal distribution function is of no use as a bracket."""
    field, marginals = three(), three()._marginals
    for z in (100.0, -100.0, 1000.0):
        y, t, r = tensor(z), tensor(0.9), tensor(0.2)
        phi = field.flow_map(y[None], t, r)[0]
        side = torch.sign(-y)
        tail, back = marginals.log_tail(y, t, side), marginals.log_tail(phi, r, side)
        assert float((tail - back).abs() / tail.abs()) < 8 * EPS
        one = torch.ones(1, dtype=torch.float64)
        _, du_dt = jvp(field.average_velocity, (y[None], r, t), (field.velocity(y[None], t), 0 * one, one))[:2]
        u, v = field.average_velocity(y[None], r, t), field.velocity(y[None], t)
        assert float((u - (v - 0.7 * du_dt)).abs() / abs(z)) < 1e-13


@pytest.mark.parametrize("std", [0.5, 0.2])
@pytest.mark.parametrize("z", [0.5, 0.1, 1e-2, 1e-4, 1e-8, 0.0])
def test_next_to_the_separatrix(std: float, z: float) -> None:
    """Two modes part at z = 0 with a slope J up to 1e21; what can be known of u there shrinks by 1 + J."""
    field = GaussianMixture(tensor(0.5, 0.5), tensor(-2.0, 2.0), tensor(std, std))
    state = tensor(z)[None]
    u, jacobian = float(field.average_velocity(state, 0.0, 1.0)), float(field.jacobian(state, 0.0, 1.0))
    reference = exact_u(field, z, 0.0, 1.0) if z else 0.0
    # F = 1/2 is known to half a rounding: an error of EPS p_1(z)^-1 ~ 3 EPS in z, hence 3 EPS J in phi, or the whole
    # gap between the modes.
    assert abs(u - reference) <= min(8 * EPS * (1 + jacobian), 8.0)


@pytest.mark.parametrize("path", [LINEAR, TRIGONOMETRIC, VARIANCE_PRESERVING])
def test_velocity_against_integration_over_the_data(path: AbstractPath) -> None:
    """E[v_t | z] and Var[v_t | z] by adaptive quadrature over x of its prior times the noise's density."""
    field = three(path=path)
    for z, t in itertools.product((-1.0, 0.3, 1.7), (0.2, 0.7)):
        time = tensor(t)
        alpha, sigma, alpha_dot, sigma_dot = (
            float(f(time)) for f in (path.alpha, path.sigma, path.alpha_dot, path.sigma_dot)
        )

        def moment(
            k: int, z: float = z, a: float = alpha, s: float = sigma, da: float = alpha_dot, ds: float = sigma_dot
        ) -> float:
            def integrand(x: float) -> float:
                prior = sum(
                    w * stats.norm.pdf(x, m, d)
                    for w, m, d in zip((0.5, 0.3, 0.2), (-1.5, 0.4, 2.0), (0.3, 0.5, 0.2), strict=True)
                )
                eps = (z - a * x) / s
                return float(prior * stats.norm.pdf(eps) * (da * x + ds * eps) ** k)

            modes = [-1.5, 0.4, 2.0, z / a]
            value = integrate.quad(integrand, -6, 6, points=sorted(p for p in modes if abs(p) < 6), epsabs=1e-13)[0]
            return float(value)

        mass, first, second = (moment(k) for k in range(3))
        mean = first / mass
        state = tensor(z)[None]
        # quad's tolerance over the least mass, 1e-3, times the size of v squared, 100.
        assert abs(float(field.velocity(state, t)) - mean) < 1e-8
        assert abs(float(field.velocity_covariance(state, t)) - (second / mass - mean**2)) < 1e-7


def test_derivatives_up_to_third_order() -> None:
    """The transport's derivatives in every mode of differentiation, against those of the inverse function."""
    marginals, z, t, r = three()._marginals, tensor(-0.7, 0.1, 1.9), tensor(0.8, 0.6, 0.9), tensor(0.1, 0.3, 0.2)

    def phi(z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return transport(marginals, z, t, r)

    one = torch.ones_like(z)

    def slope(z: Tensor) -> Tensor:
        """phi' = p_t(z)/p_r(phi), written with phi itself: its derivatives need phi's of one order less."""
        return torch.exp(marginals.log_density(z, t) - marginals.log_density(phi(z, t, r), r))

    first = jvp(lambda z: phi(z, t, r), (z,), (one,))[1]
    assert float((first - slope(z)).abs().max()) < 1e-13
    expected = jvp(slope, (z,), (one,))[1]
    forward_twice = jvp(lambda z: jvp(lambda y: phi(y, t, r), (z,), (one,))[1], (z,), (one,))[1]
    reverse_then_forward = vmap(hessian(phi))(z, t, r)
    tracked = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(phi(tracked, t, r).sum(), tracked, create_graph=True)
    (reverse_twice,) = torch.autograd.grad(gradient.sum(), tracked, create_graph=True)
    (reverse_thrice,) = torch.autograd.grad(reverse_twice.sum(), tracked)
    # Derivatives of order 10 in units of 1/std, with the conditioning of a quotient of densities.
    for second in (forward_twice, reverse_then_forward, reverse_twice.detach()):
        assert float(((second - expected) / (1 + expected.abs())).abs().max()) < 1e-11
    third = jvp(lambda z: jvp(slope, (z,), (one,))[1], (z,), (one,))[1]
    assert float(((reverse_thrice - third) / (1 + third.abs())).abs().max()) < 1e-9


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_derivatives_of_u_against_central_differences(argument: int) -> None:
    field, generator = three(), torch.Generator().manual_seed(1)
    t = 0.3 + 0.6 * torch.rand(20, dtype=torch.float64, generator=generator)
    r = t - 0.25 * torch.rand(20, dtype=torch.float64, generator=generator)
    point = [field.sample(t, generator), r, t]
    tangents = [torch.zeros_like(x) for x in point]
    tangents[argument] = torch.ones_like(point[argument])
    derivative = jvp(field.average_velocity, tuple(point), tuple(tangents))[1]
    step = 1e-5
    ahead, behind = ([x + sign * step * dx for x, dx in zip(point, tangents, strict=True)] for sign in (1, -1))
    difference = (field.average_velocity(*ahead) - field.average_velocity(*behind)) / (2 * step)
    # Truncation step^2 u'''/6 with third derivatives up to 1e3, rounding 1e-14/step.
    assert float((derivative - difference).abs().max()) < 1e-7


def test_segment_formula_does_not_care_about_the_division() -> None:
    """On segments short and long it gives the quotient (z - phi)/(t - r), to the quotient's rounding."""
    field, generator = three(), torch.Generator().manual_seed(2)
    for h in (0.5, 0.1, 1e-2):
        t = h + (1 - h) * torch.rand(50, dtype=torch.float64, generator=generator)
        z = field.sample(t, generator)[:, 0]
        phi = field.flow_map(z[:, None], t, t - h)[:, 0]
        segment = segment_average(MixtureMarginals(field._components), z, phi, t - h, t)
        assert float((segment - (z - phi) / h).abs().max()) < 1e-14 * (1 + 1 / h)


def test_round_trip_and_sampler() -> None:
    """The flow maps exact noise to exact data: a Kolmogorov-Smirnov test, false alarms 1e-6 (fixed seed)."""
    field, generator = three(), torch.Generator().manual_seed(3)
    noise = torch.randn(5000, 1, dtype=torch.float64, generator=generator)
    data = field.flow_map(noise, 1.0, 0.0)
    back = field.flow_map(data, 0.0, 1.0)
    jacobian = field.jacobian(noise, 0.0, 1.0)[:, 0]
    # Backwards the slope is 1/J, up to 1e3 between the modes.
    assert float(((back - noise).abs() / (1 + 1 / jacobian) / (1 + noise.abs())).max()) < 100 * EPS

    def cdf(x: np.ndarray) -> np.ndarray:
        return np.asarray(
            0.5 * stats.norm.cdf(x, -1.5, 0.3) + 0.3 * stats.norm.cdf(x, 0.4, 0.5) + 0.2 * stats.norm.cdf(x, 2.0, 0.2)
        )

    for sample in (data, field.sample_data(5000, generator)):
        assert stats.kstest(sample[:, 0].numpy(), cdf).pvalue > 1e-6


@given(
    st.lists(st.tuples(st.floats(0.05, 1), st.floats(-4, 4), st.floats(0.02, 2)), min_size=1, max_size=5),
    st.floats(-8, 8),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_any_mixture_keeps_quantiles(parts: list[tuple[float, float, float]], z: float, r: float, t: float) -> None:
    """phi keeps the quantile (by scipy's distribution functions), and u is the displacement over time."""
    weights, means, stds = (tensor(*column) for column in zip(*parts, strict=True))
    field = GaussianMixture(weights / weights.sum(), means, stds)
    state = tensor(z)[None]
    phi = float(field.flow_map(state, t, r))

    def tails(y: float, time: float) -> tuple[np.ndarray, np.ndarray, float]:
        centre, std = (1 - time) * means.numpy(), np.hypot((1 - time) * stds.numpy(), time)
        share = field.weights.numpy()
        below, above = (np.log(share) + f(y, centre, std) for f in (stats.norm.logcdf, stats.norm.logsf))
        density = float(np.logaddexp.reduce(np.log(share) + stats.norm.logpdf(y, centre, std)))
        return np.logaddexp.reduce(below), np.logaddexp.reduce(above), density

    (below, above, _), (below_r, above_r, log_density) = tails(z, t), tails(phi, r)
    one, other = (below, below_r) if below < above else (above, above_r)
    # A rounding of phi moves log F by EPS |phi| p/F; the logarithm itself is known to EPS times its size.
    slope = float(np.exp(log_density - other))
    assert abs(one - other) <= 32 * EPS * (1 + abs(one) + slope * (1 + abs(phi)))
    u = float(field.average_velocity(state, r, t))
    assert abs((t - r) * u - (z - phi)) <= 1e-13 * (1 + abs(z) + abs(phi) + float(field.jacobian(state, r, t)))


def test_diagonal_covariances_and_responsibilities() -> None:
    """Against scipy's multivariate normal density."""
    weights, means, stds = tensor(0.3, 0.7), tensor(1.0, -0.5, 0.2, 0.8).reshape(2, 2), tensor(0.2, 0.7, 0.4, 1.1)
    field = GaussianMixture(weights, means, stds.reshape(2, 2))
    z = tensor(0.1, 0.4, -0.3, 1.2).reshape(2, 2)
    joint = np.stack(
        [
            float(w) * stats.multivariate_normal.pdf(z.numpy(), 0.6 * m.numpy(), np.diag(0.36 * s.numpy() ** 2 + 0.16))
            for w, m, s in zip(weights, means, field.stds, strict=True)
        ],
        -1,
    )
    time = torch.full((2,), 0.4, dtype=torch.float64)
    assert np.allclose(field.log_density(z, time).exp().numpy(), joint.sum(-1), rtol=1e-13, atol=0)
    assert np.allclose(field.responsibilities(z, time).numpy(), joint / joint.sum(-1, keepdims=True), rtol=1e-13)


def test_parameters_are_checked() -> None:
    weights, means, stds = tensor(0.5, 0.5), tensor(0.0, 1.0), tensor(1.0, 2.0)
    with pytest.raises(ParameterError, match=r"sum to 0\.9"):
        GaussianMixture(tensor(0.4, 0.5), means, stds)
    with pytest.raises(ParameterError, match=r"negative entry -0\.5"):
        GaussianMixture(tensor(1.5, -0.5), means, stds)
    with pytest.raises(ParameterError, match="stds > 0"):
        GaussianMixture(weights, means, tensor(1.0, 0.0))
    with pytest.raises(ParameterError, match="NaN"):
        GaussianMixture(weights, means, tensor(1.0, float("nan")))
    with pytest.raises(ShapeError, match="means"):
        GaussianMixture(weights, tensor(0.0, 1.0, 2.0), stds)
    with pytest.raises(ShapeError, match="stds"):
        GaussianMixture(weights, means, torch.ones(2, 3, dtype=torch.float64))
    GaussianMixture(weights.float(), means.float(), stds.float()).to(dtype=torch.float64)


@pytest.mark.parametrize("stds", [(0.05, 0.05), (1e-3, 1e-4)])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (1 - 1e-9, 1e-9)])
def test_the_gap_between_modes_keeps_its_digits(weights: tuple[float, float], stds: tuple[float, float]) -> None:
    """The distribution function is flat there: an ODE of the velocity, which does not know it, tells where z goes."""
    field = GaussianMixture(tensor(*weights), tensor(-1.0, 1.0), tensor(*stds))
    z = torch.tensor([[-0.5], [1e-9], [0.1], [0.3], [0.6]], dtype=torch.float64)
    for r, t in ((0.01, 0.02), (0.02, 0.05), (0.01, 0.3)):
        solved = average_velocity(field, z, r, t, method="ode", tol=1e-13)
        # The solver's own error, tol (1 + J) times the size of u, dominates.
        size = 1 + field.jacobian(z, r, t)[:, 0, 0] + solved.value.abs()[:, 0]
        assert float(((field.average_velocity(z, r, t) - solved.value).abs()[:, 0] / size).max()) < 2e-13
