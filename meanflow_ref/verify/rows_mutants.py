"""The checker checked: wrong code, in the ways that public implementations were found to be wrong, must be seen.

Each row runs one of the checks of this package on a mutant and reports the error that the check then shows. A right
implementation shows rounding; a row here fails if the mutant would pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref._typing import AverageVelocity, TensorFunction
from meanflow_ref.fields.base import column
from meanflow_ref.jvp import get_backend
from meanflow_ref.objectives.meanflow import MeanFlowTerms, meanflow_loss, meanflow_loss_at
from meanflow_ref.objectives.times import AbstractTimePair, LogitNormalPair
from meanflow_ref.verify.check import Check
from meanflow_ref.verify.problems import cases, planar_mixture, product, spiral, two_classes
from meanflow_ref.verify.rows_loss import batch, cotangent_gradient, network, target_error, time_law

GROUP = "Mutants: wrong code is seen"

Tangents = tuple[Tensor | None, ...]


def _tampered(
    tangents: Callable[[Tensor, Tensor, Tensor], Tangents] | None = None,
    scale: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Any:
    """A JVP backend that differentiates along other tangents, or scales du/dt by a function of (r, t)."""

    def backend(fn: TensorFunction, primals: tuple[Tensor, ...], given: Tangents) -> tuple[Tensor, Tensor]:
        _, r, t = primals
        v = given[0]
        assert v is not None
        u, du_dt = get_backend("func")(fn, primals, tangents(v, r, t) if tangents else given)
        return u, du_dt * column(scale(r, t)) if scale else du_dt

    return backend


def _transposed(fn: TensorFunction, primals: tuple[Tensor, ...], given: Tangents) -> tuple[Tensor, Tensor]:
    """J^T v + d_t u: grad(u, z, v), which is not a JVP."""
    z, r, t = primals
    v = given[0]
    assert v is not None
    z = z.detach().requires_grad_()
    u = fn(z, r, t)
    (spatial,) = torch.autograd.grad(u, z, v, create_graph=True)
    return u, spatial + get_backend("func")(fn, primals, (None, None, torch.ones_like(t)))[1]


def _summed(fn: TensorFunction, primals: tuple[Tensor, ...], given: Tangents) -> tuple[Tensor, Tensor]:
    """grad(u.sum(), z) * v + grad(u.sum(), t): sums over outputs where a JVP must not."""
    z, r, t = (x.detach().requires_grad_() for x in primals)
    v = given[0]
    assert v is not None
    u = fn(z, r, t)
    spatial, temporal = torch.autograd.grad(u.sum(), (z, t), create_graph=True)
    return u, spatial * v + column(temporal)


def _coarse(fn: TensorFunction, primals: tuple[Tensor, ...], given: Tangents) -> tuple[Tensor, Tensor]:
    """A one-sided difference with step 0.01."""
    z, r, t = primals
    v = given[0]
    assert v is not None
    u = fn(z, r, t)
    return u, (fn(z + 0.01 * v, r, t + 0.01) - u) / 0.01


def _some(t: Tensor) -> Tensor:
    return torch.ones_like(t)


# What is wrong -> the backend that does it. All must move the target of the exact field.
TARGETS: dict[str, Any] = {
    "r and t swapped: tangent (v, 1, 0)": _tampered(lambda v, r, t: (v, _some(r), None)),
    "r moves with t: tangent (v, 1, 1)": _tampered(lambda v, r, t: (v, _some(r), _some(t))),
    "no time tangent: (v, 0, 0)": _tampered(lambda v, r, t: (v, None, None)),
    "no spatial tangent: (0, 0, 1)": _tampered(lambda v, r, t: (None, None, _some(t))),
    "tangent -v": _tampered(lambda v, r, t: (-v, None, _some(t))),
    "time runs backwards: tangent (v, 0, -1)": _tampered(lambda v, r, t: (v, None, -_some(t))),
    "sign of the correction": _tampered(scale=lambda r, t: -_some(t)),
    "interval t instead of t - r": _tampered(scale=lambda r, t: torch.where(t > r, t / (t - r), _some(t))),
    "interval 1 instead of t - r": _tampered(scale=lambda r, t: torch.where(t > r, 1 / (t - r), _some(t))),
    "half the correction": _tampered(scale=lambda r, t: 0.5 * _some(t)),
    "no correction at all": _tampered(scale=lambda r, t: torch.zeros_like(t)),
    "transposed Jacobian": _transposed,
    "grad(u.sum()) for a JVP": _summed,
    "coarse finite difference": _coarse,
}


def wrong_target(name: str) -> float:
    """Error that the exact-field check shows for a mutant of the target.

    On the spiral, where d_z u is not symmetric: on mixtures the transposed Jacobian would pass.
    """
    return target_error(spiral(), TARGETS[name])


def wrong_velocity() -> float:
    """The same for a velocity of the wrong sign."""
    return target_error(spiral(), "func", sign=-1.0)


def _leaking(target: bool, *args: Any) -> MeanFlowTerms:
    """The loss with its target (or its weight) left in the graph; everything else is the reference's."""
    net, x, eps, r, t = args
    terms = meanflow_loss(net, x, eps, r, t)
    if target:
        u, du_dt = get_backend("func")(net, (terms.z, r, t), (terms.v, None, torch.ones_like(t)))
        error = ((u - formulas.meanflow_target(terms.v, du_dt, column(r), column(t))) ** 2).sum(1)
        return terms._replace(loss=(terms.weight * error).mean())
    weight = formulas.adaptive_weight(terms.squared_error, 1.0, 1e-3)
    return terms._replace(loss=(weight * terms.squared_error).mean())


def target_leaks() -> float:
    """Gradient with the target attached, seen by the cotangent check."""
    return cotangent_gradient(partial(_leaking, True))


def weight_leaks() -> float:
    """Gradient with the weight attached, seen by the cotangent check."""
    return cotangent_gradient(partial(_leaking, False))


def loss_value_is_blind() -> float:
    """Relative change of the *loss value* at weight power 1 when v has the wrong sign: next to nothing.

    S/(S + c) is near 1 whatever the error S is, in 256 dimensions already. Nothing here compares loss values.
    """
    net = network(dim=256)
    x, eps, r, t = batch(dim=256)
    z = (1 - t[:, None]) * x + t[:, None] * eps
    right, wrong = (float(meanflow_loss_at(net, z, sign * (eps - x), r, t).loss.detach()) for sign in (1.0, -1.0))
    return abs(right - wrong) / right


def _sampled(step: Callable[[Any, Tensor, Tensor, Tensor], Tensor], steps: int) -> float:
    """Worst distance of z_0 by a wrong step from the exact one, over the size of the data."""
    field = product()
    noise = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(22))
    z = noise
    grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    for t, r in pairwise(grid):
        z = step(field.average_velocity, z, r.expand(64), t.expand(64))
    exact = field.flow_map(noise, 1.0, 0.0)
    return float((z - exact).abs().max() / exact.abs().max())


def _wrong_sign(u: AverageVelocity, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
    return z + column(t - r) * u(z, r, t)


def _wrong_end(u: AverageVelocity, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
    # The state is handed over as if it stood at r.
    return z - column(t - r) * u(z, t, r + (t - r) * 0.5)


def _euler(u: AverageVelocity, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
    return z - column(t - r) * u(z, t, t)


def _to_data(u: AverageVelocity, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
    return z - column(t - r) * u(z, torch.zeros_like(r), t)


SAMPLERS: dict[str, tuple[Any, int]] = {
    "sampler: z + (t - r) u": (_wrong_sign, 1),
    "sampler: state at the wrong end": (_wrong_end, 4),
    "sampler: few steps are Euler on v": (_euler, 4),
    "sampler: r is 0 in every step": (_to_data, 4),
}


def wrong_sampler(name: str) -> float:
    """Error of a wrong sampler that is given the exact u."""
    step, steps = SAMPLERS[name]
    return _sampled(step, steps)


class _InvertedShare(LogitNormalPair):
    """Reads the share of r = t rows as the share of r != t rows."""

    def equal_rows(self, n: int, generator: torch.Generator) -> Tensor:
        """The complement of the right rows."""
        return ~super().equal_rows(n, generator)


class _Unsorted(LogitNormalPair):
    """Takes r = t U in place of the smaller of two draws."""

    def sample(
        self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Wrong pairs."""
        _, t = super().sample(n, generator, dtype, device)
        return torch.where(self.equal_rows(n, generator), t, t * torch.rand(n, generator=generator, dtype=dtype)), t


TIMES: dict[str, AbstractTimePair] = {
    "times: the share of r = t inverted": _InvertedShare(-0.4, 1.0),
    "times: r = t U instead of a sorted pair": _Unsorted(-0.4, 1.0),
}


def wrong_times(name: str) -> float:
    """Kolmogorov-Smirnov statistic of a wrong law against the right one's distribution functions."""
    return time_law(TIMES[name])


def prior_weights() -> float:
    """Class mixture weighted by the prior p(c) instead of the posterior p(c|z)."""
    classes = two_classes()
    c = cases(planar_mixture(), seed=8)
    prior = sum(p * classes.conditional(k).velocity(c.z, c.t) for k, p in enumerate((0.7, 0.3)))
    assert isinstance(prior, Tensor)
    return float((prior - classes.velocity(c.z, c.t)).abs().max())


def checks() -> list[Check]:
    """The rows; the bound is 1e-3, where right code stays below 1e-12."""
    rows = [Check(GROUP, f"target: {name}", partial(wrong_target, name), 1e-3, ">=") for name in TARGETS]
    rows += [
        Check(GROUP, "target: velocity of the wrong sign", wrong_velocity, 1e-3, ">="),
        Check(GROUP, "gradient: target not detached", target_leaks, 1e-3, ">="),
        Check(GROUP, "gradient: weight not detached", weight_leaks, 1e-3, ">="),
    ]
    rows += [Check(GROUP, name, partial(wrong_sampler, name), 1e-3, ">=") for name in SAMPLERS]
    rows += [Check(GROUP, name, partial(wrong_times, name), 8.0, ">=") for name in TIMES]
    rows += [
        Check(GROUP, "guidance: prior class weights", prior_weights, 1e-3, ">="),
        Check(
            GROUP,
            "the loss value itself sees nothing: v of the wrong sign, p = 1, d = 256",
            loss_value_is_blind,
            1e-4,
            note="its relative change; this is why nothing here compares loss values",
        ),
    ]
    return rows
