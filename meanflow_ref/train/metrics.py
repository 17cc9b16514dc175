"""How good a learned average velocity is: against the exact one, and by its samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref.errors import ParameterError
from meanflow_ref.fields import AbstractDataField
from meanflow_ref.truth import average_velocity

# Accuracy of the truth: its square is eight orders below the squared errors that are measured by it.
_TRUTH_TOLERANCE = 1e-6
# Two-sided 95 % of a normal law.
_Z95 = 1.959963984540054

Net = Callable[..., Tensor]


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % confidence interval, by the normal approximation."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """The three numbers by name."""
        return asdict(self)


def estimate(values: Tensor) -> Estimate:
    """Mean of independent values with its interval."""
    mean = float(values.mean())
    half = _Z95 * float(values.std()) / values.numel() ** 0.5
    return Estimate(mean, mean - half, mean + half)


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
def squared_errors(net: Net, points: Points, *, device: torch.device | str = "cpu") -> Tensor:
    """``|u_theta - u|^2`` at the points, float64; the network runs in float32 on ``device``."""
    z, r, t = (x.to(device, torch.float32) for x in (points.z, points.r, points.t))
    learned = net(z, r, t).to("cpu", torch.float64)
    return (learned - points.u).square().sum(-1)


def velocity_error(net: Net, points: Points, *, device: torch.device | str = "cpu") -> float:
    """Mean of ``|u_theta - u|^2`` over the points."""
    return float(squared_errors(net, points, device=device).mean())


def loss_floor(
    field: AbstractDataField, r: Tensor, t: Tensor, z: Tensor, *, tolerance: float = _TRUTH_TOLERANCE
) -> Tensor:
    r"""Loss that the exact u has at each row, with the velocity of the sample: ``tr(J Cov(v_t|z) J^T)``.

    What remains of the plain squared error when u is right, J being the Jacobian of the flow map from t to r.
    Source: ref:covariance.

    Args:
        field: An exact field, in float64.
        r: Start of the intervals, ``(n,)``.
        t: Times of the states, ``(n,)``.
        z: States, ``(n, d)``.
        tolerance: Of the truth, where it is by ODE.

    Returns:
        ``(n,)``; its mean over the law of the batch is the floor of the loss.

    """
    covariance = field.velocity_covariance(z, t)
    if field.exact_flow:
        jacobian = field.jacobian(z, r, t)
    else:
        truth = average_velocity(field, z, r, t, tol=tolerance, derivatives=True)
        assert truth.jacobian is not None
        jacobian = truth.jacobian
    return torch.einsum("nij,njk,nik->n", jacobian, covariance, jacobian)


@torch.no_grad()
def euler(net: Net, noise: Tensor, steps: int, label: Tensor | None = None) -> Tensor:
    """Samples by Euler's method with the instantaneous velocity ``u(z, t, t)``: one evaluation a step."""
    z, labels = noise, () if label is None else (label,)
    for i in range(steps):
        t, r = 1 - i / steps, 1 - (i + 1) / steps
        at = torch.full(z.shape[:1], t, dtype=z.dtype, device=z.device)
        z = formulas.step(z, net(z, at, at, *labels), r, t)
    return z


def wasserstein_1d(a: Tensor, b: Tensor) -> float:
    """Wasserstein-2 distance of two samples of one size on the line: exact, by sorting."""
    if a.shape != b.shape or a.shape[1:] != (1,):
        raise ParameterError(f"samples of shapes {tuple(a.shape)} and {tuple(b.shape)}.", "two of shape (n, 1)", "")
    return float((a.double().sort(0).values - b.double().sort(0).values).square().mean().sqrt())
