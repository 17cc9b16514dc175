"""The loss from float64 down to bfloat16, under autocast, and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from meanflow_ref.convention import Convention
from meanflow_ref.objectives.guidance import Guidance
from meanflow_ref.objectives.meanflow import meanflow_loss, meanflow_loss_at

GradientOf = Callable[[Tensor, nn.Module], Tensor]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.detach().double() - b.detach().double()).norm() / b.detach().double().norm())


@pytest.mark.parametrize(
    ("dtype", "times"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float16),
        (torch.float16, torch.float32),
    ],
)
@pytest.mark.parametrize("two_pass", [False, True])
def test_low_precision_agrees_with_float64_on_the_same_inputs(
    dtype: torch.dtype, times: torch.dtype, two_pass: bool, batch: Any, net: nn.Module, gradient_of: GradientOf
) -> None:
    low = net.to(dtype)
    args = [batch.x.to(dtype), batch.eps.to(dtype), batch.r.to(times), batch.t.to(times)]
    terms = meanflow_loss(low, *args, two_pass=two_pass)
    low_gradient = gradient_of(terms.loss, low)
    exact = meanflow_loss(net.double(), *(x.double() for x in args))
    # Two layers and a tanh round some ten numbers in a row by half an eps at most, in random directions: 2 eps, and the
    # gradient twice that. 4 eps is 3 % in bfloat16, where a wrong formula shows as 20 % and more.
    bound = 4 * torch.finfo(dtype).eps
    for name in ("u", "target", "du_dt", "z", "v"):
        assert relative(getattr(terms, name), getattr(exact, name)) < bound, name
    assert relative(low_gradient, gradient_of(exact.loss, net)) < bound
    # What is outside the network is in float32.
    for name in ("loss", "per_sample", "squared_error", "weight", "target", "v"):
        assert getattr(terms, name).dtype == torch.float32, name
    assert terms.u.dtype == terms.du_dt.dtype == terms.z.dtype == dtype


def test_a_short_interval_keeps_its_length_beside_a_bfloat16_state() -> None:
    """1/2 and 1/2 + 2^-12 are one number in bfloat16; as float32 times beside a bfloat16 state they stay two."""
    z, v = torch.ones(2, 3, dtype=torch.bfloat16), torch.zeros(2, 3)
    r = torch.full((2,), 0.5)
    t = r + 2.0**-12
    terms = meanflow_loss_at(lambda z, r, t: z * t[:, None].to(z.dtype), z, v, r, t)
    # du/dt = v t + z = 1, so that the target is minus the interval, exactly.
    assert torch.equal(terms.target, torch.full((2, 3), -(2.0**-12)))


def test_under_autocast_the_arithmetic_outside_the_network_stays_in_float32(batch: Any, net: nn.Module) -> None:
    net = net.float()
    args = [x.float() for x in batch.args]
    plain = meanflow_loss(net, *args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = meanflow_loss(net, *args)
    assert terms.u.dtype == torch.bfloat16  # autocast did happen
    assert terms.target.dtype == terms.loss.dtype == torch.float32
    assert torch.equal(terms.z, plain.z)
    assert torch.equal(terms.v, plain.v)
    interval = (batch.t - batch.r).float()[:, None]
    assert torch.equal(terms.target, plain.v - interval * terms.du_dt.float())
    # As for a bfloat16 network.
    assert relative(terms.u, plain.u) < 4 * 2**-7
    assert relative(terms.target, plain.target) < 4 * 2**-7


class Labelled(nn.Module):
    """A network with a label embedding, called ``net(z, (t, h), y)``."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = nn.Embedding(4, 16)
        self.first, self.second = nn.Linear(5, 16), nn.Linear(16, 3)

    def forward(self, z: Tensor, times: tuple[Tensor, Tensor], label: Tensor) -> Tensor:
        hidden = self.first(torch.cat([z, torch.stack(list(times), 1)], 1)) + self.labels(label)
        out: Tensor = self.second(torch.tanh(hidden))
        return out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_power": 0.0, "norm": "mean"},
        {
            "label": torch.tensor([0, 1, 2, 3, 3, 2, 1, 0]),
            "guidance": Guidance(2.0, 0.5, null_label=3, interval=(0.2, 0.9)),
            "convention": Convention("z, (t, h), y", time="data_at_one"),
        },
    ],
    ids=["default", "plain", "guided"],
)
def test_the_whole_loss_compiles_into_one_graph(
    options: dict[str, Any], batch: Any, net: nn.Module, gradient_of: GradientOf
) -> None:
    torch.compiler.reset()
    network = Labelled().double() if "label" in options else net
    compiled = torch.compile(meanflow_loss, fullgraph=True, backend="aot_eager")(network, *batch.args, **options)
    eager = meanflow_loss(network, *batch.args, **options)
    for name, found, expected in zip(eager._fields, compiled, eager, strict=True):
        # The same kernels in the same order, but for fusions of a rounding.
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14, msg=name)
    torch.testing.assert_close(
        gradient_of(compiled.loss, network), gradient_of(eager.loss, network), rtol=1e-12, atol=1e-14
    )


# Where a graph resumes, the compiler itself asks for the .grad of a tensor that is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_two_passes_compile_with_a_break_for_the_random_numbers(
    batch: Any, small_net: Callable[..., nn.Module], gradient_of: GradientOf
) -> None:
    torch.compiler.reset()
    net = small_net(dropout=0.3)
    losses = []
    for loss in (torch.compile(meanflow_loss, backend="aot_eager"), meanflow_loss):
        torch.manual_seed(5)
        losses.append(loss(net, *batch.args, two_pass=True).loss)
    torch.testing.assert_close(*losses, rtol=1e-13, atol=0)
    torch.testing.assert_close(*(gradient_of(loss, net) for loss in losses), rtol=1e-12, atol=1e-14)


def test_compiled_code_does_not_look_at_values(batch: Any, net: nn.Module) -> None:
    torch.compiler.reset()
    compiled = torch.compile(meanflow_loss, fullgraph=True, backend="aot_eager")
    assert bool(compiled(net, batch.x, batch.eps, batch.t, batch.r).loss.isfinite())
