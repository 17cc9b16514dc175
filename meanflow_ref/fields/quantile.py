r"""One-dimensional transport by quantiles, and the average velocity it gives.

In one dimension the probability flow keeps the quantile of a trajectory, because :math:`\partial_t F_t = -p_t v`:

.. math:: \phi_{t\to r}(z) = F_r^{-1}(F_t(z)), \qquad \partial_z\phi = p_t(z)/p_r(\phi).

Integrating :math:`dF = p\,(dy - v\,d\tau)` along the straight segment from :math:`(\phi, r)` to :math:`(z, t)`, whose
ends have the same quantile, gives the average velocity as a weighted mean, without a division by t - r:

.. math:: u(z,r,t) = \int_0^1 p_\tau(y)\,v(y,\tau)\,d\theta \Big/ \int_0^1 p_\tau(y)\,d\theta,
          \qquad (y,\tau) = (1-\theta)(\phi,r) + \theta(z,t).
"""

from __future__ import annotations

import abc
import math
from typing import Any

import torch
from torch import Tensor

from meanflow_ref.quadrature import leading_gauss_legendre

# From this |t - r| on, (z - phi)/(t - r) loses at most five bits; below it the segment formula loses none.
DIRECT_FROM = 2.0**-5
_NODES = 64
# Next to a separatrix J says little about the rounding of phi; there the quotient is as good as can be.
_JACOBIAN_CAP = 1e3
_MAX_STEPS = 200
_EPS = torch.finfo(torch.float64).eps


class AbstractMarginals(abc.ABC):
    """The marginals of a one-dimensional probability path, elementwise in float64 tensors of one shape."""

    @abc.abstractmethod
    def log_tail(self, y: Tensor, t: Tensor, side: Tensor) -> Tensor:
        """Logarithm of the mass below ``y`` where ``side`` is 1, above ``y`` where it is -1."""

    @abc.abstractmethod
    def log_density(self, y: Tensor, t: Tensor) -> Tensor:
        """Logarithm of the density at ``y``."""

    @abc.abstractmethod
    def velocity(self, y: Tensor, t: Tensor) -> Tensor:
        """Marginal velocity at ``y``."""

    @abc.abstractmethod
    def bracket(self, z: Tensor, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the point that has at ``r`` the quantile of ``z`` at ``t``."""


def transport(marginals: AbstractMarginals, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """Point that has at ``r`` the quantile which ``z`` has at ``t``. Source: ref:quantile.

    The root is found on detached values. Two Newton steps with their values removed then restore its dependence on
    ``z``, ``t`` and ``r``: the first makes first derivatives exact, and since Newton's iteration doubles the order of
    a power series, the second makes derivatives up to the third exact.

    Precision:
        About ``eps (1 + J)`` with ``J`` the Jacobian; the tails keep it (quantiles of 1e-3000 and beyond).

    """
    z, t, r = _broadcast(z, t, r)
    # The tail on the smaller side: its logarithm does not round to 0.
    one = torch.ones_like(z)
    with torch.no_grad():
        left = marginals.log_tail(z, t, one) < -math.log(2)
    side = torch.where(left, one, -one)
    target = marginals.log_tail(z, t, side)
    y: Tensor = _Root.apply(marginals, *(x.detach() for x in (z, t, r, side, target)))  # type: ignore[no-untyped-call]
    for _ in range(2):
        step = _newton_step(marginals, y, r, side, target)
        y = y + (step - step.detach())
    return y


def average_velocity(marginals: AbstractMarginals, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """Average velocity by quantile transport; equals the velocity at r = t. Source: ref:quantile, ref:segment.

    The quotient (z - phi)/(t - r) loses eps/(t - r); the segment formula loses nothing, but its quadrature can miss a
    feature (an edge of the data seen from t near 0). So below a gap of 1/32 the segment formula counts, unless it
    differs from the quotient by more than the quotient can be wrong.
    """
    z, r, t = _broadcast(z, r, t)
    phi, h = transport(marginals, z, t, r), t - r
    segment = segment_average(marginals, z, phi, r, t)
    with torch.no_grad():
        jacobian = torch.exp(log_jacobian(marginals, z, phi, r, t)).clamp(max=_JACOBIAN_CAP)
        rounding = 64 * _EPS * (1 + jacobian) * (1 + z.abs() + phi.abs()) / h.abs()  # infinite at r = t
        missed = ((z - phi) / h - segment).abs() > rounding
        direct = (h.abs() >= DIRECT_FROM) | missed
    return torch.where(direct, (z - phi) / torch.where(direct, h, torch.ones_like(h)), segment)


def segment_average(
    marginals: AbstractMarginals, z: Tensor, phi: Tensor, r: Tensor, t: Tensor, nodes: int = _NODES
) -> Tensor:
    """Mean of the velocity on the segment from ``(phi, r)`` to ``(z, t)``, weighted by density. Source: ref:segment."""
    theta, weight = leading_gauss_legendre(nodes, z)
    y, tau = phi + (z - phi) * theta, r + (t - r) * theta  # nodes first, so that parameters stay in the last places
    share = torch.softmax(marginals.log_density(y, tau) + torch.log(weight), 0)
    return (share * marginals.velocity(y, tau)).sum(0)


def log_jacobian(marginals: AbstractMarginals, z: Tensor, phi: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """Logarithm of the derivative of :func:`transport`, at ``phi = transport(z)``. Source: ref:logdet."""
    return marginals.log_density(z, t) - marginals.log_density(phi, r)


def away_from_zero(r: Tensor) -> Tensor:
    """``r``, with 1 where it is 0: for data without a density, whose flow to r = 0 is another formula."""
    return torch.where(r == 0, torch.ones_like(r), r)


def _broadcast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors at their common shape."""
    together: tuple[Tensor, ...] = torch.broadcast_tensors(*tensors)  # type: ignore[no-untyped-call]
    return together


def _newton_step(marginals: AbstractMarginals, y: Tensor, r: Tensor, side: Tensor, target: Tensor) -> Tensor:
    """Newton's step for ``log_tail(y, r, side) = target``."""
    value = marginals.log_tail(y, r, side)
    return side * (target - value) * torch.exp(value - marginals.log_density(y, r))


class _Root(torch.autograd.Function):
    """The root as a function without derivatives, so that its data-dependent loop runs under ``vmap``."""

    @staticmethod
    def forward(marginals: AbstractMarginals, z: Tensor, t: Tensor, r: Tensor, side: Tensor, target: Tensor) -> Tensor:
        return _solve(marginals, z, t, r, side, target)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        return (None,) * 6

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> None:
        return None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], marginals: AbstractMarginals, *args: Tensor
    ) -> tuple[Tensor, int]:
        moved = [x[None] if dim is None else x.movedim(dim, 0) for x, dim in zip(args, in_dims[1:], strict=True)]
        root: Tensor = _Root.apply(marginals, *_broadcast(*moved))  # type: ignore[no-untyped-call]
        return root, 0


def _solve(marginals: AbstractMarginals, z: Tensor, t: Tensor, r: Tensor, side: Tensor, target: Tensor) -> Tensor:
    """Bracketed Newton iteration on the logarithm of a tail.

    A step gives way to bisection when it leaves the bracket or is not half as long as the one before last, so the
    bracket shrinks at least geometrically whatever the density (a gap between modes is a plateau of the tail).
    """
    low, high = marginals.bracket(z, t, r)
    width = high - low
    guess = z - (t - r) * marginals.velocity(z, t)
    inside = (guess >= low) & (guess <= high)
    y = torch.where(inside, guess, 0.5 * (low + high))
    last, before_last = width, width
    done = torch.zeros_like(z, dtype=torch.bool)
    for _ in range(_MAX_STEPS):
        step = _newton_step(marginals, y, r, side, target)
        below = step > 0
        low, high = torch.where(below & ~done, y, low), torch.where(below | done, high, y)
        proposal = y + step
        # A Newton step this short has converged quadratically: take it and stop, whatever rounding did to the bracket.
        small = step.abs() <= 1e-13 * width + 4 * _EPS * y.abs()
        good = small | ((proposal > low) & (proposal < high) & (step.abs() <= 0.5 * before_last))
        proposal = torch.where(good, proposal, 0.5 * (low + high))
        before_last, last = last, (proposal - y).abs()
        y = torch.where(done, y, proposal)
        done = done | small | (high - low <= 4 * _EPS * (y.abs() + 1e-3 * width))
        if bool(done.all()):
            break
    return y
