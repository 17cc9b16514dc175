"""Type aliases and protocols shared by every room.

The paper's argument order is used everywhere: ``(z, r, t)`` with ``0 <= r <= t <= 1``, and ``t = 1`` is noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float
from torch import Tensor

# A field's state: any leading batch, one trailing event dimension.
State: TypeAlias = Float[Tensor, "*batch d"]
# One time per state.
Times: TypeAlias = Float[Tensor, "*batch"]
# A scalar per state (a log-density, an error estimate).
PerState: TypeAlias = Float[Tensor, "*batch"]
# A d x d matrix per state (a Jacobian, a covariance).
Matrices: TypeAlias = Float[Tensor, "*batch d d"]

# A function of torch tensors that returns one tensor: what a JVP backend differentiates.
TensorFunction: TypeAlias = Callable[..., Tensor]


@runtime_checkable
class VelocityField(Protocol):
    """An instantaneous velocity ``v(z, t)``."""

    def __call__(self, z: Tensor, t: Tensor, /) -> Tensor:
        """Return ``v`` with the shape of ``z``."""
        ...


@runtime_checkable
class AverageVelocity(Protocol):
    """An average velocity ``u(z, r, t)``; a network is one of these."""

    def __call__(self, z: Tensor, r: Tensor, t: Tensor, /) -> Tensor:
        """Return ``u`` with the shape of ``z``."""
        ...


@runtime_checkable
class JvpBackend(Protocol):
    """A way to compute a function and its directional derivative together.

    ``tangents[i]`` has the shape and dtype of ``primals[i]``, or is ``None`` for a zero tangent. The first result
    carries the graph to whatever ``fn`` closes over (a network's parameters); whether the second does is the
    backend's affair, since a MeanFlow target is behind a stop-gradient.
    """

    def __call__(
        self, fn: TensorFunction, primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...], /
    ) -> tuple[Tensor, Tensor]:
        """Return ``fn(*primals)`` and its derivative along ``tangents``."""
        ...
