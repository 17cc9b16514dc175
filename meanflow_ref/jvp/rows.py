"""The derivative on the rows that need one: where r = t it is multiplied by 0.

Two calls of the network, one with a tangent and one without, cost less than one with a tangent throughout as long as
enough rows have r = t: the second call costs its overhead, and a tangent pass a third of a flow-matching step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from meanflow_ref._typing import JvpBackend
from meanflow_ref.jvp.stopgrad.front import stopgrad_jvp, stopgrad_jvp_of_rows

# Measured (benchmarks/results/cpu-2core): with r != t on 25 % of the rows two calls cost 1.22 and 1.29 flow-matching
# steps on a perceptron and a transformer where one call costs 1.47 and 1.52, on 75 % they gain nothing. On a batch of 4
# they lose at any share: a call on one row is slow for its size. The crossing lies between; half is the cautious side.
PAYS_BELOW = 0.5
PAYS_FROM_ROWS = 8
# Below so many numbers a step is nothing but the overhead of its operations, which a second call doubles.
PAYS_FROM_NUMBERS = 1 << 12


def rows_pay(net: Callable[..., Any], z: Tensor, moving: Tensor) -> bool:
    """Whether two calls are allowed, and cheaper.

    They are not allowed where the rows of a batch see each other (BatchNorm in training), where a wrapper counts on
    one forward pass before a backward pass (DistributedDataParallel), and under ``torch.compile``, whose graph would
    depend on the data.
    """
    if torch.compiler.is_compiling() or len(z) < PAYS_FROM_ROWS or z.numel() < PAYS_FROM_NUMBERS:
        return False
    net = getattr(net, "net", net)
    if isinstance(net, nn.parallel.DistributedDataParallel):
        return False
    if isinstance(net, nn.Module) and any(_couples_rows(module) for module in net.modules()):
        return False
    return float(moving.float().mean()) <= PAYS_BELOW


def _couples_rows(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training


def jvp_on_rows(
    backend: JvpBackend,
    fn: Callable[..., Tensor],
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor | None, ...],
    label: Tensor | None,
    moving: Tensor,
) -> tuple[Tensor, Tensor]:
    """Value on all rows, derivative on those of ``moving``, 0 on the others. Source: mf:8.

    Args:
        backend: How the derivative is computed.
        fn: ``fn(*primals, label)``, row by row.
        primals: ``(B, ...)`` each.
        tangents: Of the primals, None for zero.
        label: ``(B,)``, or None.
        moving: Rows with a derivative, boolean ``(B,)``.

    """
    some, others = moving.nonzero()[:, 0], (~moving).nonzero()[:, 0]
    if backend is stopgrad_jvp and len(some) and len(others):
        return _in_one_call(fn, primals, tangents, label, some, others)

    def part(x: Tensor | None, index: Tensor) -> Tensor | None:
        return None if x is None else x[index]

    values, derivatives = [], []
    if len(some):
        at = tuple(x[some] for x in primals)
        mine = part(label, some)
        u, du_dt = backend(lambda *args: fn(*args, mine), at, tuple(part(d, some) for d in tangents))
        values.append(u)
        derivatives.append(du_dt)
    if len(others):
        u = fn(*(x[others] for x in primals), part(label, others))
        values.append(u)
        derivatives.append(torch.zeros_like(u))
    order = torch.cat([some, others]).argsort()
    return torch.cat(values)[order], torch.cat(derivatives)[order]


def _in_one_call(
    fn: Callable[..., Tensor],
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor | None, ...],
    label: Tensor | None,
    some: Tensor,
    others: Tensor,
) -> tuple[Tensor, Tensor]:
    """All rows in one call, those that move first."""
    order = torch.cat([some, others])
    back = order.argsort()

    def sort(x: Tensor | None, index: Tensor) -> Tensor | None:
        return None if x is None else x.index_select(0, index)

    mine = sort(label, order)
    at = tuple(x.index_select(0, order) for x in primals)
    along = tuple(sort(d, order) for d in tangents)
    u, du_dt = stopgrad_jvp_of_rows(lambda *args: fn(*args, mine), at, along, len(some))
    return u.index_select(0, back), du_dt.index_select(0, back)
