"""The derivative on r != t rows alone: the same loss and gradient, by fewer tangent passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from meanflow_ref.bench.counters import count_cost
from meanflow_ref.bench.scenarios import SCENARIOS, SMALL_SCENARIOS
from meanflow_ref.errors import ParameterError
from meanflow_ref.jvp import get_backend
from meanflow_ref.jvp.rows import rows_pay
from meanflow_ref.jvp.stopgrad import StopgradJvp, stopgrad_jvp
from meanflow_ref.models import MLP
from meanflow_ref.objectives.guidance import Guidance
from meanflow_ref.objectives.meanflow import meanflow_loss


def batch(share: float, scenario: str = "mlp", rows: int = 8) -> Any:
    data = SMALL_SCENARIOS[scenario].resized(rows).data(dtype=torch.float64)
    equal = torch.arange(rows) >= round(share * rows)
    equal = equal[torch.randperm(rows, generator=torch.Generator().manual_seed(1))]
    return data._replace(r=torch.where(equal, data.t, data.r))


def gradient(loss: Tensor, net: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])


@pytest.mark.parametrize("jvp", ["stopgrad", "func", "double_backward"])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_loss_and_gradient_are_those_of_all_rows(share: float, jvp: str) -> None:
    for scenario in SMALL_SCENARIOS:
        net, data = SMALL_SCENARIOS[scenario].network(dtype=torch.float64), batch(share, scenario)
        some = meanflow_loss(net, *data, jvp=jvp, rows="moving")
        every = meanflow_loss(net, *data, jvp=jvp, rows="all")
        torch.testing.assert_close(some.per_sample, every.per_sample, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(gradient(some.loss, net), gradient(every.loss, net), rtol=1e-11, atol=1e-12)
        assert bool((some.du_dt[data.r == data.t] == 0).all())


def test_labels_guidance_and_two_passes_go_with_their_rows() -> None:
    torch.manual_seed(0)
    net = MLP(5, 16, 2, classes=4).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    data, label = batch(0.5), torch.arange(8) % 4
    options: Any = {"label": label, "guidance": Guidance(1.5, 0.3, null_label=3)}
    every = meanflow_loss(net, *data, **options)
    for two_pass in (False, True):
        some = meanflow_loss(net, *data, **options, rows="moving", two_pass=two_pass)
        torch.testing.assert_close(some.target, every.target, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(some.v, every.v, rtol=0, atol=0)
    # What this can see: labels left in the batch's order.
    other = meanflow_loss(net, *data, label=label.flip(0), guidance=options["guidance"])
    assert float((other.target - every.target).norm()) > 1e-3


@pytest.mark.parametrize("scenario", SMALL_SCENARIOS)
def test_a_quarter_of_the_rows_costs_a_quarter_of_the_tangent(scenario: str) -> None:
    """FLOPs, counted: forward and backward on all rows, a tangent on a quarter; the limit is 3.25/3 = 1.083."""
    small = SMALL_SCENARIOS[scenario]
    net, data = small.network(dtype=torch.float64), batch(0.25, scenario)

    def flops(**options: Any) -> int:
        def step() -> None:
            net.zero_grad(set_to_none=True)
            torch.autograd.backward(meanflow_loss(net, *data, **options).loss)

        return count_cost(step).flops

    none = flops(rows="moving", jvp=lambda fn, at, along: (fn(*at), torch.zeros_like(at[0])))
    tangent = flops(rows="all") - none
    assert flops(rows="moving") - none == tangent / 4


def test_when_it_pays() -> None:
    z = torch.zeros(512, 64)
    few, many = torch.arange(512) < 100, torch.arange(512) < 480
    wide, narrow = nn.Linear(512, 512), nn.Linear(64, 64)
    assert rows_pay(stopgrad_jvp, wide, z, few)
    assert not rows_pay(stopgrad_jvp, wide, z, many)
    assert not rows_pay(stopgrad_jvp, narrow, z, few)
    assert not rows_pay(stopgrad_jvp, wide, z[:4], few[:4])
    assert not rows_pay(stopgrad_jvp, lambda z, r, t: z, z, few)
    assert not rows_pay(get_backend("func"), wide, z, few)
    assert not rows_pay(stopgrad_jvp, wide, z.to("meta"), few), "measured on the CPU"
    # A network of images works in every place.
    assert rows_pay(stopgrad_jvp, narrow, torch.zeros(16, 3, 64, 64), few[:16] & False)


def test_it_is_done_where_it_pays() -> None:
    """The default, on a network and a batch that are large enough: FLOPs of a quarter of a tangent."""
    scenario = SCENARIOS["mlp"]
    net, data = scenario.network(), scenario.data(share=0.25)

    def flops(**options: Any) -> int:
        return count_cost(lambda: meanflow_loss(net, *data, **options)).flops

    assert flops() == flops(rows="moving")
    # A forward and a tangent pass on all rows are 2 units, on a quarter 1.25.
    assert flops() < 0.65 * flops(rows="all")


def test_rows_of_an_unknown_kind() -> None:
    with pytest.raises(ParameterError, match="rows='some'"):
        meanflow_loss(SMALL_SCENARIOS["mlp"].network(dtype=torch.float64), *batch(0.5), rows="some")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_where_one_call_cannot_be_two_are() -> None:
    net, data = SMALL_SCENARIOS["mlp"].network(dtype=torch.float64), batch(0.5)
    expected = meanflow_loss(net, *data, rows="all")
    with torch.inference_mode():
        found = meanflow_loss(net, *data, rows="moving")
    torch.testing.assert_close(found.target.clone(), expected.target, rtol=1e-12, atol=1e-13)
    torch.compiler.reset()
    compiled = torch.compile(lambda: meanflow_loss(net, *data, rows="moving").target, backend="aot_eager")
    torch.testing.assert_close(compiled(), expected.target, rtol=1e-12, atol=1e-13)


def test_options_of_the_backend_go_with_the_rows() -> None:
    """Products in bfloat16 are off by their rounding on the rows that move, in one call as in two."""
    net, data = SMALL_SCENARIOS["dit"].network(), SMALL_SCENARIOS["dit"].resized(8).data(share=0.5)
    exact = meanflow_loss(net, *data, rows="moving").du_dt
    found = meanflow_loss(net, *data, rows="moving", jvp=StopgradJvp(torch.bfloat16)).du_dt
    every = meanflow_loss(net, *data, rows="all", jvp=StopgradJvp(torch.bfloat16)).du_dt
    error = float((found - exact).norm() / exact.norm())
    assert 1e-4 < error < 3e-2
    moving = data.r != data.t
    torch.testing.assert_close(found[moving], every[moving], rtol=1e-3, atol=1e-3)
