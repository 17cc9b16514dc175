r"""JVP by two reverse passes, the naive baseline.

The vector-Jacobian product :math:`g(c) = J^\top c` is linear in ``c``, so its own VJP along ``tangents`` is
:math:`J \cdot \mathrm{tangents}` at any ``c``. It needs no forward-mode derivative, but a second reverse one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from meanflow_ref._typing import TensorFunction
from meanflow_ref.errors import SecondDerivativeError
from meanflow_ref.jvp._blame import blame_double_backward
from meanflow_ref.jvp._moving import moving_part


def double_backward_jvp(
    fn: TensorFunction, primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...], /
) -> tuple[Tensor, Tensor]:
    """Value and derivative by two vector-Jacobian products. Source: mf:8.

    Args:
        fn: A function of ``primals`` that returns one tensor.
        primals: Where to differentiate.
        tangents: Direction, each of its primal's shape and dtype, or ``None`` for zero.

    Returns:
        ``u``, which carries the graph to the parameters that ``fn`` closes over and to copies of the moving primals,
        and ``du_dt``, which carries none.

    Raises:
        SecondDerivativeError: If an operation's backward pass cannot be differentiated.

    """
    of_moving, at, along = moving_part(fn, primals, tangents)
    grad_wanted = torch.is_grad_enabled()
    with torch.enable_grad(), blame_double_backward():
        # A primal may depend on another (z on t, by the path) or be the same tensor; a view has partial derivatives.
        inputs = tuple(
            primal.view_as(primal) if primal.requires_grad else primal.detach().requires_grad_() for primal in at
        )
        u = of_moving(*inputs)
        du_dt = _jacobian_product(u, inputs, along)
    return u if grad_wanted else u.detach(), du_dt


def _jacobian_product(u: Tensor, inputs: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> Tensor:
    if not (inputs and u.requires_grad):
        return torch.zeros_like(u)
    cotangent = torch.ones_like(u, requires_grad=True)
    products = torch.autograd.grad(u, inputs, cotangent, create_graph=True, allow_unused=True)
    # An input that u ignores has no product, and a piecewise constant operation has one without a graph: both add 0.
    pairs = [(product, d) for product, d in zip(products, along, strict=True) if product is not None]
    live = [(product, d) for product, d in pairs if product.requires_grad]
    du_dt = None
    if live:
        (du_dt,) = torch.autograd.grad(
            [product for product, _ in live], cotangent, [d for _, d in live], retain_graph=True, allow_unused=True
        )
    du_dt = torch.zeros_like(u) if du_dt is None else du_dt
    if not torch.compiler.is_compiling():
        _require_duality(pairs, du_dt)
    return du_dt


def _require_duality(pairs: list[tuple[Tensor, Tensor]], du_dt: Tensor) -> None:
    r"""Raise unless :math:`\langle J^\top c, d\rangle = \langle c, J d\rangle` at the cotangent of ones.

    A custom ``autograd.Function`` whose backward records no graph drops out of the second pass without a word. The
    tolerance is the root of the precision, since either side may lose half its digits to cancellation.
    """
    terms = [(product.detach() * d).double() for product, d in pairs]
    there = sum((term.sum() for term in terms), torch.zeros((), dtype=torch.float64, device=du_dt.device))
    back = du_dt.detach().double()
    scale = sum((term.abs().sum() for term in terms), back.abs().sum())
    if bool((there - back.sum()).abs() > torch.finfo(du_dt.dtype).eps ** 0.5 * scale):
        raise SecondDerivativeError(
            "the two reverse passes contradict each other: an operation's backward pass records no graph.",
            "operations that can be differentiated twice",
            'look for a custom autograd.Function (@once_differentiable, a kernel in its backward); jvp="func" if it '
            'has a `jvp`, or jvp="finite_difference"',
        )
