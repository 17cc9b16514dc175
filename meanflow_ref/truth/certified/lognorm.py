r"""The logarithmic norm of the flow's Jacobian over a box: how fast errors grow at most.

For the Euclidean norm ``mu_2[B] = lambda_max((B + B^T)/2)`` (Dahlquist 1958; Hairer, Norsett, Wanner I, I.10). Here
``B = -dv/dz``, so that ``mu = lambda_max(S)`` for the symmetric part S of ``-dv/dz``.

*Bound over a box of matrices.* Write ``S = C + E`` with the exact midpoint C and ``|E_ij| <= rad_ij``. Weyl's
inequality gives ``lambda_max(S) <= lambda_max(C) + |E|_2 <= lambda_max(C) + |rad|_F``. And ``lambda_max(C) < m`` holds
if ``m I - C`` is positive definite, which is proved by ``L D L^T`` elimination in balls: if every pivot is positive,
so is every leading minor (Sylvester's criterion). The number m comes from an uncertified eigenvalue and is raised until
the proof goes through.
"""

from __future__ import annotations

import numpy as np
from flint import arb, arb_mat

from meanflow_ref.errors import CertificationError


def log_norm_bound(jacobian: arb_mat) -> tuple[arb, arb]:
    """Upper bound of ``mu_2[-dv/dz]``, and the part of it that is due to the box's width.

    Raises:
        CertificationError: If the matrix is not finite, or no bound is proved.

    """
    d = jacobian.nrows()
    symmetric = [[-(jacobian[i, j] + jacobian[j, i]) / 2 for j in range(d)] for i in range(d)]
    width = sum((entry.rad() ** 2 for row in symmetric for entry in row), arb(0)).sqrt().upper()
    if not width.is_finite():
        raise CertificationError(
            "the matrix dv/dz has no finite enclosure on the tube about the trajectory.",
            "a tube on which every mixture's density is bounded away from zero relative to its components",
            "a smaller tube or a shorter step",
        )
    centre = [[entry.mid() for entry in row] for row in symmetric]
    guess = float(np.linalg.eigvalsh(np.array([[float(entry) for entry in row] for row in centre]))[-1])
    slack = 1e-9 * (1 + abs(guess))
    for _ in range(40):
        bound = arb(guess + slack)
        if positive_definite([[bound * int(i == j) - centre[i][j] for j in range(d)] for i in range(d)]):
            return (bound + width).upper(), width
        slack *= 4
    raise CertificationError(
        f"the largest eigenvalue {guess:g} of the symmetric part of -dv/dz was not bounded.",
        "a positive-definite m I - S",
    )


def positive_definite(rows: list[list[arb]]) -> bool:
    """Whether every symmetric matrix in the balls is proved positive definite, by ``L D L^T`` elimination."""
    rows = [list(row) for row in rows]
    for k, pivot_row in enumerate(rows):
        pivot = pivot_row[k]
        if not pivot > 0:
            return False
        for i in range(k + 1, len(rows)):
            factor = rows[i][k] / pivot
            for j in range(k + 1, len(rows)):
                rows[i][j] = rows[i][j] - factor * pivot_row[j]
    return True
