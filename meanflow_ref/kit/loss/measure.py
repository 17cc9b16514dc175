"""Everything that is measured of a loss before anything is judged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow_ref.errors import NetworkError
from meanflow_ref.kit.loss.path import PathFit, alpha_of, recognise
from meanflow_ref.kit.loss.probe import Call, Setting
from meanflow_ref.kit.loss.run import ROWS, Run, Target, run
from meanflow_ref.kit.loss.solve import Layout, Solved, layout_of, solve

# Relative accuracy of a correct loss by the coarsest dtype that the network sees, with room to spare; bugs are above 1e-3.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 5e-4, torch.bfloat16: 0.01, torch.float16: 2e-3}
# Intervals shorter than this say too little about a coefficient of t - r.
SHORT = 0.02


@dataclass
class Measured:
    """Numbers by row of the trained calls (``U`` rows of ``D`` elements).

    ``velocity`` is the target of a constant network, ``c_t`` and ``c_r`` the coefficients of the time derivatives,
    ``spatial`` the coefficient times the spatial tangent, and ``reads[k]`` the weight in the target of the network's
    own output in another call k.
    """

    target: Target
    layout: Layout
    trace: Run
    z: Tensor
    r: Tensor
    t: Tensor
    # The time of the state; t, unless the network is given h alone.
    state_time: Tensor
    x: Tensor
    alpha: Tensor
    slope: Tensor
    path: PathFit | None
    path_misfit: float
    base: Solved
    velocity: Tensor
    c_r: Tensor
    c_t: Tensor
    spatial: Tensor
    # Weight of the network's own output in another call, by (call, block of rows).
    reads: dict[tuple[int, int], Tensor]
    # What the time derivative's coefficient leaves unexplained, relative.
    residual: Tensor
    tolerance: float
    bisected: bool
    # For a network that predicts something else than u: (u - target)/(output - its target), and dL/du / dL/d(output).
    gain: Tensor | None = None
    chain: Tensor | None = None

    @property
    def interval(self) -> Tensor:
        """``t - r``."""
        return self.t - self.r

    @property
    def long(self) -> Tensor:
        """Rows with an interval that says something."""
        return self.interval.abs() > SHORT

    @property
    def main(self) -> Call:
        """The trained call with the longest intervals."""
        calls = [self.trace.calls[k] for k in self.layout.mains]
        return max(calls, key=lambda call: float((call.t - call.r).abs().mean()))

    def derivative_call(self) -> Call | None:
        """A call inside a derivative, or a finite difference's neighbour."""
        calls = self.trace.calls
        inside = [call for call in calls if call.engine]
        if inside:
            return inside[0]
        beside = [k for k, main in self.layout.near.items() if main is not None and k not in self.layout.mains]
        return calls[beside[0]] if beside else None


def measure(target: Target, seed: int = 0) -> Measured:
    """Run the probes.

    Raises:
        NetworkError: If the loss cannot be measured: no gradient, not reproducible, another number of calls.

    """
    trace = run(target, seed=seed)
    again = run(target, seed=seed)
    _require_reproducible(trace, again)
    # A network that is 0 has no gradient where the target is 0 as well; a tanh network has one on every trained row.
    layout = layout_of(run(target, Setting(tanh=True), seed=seed))
    z, r, t = (layout.pick(trace.calls, name) for name in ("z", "r", "t"))
    tolerance = TOLERANCE[_coarsest(trace)]

    # The path: the same noise, other data.
    (x_1, _), (x_2, _) = target.data(0), target.data(1)
    moved = run(target, x=x_2, seed=seed)
    alpha, row, path_misfit = alpha_of(layout.pick(moved.calls, "z") - z, x_1, x_2)
    x = x_1.flatten(1).double()[row]
    path = recognise(alpha, {"t": t, "r": r}, max(tolerance, 1e-4)) if float(path_misfit.max()) < 1e-3 else None
    state_time = t
    if not {"r", "t"} & set(target.spec.letters) and float(path_misfit.max()) < 1e-3:
        # A network of h alone does not show the time of its state: alpha = 1 - t gives it.
        path, state_time = PathFit("linear", False, 1.0, 0.0, "t"), 1 - alpha

    # The velocity: the target of a network that is 0, and how it moves with the data.
    base = solve(target, layout, Setting(), seed=seed)
    bisected = float(base.misfit.median()) > max(1e-4, 10 * tolerance)
    if bisected:
        base = solve(target, layout, Setting(), seed=seed, bisect=True)
    velocity = base.target
    other = solve(target, layout, Setting(), x=x_2, seed=seed, bisect=bisected)
    dx = (x_2.flatten(1).double() - x_1.flatten(1).double())[row]
    slope = ((other.target - velocity) * dx).sum(1) / (dx * dx).sum(1)

    reads = _reads(target, layout, trace, velocity, seed, bisected)
    c_t, left_t = _along(target, layout, Setting(g=1.0), "along_t", velocity, reads, seed, bisected)
    c_r, left_r = _along(target, layout, Setting(b=1.0), "along_r", velocity, reads, seed, bisected)
    turned = _explained(target, layout, Setting(a=1.0), velocity, reads, seed, bisected)
    spatial = -torch.roll(turned, -1, 1)
    return Measured(
        target, layout, trace, z, r, t, state_time, x, alpha, slope, path, float(path_misfit.max()), base, velocity, c_r, c_t, spatial,
        reads, torch.maximum(left_t, left_r), tolerance, bisected,
    )  # fmt: skip


def _require_reproducible(one: Run, two: Run) -> None:
    same = len(one.calls) == len(two.calls) and all(
        torch.equal(a.z, b.z) and torch.equal(a.t, b.t) for a, b in zip(one.calls, two.calls, strict=True)
    )
    if not (same and torch.equal(one.value, two.value)):
        raise NetworkError(
            "two runs with one seed differ: the loss draws from a generator that torch.manual_seed, numpy.random.seed "
            "and random.seed do not reach.",
            "a loss that is reproducible under seeding",
            "check lambda model, x: loss(model, x, generator=torch.Generator().manual_seed(0))",
        )


def _coarsest(trace: Run) -> torch.dtype:
    types = {call.dtype for call in trace.calls}
    if trace.value.dtype != torch.float64 or any(call.t.dtype == torch.float32 for call in trace.calls):
        types.add(torch.float32)
    order = (torch.bfloat16, torch.float16, torch.float32)
    return next((kind for kind in order if kind in types), torch.float64)


def sites(layout: Layout, trace: Run) -> list[tuple[int, int]]:
    """Blocks of ROWS rows in the calls beside the trained ones."""
    found = []
    for k in layout.others:
        rows = trace.calls[k].rows
        found += [(k, block) for block in range(rows // ROWS)] if rows % ROWS == 0 else []
    return found


def site_rows(layout: Layout, trace: Run, site: tuple[int, int], values: Tensor) -> Tensor:
    """Rows of another call's tensor that belong to the units, by their row of the batch."""
    rows = [site[1] * ROWS + unit.row % ROWS for unit in layout.units]
    return values[rows].double().flatten(1)


def _reads(
    target: Target, layout: Layout, trace: Run, velocity: Tensor, seed: int, bisect: bool
) -> dict[tuple[int, int], Tensor]:
    """Weight in the target of the network's own output at other points."""
    found: dict[tuple[int, int], Tensor] = {}
    for k, block in sites(layout, trace):
        call = trace.calls[k]
        generator = torch.Generator().manual_seed(77 + k)
        bias = torch.zeros_like(call.z, dtype=torch.float64)
        part = slice(block * ROWS, (block + 1) * ROWS)
        bias[part] = torch.randn(ROWS, *call.z.shape[1:], generator=generator, dtype=torch.float64)
        moved = solve(target, layout, Setting(bias={k: bias}), seed=seed, bisect=bisect)
        direction = site_rows(layout, trace, (k, block), bias)
        weight = ((moved.target - velocity) * direction).sum(1) / (direction * direction).sum(1)
        if float(weight.abs().max()) > 1e-6:
            found[k, block] = weight
    return found


def _explained(
    target: Target, layout: Layout, setting: Setting, velocity: Tensor, reads: dict[tuple[int, int], Tensor],
    seed: int, bisect: bool,
) -> Tensor:  # fmt: skip
    """What a term of the probe adds to the target, less what enters by the network's output at other points."""
    solved = solve(target, layout, setting, seed=seed, bisect=bisect)
    added = solved.target - velocity
    for site, weight in reads.items():
        added = added - weight[:, None] * site_rows(layout, solved.run, site, solved.run.calls[site[0]].u)
    return added


def _along(
    target: Target, layout: Layout, setting: Setting, name: str, velocity: Tensor,
    reads: dict[tuple[int, int], Tensor], seed: int, bisect: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Coefficient of a time derivative in the target, with its sign turned, and what it leaves."""
    added = _explained(target, layout, setting, velocity, reads, seed, bisect)
    run_probe = run(target, setting, seed=seed).probe
    direction = getattr(run_probe, name).flatten(1)
    coefficient = -(added @ direction.T)[:, 0] / (direction * direction).sum()
    left = (added + coefficient[:, None] * direction).norm(dim=1) / direction.norm()
    return coefficient, left
