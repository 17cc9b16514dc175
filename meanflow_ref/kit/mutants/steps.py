"""Distributed training steps, right and wrong. Functions at the top level, since other processes import them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from meanflow_ref.kit.mutants.case import Case
from meanflow_ref.models.mlp import MLP
from meanflow_ref.objectives.meanflow import meanflow_loss


class Loss(nn.Module):
    """Network and loss in one module, so that a wrapper sees the whole."""

    def __init__(self, *, two_pass: bool = False) -> None:
        super().__init__()
        self.net, self.two_pass = MLP(4, width=8, depth=1), two_pass

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss of data ``x``."""
        return loss_of(self.net, x)


def loss_of(net: nn.Module, x: Tensor) -> Tensor:
    """The reference loss with times and noise drawn here."""
    a, b = torch.rand(len(x)), torch.rand(len(x))
    r, t = torch.minimum(a, b), torch.maximum(a, b)
    return meanflow_loss(net, x, torch.randn_like(x), r, t).loss


def module_unwrapped(x: Tensor) -> nn.Module:
    """The JVP on ``ddp.module``."""
    ddp = DistributedDataParallel(MLP(4, width=8, depth=1))
    loss_of(ddp.module, x).backward()  # type: ignore[no-untyped-call]
    return ddp


def summed(x: Tensor) -> nn.Module:
    """An all-reduce without the division."""
    net = MLP(4, width=8, depth=1)
    loss_of(net, x).backward()  # type: ignore[no-untyped-call]
    for parameter in net.parameters():
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
    return net


def averaged_twice(x: Tensor) -> nn.Module:
    """A hand-written average on top of the wrapper's."""
    ddp = wrapped_loss(x)
    for parameter in ddp.parameters():
        assert parameter.grad is not None
        parameter.grad /= dist.get_world_size()
    return ddp


def wrapped_loss(x: Tensor) -> nn.Module:
    """The loss as the wrapped module."""
    ddp = DistributedDataParallel(Loss())
    ddp(x).backward()
    return ddp


def reduced_by_hand(x: Tensor) -> nn.Module:
    """No wrapper; the average by hand."""
    net = MLP(4, width=8, depth=1)
    loss_of(net, x).backward()  # type: ignore[no-untyped-call]
    for parameter in net.parameters():
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()
    return net


def two_passes(x: Tensor) -> nn.Module:
    """The derivative without a graph on ``ddp.module``, then u through the wrapper."""
    ddp = DistributedDataParallel(MLP(4, width=8, depth=1))
    a, b = torch.rand(len(x)), torch.rand(len(x))
    r, t = torch.minimum(a, b), torch.maximum(a, b)
    e = torch.randn_like(x)
    z, v = (1 - t)[:, None] * x + t[:, None] * e, e - x
    with torch.no_grad():
        du_dt = torch.func.jvp(ddp.module, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))[1]
    target = v - (t - r)[:, None] * du_dt
    (ddp(z, r, t) - target).square().sum(1).mean().backward()
    return ddp


def seeded_by_rank(x: Tensor) -> nn.Module:
    """Draws that differ between ranks, as training has them."""
    ddp = DistributedDataParallel(Loss())
    torch.manual_seed(100 + dist.get_rank())
    ddp(x).backward()
    return ddp


MUTANTS = (
    Case("jvp on ddp.module", module_unwrapped, "GRADIENTS_NOT_SYNCED"),
    Case("sum for mean", summed, "GRADIENTS_NOT_SYNCED"),
    Case("averaged twice", averaged_twice, "GRADIENTS_NOT_SYNCED"),
)
CORRECT = (
    Case("wrapped loss", wrapped_loss),
    Case("average by hand", reduced_by_hand),
    Case("two passes", two_passes),
    Case("seeded by rank", seeded_by_rank),
)


def raises(x: Tensor) -> nn.Module:
    """Raises."""
    raise RuntimeError("no such layer")


def no_gradients(x: Tensor) -> nn.Module:
    """Forgets the backward pass."""
    return MLP(4, width=8, depth=1)


def hangs(x: Tensor) -> nn.Module:
    """Rank 1 waits for a message that nobody sends."""
    if dist.get_world_size() > 1 and dist.get_rank() == 1:
        dist.recv(torch.zeros(1), src=0)
    return wrapped_loss(x)
