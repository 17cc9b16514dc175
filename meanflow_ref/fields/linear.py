r"""A linear velocity :math:`v = Az`: the smallest field whose Jacobian is not symmetric.

The velocity that transports noise to data along a conditional path often is a gradient, and for Gaussians, 1-D mixtures
and their products :math:`\partial_z u` is a symmetric matrix. Code that multiplies by the transposed Jacobian is right
on all of them. It is wrong here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow_ref._typing import Matrices, State, Times
from meanflow_ref.fields._parameters import require_shape, set_parameters
from meanflow_ref.fields._precision import in_float64
from meanflow_ref.fields.base import AbstractField, column
from meanflow_ref.paths import LINEAR, AbstractPath


@dataclass(frozen=True, eq=False)
class LinearFlow(AbstractField):
    r"""Autonomous linear field ``v(z, t) = A z``, with flow map ``exp(-(t - r) A)``; it belongs to no data law.

    .. math:: u(z,r,t) = \varphi_1(-(t-r)A)\,Az, \qquad \varphi_1(X) = \int_0^1 e^{sX}\,ds.

    Source: mf:2, mf:3. :math:`\varphi_1` is read off the exponential of a block matrix, so nothing is divided by t - r.

    Args:
        matrix: ``A``, any square matrix, ``(d, d)``.
        path: Of no consequence; every field has one.

    """

    matrix: Tensor
    path: AbstractPath = LINEAR

    def __post_init__(self) -> None:
        set_parameters(self, matrix=self.matrix)
        require_shape(self.matrix, [("d", "d")], "matrix")
        require_shape(self.matrix, [(self.dim, self.dim)], "matrix")

    @property
    def dim(self) -> int:
        """Dimension d of a state."""
        return self.matrix.shape[0]

    @property
    def anchor(self) -> Tensor:
        """The matrix."""
        return self.matrix

    @property
    def exact_flow(self) -> bool:
        """Always."""
        return True

    @in_float64
    def _velocity(self, z: State, t: Times) -> State:
        return z @ self.matrix.double().mT

    @in_float64
    def _flow_map(self, z: State, t: Times, r: Times) -> State:
        return (self._jacobian(z, r, t) @ column(z))[..., 0]

    @in_float64
    def _average_velocity(self, z: State, r: Times, t: Times) -> State:
        matrix, zeros = self.matrix.double(), torch.zeros(self.dim, self.dim, dtype=torch.float64, device=z.device)
        # exp [[X, 1], [0, 0]] = [[e^X, phi_1(X)], [0, 1]] (Van Loan 1978).
        shift = torch.cat([zeros, torch.eye(self.dim, dtype=torch.float64, device=z.device)], 1)
        top = torch.cat([-matrix, zeros], 1) * column(column(t - r)) + shift
        block = torch.cat([top, torch.zeros_like(top)], -2)
        phi: Tensor = torch.linalg.matrix_exp(block)[..., : self.dim, self.dim :]
        return (phi @ column(z @ matrix.mT))[..., 0]

    @in_float64
    def _jacobian(self, z: State, r: Times, t: Times) -> Matrices:
        exponential: Tensor = torch.linalg.matrix_exp(-column(column(t - r)) * self.matrix.double())
        return exponential
