"""Forward-mode JVP by dual numbers, ``torch.autograd.forward_ad``: the level below ``torch.func.jvp``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from meanflow_ref._typing import TensorFunction
from meanflow_ref.jvp._blame import blame_forward_ad
from meanflow_ref.jvp._moving import moving_part
from meanflow_ref.jvp.double_backward import double_backward_jvp

# torch leaves these two untyped.
_make_dual: Callable[[Tensor, Tensor], Tensor] = forward_ad.make_dual
_unpack_dual: Callable[[Tensor], tuple[Tensor, Tensor | None]] = forward_ad.unpack_dual


def forward_ad_jvp(
    fn: TensorFunction, primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...], /
) -> tuple[Tensor, Tensor]:
    """Value and derivative by dual numbers. Source: mf:8.

    Unlike ``torch.func.jvp`` it accepts a custom ``autograd.Function`` that has a ``jvp`` but no ``setup_context``.
    It cannot be nested: one dual level exists at a time.

    Args:
        fn: A function of ``primals`` that returns one tensor.
        primals: Where to differentiate.
        tangents: Direction, each of its primal's shape and dtype, or ``None`` for zero.

    Returns:
        ``u`` and ``du_dt``; both carry the graph to the parameters that ``fn`` closes over.

    Raises:
        ForwardADError: If an operation has no forward-mode derivative.

    """
    of_moving, at, along = moving_part(fn, primals, tangents)
    with blame_forward_ad(), forward_ad.dual_level():
        duals = (_make_dual(primal, tangent) for primal, tangent in zip(at, along, strict=True))
        u, du_dt = _unpack_dual(of_moving(*duals))
    if du_dt is not None:
        return u, du_dt
    if not at:
        return u, torch.zeros_like(u)
    # No tangent came out. Either u does not depend on the inputs, or something lost it in silence, as a network
    # compiled apart from the loss does. Reverse mode knows which.
    return double_backward_jvp(fn, primals, tangents)
