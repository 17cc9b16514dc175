"""What the conditional target means: its mean, its covariance, its gradient, as exact finite sums over point data.

Data on points make every expectation given ``z_t = z`` a sum over the points, so that these laws hold to rounding for
*any* network and need no Monte Carlo.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from law_strategies import PATHS, paths, seeds, worst
from torch import Tensor, nn

from meanflow_ref import formulas
from meanflow_ref.fields import PointMasses
from meanflow_ref.objectives.meanflow import meanflow_loss, meanflow_loss_at
from meanflow_ref.paths import LINEAR, AbstractPath

# Sums of at most 7 terms of size S, through a network of two layers: 1e2 roundings, relative to S.
ROUNDING = 2e-14


class Network(nn.Module):
    """Any average velocity: two tanh layers on ``[z, r, t]``."""

    def __init__(self, dim: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = nn.Linear(dim + 2, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, dim)
            self.layers = nn.Sequential(*layers).double()

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        output: Tensor = self.layers(torch.cat([z, r[..., None], t[..., None]], -1))
        return output


@dataclass(frozen=True)
class Points:
    """Point data, states, and for each state every way in which it can have come about."""

    field: PointMasses
    z: Tensor  # (B, d)
    r: Tensor  # (B,)
    t: Tensor  # (B,)
    gamma: Tensor  # p(x_i | z), (B, N)
    x: Tensor  # (B, N, d)
    eps: Tensor  # the noise that leads from x_i to z, (B, N, d)
    network: Network

    def every(self, value: Tensor) -> Tensor:
        """One copy for each point, flat."""
        n = self.gamma.shape[1]
        return value[:, None].expand(value.shape[0], n, *value.shape[1:]).flatten(0, 1)

    def mean(self, per_point: Tensor) -> Tensor:
        """``E[. | z]`` of ``(B, N, ...)``."""
        weights = self.gamma.reshape(*self.gamma.shape, *[1] * (per_point.dim() - 2))
        total: Tensor = (weights * per_point).sum(1)
        return total


def points(dim: int = 3, count: int = 6, path: AbstractPath = LINEAR, seed: int = 0, rows: int = 12) -> Points:
    generator = torch.Generator().manual_seed(seed)
    data = 1.5 * torch.randn(count, dim, dtype=torch.float64, generator=generator)
    weights = torch.softmax(torch.randn(count, dtype=torch.float64, generator=generator), 0)
    field = PointMasses(data, weights, path)
    pair = 0.1 + 0.9 * torch.rand(2, rows, dtype=torch.float64, generator=generator)
    r, t = pair.amin(0), pair.amax(0)
    r[:2] = t[:2]
    z = field.sample(t, generator)
    x = data.expand(rows, count, dim)
    alpha, sigma = path.alpha(t)[:, None, None], path.sigma(t)[:, None, None]
    eps = (z[:, None] - alpha * x) / sigma
    return Points(field, z, r, t, field.responsibilities(z, t), x, eps, Network(dim, seed))


def conditional_targets(p: Points) -> Tensor:
    """The shipped loss's target for every point, ``(B, N, d)``."""
    terms = meanflow_loss(
        p.network, p.x.flatten(0, 1), p.eps.flatten(0, 1), p.every(p.r), p.every(p.t), path=p.field.path
    )
    return terms.target.reshape(p.x.shape)


def marginal_target(p: Points) -> Tensor:
    """The same for the marginal velocity, ``(B, d)``."""
    return meanflow_loss_at(p.network, p.z, p.field.velocity(p.z, p.t), p.r, p.t).target


def factor(p: Points) -> Tensor:
    """``Phi = I - (t - r) d_z u`` of the network, ``(B, d, d)``."""
    with torch.no_grad():
        dz_u = torch.func.vmap(torch.func.jacrev(p.network))(p.z, p.r, p.t)
    phi: Tensor = torch.eye(p.z.shape[1], dtype=torch.float64) - (p.t - p.r)[:, None, None] * dz_u
    return phi


problems = st.builds(points, st.integers(1, 4), st.integers(2, 7), paths, seeds)


@given(problems)
def test_mean_of_the_conditional_target_is_the_marginal_target(p: Points) -> None:
    targets = conditional_targets(p)
    assert worst(p.mean(targets) - marginal_target(p), 1 + targets.abs().amax((1, 2))) < ROUNDING


@given(problems)
def test_covariance_of_the_target(p: Points) -> None:
    """``Cov(target | z) = Phi Cov(v | z) Phi^T``. Source: ref:covariance."""
    targets = conditional_targets(p)
    deviation = targets - p.mean(targets)[:, None]
    observed = p.mean(deviation[..., :, None] * deviation[..., None, :])
    phi = factor(p)
    expected = phi @ p.field.velocity_covariance(p.z, p.t) @ phi.mT
    # An error of z in the (B, N) states of the loss moves v by eps/sigma, squared here.
    assert worst(observed - expected, 1 + (targets**2).sum(-1).amax(1)) < 10 * ROUNDING


def gradient(p: Points, loss: Tensor) -> Tensor:
    """Gradient in all parameters, flat."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(p.network.parameters()))])


def conditional_gradient(p: Points, stop: bool = True) -> Tensor:
    """Gradient of ``sum_z E[|u - target|^2 | z]``, target behind a stop-gradient or not."""
    v = formulas.conditional_velocity(
        p.x, p.eps, p.field.path.alpha_dot(p.t)[:, None, None], p.field.path.sigma_dot(p.t)[:, None, None]
    )
    if stop:
        terms = meanflow_loss_at(p.network, p.every(p.z), v.flatten(0, 1), p.every(p.r), p.every(p.t), weight_power=0.0)
        return gradient(p, (p.gamma.flatten() * terms.per_sample).sum())
    return gradient(
        p, (p.gamma.flatten() * unstopped(p.network, p.every(p.z), v.flatten(0, 1), p.every(p.r), p.every(p.t))).sum()
    )


def marginal_gradient(p: Points, stop: bool = True) -> Tensor:
    """The same with the marginal velocity, one term for each z."""
    v = p.field.velocity(p.z, p.t)
    if stop:
        return gradient(p, meanflow_loss_at(p.network, p.z, v, p.r, p.t, weight_power=0.0).per_sample.sum())
    return gradient(p, unstopped(p.network, p.z, v, p.r, p.t).sum())


def unstopped(network: Network, z: Tensor, v: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """``|u - target|^2`` with the gradient running through the target."""
    u, du_dt = torch.func.jvp(network, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))[:2]
    error: Tensor = formulas.identity_residual(u, v, du_dt, r[:, None], t[:, None])
    return error.square().sum(1)


@given(problems)
def test_gradient_of_the_conditional_loss_is_that_of_the_marginal_loss(p: Points) -> None:
    ours, theirs = conditional_gradient(p), marginal_gradient(p)
    # Gradients add B N terms of one size, some of which cancel: relative to the sum of their sizes.
    size = float(torch.cat([t.flatten() for t in (conditional_targets(p), p.z)]).abs().max())
    assert float((ours - theirs).norm() / (theirs.norm() + size)) < 10 * ROUNDING


@pytest.mark.parametrize("path", PATHS)
def test_without_stop_gradient_the_conditional_loss_is_another(path: AbstractPath) -> None:
    """It adds tr Cov(target | z), whose gradient is not zero: the reason for the stop-gradient."""
    p = points(path=path, seed=5)
    stopped, unstopped_ = conditional_gradient(p), conditional_gradient(p, stop=False)
    marginal = marginal_gradient(p, stop=False)
    assert float((unstopped_ - marginal).norm() / marginal.norm()) > 1e-2
    assert float((unstopped_ - stopped).norm() / stopped.norm()) > 1e-2

    # And that is all it adds: the gradient of the trace closes the gap to rounding.
    def jacobian(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        matrix: Tensor = torch.func.jacrev(p.network)(z, r, t)
        return matrix

    h = (p.t - p.r)[:, None, None]
    phi = torch.eye(3, dtype=torch.float64) - h * torch.func.vmap(jacobian)(p.z, p.r, p.t)
    trace = (phi @ p.field.velocity_covariance(p.z, p.t) @ phi.mT).diagonal(dim1=1, dim2=2).sum()
    parameters = list(p.network.parameters())
    by_trace = torch.autograd.grad(trace, parameters, allow_unused=True, materialize_grads=True)
    rest = unstopped_ - marginal - torch.cat([g.flatten() for g in by_trace])
    assert float(rest.norm() / unstopped_.norm()) < 10 * ROUNDING


MUTANTS: dict[str, Callable[[Points], Points]] = {
    "prior weights": lambda p: replace(p, gamma=p.field.weights.expand_as(p.gamma)),
    "uniform weights": lambda p: replace(p, gamma=torch.full_like(p.gamma, 1 / p.gamma.shape[1])),
    "another noise": lambda p: replace(p, eps=-p.eps),
    "points in another order": lambda p: replace(p, x=p.x.flip(1), eps=p.eps.flip(1)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_miss_the_marginal_target(mutant: str) -> None:
    p = points()
    assert worst(p.mean(conditional_targets(p)) - marginal_target(p)) < 1e-12
    wrong = MUTANTS[mutant](p)
    assert worst(wrong.mean(conditional_targets(wrong)) - marginal_target(p)) > 1e-2


def test_mutants_miss_the_covariance() -> None:
    p = points()
    targets = conditional_targets(p)
    deviation = targets - p.mean(targets)[:, None]
    observed = p.mean(deviation[..., :, None] * deviation[..., None, :])
    phi, covariance = factor(p), p.field.velocity_covariance(p.z, p.t)
    unit = torch.eye(3, dtype=torch.float64)
    flipped = 2 * unit - phi  # + h instead of - h
    for wrong in (
        covariance,
        phi @ covariance,
        phi.mT @ covariance @ phi,
        flipped @ covariance @ flipped.mT,
    ):
        assert worst(observed - wrong) > 1e-2


def test_an_affine_target_is_what_makes_the_mean_match() -> None:
    """The control: a target that is not affine in v, here with a squared tangent, does not average to the marginal."""
    p = points()

    def target(v: Tensor, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        value: Tensor = formulas.meanflow_target(v + 0.1 * v.square(), 0.0, r[:, None], t[:, None])
        return value

    v = p.field.conditional_velocities(p.z, p.t)
    per_point = target(v.flatten(0, 1), p.every(p.z), p.every(p.r), p.every(p.t)).reshape(v.shape)
    assert worst(p.mean(per_point) - target(p.field.velocity(p.z, p.t), p.z, p.r, p.t)) > 1e-2
