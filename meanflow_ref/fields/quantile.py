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
from dataclasses import dataclass
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
_LOG_NOTHING = -1e300  # stands for log 0: finite, so that derivatives are 0 and not NaN
_LOG_HUGE = 700.0
_EPS = torch.finfo(torch.float64).eps


class AbstractMarginals(abc.ABC):
    """The marginals of a one-dimensional probability path, elementwise in float64 tensors of one shape."""

    @abc.abstractmethod
    def log_tail(self, y: Tensor, t: Tensor, side: Tensor) -> Tensor:
        """Logarithm of the mass below ``y`` where ``side`` is 1, above ``y`` where it is -1."""

    @abc.abstractmethod
    def log_density(self, y: Tensor, t: Tensor) -> Tensor:
        """Logarithm of the density at ``y``."""

    def component_log_tails(self, y: Tensor, t: Tensor, sides: Tensor) -> Tensor:
        """:meth:`log_tail` of each component of a mixture with its own side, weights included, ``(..., K)``."""
        return self.log_tail(y, t, sides[..., 0])[..., None]

    def component_log_densities(self, y: Tensor, t: Tensor) -> Tensor:
        """:meth:`log_density` of each component of a mixture, weights included, ``(..., K)``."""
        return self.log_density(y, t)[..., None]

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
        About ``eps (1 + J)`` with ``J`` the Jacobian; the tails and the gaps between modes keep it (:class:`_Balance`).

    """
    z, t, r = _broadcast(z, t, r)
    balance = _Balance.at(marginals, z, t)
    y: Tensor = _Root.apply(marginals, z.detach(), t.detach(), r.detach())  # type: ignore[no-untyped-call]
    for _ in range(2):
        step = balance.newton_step(marginals, y, r)
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


@dataclass(frozen=True)
class _Balance:
    """The quantile of a state in a form that keeps its digits in tails and in gaps between modes.

    The mass below y is a plateau there, so that its value says nothing about y. Let each component count by its
    smaller tail at (z, t): A(y) is the mass below y of those that lie above z, B(y) the mass above y of those that
    lie below it. F = A - B + const, with one constant for all times, so F_r(y) = F_t(z) is A_r(y) - B_r(y) = A - B at
    (z, t): an equation between small numbers without large parts, solved in logarithms. With one component, or
    outside of all modes, A or B is empty and this is the equation of the logarithms of one tail.
    """

    sides: Tensor  # (..., K): 1 for components counted by the mass below, -1 by the mass above
    scale: Tensor  # log of the larger of A and B at (z, t), detached
    above: Tensor  # exp(-scale) max(A - B, 0) at (z, t)
    below: Tensor  # exp(-scale) max(B - A, 0) at (z, t)

    @classmethod
    def at(cls, marginals: AbstractMarginals, z: Tensor, t: Tensor) -> _Balance:
        """The balance of a state."""
        with torch.no_grad():
            z_, t_ = z.detach(), t.detach()
            one = torch.ones_like(marginals.component_log_densities(z_, t_))
            tails = (marginals.component_log_tails(z_, t_, side) for side in (one, -one))
            sides = torch.where(next(tails) < next(tails), one, -one)
        a, b = _by_side(marginals.component_log_tails(z, t, sides), sides)
        scale = torch.maximum(a, b).detach()
        difference = torch.exp(a - scale) - torch.exp(b - scale)
        zero = torch.zeros_like(difference)
        positive = difference >= 0
        return cls(sides, scale, torch.where(positive, difference, zero), torch.where(positive, zero, -difference))

    def newton_step(self, marginals: AbstractMarginals, y: Tensor, r: Tensor) -> Tensor:
        """Newton's step for ``log(A_r(y) + max(B - A, 0)) = log(B_r(y) + max(A - B, 0))``, all over exp(scale)."""
        a, b = _by_side(marginals.component_log_tails(y, r, self.sides), self.sides)
        left, right = _log_add(a - self.scale, self.below), _log_add(b - self.scale, self.above)
        p_a, p_b = _by_side(marginals.component_log_densities(y, r), self.sides)
        slope = torch.exp(p_a - self.scale - left) + torch.exp(p_b - self.scale - right)
        return (right - left) / slope


def _by_side(logs: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the sums over the components on either side; an empty sum is hardly more than 0."""
    floor = torch.full_like(logs, _LOG_NOTHING)
    return tuple(torch.logsumexp(torch.where(sides == side, logs, floor), -1) for side in (1, -1))  # type: ignore[return-value]


def _log_add(x: Tensor, d: Tensor) -> Tensor:
    """``log(e^x + d)`` for ``d`` in [0, 1], differentiable at d = 0 too (unless e^x is nothing beside it)."""
    some = d > 0
    log_d = torch.log(torch.where(some, d, torch.ones_like(d)))
    greater = ~some | (x > log_d)
    zero = torch.zeros_like(x)
    ratio = d * torch.exp(torch.where(greater, -x.clamp(min=-_LOG_HUGE), zero))
    other = torch.exp(torch.where(greater, zero, x - log_d))
    return torch.where(greater, x + torch.log1p(ratio), log_d + torch.log1p(other))


class _Root(torch.autograd.Function):
    """The root as a function without derivatives, so that its data-dependent loop runs under ``vmap``."""

    @staticmethod
    def forward(marginals: AbstractMarginals, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return _solve(marginals, z, t, r)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        return (None,) * 4

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


def _solve(marginals: AbstractMarginals, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """Bracketed Newton iteration on the balance of the logarithms.

    A step gives way to bisection when it leaves the bracket or is not half as long as the one before last, so the
    bracket shrinks at least geometrically whatever the density (a gap between modes is a plateau of the tail).
    """
    balance = _Balance.at(marginals, z, t)
    low, high = marginals.bracket(z, t, r)
    width = high - low
    guess = z - (t - r) * marginals.velocity(z, t)
    inside = (guess >= low) & (guess <= high)
    y = torch.where(inside, guess, 0.5 * (low + high))
    last, before_last = width, width
    done = torch.zeros_like(z, dtype=torch.bool)
    for _ in range(_MAX_STEPS):
        step = balance.newton_step(marginals, y, r)
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
