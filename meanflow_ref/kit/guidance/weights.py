r"""The weights of the three velocities in a guided target, row by row, measured.

The target at r = t is :math:`\omega v_t+\kappa\,u(z,t,t|c)+\kappa_0\,u(z,t,t)`. The probe tells the first by how the
target moves with the data, the others by how it moves with the network's output in the calls beside the trained one.
Whether the same mixture is the tangent of the derivative is read off with :math:`u = \mathrm{roll}(z)`: then a tangent
:math:`\tau` enters the target as :math:`-(t-r)\,\mathrm{roll}(\tau)`, and its weights are measured in the same ways.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow_ref.errors import NetworkError
from meanflow_ref.kit.loss.measure import Measured, site_rows
from meanflow_ref.kit.loss.probe import Setting
from meanflow_ref.kit.loss.run import ROWS
from meanflow_ref.kit.loss.solve import solve


@dataclass(frozen=True)
class Weights:
    """Measured weights, each ``(U,)``; those in the tangent are NaN in rows with a short interval.

    Attributes:
        v: Of the sample velocity.
        conditional: Of the network's output with the row's own label.
        null: Of the network's output with the null label.
        other: Of its output with any other label, or away from r = t.
        tangent_v: Of the sample velocity in the tangent.
        tangent_conditional: Of the conditional output in the tangent.
        tangent_null: Of the output with the null label in the tangent.
        t: Times.
        equal: Rows with r = t.
        dropped: Rows whose label the trained call saw as null.
        null_label: The null label.

    """

    v: Tensor
    conditional: Tensor
    null: Tensor
    other: Tensor
    tangent_v: Tensor
    tangent_conditional: Tensor
    tangent_null: Tensor
    t: Tensor
    equal: Tensor
    dropped: Tensor
    null_label: int | None


def weights_of(m: Measured, null_label: int | None, seed: int) -> Weights:
    """Read the weights off a loss that was measured with ``seed``.

    Raises:
        NetworkError: If the path is not recognised, or the network is called without labels.

    """
    if m.path is None:
        raise NetworkError("the states lie on no known path, so that v is unknown.", "", "run check_loss first")
    labels = _labels(m)
    null_label = _null_label(m, labels) if null_label is None else null_label
    alpha_dot = m.path.schedules(m.t)[2][:, 0] * m.path.scale
    parts = {name: torch.zeros_like(m.t) for name in ("conditional", "null", "other")}
    tangent = {name: torch.zeros_like(m.t) for name in parts}
    turned = solve(m.target, m.layout, Setting(a=1.0), seed=seed, bisect=m.bisected).target
    for site, weight in m.reads.items():
        in_tangent = _in_tangent(m, site, weight, turned, seed)
        for name, rows in _kinds(m, site, labels, null_label).items():
            parts[name] += torch.where(rows, weight, torch.zeros_like(weight))
            tangent[name] += torch.where(rows, in_tangent, torch.zeros_like(weight))
    dropped = labels == (-1 if null_label is None else null_label)
    blank = torch.full_like(m.t, float("nan"))
    return Weights(
        m.slope / alpha_dot,
        parts["conditional"],
        parts["null"],
        parts["other"],
        _velocity_in_tangent(m),
        torch.where(m.long, tangent["conditional"], blank),
        torch.where(m.long, tangent["null"], blank),
        m.t,
        m.interval.abs() < 1e-6,
        dropped,
        null_label,
    )


def _kinds(m: Measured, site: tuple[int, int], labels: Tensor, null_label: int | None) -> dict[str, Tensor]:
    """Which rows a call beside the trained one asks about with the row's own label, the null label, or otherwise."""
    call = m.trace.calls[site[0]]
    seen = labels
    if call.y is not None:
        seen = site_rows(m.layout, m.trace, site, call.y.reshape(-1, 1))[:, 0].long()
    at_t = site_rows(m.layout, m.trace, site, (call.r - call.t).abs().reshape(-1, 1))[:, 0] < 1e-6
    null = at_t & (seen == (-1 if null_label is None else null_label))
    own = at_t & (seen == labels) & ~null
    return {"null": null, "conditional": own, "other": ~(null | own)}


def _in_tangent(m: Measured, site: tuple[int, int], weight: Tensor, turned: Tensor, seed: int) -> Tensor:
    """Weight of a call's output in the tangent: what a bias in that call adds to the target beyond the weight there."""
    k, block = site
    call = m.trace.calls[k]
    bias = torch.zeros_like(call.z, dtype=torch.float64)
    part = slice(block * ROWS, (block + 1) * ROWS)
    generator = torch.Generator().manual_seed(91 + k)
    bias[part] = torch.randn(ROWS, *call.z.shape[1:], generator=generator, dtype=torch.float64)
    moved = solve(m.target, m.layout, Setting(a=1.0, bias={k: bias}), seed=seed, bisect=m.bisected).target
    direction = site_rows(m.layout, m.trace, site, bias)
    rest = torch.roll(moved - turned - weight[:, None] * direction, -1, 1)
    interval = torch.where(m.long, m.interval, torch.ones_like(m.interval))
    return -(rest * direction).sum(1) / (interval * (direction * direction).sum(1))


def _labels(m: Measured) -> Tensor:
    """Labels that the trained rows were called with, ``(U,)``."""
    rows = []
    for unit in m.layout.units:
        y = m.trace.calls[unit.call].y
        if y is None:
            raise NetworkError(
                "the network is called without labels.",
                "a loss(model, x, y) of a network with `y`",
                'call="z, r, t, y"',
            )
        rows.append(y.reshape(-1)[unit.row])
    return torch.stack(rows).long()


def _null_label(m: Measured, labels: Tensor) -> int | None:
    """A label that a call beside the trained one has in all of its rows, or that is no class of the data's."""
    for k, block in m.reads:
        y = m.trace.calls[k].y
        if y is not None:
            part = y.reshape(-1)[block * ROWS : (block + 1) * ROWS]
            if bool((part == part[0]).all()):
                return int(part[0])
    classes = set(m.target.data()[1].tolist())
    strangers = [int(label) for label in labels.tolist() if int(label) not in classes]
    return strangers[0] if strangers else None


def _velocity_in_tangent(m: Measured) -> Tensor:
    """Least squares of the tangent on v and roll(z), a row at a time: the weight of v."""
    assert m.path is not None
    alpha, sigma, alpha_dot, sigma_dot = m.path.schedules(m.t)
    data = m.path.scale * m.x
    v = alpha_dot * data + sigma_dot * (m.z - alpha * data) / sigma.clamp_min(1e-3)
    columns = torch.stack([v, torch.roll(m.z, 1, 1)], 2)
    tangent = m.spatial / torch.where(m.long, m.interval, torch.ones_like(m.interval))[:, None]
    solution = torch.linalg.lstsq(columns, tangent[:, :, None]).solution[:, :, 0]
    return torch.where(m.long, solution[:, 0], torch.full_like(m.t, float("nan")))
