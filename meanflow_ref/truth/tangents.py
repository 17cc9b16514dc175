r"""The directions in which ``u(z, r, t)`` is differentiated, as one table, and partial derivatives by reverse mode.

Row 0 is :math:`(v, 0, 1)`, the total derivative of the MeanFlow identity; row 1 is :math:`(0, 1, 0)`; rows 2 to d + 1
are the unit vectors of ``z``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tangents:
    """``n = d + 2`` tangents per state: ``dz`` is ``(B, n, d)``, ``dr`` and ``dt`` are ``(n,)``."""

    dz: Tensor
    dr: Tensor
    dt: Tensor

    @classmethod
    def along(cls, v: Tensor) -> Tangents:
        """The table at states where the velocity is ``v``, ``(B, d)``."""
        batch, d = v.shape
        units = torch.eye(d, dtype=v.dtype, device=v.device).expand(batch, d, d)
        zero, one, none = v.new_zeros(1), v.new_ones(1), v.new_zeros(d)
        return cls(
            dz=torch.cat([v[:, None], torch.zeros_like(v)[:, None], units], dim=1),
            dr=torch.cat([zero, one, none]),
            dt=torch.cat([one, zero, none]),
        )

    @property
    def dh(self) -> Tensor:
        """Rate of the length ``h = t - r``."""
        return self.dt - self.dr


@dataclass(frozen=True)
class Derivatives:
    """The derivatives of ``u`` along the rows of the table."""

    du_dt: Tensor
    dr_u: Tensor
    dz_u: Tensor

    @classmethod
    def from_rows(cls, rows: Tensor) -> Derivatives:
        """From ``(B, d + 2, d)``; the rows of the unit vectors are the columns of ``dz_u``."""
        return cls(rows[:, 0], rows[:, 1], rows[:, 2:].transpose(1, 2))

    def jacobian(self, h: Tensor) -> Tensor:
        """Jacobian of the flow map, ``I - h dz_u``."""
        unit = torch.eye(self.dz_u.shape[-1], dtype=self.dz_u.dtype, device=self.dz_u.device)
        return unit - h[:, None, None] * self.dz_u


def partial_derivatives(
    fn: Callable[..., Tensor], z: Tensor, *times: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """``fn(z, *times)``, its Jacobian in ``z`` ``(B, d, d)`` and its derivative in each time ``(B, d)``.

    By reverse mode, one component a copy of the batch: it asks nothing of the function but independent rows and
    ``backward``, and the truth does not lean on the forward mode which it is there to judge.
    """
    batch, d = z.shape
    with torch.enable_grad():
        inputs = [x.detach().repeat_interleave(d, 0).requires_grad_() for x in (z, *times)]
        value = fn(*inputs).reshape(batch, d, d)
        components = value.diagonal(dim1=1, dim2=2).sum()
        if not components.requires_grad:  # a constant
            return value[:, 0], z.new_zeros(batch, d, d), tuple(torch.zeros_like(z) for _ in times)
        dz, *dtimes = torch.autograd.grad(components, inputs, allow_unused=True, materialize_grads=True)
    return value[:, 0].detach(), dz.reshape(batch, d, d), tuple(x.reshape(batch, d) for x in dtimes)
