"""Guidance: posterior class weights, the effective scale, and the one guided field with a closed flow."""

from __future__ import annotations

import numpy as np
import pytest
import sympy
import torch
from scipy import stats
from scipy.integrate import solve_ivp
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref.errors import DtypeError, NoClosedFormError, ParameterError, ShapeError
from meanflow_ref.fields import ClassConditional, Gaussian, GaussianMixture, Guided, LinearGaussianGuided
from meanflow_ref.paths import LINEAR, TRIGONOMETRIC, VARIANCE_PRESERVING, AbstractPath


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


MEANS = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.5
STDS = tensor(0.3, 0.5, 0.4, 0.6)


def classes() -> ClassConditional:
    """Components 0 and 1 are class 0, components 2 and 3 class 1."""
    first = GaussianMixture(tensor(4 / 7, 3 / 7), MEANS[:2], STDS[:2])
    second = GaussianMixture(tensor(2 / 3, 1 / 3), MEANS[2:], STDS[2:])
    return ClassConditional((first, second), tensor(0.7, 0.3))


def draw(n: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 2, dtype=torch.float64, generator=generator), torch.rand(
        n, dtype=torch.float64, generator=generator
    )


def test_class_mixture_is_the_mixture_of_all_components() -> None:
    whole, joined = GaussianMixture(tensor(0.4, 0.3, 0.2, 0.1), MEANS, STDS), classes()
    z, t = draw()
    v = whole.velocity(z, t)
    assert float(((joined.velocity(z, t) - v).abs() / (1 + v.abs())).max()) < 1e-13
    assert float((joined.log_density(z, t) - whole.log_density(z, t)).abs().max()) < 1e-11
    covariance = whole.velocity_covariance(z, t)
    scale = 1 + covariance.abs().amax((1, 2), keepdim=True)
    assert float(((joined.velocity_covariance(z, t) - covariance).abs() / scale).max()) < 1e-12
    responsibilities = whole.responsibilities(z, t)
    posterior = torch.stack([responsibilities[:, :2].sum(-1), responsibilities[:, 2:].sum(-1)], -1)
    assert float((joined.posterior(z, t) - posterior).abs().max()) < 1e-12
    # The mistake of weighting the classes by their priors is not a small one.
    by_priors = sum(p * joined.conditional(c).velocity(z, t) for c, p in enumerate((0.7, 0.3)))
    assert isinstance(by_priors, Tensor)
    assert float((by_priors - v).abs().max()) > 0.5


def test_guided_field_is_the_fixed_point_of_the_improved_formula() -> None:
    """V = omega v_c + kappa V + (1 - omega - kappa) v, on the field and in sympy."""
    omega, kappa = 1.5, 0.4
    joined = classes()
    guided = Guided(joined, 0, omega, kappa)
    z, t = draw()
    v_cfg, v_c, v = guided.velocity(z, t), joined.conditional(0).velocity(z, t), joined.velocity(z, t)
    fixed = formulas.guided_sample_velocity(v_c, v_cfg, v, omega, kappa)
    assert float(((v_cfg - fixed).abs() / (1 + v_cfg.abs())).max()) < 1e-13
    assert guided.effective_omega == pytest.approx(2.5, rel=1e-15)
    w, k, c, u, x = sympy.symbols("omega kappa v_c v_0 V")
    solution = sympy.solve(sympy.Eq(x, formulas.guided_sample_velocity(c, x, u, w, k)), x)[0]
    assert sympy.simplify(solution - formulas.guided_velocity(c, u, formulas.effective_guidance(w, k))) == 0


def test_no_guidance_is_the_conditional_field() -> None:
    joined = classes()
    z, t = draw()
    assert torch.equal(Guided(joined, 1, 1.0).velocity(z, t), joined.conditional(1).velocity(z, t))
    assert torch.equal(Guided(joined, 1, 0.0).velocity(z, t), joined.velocity(z, t))
    with pytest.raises(NoClosedFormError):
        Guided(joined, 1, 1.0).average_velocity(z, 0.0, 1.0)


def test_labelled_samples() -> None:
    joined = classes()
    x, labels = joined.sample_labelled(4000, torch.Generator().manual_seed(2))
    # 2800 +- 29 of class 0: 5 deviations, false alarms 6e-7 (fixed seed).
    assert abs(int((labels == 0).sum()) - 2800) < 145
    for label in (0, 1):
        one = joined.conditional(label)
        assert isinstance(one, GaussianMixture)
        weights, means, stds = (p.numpy() for p in (one.weights, one.means, one.stds))

        def cdf(
            y: np.ndarray, weights: np.ndarray = weights, means: np.ndarray = means, stds: np.ndarray = stds
        ) -> np.ndarray:
            return np.asarray(sum(w * stats.norm.cdf(y, m[0], s) for w, m, s in zip(weights, means, stds, strict=True)))

        # Kolmogorov-Smirnov on the first coordinate: false alarms 1e-6 (fixed seed).
        assert stats.kstest(x[labels == label, 0].numpy(), cdf).pvalue > 1e-6


@pytest.mark.parametrize("path", [LINEAR, TRIGONOMETRIC, VARIANCE_PRESERVING])
def test_linear_gaussian_field_is_the_guided_combination(path: AbstractPath) -> None:
    """Against the guided formula on the two normal fields it is made of: given the class, and over all classes."""
    c, class_variance, data_variance, omega, kappa = tensor(0.7, -0.2), 0.8, 0.3, 1.7, 0.2
    identity = torch.eye(2, dtype=torch.float64)
    field = LinearGaussianGuided(c, class_variance, data_variance, omega, kappa, path)
    given = Gaussian(c, data_variance * identity, path)
    marginal = Gaussian(torch.zeros_like(c), (data_variance + class_variance) * identity, path)
    z, t = draw()
    expected = formulas.guided_velocity(given.velocity(z, t), marginal.velocity(z, t), omega / (1 - kappa))
    assert float(((field.velocity(z, t) - expected).abs() / (1 + expected.abs())).max()) < 1e-13


@pytest.mark.parametrize("data_variance", [1.0, 0.1, 1e-3])
def test_linear_gaussian_flow_against_an_ode(data_variance: float) -> None:
    field = LinearGaussianGuided(0.7, 0.8, data_variance, 1.7)
    z = tensor(-1.0, 0.0, 2.0)[:, None]
    for r, t in ((0.0, 1.0), (0.3, 0.6), (0.5, 0.5 + 1e-6), (0.01, 0.2)):
        h = t - r

        def slope(s: float, w: np.ndarray, h: float = h, t: float = t) -> np.ndarray:
            return field.velocity(z - h * torch.from_numpy(w)[:, None], t - h * s)[:, 0].numpy()

        solution = solve_ivp(slope, (0, 1), np.zeros(3), method="DOP853", rtol=1e-12, atol=1e-13)
        u, jacobian = field.average_velocity(z, r, t), float(field.jacobian(z[:1], r, t).max())
        gap = np.abs(u[:, 0].numpy() - solution.y[:, -1]) / (1 + np.abs(solution.y[:, -1]))
        # The solver's tolerance times some tens of steps.
        assert float(gap.max()) < 1e-10 * (1 + jacobian)
        assert float((z - h * u - field.flow_map(z, t, r)).abs().max()) < 1e-14 * (1 + jacobian) * 4


def test_unguided_linear_gaussian_is_gaussian() -> None:
    """At omega = 1 the closed forms of two files must meet, at every pair of times."""
    c = tensor(0.7, -0.2)
    field = LinearGaussianGuided(c, 0.8, 0.3, 1.0)
    given = Gaussian(c, 0.3 * torch.eye(2, dtype=torch.float64))
    z, t = draw()
    for r in (0 * t, t / 2, t - 1e-9, t):
        gap = field.average_velocity(z, r, t) - given.average_velocity(z, r, t)
        assert float((gap.abs() / (1 + z.abs())).max()) < 1e-14


def test_parameters_are_checked() -> None:
    joined = classes()
    with pytest.raises(ParameterError, match="kappa < 1"):
        Guided(joined, 0, 1.5, 1.0)
    with pytest.raises(ParameterError, match="finite scales"):
        Guided(joined, 0, float("nan"))
    with pytest.raises(ParameterError, match="label 2 of 2"):
        Guided(joined, 2, 1.5)
    with pytest.raises(ParameterError, match="sum to"):
        ClassConditional(joined.classes, tensor(0.7, 0.4))
    with pytest.raises(ShapeError, match="priors"):
        ClassConditional(joined.classes, tensor(0.7, 0.2, 0.1))
    with pytest.raises(ParameterError, match="one dimension"):
        ClassConditional((joined.classes[0], Gaussian(tensor(0.0), tensor(1.0)[None])), tensor(0.5, 0.5))
    other = GaussianMixture(tensor(1.0), MEANS[:1], STDS[:1], TRIGONOMETRIC)
    with pytest.raises(ParameterError, match="one path"):
        ClassConditional((joined.classes[0], other), tensor(0.5, 0.5))
    with pytest.raises(DtypeError):
        ClassConditional(joined.classes, torch.tensor([0.5, 0.5]))
    with pytest.raises(ParameterError, match="class_variance"):
        LinearGaussianGuided(0.7, 0.0, 0.3, 1.5)
    with pytest.raises(ParameterError, match="kappa < 1"):
        LinearGaussianGuided(0.7, 1.0, 0.3, 1.5, 2.0)
