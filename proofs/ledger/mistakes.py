"""Mistakes of the documents' listings, written anew from their descriptions so that they can be measured.

Every function here is wrong on purpose.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from meanflow_ref import formulas

Net = Callable[[Tensor, Tensor, Tensor], Tensor]


def summed_time_derivative(u: Tensor, t: Tensor, keep_graph: bool = False) -> Tensor:
    """For the derivative of ``u`` in t: one backward pass from all components at once, which adds them up."""
    return torch.autograd.grad(u, t, torch.ones_like(u), retain_graph=keep_graph)[0]


def summed_jacobian_product(net: Net, z: Tensor, r: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """For ``J v``: the gradient of the sum of the components, times v entry by entry, which is ``(J^T 1) * v``."""
    z = z.detach().clone().requires_grad_()
    product: Tensor = torch.autograd.grad(net(z, r, t).sum(), z)[0] * v
    return product


def summed_derivative(net: Net, z: Tensor, r: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """For du/dt: the two mistakes above together, the first one spread over the components."""
    clock = t.detach().clone().requires_grad_()
    in_time = summed_time_derivative(net(z, r, clock), clock)
    return in_time[:, None] + summed_jacobian_product(net, z, r, t, v)


def loss_on_a_freed_graph(net: Net, z: Tensor, r: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """A loss whose u lost its graph to the time derivative: it cannot be backpropagated."""
    clock = t.detach().clone().requires_grad_()
    u = net(z, r, clock)
    in_time = summed_time_derivative(u, clock)
    target: Tensor = formulas.meanflow_target(v, in_time[:, None] + v, r[:, None], t[:, None]).detach()
    return ((u - target) ** 2).mean()


def read_at_the_start(u: Net, z: Tensor, steps: int = 1) -> Tensor:
    """From noise at time 0 to data at time 1, with a field of the *later* state that is read at the earlier one."""
    for i in range(steps):
        start, end = (torch.full(z.shape[:1], (i + k) / steps, dtype=z.dtype) for k in (0, 1))
        z = z + (1 / steps) * u(z, start, end)
    return z


def read_at_the_end(u: Net, z: Tensor, steps: int = 1) -> Tensor:
    """The same walk done right: the state's own time is the last argument, the time to go to the middle one."""
    for i in range(steps):
        start, end = (torch.full(z.shape[:1], (i + k) / steps, dtype=z.dtype) for k in (0, 1))
        z = formulas.step(z, u(z, end, start), end[:, None], start[:, None])
    return z
