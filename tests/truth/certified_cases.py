"""Fields and comparisons that the tests of the certified truth share."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from meanflow_ref.fields.base import AbstractField
from meanflow_ref.paths import LINEAR, TRIGONOMETRIC, VARIANCE_PRESERVING
from meanflow_ref.truth import average_velocity
from meanflow_ref.truth.certified import CertifiedTruth, Combination, Enclosure, Mixture

PATHS = {"linear": LINEAR, "trigonometric": TRIGONOMETRIC, "variance preserving": VARIANCE_PRESERVING}

LINE = Mixture([5, 3, 2], [-1.5, 0.4, 2.0], [0.3, 0.5, 0.2])
PLANE = Mixture([5, 3, 2], [[-1.0, 0.5], [1.2, 0.3], [0.1, -1.1]], [0.3, 0.5, 0.4])
GUIDED = Combination.guided(Mixture([5, 3], PLANE.means[:2], [0.3, 0.5]), PLANE, 1.5, 0.4)


def floats(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def vectors(truth: CertifiedTruth) -> dict[str, tuple[Enclosure, ...]]:
    """Every vector of a truth by name."""
    return {name: getattr(truth, name) for name in ("v", "u", "du_dt", "dr_u", "end", "v_end")}


def entries(truth: CertifiedTruth) -> Iterator[tuple[str, Enclosure]]:
    """Every enclosure of a truth, matrices and log-determinant included."""
    for name, vector in vectors(truth).items():
        for i, one in enumerate(vector):
            yield f"{name}[{i}]", one
    for name, matrix in (("dz_u", truth.dz_u), ("jacobian", truth.jacobian)):
        for i, row in enumerate(matrix or ()):
            for j, one in enumerate(row):
                yield f"{name}[{i}][{j}]", one
    if truth.log_det_jacobian is not None:
        yield "log_det_jacobian", truth.log_det_jacobian


def apart(one: CertifiedTruth, two: CertifiedTruth) -> list[str]:
    """Names of the quantities that both have and whose enclosures do not overlap: they should all be none."""
    other = dict(entries(two))
    return [name for name, value in entries(one) if name in other and not value.overlaps(other[name])]


def worst_ratio(truth: CertifiedTruth, field: AbstractField, z: list[float], r: float, t: float) -> float:
    """Greatest distance of the library's float64 truth from the ball, relative to the error it claims."""
    claimed = average_velocity(field, floats(*z)[None], r, t, tol=1e-11)
    return max(
        one.distance(value) / float(claimed.error)
        for one, value in zip(truth.u, claimed.value[0].tolist(), strict=True)
    )
