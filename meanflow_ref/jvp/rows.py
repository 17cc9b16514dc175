"""The derivative on the rows that need one: where r = t it is multiplied by 0.

The stop-gradient JVP does it in one call of the network, in which only some rows carry a tangent. Other backends take
two calls, one with a tangent and one without, which pays while enough rows have r = t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from meanflow_ref._typing import JvpBackend
from meanflow_ref.jvp.stopgrad.backend import StopgradJvp
from meanflow_ref.jvp.stopgrad.front import recorded, stopgrad_jvp, stopgrad_jvp_of_rows

# Rows cost some microseconds an operation, and save the tangent's arithmetic on the others. Measured on perceptrons 64
# to 256 wide, batches of 64 to 1024: even where parameters times rows spared is 5e7. On an H200 those microseconds are
# what a step waits for: with 256 latents of DiT-B/4, a quarter of them moving, it loses (benchmarks/results/h200).
PAYS_FROM = 1 << 26

_Engine: TypeAlias = Callable[..., tuple[Tensor, Tensor]]

_PARAMETERS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def rows_pay(backend: object, net: Callable[..., Any], z: Tensor, moving: Tensor) -> bool:
    """Whether one call in which only the rows of ``moving`` carry a tangent is possible, and cheaper.

    On the CPU alone: on a GPU it was measured to lose. It is not possible under ``torch.compile`` and ``make_fx``,
    whose graph would depend on the data, nor where operations arrive undivided, under inference mode.
    """
    if not isinstance(net, nn.Module):
        net = getattr(net, "net", net)  # behind a convention
    if not _engine(backend) or not isinstance(net, nn.Module) or z.dim() < 2:
        return False
    if z.device.type != "cpu":
        return False
    if torch.compiler.is_compiling() or recorded() or torch.is_inference_mode_enabled():
        return False
    # Multiplications of a forward pass, guessed: a parameter works once in each place of each row.
    work = _parameters(net) * len(z) * math.prod(z.shape[2:])
    return work >= PAYS_FROM and work * (1 - float(moving.float().mean())) >= PAYS_FROM


def _engine(backend: object) -> _Engine | None:
    """What runs a backend on the first rows in one call, if it can."""
    if isinstance(backend, StopgradJvp):
        return backend.of_rows
    return stopgrad_jvp_of_rows if backend is stopgrad_jvp else None


def _parameters(net: nn.Module) -> int:
    if net not in _PARAMETERS:
        _PARAMETERS[net] = sum(p.numel() for p in net.parameters())
    return _PARAMETERS[net]


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
    order = torch.cat([some, others])
    engine, back = _engine(backend), order.argsort()
    plain = not (torch.compiler.is_compiling() or torch.is_inference_mode_enabled())
    if engine is not None and plain and len(some) and len(others):
        at, along, mine = _of_rows(order, primals, tangents, label)
        if mine is None:
            u, du_dt = engine(lambda *args: fn(*args, None), at, along, len(some))
        else:
            u, du_dt = engine(fn, (*at, mine), (*along, None), len(some))
        return u.index_select(0, back), du_dt.index_select(0, back)

    values, derivatives = [], []
    if len(some):
        at, along, mine = _of_rows(some, primals, tangents, label)
        u, du_dt = backend(lambda *args: fn(*args, mine), at, along)
        values.append(u)
        derivatives.append(du_dt)
    if len(others):
        at, _, theirs = _of_rows(others, primals, tangents, label)
        u = fn(*at, theirs)
        values.append(u)
        derivatives.append(torch.zeros_like(u))
    return torch.cat(values).index_select(0, back), torch.cat(derivatives).index_select(0, back)


def _of_rows(
    index: Tensor, primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...], label: Tensor | None
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...], Tensor | None]:
    """Primals, tangents and label of some rows."""
    along = tuple(None if d is None else d.index_select(0, index) for d in tangents)
    mine = None if label is None else label.index_select(0, index)
    return tuple(x.index_select(0, index) for x in primals), along, mine
