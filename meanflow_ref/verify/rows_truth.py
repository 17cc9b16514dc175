"""Rows about truth: closed forms keep the laws, and agree with solvers that do not know them."""

from __future__ import annotations

from functools import partial

import mpmath
import torch
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref.fields.base import AbstractDataField, column
from meanflow_ref.fields.gaussian import Gaussian
from meanflow_ref.fields.guided import Guided
from meanflow_ref.fields.guided_gaussian import LinearGaussianGuided
from meanflow_ref.fields.mixture import GaussianMixture
from meanflow_ref.fields.points import PointMasses
from meanflow_ref.fields.shell import Shell
from meanflow_ref.fields.uniform import UniformBoxes
from meanflow_ref.paths import VariancePreservingPath
from meanflow_ref.truth import average_velocity
from meanflow_ref.verify.check import Check
from meanflow_ref.verify.problems import (
    FAMILIES,
    PATHS,
    Cases,
    amplification,
    cases,
    gaussian,
    mixture,
    planar_mixture,
    tensor,
    two_classes,
)

EXACT, TRUTH = "Exact fields", "Truth"
_BIAS_NOTE = "two points in one dimension, r = t, c = 1e-3; distance over the spread of v"


def _earliest(field: AbstractDataField) -> float:
    """First time used: at 0 sigma' is infinite on a variance-preserving path, and v has no limit on a shell."""
    return 1e-3 if isinstance(field.path, VariancePreservingPath) or isinstance(field, Shell) else 0.0


def _cases(family: str, path: str, n: int = 64) -> tuple[AbstractDataField, Cases, Tensor]:
    """A field, its cases and their amplification."""
    field = FAMILIES[family](PATHS[path])
    drawn = cases(field, n, earliest=_earliest(field))
    return field, drawn, amplification(field, drawn)


def _worst(difference: Tensor, scale: Tensor | None = None) -> float:
    """Largest entry of a per-row difference, each row divided by its scale."""
    rows = difference.abs().flatten(1).amax(1)
    return float((rows if scale is None else rows / scale).max())


def _total_derivative(field: AbstractDataField, c: Cases) -> Tensor:
    """du/dt of the closed form by forward mode along (v, 0, 1)."""
    tangent = (field.velocity(c.z, c.t), torch.zeros_like(c.r), torch.ones_like(c.t))
    derivative: Tensor = torch.func.jvp(field.average_velocity, (c.z, c.r, c.t), tangent)[1]
    return derivative


# ---------------------------------------------------------------- closed forms and their laws


def identity(family: str) -> float:
    """MeanFlow identity of the closed form, over (1 + J). Source: mf:6."""
    worst = 0.0
    for path in PATHS:
        field, c, scale = _cases(family, path)
        u, v = field.average_velocity(c.z, c.r, c.t), field.velocity(c.z, c.t)
        residual = formulas.identity_residual(u, v, _total_derivative(field, c), column(c.r), column(c.t))
        worst = max(worst, _worst(residual / (1 + v.abs().amax(1, keepdim=True)), scale))
    return worst


def boundary(family: str) -> float:
    """u(z, t, t) - v(z, t). Source: mf:limit."""
    worst = 0.0
    for path in PATHS:
        field, c, _ = _cases(family, path)
        v = field.velocity(c.z, c.t)
        worst = max(worst, _worst((field.average_velocity(c.z, c.t, c.t) - v) / (1 + v.abs().amax(1, keepdim=True))))
    return worst


def against_ode(family: str) -> float:
    """Closed u against the u-space ODE, over (1 + J). Source: ref:u-ode."""
    worst = 0.0
    for path in PATHS:
        field, c, scale = _cases(family, path, n=16)
        solved = average_velocity(field, c.z, c.r, c.t, method="ode", tol=1e-13).value
        worst = max(worst, _worst(field.average_velocity(c.z, c.r, c.t) - solved, scale))
    return worst


def between_modes() -> float:
    """Closed u against the ODE in the gaps between narrow modes, over 1 + J + |u|. Source: ref:quantile.

    Hardly any mass is there, so that the distribution function is flat and says nothing by itself; neither does the
    MeanFlow identity, which a wrong end point that is carried along satisfies too.
    """
    weights, places = tensor(0.5, 0.3, 0.2), tensor(-1.0, 0.5, 2.0)
    fields = (
        GaussianMixture(weights, places, tensor(0.05, 0.02, 0.1)),
        UniformBoxes(places[:, None] - 0.2, places[:, None] + 0.1, weights),
        PointMasses(places[:, None], weights),
    )
    worst = 0.0
    for field in fields:
        z = torch.linspace(-1.5, 2.5, 17, dtype=torch.float64)[:, None]
        for r, t in ((0.01, 0.02), (0.01, 0.06), (0.02, 0.3)):
            times = [torch.full((17,), x, dtype=torch.float64) for x in (r, t)]
            u = field.average_velocity(z, *times)
            solved = average_velocity(field, z, *times, method="ode", tol=1e-13).value
            size = 1 + field.jacobian(z, *times)[:, 0, 0] + u.abs()[:, 0]
            worst = max(worst, _worst(u - solved, size))
    return worst


def consistency(family: str) -> float:
    """Consistency at a middle time, over (1 + J). Source: mf:consistency."""
    worst = 0.0
    for path in PATHS:
        field, c, scale = _cases(family, path)
        s = c.r + 0.37 * (c.t - c.r)
        z_s = field.flow_map(c.z, c.t, s)
        residual = formulas.consistency_residual(
            field.average_velocity(c.z, c.r, c.t),
            field.average_velocity(z_s, c.r, s),
            field.average_velocity(c.z, s, c.t),
            column(c.r),
            column(s),
            column(c.t),
        )
        worst = max(worst, _worst(residual / (1 + c.z.abs().amax(1, keepdim=True)), scale))
    return worst


def log_determinant(family: str) -> float:
    """log det J from the densities against the Jacobian's own, over (1 + |log det|) (1 + J). Source: ref:logdet."""
    worst = 0.0
    for path in PATHS:
        field, c, scale = _cases(family, path)
        jacobian = field.jacobian(c.z, c.r, c.t)
        own = torch.linalg.slogdet(jacobian).logabsdet
        # For an ill-conditioned J the determinant is only known to eps * cond(J).
        conditioning = scale * (1 + torch.linalg.matrix_norm(torch.linalg.inv(jacobian), ord=2))
        worst = max(
            worst, _worst((field.log_det_jacobian(c.z, c.r, c.t) - own)[:, None], conditioning * (1 + own.abs()))
        )
    return worst


def gaussian_small_gaps() -> float:
    """Gaussian u for gaps down to 1e-16 against 50 digits. Source: ref:gaussian."""
    variances, means = (0.01, 0.3, 4.0), (0.7, -1.1, 0.2)
    worst = 0.0
    for s, m in zip(variances, means, strict=True):
        field = Gaussian(tensor(m), tensor(s)[None])
        for t in (1e-3, 0.25, 0.6, 1.0):
            for k in range(1, 17):
                high = tensor(t)
                low = (high * (1 - 10.0**-k)).clamp(min=0)
                value = float(field.average_velocity(tensor(1.1)[None], low, high)[0, 0])
                worst = max(worst, abs(value - _gaussian_reference(m, s, 1.1, float(low), t)) / (1 + abs(value)))
    return worst


def _gaussian_reference(mean: float, variance: float, z: float, r: float, t: float) -> float:
    """u of a 1-D Gaussian from its displacement in 50 digits."""
    with mpmath.workdps(50):
        m, s, state, low, high = (mpmath.mpf(x) for x in (mean, variance, z, r, t))

        def spread(tau: mpmath.mpf) -> mpmath.mpf:
            return mpmath.sqrt((1 - tau) ** 2 * s + tau**2)

        if low == high:
            slope = (high - (1 - high) * s) / spread(high) ** 2
            return float(-m + slope * (state - (1 - high) * m))
        flow = (1 - low) * m + spread(low) / spread(high) * (state - (1 - high) * m)
        return float((state - flow) / (high - low))


# ---------------------------------------------------------------- the ODE and the second route


def second_solver() -> float:
    """ODE route against scipy's DOP853 on a planar mixture, which has no closed u."""
    field = planar_mixture()
    c = cases(field, n=24, seed=3)
    ode = average_velocity(field, c.z, c.r, c.t, method="ode", tol=1e-12, derivatives=True)
    scipy = average_velocity(field, c.z, c.r, c.t, method="scipy", tol=1e-12)
    assert ode.jacobian is not None
    # The second solver integrates z and divides by t - r: its own error grows as the gap closes.
    gap = (c.t - c.r).clamp(min=1e-12)
    scale = (1 + torch.linalg.matrix_norm(ode.jacobian, ord=2)) / gap.clamp(max=1)
    return _worst(ode.value - scipy.value, scale)


def quadrature_route() -> float:
    """Gauss-Legendre quadrature of v along the closed path against the ODE, over (1 + J). Source: mf:3."""
    field = mixture()
    c = cases(field, seed=4)
    quadrature = average_velocity(field, c.z, c.r, c.t, method="quadrature", tol=1e-13).value
    ode = average_velocity(field, c.z, c.r, c.t, method="ode", tol=1e-13).value
    return _worst(quadrature - ode, amplification(field, c))


def ode_derivatives() -> float:
    """du/dt as an extra state of the ODE against forward mode of the closed form, over (1 + J)^2. Source: mf:8."""
    field = gaussian()
    c = cases(field, seed=5)
    truth = average_velocity(field, c.z, c.r, c.t, method="ode", tol=1e-13, derivatives=True)
    assert truth.du_dt is not None
    return _worst(truth.du_dt - _total_derivative(field, c), amplification(field, c) ** 2)


def ode_log_determinant() -> float:
    """log det of the ODE's Jacobian against the densities, for a planar mixture. Source: ref:logdet."""
    field = planar_mixture()
    c = cases(field, seed=6)
    truth = average_velocity(field, c.z, c.r, c.t, method="ode", tol=1e-13, derivatives=True)
    assert truth.jacobian is not None
    own = torch.linalg.slogdet(truth.jacobian).logabsdet
    end = formulas.step(c.z, truth.value, column(c.r), column(c.t))
    densities = field.log_density(c.z, c.t) - field.log_density(end, c.r)
    norm, inverse = (torch.linalg.matrix_norm(a, ord=2) for a in (truth.jacobian, torch.linalg.inv(truth.jacobian)))
    return _worst((own - densities)[:, None], (1 + norm) * (1 + inverse))


def guided_quadrature() -> float:
    """Linear-Gaussian guidance, one quadrature, against the ODE of its own velocity. Source: mf:13."""
    field = LinearGaussianGuided(0.9, class_variance=0.8, data_variance=0.3, omega=1.7)
    generator = torch.Generator().manual_seed(7)
    pair = torch.rand(2, 64, dtype=torch.float64, generator=generator)
    z = torch.randn(64, 1, dtype=torch.float64, generator=generator)
    r, t = pair.amin(0), pair.amax(0)
    ode = average_velocity(field, z, r, t, method="ode", tol=1e-13).value
    return _worst(field.average_velocity(z, r, t) - ode, 1 + torch.linalg.matrix_norm(field.jacobian(z, r, t), ord=2))


def posterior_weights() -> float:
    """Class mixture: v = sum_c p(c|z) v(.|c) against the mixture built whole. Source: mf:14."""
    classes, whole = two_classes(), planar_mixture()
    joint = planar_mixture()
    # The same four modes as one mixture, with weights prior times weight within the class.
    joint = type(whole)(tensor(0.42, 0.28, 0.21, 0.09), whole.means, whole.stds)
    c = cases(joint, seed=8)
    return _worst(classes.velocity(c.z, c.t) - joint.velocity(c.z, c.t))


def guided_is_not_guidance_of_averages() -> float:
    """Smallest sign that omega u_c + (1 - omega) u is *not* the guided field's u: its worst difference."""
    classes, omega = two_classes(), 2.5
    guided = Guided(classes, 0, omega)
    c = cases(classes, n=32, seed=9)
    u_guided, u_class, u_all = (
        average_velocity(field, c.z, c.r, c.t, tol=1e-9).value for field in (guided, classes.conditional(0), classes)
    )
    return _worst(u_guided - formulas.guided_velocity(u_class, u_all, omega))


# ---------------------------------------------------------------- laws of the target


def _network(dim: int, seed: int) -> torch.nn.Module:
    """A float64 tanh network on [z, r, t]: any network will do."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = 32
        return torch.nn.Sequential(
            torch.nn.Linear(dim + 2, width), torch.nn.Tanh(), torch.nn.Linear(width, width), torch.nn.Tanh(),
            torch.nn.Linear(width, dim),
        ).double()  # fmt: skip


def _points() -> PointMasses:
    generator = torch.Generator().manual_seed(10)
    points = 1.5 * torch.randn(7, 3, dtype=torch.float64, generator=generator)
    return PointMasses(points, torch.softmax(torch.randn(7, dtype=torch.float64, generator=generator), 0))


def _point_targets() -> tuple[PointMasses, Cases, Tensor, Tensor, Tensor]:
    """Targets of a random network for every point: responsibilities, per-point targets, and that of the marginal v."""
    field = _points()
    c = cases(field, seed=11, earliest=0.1)
    network = _network(3, seed=12)

    def u(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        output: Tensor = network(torch.cat([z, column(r), column(t)], -1))
        return output

    def target(v: Tensor) -> Tensor:
        tangent = (v, torch.zeros_like(c.r), torch.ones_like(c.t))
        result: Tensor = formulas.meanflow_target(
            v, torch.func.jvp(u, (c.z, c.r, c.t), tangent)[1], column(c.r), column(c.t)
        )
        return result

    with torch.no_grad():
        conditional = field.conditional_velocities(c.z, c.t)
        per_point = torch.stack([target(conditional[:, i]) for i in range(7)], 1)
        return field, c, field.responsibilities(c.z, c.t), per_point, target(field.velocity(c.z, c.t))


def expectation_matching() -> float:
    """E[target | z] as an exact finite sum over point data against the target of the marginal v. Source: mf:11."""
    _, _, gamma, per_point, marginal = _point_targets()
    scale = 1 + per_point.abs().amax((1, 2))
    return _worst((gamma[..., None] * per_point).sum(1) - marginal, scale)


def target_covariance() -> float:
    """Cov(target | z) against Phi Cov(v | z) Phi^T, relative to its size. Source: ref:covariance."""
    field, c, gamma, per_point, marginal = _point_targets()
    network = _network(3, seed=12)

    def u(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        output: Tensor = network(torch.cat([z, r[None], t[None]], -1))
        return output

    with torch.no_grad():
        jacobian = torch.func.vmap(torch.func.jacrev(u))(c.z, c.r, c.t)
        phi = torch.eye(3, dtype=torch.float64) - (c.t - c.r)[:, None, None] * jacobian
        deviation = per_point - marginal[:, None]
        observed = torch.einsum("bn,bni,bnj->bij", gamma, deviation, deviation)
        expected = phi @ field.velocity_covariance(c.z, c.t) @ phi.mT
    return _worst(observed - expected, 1 + (per_point**2).sum(-1).amax(1))


# Primitive of the weight (S + c)^-p in S: what a loss under the detached weight is stationary for.
_PRIMITIVES = {0.0: lambda s: s, 0.5: lambda s: 2 * (s + 1e-3).sqrt(), 1.0: lambda s: (s + 1e-3).log()}


def adaptive_bias(power: float) -> float:
    """Minimiser of the adaptively weighted loss against E[v | z], over the spread of v, at r = t. Source: mf:22.

    Two points in one dimension with posterior weights 0.6 and 0.4, so that the expectation is a finite sum.
    """
    field = PointMasses(tensor(-1.0, 1.0)[:, None], tensor(0.6, 0.4))
    z, t = tensor(0.0)[:, None], tensor(0.5)
    v = field.conditional_velocities(z, t)[0, :, 0]
    gamma = field.responsibilities(z, t)[0]
    u = torch.linspace(float(v.min()), float(v.max()), 100_001, dtype=torch.float64)
    risk = (gamma * _PRIMITIVES[power]((u[:, None] - v) ** 2)).sum(1)
    return float((u[risk.argmin()] - field.velocity(z, t)[0, 0]).abs() / (v.max() - v.min()))


def conditional_law() -> float:
    """Mean and covariance of v given z by direct integration over data, against the closed law. Source: mf:1."""
    field = planar_mixture()
    c = cases(field, n=16, seed=13, earliest=0.2)
    # A dense product grid of data points makes E[v_t | z] an integral by the trapezoidal rule (spectrally accurate).
    axis = torch.linspace(-6, 6, 401, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    prior = field.log_density(x, 0.0)
    worst = 0.0
    for z, t in zip(c.z, c.t, strict=True):
        alpha, sigma = field.path.alpha(t), field.path.sigma(t)
        eps = (z - alpha * x) / sigma
        weight = torch.softmax(prior - (eps**2).sum(-1) / 2, 0)
        v = formulas.conditional_velocity(x, eps, field.path.alpha_dot(t), field.path.sigma_dot(t))
        mean = (weight[:, None] * v).sum(0)
        covariance = (weight[:, None] * (v - mean)).T @ (v - mean)
        worst = max(worst, _worst((mean - field.velocity(z[None], t[None])[0])[None]))
        closed = field.velocity_covariance(z[None], t[None])[0]
        worst = max(worst, _worst((covariance - closed)[None] / (1 + closed.abs().max())))
    return worst


def checks() -> list[Check]:
    """The rows."""
    rows: list[Check] = []
    for family in FAMILIES:
        bound = 1e-14 if family.startswith("Gaussian") else 2e-13
        note = "over 3 paths, 64 cases each, gaps down to 1e-12 and r = t included; divided by (1 + J)(1 + |v|)"
        rows.append(
            Check(EXACT, f"{family}: MeanFlow identity by forward mode", partial(identity, family), bound, note=note)
        )
        rows.append(Check(EXACT, f"{family}: u(z, t, t) = v", partial(boundary, family), 1e-14))
        rows.append(
            Check(
                EXACT, f"{family}: consistency at a middle time", partial(consistency, family), 2e-13, note="over 1 + J"
            )
        )
        rows.append(Check(EXACT, f"{family}: log det J", partial(log_determinant, family), 2e-13, note="over cond(J)"))
    rows += [
        Check(EXACT, "Gaussian: gaps down to 1e-16 against 50 digits", gaussian_small_gaps, 1e-14),
        Check(EXACT, "mixture, d = 2: law of v given z against direct integration", conditional_law, 1e-12),
        Check(EXACT, "class mixture: posterior weights", posterior_weights, 1e-13),
    ]
    for family in FAMILIES:
        rows.append(
            Check(TRUTH, f"{family}: closed u against the ODE", partial(against_ode, family), 2e-13, note="over 1 + J")
        )
    rows += [
        Check(TRUTH, "gaps between modes: closed u against the ODE", between_modes, 2e-13, note="over 1 + J + |u|"),
        Check(
            TRUTH,
            "guided, linear-Gaussian: one quadrature against the ODE",
            guided_quadrature,
            1e-12,
            note="over 1 + J",
        ),
        Check(
            TRUTH, "mixture, d = 2: ODE against a second solver (DOP853)", second_solver, 2e-11, note="over (1 + J)/h"
        ),
        Check(TRUTH, "mixture, d = 1: ODE against quadrature of v", quadrature_route, 2e-13, note="over 1 + J"),
        Check(TRUTH, "Gaussian, d = 4: du/dt from the ODE", ode_derivatives, 1e-12, note="over (1 + J)^2"),
        Check(TRUTH, "mixture, d = 2: log det J from the ODE", ode_log_determinant, 1e-11, note="over cond(J)"),
        Check(
            TRUTH, "target: E[target | z] is the marginal target", expectation_matching, 1e-14, note="exact finite sum"
        ),
        Check(
            TRUTH, "target: Cov(target | z) = Phi Cov(v | z) Phi^T", target_covariance, 1e-14, note="exact finite sum"
        ),
        Check(TRUTH, "weight power 0: the minimiser is E[v | z]", partial(adaptive_bias, 0.0), 1e-5, note=_BIAS_NOTE),
        Check(TRUTH, "weight power 0.5: the minimiser is another", partial(adaptive_bias, 0.5), 0.1, ">=", _BIAS_NOTE),
        Check(TRUTH, "weight power 1: the minimiser is another", partial(adaptive_bias, 1.0), 0.1, ">=", _BIAS_NOTE),
        Check(
            TRUTH, "guiding the averages is not averaging the guidance", guided_is_not_guidance_of_averages, 0.1, ">="
        ),
    ]
    return rows
