r"""Average velocity by Gauss-Legendre quadrature along the closed flow map: a second road to the same number.

.. math:: u(z, r, t) = \int_0^1 v\big(\phi_{t \to t - hs}(z),\; t - hs\big)\, ds, \qquad h = t - r.

It shares the flow map with the closed form and nothing with the ODE; it is free of cancellation at small ``h`` and
calls ``v`` at interior times alone, so that a velocity without a limit at ``r`` does not stop it. Source: mf:3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from meanflow_ref.errors import TruthError
from meanflow_ref.fields.base import AbstractField
from meanflow_ref.quadrature import gauss_legendre
from meanflow_ref.truth.closed import operator_norm, rounding_error
from meanflow_ref.truth.result import Truth

FIRST_NODES = 16
LAST_NODES = 2048


def average_velocity_quadrature(
    field: AbstractField, z: Tensor, r: Tensor, t: Tensor, *, tol: float = 1e-12, last_nodes: int = LAST_NODES
) -> Truth:
    """Average velocity as an integral along the closed flow map. Source: mf:3.

    Args:
        field: A field with ``exact_flow``, in ``z``'s dtype.
        z: States, ``(B, d)``.
        r: End times, ``(B,)``.
        t: Times of the states, ``(B,)``.
        tol: Nodes are doubled, row by row, until the answer changes by at most ``tol (1 + |J|)``.
        last_nodes: Nodes at which doubling stops.

    Returns:
        A :class:`Truth`; ``error`` is the last change, which is the error of the rule *before* the last, plus rounding.

    Raises:
        TruthError: The answer still changes at ``last_nodes``, as it may on a long interval where the trajectory
            turns sharply from one mode to another.

    """
    with torch.no_grad():
        jacobian = field.jacobian(z, r, t)
        tolerance = tol * (1 + operator_norm(jacobian)) + rounding_error(z, torch.zeros_like(z), jacobian)
        rows = torch.arange(z.shape[0], device=z.device)
        nodes = FIRST_NODES
        value = _rule(field, z, r, t, nodes)
        change = torch.full_like(r, torch.inf)
        evaluations = 1
        while rows.numel() and nodes < last_nodes:
            nodes *= 2
            finer = _rule(field, z[rows], r[rows], t[rows], nodes)
            evaluations += 1
            change[rows] = (finer - value[rows]).abs().amax(-1)
            value[rows] = finer
            rows = rows[~(change[rows] <= tolerance[rows])]
        if rows.numel():
            row = int(rows[change[rows].nan_to_num(torch.inf).argmax()])
            raise TruthError(
                f"Quadrature with {nodes} nodes left {rows.numel()} of {z.shape[0]} rows unsettled; "
                f"row {row} still changes by {float(change[row]):.2g}.",
                f"changes below {tol:.1g} (1 + |J|)",
                "method='ode' or method='closed', or a larger tol",
            )
        return Truth(value, change + rounding_error(z, value, jacobian), "quadrature", evaluations)


def _rule(field: AbstractField, z: Tensor, r: Tensor, t: Tensor, nodes: int) -> Tensor:
    """The rule with that many nodes on every row."""
    s, weights = gauss_legendre(nodes, dtype=z.dtype, device=z.device)
    tau = t[:, None] - (t - r)[:, None] * s
    start = z[:, None].expand(*tau.shape, z.shape[-1])
    v = field.velocity(field.flow_map(start, t[:, None].expand_as(tau), tau), tau)
    return (weights[:, None] * v).sum(1)
