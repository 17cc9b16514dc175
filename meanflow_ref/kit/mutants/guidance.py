"""Losses with guidance in the target, right and wrong; stated scales omega = 2, kappa = 0.5 unless said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meanflow_ref.kit.mutants.case import Case

NULL = 10
Loss = Callable[[Any, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """What a guided loss may do otherwise."""

    omega: float = 2.0
    kappa: float = 0.5
    null: int | None = NULL
    null_weight: float | None = None
    guided_tangent: bool = True
    guide_equal: bool = True
    guide_null: bool = False
    interval: tuple[float, float] = (0.0, 1.0)
    drop: float = 0.3
    one_call: bool = False
    at_r: bool = False


def guided(s: Settings) -> Loss:
    """A loss with those settings."""

    def loss(net: Any, x: Tensor, y: Tensor) -> Tensor:
        n = len(x)
        wide = (-1, *[1] * (x.dim() - 1))
        drawn = torch.sigmoid(-0.4 + torch.randn(n, 2, dtype=x.dtype))
        r, t = drawn.amin(1), drawn.amax(1)
        r = torch.where(torch.rand(n) < 0.4, t, r)
        y = torch.where(torch.rand(n) < s.drop, torch.full_like(y, NULL), y)
        e = torch.randn_like(x)
        z, v = (1 - t).reshape(wide) * x + t.reshape(wide) * e, e - x
        mixed = _mixture(s, net, z, r, t, y, v)
        rows = ((y != NULL) | s.guide_null) & (t >= s.interval[0]) & (t <= s.interval[1])
        rows = rows & ((r < t) | s.guide_equal)
        v_target = torch.where(rows.reshape(wide), mixed, v)
        tangent = v_target if s.guided_tangent else v
        arguments = (z, r, t), (tangent, torch.zeros_like(r), torch.ones_like(t))
        pair = torch.func.jvp(lambda z, r, t: net(z, r, t, y), *arguments)
        u, du_dt = pair[0], pair[1]
        target = (v_target - (t - r).reshape(wide) * du_dt).detach()
        value: Tensor = (u - target).square().flatten(1).sum(1).mean()
        return value

    return loss


def _mixture(s: Settings, net: Any, z: Tensor, r: Tensor, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """omega v + kappa u(c) + (1 - omega - kappa) u."""
    null = y if s.null is None else torch.full_like(y, s.null)
    start = r if s.at_r else t
    weight = 1 - s.omega - s.kappa if s.null_weight is None else s.null_weight
    with torch.no_grad():
        if s.one_call:
            both = net(torch.cat([z, z]), torch.cat([start, start]), torch.cat([t, t]), torch.cat([y, null]))
            conditional, unconditional = both.chunk(2)
        else:
            unconditional = net(z, start, t, null)
            conditional = net(z, start, t, y) if s.kappa else torch.zeros_like(z)
        mixed: Tensor = s.omega * v + s.kappa * conditional + weight * unconditional
        return mixed


def plain(net: Any, x: Tensor, y: Tensor) -> Tensor:
    """No guidance at all."""
    return guided(Settings(omega=1.0, kappa=0.0))(net, x, y)


STATED = {"omega": 2.0, "kappa": 0.5}
MUTANTS = (
    Case("tangent v", guided(Settings(guided_tangent=False)), "GUIDED_TARGET_UNGUIDED_TANGENT", STATED),
    Case(
        "tangent v, weights of the network that cancel",
        guided(Settings(omega=1.0, guided_tangent=False)),
        "GUIDED_TARGET_UNGUIDED_TANGENT",
        {"omega": 1.0, "kappa": 0.5},
    ),
    Case("null branch with labels", guided(Settings(null=None)), "NULL_BRANCH_CONDITIONAL", STATED),
    Case(
        "null branch with labels, kappa = 0",
        guided(Settings(kappa=0.0, null=None)),
        "NULL_BRANCH_CONDITIONAL",
        {"omega": 2.0},
    ),
    Case("no kappa term", guided(Settings(kappa=0.0)), "KAPPA_MISSING", STATED),
    Case("kappa not taken off the null weight", guided(Settings(null_weight=-1.0)), "KAPPA_MISSING", STATED),
    Case("v where r = t", guided(Settings(guide_equal=False)), "GUIDANCE_LOST_ON_R_EQ_T", STATED),
    Case("guided outside the interval", guided(Settings()), "GUIDANCE_INTERVAL", {**STATED, "interval": (0.3, 0.8)}),
    Case("interval not stated", guided(Settings(interval=(0.0, 0.5))), "GUIDANCE_INTERVAL", STATED),
    Case("no guidance", plain, "UNKNOWN_FORMULA", STATED),
    Case("1 + w", guided(Settings(omega=3.0, kappa=0.0)), "UNKNOWN_FORMULA", {"omega": 2.0}),
)
CORRECT = (
    Case("omega and kappa", guided(Settings()), options=STATED),
    Case("omega alone", guided(Settings(kappa=0.0)), options={"omega": 2.0}),
    Case("one call for both branches", guided(Settings(one_call=True)), options=STATED),
    Case("no dropped labels", guided(Settings(drop=0.0)), options=STATED),
    Case("interval", guided(Settings(interval=(0.2, 0.7))), options={**STATED, "interval": (0.2, 0.7)}),
    Case("another split of one scale", guided(Settings(omega=1.0, kappa=0.75)), options=STATED),
    Case("null label 0", guided(Settings()), options={**STATED, "null_label": NULL}),
    Case("null rows guided", guided(Settings(guide_null=True)), "GUIDANCE_ON_NULL_ROWS", STATED, note=True),
)
