"""Forward-mode JVP by ``torch.func.jvp``: what most public MeanFlow code uses."""

from __future__ import annotations

import torch
from torch import Tensor

from meanflow_ref._typing import TensorFunction
from meanflow_ref.jvp._blame import blame_forward_ad
from meanflow_ref.jvp._moving import moving_part


def func_jvp(
    fn: TensorFunction, primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...], /
) -> tuple[Tensor, Tensor]:
    """Value and derivative by ``torch.func.jvp``. Source: mf:8.

    Args:
        fn: A function of ``primals`` that returns one tensor.
        primals: Where to differentiate.
        tangents: Direction, each of its primal's shape and dtype, or ``None`` for zero.

    Returns:
        ``u`` and ``du_dt``. Both carry the graph to the parameters that ``fn`` closes over: the graph of ``du_dt`` is
        recorded whether or not it is used, which is most of this backend's memory (the loss's two-pass form has none).

    Raises:
        ForwardADError: If an operation has no forward-mode derivative.

    """
    of_moving, at, along = moving_part(fn, primals, tangents)
    if not at:
        u = of_moving()
        return u, torch.zeros_like(u)
    with blame_forward_ad():
        pair = torch.func.jvp(of_moving, at, along)
    return pair[0], pair[1]
