"""bfloat16 where it is harmless: u under autocast, its derivative in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from meanflow_ref._typing import JvpBackend, TensorFunction
from meanflow_ref.jvp import get_backend
from meanflow_ref.jvp.rng import replayed_rng
from meanflow_ref.objectives.meanflow import MeanFlowTerms


def autocast_primal(backend: JvpBackend) -> JvpBackend:
    """A backend whose du/dt is ``backend``'s in the dtypes of the inputs, and whose u is computed under bf16 autocast.

    The derivative multiplies rounding errors by the stiffness of the time embedding and then by t - r; u only enters
    the error, once. So the one stays in float32, without a graph, and the other, which is what is differentiated
    backwards, gets the fast matrix products. u comes back in the dtype of the state.
    """

    def mixed(
        fn: TensorFunction, primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...], /
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), replayed_rng(*primals):
            _, du_dt = backend(fn, primals, tangents)
        with torch.autocast(primals[0].device.type, torch.bfloat16):
            u = fn(*primals)
        return u.to(primals[0].dtype), du_dt

    return mixed


def backend_of(name: str, precision: str) -> JvpBackend:
    """The backend of that name, in that precision."""
    backend = get_backend(name)
    return autocast_primal(backend) if precision == "bf16" else backend


def whole_autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Context of a whole loss: under autocast if u, du/dt and the guided velocity are all to be in bfloat16."""
    # Not autocast switched off otherwise: that would end one that a caller has opened.
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16-all" else nullcontext()


def rounding_errors(
    net: nn.Module, step: Callable[..., MeanFlowTerms], batch: tuple[Any, ...], *, rows: int = 32
) -> dict[str, float]:
    """Relative errors of u, du/dt and the target on a few rows, against the same step in float64.

    Args:
        net: The network.
        step: ``step(net, *batch)`` in the precision of the run, and in float64 if handed ``exact=True``.
        batch: ``(x, eps, r, t, label)``.
        rows: Rows that are compared.

    Returns:
        ``rounding_u``, ``rounding_du_dt`` and ``rounding_target``: root mean squares over that of the exact value.

    """
    few = tuple(None if x is None else x[:rows] for x in batch)
    wide = tuple(x.double() if x is not None and x.is_floating_point() else x for x in few)
    training = net.training
    exact_net = copy.deepcopy(net).double().eval()
    net.eval()
    try:
        low, exact = step(net, *few), step(exact_net, *wide, exact=True)
    finally:
        net.train(training)
    errors = {}
    for name in ("u", "du_dt", "target"):
        a, b = getattr(low, name).detach().double(), getattr(exact, name).detach()
        errors[f"rounding_{name}"] = float((a - b).norm() / b.norm().clamp(min=1e-30))
    return errors
