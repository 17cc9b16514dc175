"""Mixed precision: autocast networks and half-precision states, with errors of the size of u's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from meanflow_ref.bench.scenarios import SMALL_SCENARIOS
from meanflow_ref.jvp import get_backend
from meanflow_ref.jvp.stopgrad import stopgrad_jvp


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a.double() - b.double()).norm() / b.double().norm()).detach())


@pytest.mark.parametrize("scenario", SMALL_SCENARIOS)
def test_autocast_with_times_in_float32(scenario: str) -> None:
    small = SMALL_SCENARIOS[scenario]
    net, batch = small.network(), small.data()
    primals, tangents = (batch.x, batch.r, batch.t), (batch.eps, None, torch.ones_like(batch.t))
    wide = [None if x is None else x.double() for x in (*primals, *tangents)]
    u64, du64 = get_backend("func")(small.network(dtype=torch.float64), tuple(wide[:3]), tuple(wide[3:]))  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        u, du_dt = stopgrad_jvp(net, primals, tangents)
        assert torch.equal(u, net(*primals))
    # bfloat16 has a unit of 2^-8; sums over a layer and over layers add up to a few of them.
    assert relative(u, u64) < 0.05
    assert relative(du_dt, du64) < 0.05
    u.float().sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("scenario", SMALL_SCENARIOS)
def test_bfloat16_throughout(scenario: str) -> None:
    small = SMALL_SCENARIOS[scenario]
    net, batch = small.network(dtype=torch.bfloat16), small.data(dtype=torch.bfloat16)
    primals = (batch.x, batch.r.bfloat16(), batch.t.bfloat16())
    u, du_dt = stopgrad_jvp(net, primals, (batch.eps, None, torch.ones_like(primals[2])))
    assert u.dtype == du_dt.dtype == torch.bfloat16
    assert bool(torch.isfinite(du_dt).all())
