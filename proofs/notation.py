"""Letters of the proofs, one meaning each; all of them real.

``z`` state, ``x`` data, ``eps`` noise, ``r < t`` times, ``s`` any middle time, ``tau`` the variable of integration,
``h = t - r``, ``omega`` and ``kappa`` guidance scales, ``theta`` a network's parameter.
"""

from __future__ import annotations

from typing import Any

import sympy as sp

from .language import opaque

t, r, s, tau, h = sp.symbols("t r s tau h", real=True)
z, x, eps = sp.symbols("z x varepsilon", real=True)
omega, kappa, lam = sp.symbols("omega kappa lambda", real=True)
theta, theta0 = sp.symbols("theta theta_0", real=True)

# Where witnesses are looked for: 0 < r < t < 1. A statement that needs less is proved for more.
TIMES = (r > 0, r < t, t < 1)
MIDDLE = (*TIMES, r < s, s < t)

D = sp.Derivative


def curves(dimension: int) -> list[Any]:
    """Undefined curves ``z_1(t), ..., z_d(t)``, as functions."""
    return [sp.Function(f"z_{i + 1}") for i in range(dimension)]


def fields(name: str, dimension: int) -> list[Any]:
    """Undefined functions ``v_1, ..., v_d`` of ``(z_1, ..., z_d, t)``."""
    return [sp.Function(f"{name}_{i + 1}") for i in range(dimension)]


def networks(dimension: int) -> list[Any]:
    """Opaque functions ``u_1, ..., u_d`` of ``(z_1, ..., z_d, r, t)``, known by name and differentiable."""
    variables = (*(f"z_{i + 1}" for i in range(dimension)), "r", "t")
    return [opaque(f"u_{i + 1}", variables) for i in range(dimension)]


def divided_difference(f: Any, variable: Any, low: Any, high: Any) -> Any:
    """``(f(high) - f(low)) / (high - low)`` for an expression ``f`` in ``variable``."""
    return (f.subs(variable, high) - f.subs(variable, low)) / (high - low)


def squared_norm(m: Any) -> Any:
    """Sum of the squares of a column."""
    return (m.T * m)[0]
