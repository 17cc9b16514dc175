"""What a ground truth hands back."""

from __future__ import annotations

from dataclasses import dataclass

from meanflow_ref._typing import Matrices, PerState, State


@dataclass(frozen=True)
class Truth:
    r"""An average velocity with its estimated error, and its derivatives if they were asked for.

    No tensor carries gradient. Derivatives are those of ``u(z, r, t)``; the partial derivative in ``t`` follows as
    ``du_dt - dz_u v``, the MeanFlow target as ``v - (t - r) du_dt``.

    Attributes:
        value: The average velocity ``u``, ``(*batch, d)``.
        error: Estimated absolute error of ``value`` in the maximum norm over the event, ``(*batch,)``. An estimate,
            not a bound; each route says how it is made.
        method: The route taken: ``"closed"``, ``"ode"``, ``"quadrature"`` or ``"scipy"``.
        evaluations: Calls of the velocity (of a whole batch, except on the scipy route), 0 or 1 on the closed route.
        du_dt: Total derivative along ``(v, 0, 1)``, ``(*batch, d)``. Source: mf:8.
        dr_u: Partial derivative in ``r``, ``(*batch, d)``.
        dz_u: Partial derivative in ``z``, ``(*batch, d, d)``; ``dz_u[..., i, j]`` is ``d u_i / d z_j``.
        jacobian: Jacobian of the flow map from t to r, ``I - (t - r) dz_u``, ``(*batch, d, d)``.

    """

    value: State
    error: PerState
    method: str
    evaluations: int = 0
    du_dt: State | None = None
    dr_u: State | None = None
    dz_u: Matrices | None = None
    jacobian: Matrices | None = None
