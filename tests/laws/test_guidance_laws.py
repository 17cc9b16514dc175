"""Laws of guided and class-conditional fields."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from law_strategies import few, fewer, mixture, norm, paths, quick_paths, seeds, worst
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref.fields import ClassConditional, GaussianMixture, Guided, LinearGaussianGuided
from meanflow_ref.paths import LINEAR, AbstractPath
from meanflow_ref.truth import average_velocity


def two_classes(dim: int, path: AbstractPath, seed: int) -> ClassConditional:
    generator = torch.Generator().manual_seed(seed)
    priors = torch.softmax(torch.randn(2, dtype=torch.float64, generator=generator), 0)
    return ClassConditional((mixture(dim, 2, path, seed), mixture(dim, 3, path, seed + 1)), priors)


def states(classes: ClassConditional, seed: int, n: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """``(z, r, t)`` with r = t in the first row and the whole interval in the second."""
    generator = torch.Generator().manual_seed(seed)
    pair = torch.rand(2, n, dtype=torch.float64, generator=generator)
    r, t = pair.amin(0), pair.amax(0)
    r[0], r[1], t[1] = t[0], 0, 1
    return classes.sample(t, generator), r, t


def joint(classes: ClassConditional) -> GaussianMixture:
    """The classes as one mixture, without the word class: weights are prior times weight within the class."""
    parts = [one for one in classes.classes if isinstance(one, GaussianMixture)]
    weights = torch.cat([p * one.weights for p, one in zip(classes.priors, parts, strict=True)])
    return GaussianMixture(
        weights, torch.cat([one.means for one in parts]), torch.cat([one.stds for one in parts]), classes.path
    )


problems = st.builds(two_classes, st.integers(1, 3), paths, seeds)
quick_problems = st.builds(two_classes, st.integers(1, 2), quick_paths, seeds)
omegas = st.floats(-1, 3)
kappas = st.floats(-1, 0.9)


@given(problems, seeds)
def test_the_marginal_velocity_is_the_mean_under_posterior_weights(classes: ClassConditional, seed: int) -> None:
    z, _, t = states(classes, seed)
    whole = joint(classes)
    v = torch.stack([classes.conditional(c).velocity(z, t) for c in range(2)], 1)
    log_joint = torch.stack([classes.conditional(c).log_density(z, t) + classes.priors[c].log() for c in range(2)], 1)
    posterior = torch.softmax(log_joint, 1)
    # Softmax of log-densities up to |z|^2/std^2 ~ 1e3, each with its rounding: 1e-12 relative to |v|.
    size = 1 + v.abs().amax((1, 2))
    assert worst((posterior[..., None] * v).sum(1) - whole.velocity(z, t), size) < 1e-12
    assert worst(classes.velocity(z, t) - whole.velocity(z, t), size) < 1e-12
    assert worst(classes.posterior(z, t) - posterior) < 1e-12
    assert worst((classes.log_density(z, t) - whole.log_density(z, t))[:, None], size) < 1e-12


def test_prior_weights_are_wrong_by_the_size_of_the_velocity() -> None:
    classes = two_classes(2, LINEAR, 1)
    z, _, t = states(classes, 2, n=64)
    v = torch.stack([classes.conditional(c).velocity(z, t) for c in range(2)], 1)
    assert worst((classes.priors[:, None] * v).sum(1) - joint(classes).velocity(z, t)) > 0.5


@given(problems, omegas, kappas, seeds)
def test_kappa_only_changes_the_scale(classes: ClassConditional, omega: float, kappa: float, seed: int) -> None:
    """The fixed point ``V = omega v_c + kappa V + (1 - omega - kappa) v`` is the field of scale omega/(1 - kappa)."""
    z, _, t = states(classes, seed)
    guided = Guided(classes, 0, omega, kappa).velocity(z, t)
    v_c, v = classes.conditional(0).velocity(z, t), joint(classes).velocity(z, t)
    again = formulas.guided_sample_velocity(v_c, guided, v, omega, kappa)
    size = 1 + guided.abs().amax(1) + (abs(omega) + abs(kappa)) * (v_c.abs() + v.abs()).amax(1)
    assert worst(again - guided, size) < 1e-12
    assert worst(guided - formulas.guided_velocity(v_c, v, omega / (1 - kappa)), size / (1 - kappa)) < 1e-12


@given(quick_problems, omegas, seeds)
@fewer
def test_guided_average_is_that_of_the_guided_trajectory(classes: ClassConditional, omega: float, seed: int) -> None:
    """u_cfg averages v_cfg along v_cfg's own trajectories: identity and Lagrangian hold with v_cfg. Source: mf:15."""
    field = Guided(classes, 0, omega)
    z, r, t = states(classes, seed)
    tol = 1e-8
    truth = average_velocity(field, z, r, t, tol=tol, derivatives=True)
    assert truth.du_dt is not None
    assert truth.dr_u is not None
    assert truth.jacobian is not None
    v, r_, t_ = field.velocity(z, t), r[:, None], t[:, None]
    z_r = formulas.step(z, truth.value, r_, t_)
    v_r = field.velocity(z_r, r)
    slope = torch.func.vmap(torch.func.jacrev(lambda y, s: field.velocity(y[None], s[None])[0]))(z_r, r)
    # As for any field; dv/dz at r multiplies the error of z_r, and its size sets that of the derivatives.
    scale = (1 + norm(truth.jacobian)) ** 2 * (1 + v.abs().amax(1) + z.abs().amax(1) + truth.value.abs().amax(1))
    assert worst(formulas.identity_residual(truth.value, v, truth.du_dt, r_, t_), scale) < 3 * tol
    assert (
        worst(formulas.lagrangian_residual(truth.value, v_r, truth.dr_u, r_, t_), scale * (1 + norm(slope))) < 3 * tol
    )


@pytest.mark.parametrize("omega", [1.7, 3.0])
def test_guiding_the_averages_is_not_the_average_of_the_guided(omega: float) -> None:
    classes = two_classes(2, LINEAR, 1)
    z, r, t = states(classes, 2, n=32)
    guided, conditional, whole = (
        average_velocity(field, z, r, t, tol=1e-6).value
        for field in (Guided(classes, 0, omega), classes.conditional(0), joint(classes))
    )
    assert worst(formulas.guided_velocity(conditional, whole, omega) - guided) > 0.1


@given(st.floats(-2, 2), st.floats(0.2, 2), st.floats(0.05, 1), omegas, seeds)
@few
def test_linear_gaussian_guidance_in_one_quadrature(
    value: float, class_variance: float, data_variance: float, omega: float, seed: int
) -> None:
    field = LinearGaussianGuided(value, class_variance, data_variance, omega)
    generator = torch.Generator().manual_seed(seed)
    pair = torch.rand(2, 10, dtype=torch.float64, generator=generator)
    z, r, t = torch.randn(10, 1, dtype=torch.float64, generator=generator), pair.amin(0), pair.amax(0)
    closed = field.average_velocity(z, r, t)
    truth = average_velocity(field, z, r, t, method="ode", tol=1e-9)
    size = 1 + field.velocity(z, t).abs().amax(1) + closed.abs().amax(1)
    assert worst(closed - truth.value, (1 + norm(field.jacobian(z, r, t))) * size) < 1e-9
