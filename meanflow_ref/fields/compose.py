r"""Fields made of fields: products of independent blocks, and rotations with shifts.

Standard normal noise is a product and does not change under rotation, so both carry every closed form along.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from meanflow_ref._typing import Matrices, PerState, State, Times
from meanflow_ref._validate import require_same_kind
from meanflow_ref.errors import ParameterError
from meanflow_ref.fields._parameters import require_fields, require_one_path, require_shape, set_derived, set_parameters
from meanflow_ref.fields._precision import in_float64
from meanflow_ref.fields.base import AbstractDataField, column
from meanflow_ref.paths import AbstractPath


@dataclass(frozen=True, eq=False)
class Product(AbstractDataField):
    """Data whose consecutive blocks of coordinates are independent.

    Args:
        factors: One field for each block, in order, all on one path.

    Raises:
        ParameterError: If there is no factor, or the paths differ.

    """

    factors: tuple[AbstractDataField, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(self.factors))
        require_fields(self.factors, AbstractDataField, "factors")
        require_one_path([factor.path for factor in self.factors], "Product")
        for factor in self.factors[1:]:
            require_same_kind(self.anchor, factor.anchor, "factors[0]", type(factor).__name__)

    @property
    def path(self) -> AbstractPath:  # type: ignore[override]
        """The factors' path."""
        return self.factors[0].path

    @property
    def dim(self) -> int:
        """Dimension d of a state."""
        return sum(factor.dim for factor in self.factors)

    @property
    def anchor(self) -> Tensor:
        """A parameter of the first factor."""
        return self.factors[0].anchor

    @property
    def exact_flow(self) -> bool:
        """If every factor has one."""
        return all(factor.exact_flow for factor in self.factors)

    def _blockwise(self, method: Callable[[AbstractDataField, Tensor], Tensor], z: State) -> list[Tensor]:
        """``method`` of each factor at its block of ``z``."""
        blocks = torch.split(z, [factor.dim for factor in self.factors], dim=-1)
        return [method(factor, block) for factor, block in zip(self.factors, blocks, strict=True)]

    def _velocity(self, z: State, t: Times) -> State:
        return torch.cat(self._blockwise(lambda factor, block: factor._velocity(block, t), z), -1)

    def _flow_map(self, z: State, t: Times, r: Times) -> State:
        return torch.cat(self._blockwise(lambda factor, block: factor._flow_map(block, t, r), z), -1)

    def _average_velocity(self, z: State, r: Times, t: Times) -> State:
        return torch.cat(self._blockwise(lambda factor, block: factor._average_velocity(block, r, t), z), -1)

    def _jacobian(self, z: State, r: Times, t: Times) -> Matrices:
        return block_diagonal(self._blockwise(lambda factor, block: factor._jacobian(block, r, t), z))

    def _log_density(self, z: State, t: Times) -> PerState:
        return torch.stack(self._blockwise(lambda factor, block: factor._log_density(block, t), z)).sum(0)

    def _velocity_covariance(self, z: State, t: Times) -> Matrices:
        return block_diagonal(self._blockwise(lambda factor, block: factor._velocity_covariance(block, t), z))

    def sample_data(self, n: int, generator: torch.Generator | None = None) -> State:
        """Draw ``n`` data samples, ``(n, d)``."""
        return torch.cat([factor.sample_data(n, generator) for factor in self.factors], -1)


@dataclass(frozen=True, eq=False)
class Affine(AbstractDataField):
    """The data of another field, rotated and shifted: ``x -> Q x + c``.

    There is no scale: noise keeps its law under rotations only.

    Args:
        field: The field to carry over.
        rotation: Orthogonal matrix Q, ``(d, d)``; the nearest one is used, within 1e-6.
        shift: Shift c, ``(d,)``.

    Raises:
        ParameterError: If the matrix is not orthogonal.
        ShapeError: If the shapes do not fit the field.

    """

    field: AbstractDataField
    rotation: Tensor
    shift: Tensor
    _rotation: Tensor = dataclasses.field(init=False, repr=False)
    _shift: Tensor = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        set_parameters(self, rotation=self.rotation, shift=self.shift)
        require_same_kind(self.field.anchor, self.rotation, type(self.field).__name__, "rotation")
        require_shape(self.rotation, [(self.dim, self.dim)], "rotation")
        require_shape(self.shift, [(self.dim,)], "shift")
        left, singular, right = torch.linalg.svd(self.rotation.double())
        defect = float((singular - 1).abs().max())
        if defect > 1e-6:
            raise ParameterError(
                f"`rotation` stretches by 1 + {defect:.3g}.",
                "an orthogonal matrix (noise is invariant under no other)",
                "torch.linalg.qr(rotation).Q",
            )
        set_derived(self, _rotation=left @ right, _shift=self.shift.double())

    @property
    def path(self) -> AbstractPath:  # type: ignore[override]
        """The inner field's path."""
        return self.field.path

    @property
    def dim(self) -> int:
        """Dimension d of a state."""
        return self.field.dim

    @property
    def anchor(self) -> Tensor:
        """The shift."""
        return self.shift

    @property
    def exact_flow(self) -> bool:
        """If the inner field has one."""
        return self.field.exact_flow

    def _pull(self, z: State, t: Times) -> State:
        """State of the inner field, ``Q^T (z - alpha c)``."""
        return (z - column(self.path.alpha(t)) * self._shift) @ self._rotation

    def _push(self, inner: State, shift_factor: Tensor) -> State:
        """``shift_factor c + Q inner``."""
        return column(shift_factor) * self._shift + inner @ self._rotation.mT

    def _turn(self, matrix: Matrices) -> Matrices:
        """``Q matrix Q^T``."""
        return self._rotation @ matrix @ self._rotation.mT

    @in_float64
    def _velocity(self, z: State, t: Times) -> State:
        return self._push(self.field._velocity(self._pull(z, t), t), self.path.alpha_dot(t))

    @in_float64
    def _flow_map(self, z: State, t: Times, r: Times) -> State:
        return self._push(self.field._flow_map(self._pull(z, t), t, r), self.path.alpha(r))

    @in_float64
    def _average_velocity(self, z: State, r: Times, t: Times) -> State:
        return self._push(self.field._average_velocity(self._pull(z, t), r, t), self.path.alpha_dd(r, t))

    @in_float64
    def _jacobian(self, z: State, r: Times, t: Times) -> Matrices:
        return self._turn(self.field._jacobian(self._pull(z, t), r, t))

    @in_float64
    def _log_density(self, z: State, t: Times) -> PerState:
        return self.field._log_density(self._pull(z, t), t)

    @in_float64
    def _velocity_covariance(self, z: State, t: Times) -> Matrices:
        return self._turn(self.field._velocity_covariance(self._pull(z, t), t))

    def sample_data(self, n: int, generator: torch.Generator | None = None) -> State:
        """Draw ``n`` data samples, ``(n, d)``."""
        return self.field.sample_data(n, generator) @ self._rotation.to(self.shift).mT + self.shift


def block_diagonal(blocks: Sequence[Tensor]) -> Matrices:
    """Batched block-diagonal matrix, ``(*batch, sum d, sum d)``."""
    total, start, rows = sum(block.shape[-1] for block in blocks), 0, []
    for block in blocks:
        width = block.shape[-1]
        rows.append(pad(block, (start, total - start - width)))
        start += width
    return torch.cat(rows, -2)
