"""How good a learned average velocity is: against the exact one, and by its samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow_ref.errors import ParameterError
from meanflow_ref.fields import AbstractDataField
from meanflow_ref.truth import average_velocity

# Accuracy of the truth, some nine orders below the errors measured by it.
_TRUTH_TOLERANCE = 1e-8


@dataclass(frozen=True)
class Points:
    """Where ``u`` is compared, with its true value there; all in float64 on the CPU."""

    z: Tensor
    r: Tensor
    t: Tensor
    u: Tensor


def random_points(field: AbstractDataField, n: int, generator: torch.Generator) -> Points:
    """States ``z_t`` of the field with uniform times ``r <= t``."""
    times = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    r, t = times.amin(-1), times.amax(-1)
    return _with_truth(field, field.sample(t, generator), r, t)


def one_step_points(field: AbstractDataField, n: int, generator: torch.Generator) -> Points:
    """Noise with (r, t) = (0, 1), which is where one-step sampling evaluates ``u``."""
    noise = torch.randn(n, field.dim, generator=generator, dtype=torch.float64)
    return _with_truth(field, noise, torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64))


def _with_truth(field: AbstractDataField, z: Tensor, r: Tensor, t: Tensor) -> Points:
    return Points(z, r, t, average_velocity(field, z, r, t, tol=_TRUTH_TOLERANCE).value)


@torch.no_grad()
def velocity_error(net: Callable[..., Tensor], points: Points, *, device: torch.device | str = "cpu") -> float:
    """Mean of ``|u_theta - u|^2`` over the points; the network runs in float32 on ``device``."""
    z, r, t = (x.to(device, torch.float32) for x in (points.z, points.r, points.t))
    learned = net(z, r, t).to("cpu", torch.float64)
    return float((learned - points.u).square().sum(-1).mean())


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased energy distance ``2 E|a - b| - E|a - a'| - E|b - b'|`` between two samples, ``(n, d)`` and ``(m, d)``.

    Zero in the mean for samples of one law, so it may be negative.
    """
    if min(a.shape[0], b.shape[0]) < 2:
        raise ParameterError(f"samples of {a.shape[0]} and {b.shape[0]} points.", "at least 2 points each")
    a, b = a.double(), b.double()
    return float(2 * torch.cdist(a, b).mean() - _mean_within(a) - _mean_within(b))


def _mean_within(a: Tensor) -> Tensor:
    """Mean distance between different points of a sample."""
    n = a.shape[0]
    return torch.cdist(a, a).sum() / (n * (n - 1))


def energy_floor(field: AbstractDataField, n: int, generator: torch.Generator, *, repeats: int = 20) -> float:
    """Largest energy distance among ``repeats`` pairs of perfect samples of size ``n``.

    A perfect sampler exceeds it once in ``repeats + 1`` times.
    """
    pairs = ((field.sample_data(n, generator), field.sample_data(n, generator)) for _ in range(repeats))
    return max(energy_distance(a, b) for a, b in pairs)
