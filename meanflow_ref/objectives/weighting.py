"""The squared error of a sample and the adaptive weight made from it."""

from __future__ import annotations

import math

from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref.errors import ParameterError

NORMS = ("sum", "mean")


def squared_norm(delta: Tensor, norm: str = "sum") -> Tensor:
    """Squared error of each sample, ``|Delta|^2``. Source: mf:9.

    Args:
        delta: Errors, ``(B, *event)``.
        norm: ``"sum"`` over the event (the paper's norm) or ``"mean"``. They differ by the factor d, so that one
            ``weight_eps`` means two things.

    Returns:
        ``(B,)``, of ``delta``'s dtype; carries the graph.

    """
    if norm not in NORMS:
        raise ParameterError(f"norm={norm!r}.", 'norm="sum" (the paper\'s) or norm="mean"', "")
    squares = (delta * delta).flatten(1) if delta.dim() > 1 else (delta * delta)[:, None]
    return squares.sum(1) if norm == "sum" else squares.mean(1)


def adaptive_weight(squared_error: Tensor, power: float = 1.0, eps: float = 1e-3) -> Tensor:
    """Weight ``(|Delta|^2 + c)^(-p)`` of each sample, behind a stop-gradient. Source: mf:22.

    At ``p = 1`` the weighted loss is ``S/(S + c)``, near 1 whatever happens: watch the raw squared error instead. Any
    ``p > 0`` also moves the minimiser away from ``E[v|z]``, badly in low dimension: against exact truth take ``p = 0``.

    Args:
        squared_error: ``|Delta|^2``, ``(B,)``.
        power: ``p >= 0``; 0 weighs every sample 1, exactly.
        eps: ``c > 0`` (0 is accepted with ``p = 0``).

    Returns:
        ``(B,)``, detached.

    Raises:
        ParameterError: If the power or eps is out of range.

    """
    if not isinstance(power, int | float) or not 0 <= power < math.inf:
        raise ParameterError(f"weight_power={power!r}.", "a finite number, at least 0", "")
    if not isinstance(eps, int | float) or not 0 <= eps < math.inf or (eps == 0 and power > 0):
        raise ParameterError(f"weight_eps={eps!r} with weight_power={power!r}.", "a positive finite number", "1e-3")
    weight: Tensor = formulas.adaptive_weight(squared_error.detach(), power, eps)
    return weight
