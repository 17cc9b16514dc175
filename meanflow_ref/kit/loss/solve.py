"""The target of each row, recovered from gradients alone.

With a bias ``b`` added to the network's output, dL/du_i = w_i (Delta_i + b_i). Two biases give
``b_1 - b_2 = s_1 grad_1 - s_2 grad_2`` with ``s = 1/w``: least squares in two unknowns a row, exact for any weight that is
one scalar a row. Where that does not fit (an L1 or Huber metric, a weight per element), the bias at which each
element's gradient changes sign is found by bisection: there u equals the target, whatever the metric.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow_ref.errors import NetworkError
from meanflow_ref.kit.loss.probe import Call, Setting
from meanflow_ref.kit.loss.run import ROWS, Run, Target, run

BIASES = (1.0, -1.7)


@dataclass(frozen=True)
class Unit:
    """A row of a call that the loss has a gradient to."""

    call: int
    row: int


@dataclass(frozen=True)
class Layout:
    """How the loss calls its network: which rows are trained, which calls stand beside them."""

    units: tuple[Unit, ...]
    # For each call, the index of the trained call at whose point (within a finite-difference step) it is, or None.
    near: Mapping[int, int | None]
    mains: tuple[int, ...]
    calls: int

    @property
    def others(self) -> tuple[int, ...]:
        """Calls at other points."""
        return tuple(k for k, main in self.near.items() if main is None)

    def pick(self, calls: list[Call], name: str) -> Tensor:
        """A field of the units' rows, in double precision: ``z``, ``u`` and ``grad`` flat, ``r`` and ``t`` as (U,)."""
        rows = [getattr(calls[unit.call], name)[unit.row].double() for unit in self.units]
        stacked = torch.stack(rows)
        return stacked.flatten(1) if stacked.dim() > 1 else stacked


def layout_of(trace: Run) -> Layout:
    """Read off a run's calls which rows are trained."""
    calls, carrying = trace.calls, trace.mains
    if not carrying:
        raise NetworkError(
            "no gradient of the loss reaches the network's output.",
            "a loss that trains the network",
            "look for .detach(), torch.no_grad() or create_graph=False around the prediction",
        )
    mains: list[int] = []
    for k in carrying:
        rival = next((m for m in mains if neighbours(calls[m], calls[k])), None)
        if rival is None:
            mains.append(k)
        elif _rank(calls, k) > _rank(calls, rival):
            mains[mains.index(rival)] = k
    near = {k: next((m for m in mains if m == k or neighbours(calls[m], calls[k])), None) for k in range(len(calls))}
    units = []
    for k in mains:
        grad = calls[k].grad
        assert grad is not None
        norms = grad.flatten(1).norm(dim=1)
        units += [Unit(k, int(i)) for i in torch.nonzero(norms > 1e-14 * norms.max())[:, 0]]
    return Layout(tuple(units), near, tuple(mains), len(calls))


def _rank(calls: list[Call], k: int) -> tuple[bool, bool, int]:
    """The prediction is the call outside derivatives with neighbours on both sides, else the last."""
    around = [call for call in calls if neighbours(call, calls[k])]
    centre = torch.stack([call.t.mean() for call in around]).mean()
    return calls[k].engine in {"", "double backward"}, bool((calls[k].t.mean() - centre).abs() < 1e-9), k


def neighbours(one: Call, two: Call) -> bool:
    """Whether two calls are at one point but for a finite-difference step, with the same labels."""
    if one.z.shape != two.z.shape or (one.y is None) != (two.y is None):
        return False
    if one.y is not None and two.y is not None and not torch.equal(one.y, two.y):
        return False
    return bool(
        (one.z - two.z).abs().max() < 0.3 and (one.t - two.t).abs().max() < 0.06 and (one.r - two.r).abs().max() < 0.06
    )


@dataclass(frozen=True)
class Solved:
    """Targets of the units under one setting.

    ``weight`` is w_i of ``dL/du = w (u - target)`` for each bias, ``(U, 2)``; ``misfit`` how far the weight is from one
    scalar a row, ``(U,)``.
    """

    target: Tensor
    weight: Tensor
    misfit: Tensor
    run: Run
    by_bisection: bool = False


def biases(layout: Layout, calls: list[Call], by_unit: Tensor) -> dict[int, Tensor]:
    """A bias for every call at a trained point, from one for each unit ``(U, D)``."""
    event = calls[0].z.shape[1:]
    by_main = {k: torch.zeros(calls[k].rows, *event, dtype=torch.float64) for k in layout.mains}
    for unit, bias in zip(layout.units, by_unit, strict=True):
        by_main[unit.call][unit.row] = bias.reshape(event)
    result: dict[int, Tensor] = {}
    for k, main in layout.near.items():
        if main is None:
            continue
        bias = by_main[main]
        blocks = bias.shape[0] // ROWS
        if blocks > 1 and bias.shape[0] % ROWS == 0:
            # Several copies of the batch in one call: those without a gradient of their own share the first's bias.
            per_block = bias.reshape(blocks, ROWS, *event)
            present = per_block.flatten(2).abs().sum(2) > 0
            filled = torch.where(present[..., None], per_block.flatten(2), per_block.flatten(2).sum(0, keepdim=True))
            bias = filled.reshape(bias.shape)
        result[k] = bias
    return result


def directions(layout: Layout, size: int, seed: int = 11) -> Tensor:
    """A fixed random direction for each unit, ``(U, D)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(layout.units), size, generator=generator, dtype=torch.float64)


def solve(
    target: Target,
    layout: Layout,
    setting: Setting,
    *,
    x: Tensor | None = None,
    seed: int = 0,
    bisect: bool = False,
    around: Tensor | None = None,
) -> Solved:
    """Targets of the units; ``setting.bias`` is that of the other calls. ``around`` is a guess of the target."""

    def at(by_unit: Tensor) -> Run:
        trace_calls = reference.calls
        bias = {**setting.bias, **biases(layout, trace_calls, by_unit)}
        done = run(target, Setting(setting.a, setting.b, setting.g, bias, setting.random, setting.tanh), x=x, seed=seed)
        if len(done.calls) != layout.calls:
            raise NetworkError("the loss calls its network in another way when the output changes.", "", "")
        return done

    reference = run(target, setting, x=x, seed=seed)
    if len(reference.calls) != layout.calls:
        raise NetworkError(
            "two runs with one seed call the network differently.", "a loss whose randomness can be seeded", ""
        )
    size = reference.probe.size
    # Two directions: with one alone, a target that is 0 would make the gradients parallel and the weights unknowable.
    first, second = BIASES[0] * directions(layout, size), BIASES[1] * directions(layout, size, seed=13)
    if bisect:
        return _bisect(layout, at, size)
    guess = torch.zeros_like(first) if around is None else around
    runs = [at(guess + first), at(guess + second)]
    g1, g2 = (layout.pick(one.calls, "grad") for one in runs)
    scale = _scalars(g1, g2, first - second)
    fitted = scale[:, :1] * g1 - scale[:, 1:] * g2
    misfit = (fitted - first + second).norm(dim=1) / (first - second).norm(dim=1)
    found = layout.pick(runs[0].calls, "u") - scale[:, :1] * g1
    return Solved(found, 1 / scale, misfit, runs[0])


def _scalars(g1: Tensor, g2: Tensor, difference: Tensor) -> Tensor:
    """Least squares of ``s_1 g_1 - s_2 g_2 = difference``, a row at a time, after scaling; ``(U, 2)``."""
    n1, n2 = g1.norm(dim=1, keepdim=True).clamp_min(1e-300), g2.norm(dim=1, keepdim=True).clamp_min(1e-300)
    matrix = torch.stack([g1 / n1, -g2 / n2], dim=2)
    solution = torch.linalg.lstsq(matrix, difference[:, :, None]).solution[:, :, 0]
    scalars: Tensor = solution / torch.cat([n1, n2], dim=1)
    return scalars


def _bisect(layout: Layout, at: object, size: int) -> Solved:
    """Bias at which every element's gradient changes sign."""
    low = torch.full((len(layout.units), size), -64.0, dtype=torch.float64)
    high = -low
    done: Run | None = None
    for _ in range(52):
        middle = (low + high) / 2
        done = at(middle)  # type: ignore[operator]
        above = layout.pick(done.calls, "grad") > 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    assert done is not None
    found = layout.pick(done.calls, "u")
    stuck = ((low.abs() > 63.9) | (high.abs() > 63.9)).any(dim=1)
    weight = torch.full((len(layout.units), 2), float("nan"), dtype=torch.float64)
    return Solved(found, weight, stuck.double(), done, by_bisection=True)
