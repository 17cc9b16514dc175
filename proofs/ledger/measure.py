"""What the rows measure with: exact fields of the library, a small network, and oracles that share nothing with either.

Imports torch: the rows import this module inside their functions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.stats import norm
from torch import Tensor, nn

from meanflow_ref import formulas, meanflow_loss
from meanflow_ref.fields import Gaussian, GaussianMixture, PointMasses
from meanflow_ref.fields.base import AbstractField
from meanflow_ref.fields.linear import LinearFlow

Array = NDArray[np.float64]
# Weights, means and deviations of the mixture that most rows are measured on.
MODES = ((0.5, -1.5, 0.3), (0.3, 0.4, 0.5), (0.2, 2.0, 0.2))


def vector(*values: float) -> Tensor:
    """A float64 vector."""
    return torch.tensor(values, dtype=torch.float64)


def states(*values: float) -> Tensor:
    """One-dimensional states, ``(n, 1)``."""
    return vector(*values)[:, None]


def grid(n: int = 21, width: float = 3.0) -> Tensor:
    """Evenly spaced one-dimensional states."""
    return torch.linspace(-width, width, n, dtype=torch.float64)[:, None]


def worst(x: Tensor | Array) -> float:
    """Largest absolute value."""
    return float(np.abs(np.asarray(x.detach() if isinstance(x, Tensor) else x)).max())


def relative(x: Tensor, reference: Tensor) -> float:
    """Distance over the length of the reference."""
    return float(((x - reference).norm() / reference.norm()).detach())


# ---------------------------------------------------------------- exact fields


def normal(mean: float = 0.0, std: float = 1.0) -> Gaussian:
    """One-dimensional normal data."""
    return Gaussian(vector(mean), vector(std**2)[None])


def mixture() -> GaussianMixture:
    """Three unequal modes in one dimension."""
    weights, means, stds = (vector(*column) for column in zip(*MODES, strict=True))
    return GaussianMixture(weights, means, stds)


def two_points() -> PointMasses:
    """Data on -1 and 1."""
    return PointMasses(states(-1.0, 1.0), vector(0.5, 0.5))


def spiral() -> LinearFlow:
    """A linear field whose Jacobian is not symmetric, so that a transposed one shows."""
    return LinearFlow(torch.tensor([[0.3, -2.0, 0.1], [1.4, -0.5, 0.0], [0.0, 0.7, -0.2]], dtype=torch.float64))


def times_for(z: Tensor, r: float, t: float) -> tuple[Tensor, Tensor]:
    """The same two times for every state."""
    return torch.full(z.shape[:1], r, dtype=z.dtype), torch.full(z.shape[:1], t, dtype=z.dtype)


def spread_out(field: AbstractField, n: int = 24, seed: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Seeded states and sorted times, ``(z, r, t)``."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, field.dim, dtype=torch.float64, generator=generator)
    pair = torch.rand(2, n, dtype=torch.float64, generator=generator)
    return z, pair.amin(0), pair.amax(0)


# ---------------------------------------------------------------- oracles


def posterior_velocity(z: Array, t: float) -> Array:
    """Velocity of the mixture from scipy's normal density and the posterior mean of ``x``: no line of ours."""
    total, first = np.zeros_like(z), np.zeros_like(z)
    for weight, mean, std in MODES:
        variance = (1 - t) ** 2 * std**2 + t**2
        density = weight * norm.pdf(z, (1 - t) * mean, np.sqrt(variance))
        total += density
        first += density * (mean + (1 - t) * std**2 * (z - (1 - t) * mean) / variance)
    posterior_mean: Array = first / total
    return (z - posterior_mean) / t


def flow(velocity: Callable[[Array, float], Array], z: Array, t: float, r: float) -> Array:
    """State at ``r`` of the trajectory through ``z`` at ``t``, by scipy's DOP853 at 1e-12."""
    solution = solve_ivp(lambda time, y: velocity(y, time), (t, r), z, method="DOP853", rtol=1e-12, atol=1e-12)
    end: Array = solution.y[:, -1]
    return end


def field_velocity(field: AbstractField) -> Callable[[Array, float], Array]:
    """Velocity of a one-dimensional field, for :func:`flow`."""
    return lambda z, t: field.velocity(torch.from_numpy(np.ascontiguousarray(z))[:, None], t)[:, 0].numpy()


@cache
def mixture_by_ode(r: float = 0.1, t: float = 0.9) -> Tensor:
    """Average velocity of the mixture on :func:`grid`, by scipy's ODE of scipy's velocity."""
    z = grid()[:, 0].numpy()
    return torch.from_numpy((z - flow(posterior_velocity, z, t, r)) / (t - r))[:, None]


def difference_quotient(f: Callable[[float], Tensor], at: float, h: float = 1e-3) -> Tensor:
    """Derivative of ``f`` by the five-point central difference, error ``h^4``."""
    return (8 * (f(at + h) - f(at - h)) - (f(at + 2 * h) - f(at - 2 * h))) / (12 * h)


# ---------------------------------------------------------------- a network


class Concatenation(nn.Module):
    """A perceptron on ``(z, r, t)`` in a row, float64, seeded."""

    def __init__(self, dim: int, width: int = 32, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shapes = ((width, dim + 2), (width, width), (dim, width))
        self.weights = nn.ParameterList(
            torch.randn(shape, dtype=torch.float64, generator=generator) / shape[1] ** 0.5 for shape in shapes
        )
        self.calls = 0

    def forward(self, z: Tensor, r: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Return u, and count the call."""
        self.calls += 1
        y = torch.cat([z, r[:, None], t[:, None]], 1)
        for weight in self.weights[:-1]:
            y = torch.tanh(y @ weight.T)
        u: Tensor = y @ self.weights[-1].T
        return u


def batch(dim: int, n: int = 16, seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Seeded data, noise and sorted times, ``(x, eps, r, t)``."""
    generator = torch.Generator().manual_seed(seed)
    x, eps = torch.randn(2, n, dim, dtype=torch.float64, generator=generator)
    pair = torch.rand(2, n, dtype=torch.float64, generator=generator)
    return x, eps, pair.amin(0), pair.amax(0)


def gradient(loss: Tensor, net: nn.Module) -> Tensor:
    """Gradient in all parameters, as one vector; the graph is kept."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)])


def jvp(fn: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> Tensor:
    """Derivative of ``fn`` along ``tangents`` by ``torch.func.jvp``."""
    derivative: Tensor = torch.func.jvp(fn, primals, tangents)[1]
    return derivative


def total_derivative(
    fn: Callable[..., Tensor], v: Tensor, r: Tensor, t: Tensor, z: Tensor, dr: float = 0.0, dt: float = 1.0
) -> Tensor:
    """Derivative along ``(v, dr, dt)``."""
    return jvp(fn, (z, r, t), (v, torch.full_like(r, dr), torch.full_like(t, dt)))


def raised(action: Callable[[], Any], message: str) -> float:
    """1 if ``action`` raises a RuntimeError whose text contains ``message``, else 0."""
    try:
        action()
    except RuntimeError as error:
        return float(message in str(error))
    return 0.0


def leaks() -> tuple[float, float]:
    """Relative distance of the loss's gradient from the VJP of u alone, with and without the stop-gradient."""
    net, (x, eps, r, t) = Concatenation(2), batch(2)
    terms = meanflow_loss(net, x, eps, r, t, weight_power=0.0)
    u, parameters = net(terms.z, r, t), list(net.parameters())
    grads = torch.autograd.grad(u, parameters, 2 * (terms.u - terms.target).detach() / len(x), retain_graph=True)
    expected = torch.cat([g.flatten() for g in grads])
    live = formulas.meanflow_target(terms.v, total_derivative(net, terms.v, r, t, terms.z), r[:, None], t[:, None])
    leaky = ((u - live) ** 2).sum(1).mean()
    return relative(gradient(terms.loss, net), expected), relative(gradient(leaky, net), expected)
