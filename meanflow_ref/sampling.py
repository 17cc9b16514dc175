"""Generation by average velocity, in one step or a few."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref._validate import require_finite, require_state
from meanflow_ref.convention import Convention, adapted
from meanflow_ref.errors import ParameterError, ShapeError, TimeError


def sample(
    net: Callable[..., Any],
    noise: Tensor,
    steps: int = 1,
    *,
    times: Sequence[float] | Tensor | None = None,
    label: Tensor | None = None,
    convention: Convention | None = None,
    time_dtype: torch.dtype | None = None,
) -> Tensor:
    """State at the end of a few steps ``z_r = z_t - (t - r) u(z_t, r, t)`` from noise. Source: mf:12.

    Differentiable: wrap the call in ``torch.no_grad()`` to generate. With the exact u it is exact at any number of
    steps.

    Args:
        net: Average velocity ``net(z, r, t)`` or ``net(z, r, t, label)``, or another call through ``convention``.
        noise: States at t = 1 (or ``times[0]``), ``(B, *event)``.
        steps: Number of equal steps from t = 1 to r = 0.
        times: Strictly decreasing times in [0, 1] in the paper's direction, instead of equal steps.
        label: Labels, ``(B,)``.
        convention: How ``net`` is called; times run from noise to data under either direction.
        time_dtype: Of the times that the network is given; ``noise``'s by default.

    Returns:
        Data, of ``noise``'s shape and dtype; carries the graph to ``noise`` and to the network.

    Raises:
        ParameterError: If ``steps`` is not a positive integer, or contradicts ``times``.
        TimeError: If ``times`` are not finite, strictly decreasing and inside [0, 1].

    """
    states = _states(net, noise, _grid(steps, times), label, convention, time_dtype)
    return deque(states, maxlen=1).pop()


def trajectory(
    net: Callable[..., Any],
    noise: Tensor,
    steps: int = 1,
    *,
    times: Sequence[float] | Tensor | None = None,
    label: Tensor | None = None,
    convention: Convention | None = None,
    time_dtype: torch.dtype | None = None,
) -> Tensor:
    """All states that :func:`sample` passes through, ``noise`` first. Source: mf:12.

    Args:
        net: As for :func:`sample`.
        noise: As for :func:`sample`.
        steps: As for :func:`sample`.
        times: As for :func:`sample`.
        label: As for :func:`sample`.
        convention: As for :func:`sample`.
        time_dtype: As for :func:`sample`.

    Returns:
        ``(steps + 1, B, *event)``.

    """
    return torch.stack([noise, *_states(net, noise, _grid(steps, times), label, convention, time_dtype)])


def _states(
    net: Callable[..., Any],
    z: Tensor,
    grid: list[float],
    label: Tensor | None,
    convention: Convention | None,
    time_dtype: torch.dtype | None,
) -> Iterator[Tensor]:
    require_state(z, "noise")
    if not torch.compiler.is_compiling():
        require_finite(z, "noise")
    u_of = adapted(net, convention, label)
    wide = torch.promote_types(z.dtype, torch.float32)
    for t, r in pairwise(grid):
        start, end = (torch.full(z.shape[:1], x, dtype=time_dtype or z.dtype, device=z.device) for x in (r, t))
        u = u_of(z, start, end, label)
        z = formulas.step(z.to(wide), u.to(wide), r, t).to(z.dtype)
        yield z


def _grid(steps: int, times: Sequence[float] | Tensor | None) -> list[float]:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ParameterError(f"steps={steps!r}.", "a positive integer", "")
    if times is None:
        return [1 - i / steps for i in range(steps + 1)]
    grid = [float(x) for x in times]
    if len(grid) < 2:
        raise ShapeError(f"`times` has {len(grid)} entries.", "at least a start and an end", "times=(1.0, 0.0)")
    if steps not in (1, len(grid) - 1):
        raise ParameterError(f"steps={steps} beside {len(grid)} times.", "one or the other", "leave `steps` out")
    # NaN fails both comparisons.
    if not all(0 <= x <= 1 for x in grid) or not all(r < t for t, r in pairwise(grid)):
        raise TimeError(f"times={grid}.", "strictly decreasing times in [0, 1], from noise to data", "times[::-1]")
    return grid
