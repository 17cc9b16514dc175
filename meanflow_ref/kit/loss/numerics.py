"""What a linear probe cannot see: clipping far out, coarse differences, low precision. The last two by a tanh network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow_ref.errors import MeanFlowError
from meanflow_ref.kit.loss.formula import Judgement
from meanflow_ref.kit.loss.measure import Measured, site_rows
from meanflow_ref.kit.loss.probe import Setting
from meanflow_ref.kit.loss.run import Run, run
from meanflow_ref.kit.loss.solve import Layout, layout_of, solve

FAR = 200.0


def clipping(m: Measured) -> float | None:
    """How much of the target is lost when derivatives, and the data, are 200 times larger; None if it cannot be run."""
    lost = 0.0
    try:
        solved = solve(m.target, m.layout, Setting(g=FAR), bisect=False, around=m.velocity)
        near = solve(m.target, m.layout, Setting(g=1.0), bisect=m.bisected)
    except MeanFlowError:
        return None
    added, expected = solved.target - m.velocity, FAR * (near.target - m.velocity)
    size = expected.norm(dim=1)
    use = size > 1.0
    if m.bisected:
        return None
    if bool(use.any()):
        lost = float(((added - expected).norm(dim=1) / size.clamp_min(1e-9))[use].max())
    if m.path is None:
        # Without a path the target need not be affine in the data.
        return lost
    x, _ = m.target.data(0)
    try:
        wide = solve(m.target, m.layout, Setting(), x=x * FAR)
    except MeanFlowError:
        return None
    # The target of a zero network is affine in the data; its slope was measured.
    shift = m.slope[:, None] * (FAR - 1) * m.x
    size = shift.norm(dim=1)
    use = size > 1.0
    if bool(use.any()):
        lost = max(lost, float(((wide.target - m.velocity - shift).norm(dim=1) / size.clamp_min(1e-9))[use].max()))
    return lost


@dataclass(frozen=True)
class Replay:
    """The gradient with a tanh network against the one computed here: error, and the nearest wrong formula's."""

    error: float
    nearest: float
    nearest_name: str


def replay(m: Measured, judgement: Judgement, omega: Tensor) -> Replay | None:
    """Recompute target and gradient independently; None where the formula has no derivative or the weight no scalar."""
    if judgement.formula not in {"meanflow", "improved-meanflow"} or m.bisected:
        return None
    unit = m.path.unit if m.path else 1.0
    done = run(m.target, Setting(tanh=True, unit=unit))
    layout = layout_of(done)
    if layout.units != m.layout.units:
        layout = m.layout
    probe = done.probe
    z, r, t = (layout.pick(done.calls, name) for name in ("z", "r", "t"))
    grad, u = layout.pick(done.calls, "grad"), layout.pick(done.calls, "u")
    event = m.target.event
    labels = _labels(done, layout)

    def net(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        column = [-1, *[1] * len(event)]
        return probe.value(z.reshape(-1, *event), r.reshape(column), t.reshape(column), labels, None).flatten(1)

    v = m.velocity.clone()
    for site, weight in m.reads.items():
        v = v + weight[:, None] * site_rows(layout, done, site, done.calls[site[0]].u)
    safe = torch.where(omega.abs() > 1e-6, omega, torch.ones_like(omega))
    tangent = {"velocity": v, "unguided": m.velocity / safe[:, None]}.get(judgement.tangent)
    if tangent is None:
        tangent = net(z, t, t).detach()
    tau = m.interval[:, None]

    def derivative(dz: Tensor, dr: float, dt: float) -> Tensor:
        ones = torch.ones_like(t)
        along: Tensor = torch.func.jvp(net, (z, r, t), (dz, ones * dr, ones * dt))[1]
        return along.detach()

    right = v - tau / unit * derivative(tangent, 0, unit)
    zero = torch.zeros_like(tangent)
    wrong = {
        "r and t swapped": v - tau / unit * derivative(tangent, unit, 0), "+ sign": 2 * v - right, "no t - r": v - (v - right) / tau.clamp_min(1e-9),
        "no spatial tangent": v - tau / unit * derivative(zero, 0, unit), "no time tangent": v - tau / unit * derivative(tangent, 0, 0),
        "r moves": v - tau / unit * derivative(tangent, unit, unit), "no derivative": v,
    }  # fmt: skip
    rows = m.long if bool(m.long.any()) else torch.ones_like(m.long)
    error = _angle(grad, u - right, rows)
    others = {name: _angle(grad, u - value, rows) for name, value in wrong.items()} if bool(m.long.any()) else {"": 1.0}
    name = min(others, key=lambda key: others[key])
    return Replay(error, others[name], name)


def _angle(grad: Tensor, delta: Tensor, rows: Tensor) -> float:
    """Largest relative distance of a gradient from a multiple of ``delta``."""
    g, d = grad[rows], delta[rows]
    unit = d / d.norm(dim=1, keepdim=True).clamp_min(1e-300)
    rest = g - (g * unit).sum(1, keepdim=True) * unit
    return float((rest.norm(dim=1) / g.norm(dim=1).clamp_min(1e-300)).max())


def _labels(done: Run, layout: Layout) -> Tensor | None:
    rows = [done.calls[unit.call].y for unit in layout.units]
    if any(y is None for y in rows):
        return None
    return torch.stack([y.reshape(-1)[u.row] for y, u in zip(rows, layout.units, strict=True) if y is not None])
