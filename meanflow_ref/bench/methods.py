"""What is compared: one training step per way of getting du/dt, all through the shipped loss.

To measure another way, add its row to :data:`METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from meanflow_ref import formulas
from meanflow_ref.bench.scenarios import Batch
from meanflow_ref.jvp.finite_difference import FiniteDifference
from meanflow_ref.objectives.meanflow import meanflow_loss
from meanflow_ref.paths import LINEAR

Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Method:
    """A way to take a training step.

    Attributes:
        name: What tables call it.
        about: One line on how du/dt comes about.
        options: Keyword arguments of :func:`meanflow_ref.meanflow_loss`; None for flow matching.
        exact: Whether du/dt is exact to rounding.

    """

    name: str
    about: str
    options: Mapping[str, Any] | None = field(default_factory=dict)
    exact: bool = True

    def loss(self, net: nn.Module, batch: Batch) -> Tensor:
        """Loss of a batch, with its graph."""
        if self.options is None:
            return flow_matching_loss(net, batch)
        return meanflow_loss(net, *batch, weight_power=0.0, **self.options).loss

    def derivative(self, net: nn.Module, batch: Batch) -> Tensor:
        """The method's du/dt on a batch."""
        return meanflow_loss(net, *batch, weight_power=0.0, **(self.options or {})).du_dt

    def step(self, net: nn.Module, batch: Batch) -> Callable[[], Tensor]:
        """A training step without its optimiser: loss and gradients, from scratch at every call."""

        def step() -> Tensor:
            net.zero_grad(set_to_none=True)
            loss = self.loss(net, batch)
            torch.autograd.backward(loss)
            return loss.detach()

        return step


def flow_matching_loss(net: nn.Module, batch: Batch) -> Tensor:
    """Flow-matching loss of the same network, ``E |u(z, t, t) - v_t|^2``: one forward and one backward pass.

    Source: fm:path, fm:conditional-velocity.
    """
    x, eps, _, t = batch
    t_ = t.reshape(-1, *[1] * (x.dim() - 1))
    z = formulas.interpolant(x, eps, LINEAR.alpha(t_), LINEAR.sigma(t_)).to(x.dtype)
    v = formulas.conditional_velocity(x, eps, LINEAR.alpha_dot(t_), LINEAR.sigma_dot(t_)).to(x.dtype)
    per_sample: Tensor = (net(z, t, t) - v).square().flatten(1).sum(-1)
    return per_sample.mean()


# The yardstick (a flow-matching step) and the baseline (what one writes without forward mode).
YARDSTICK = "flow_matching"
BASELINE = "double_backward"

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(YARDSTICK, "no du/dt at all: the yardstick", None),
        Method(BASELINE, "two vector-Jacobian products: the baseline", {"jvp": "double_backward"}),
        Method("stopgrad", "stop-gradient JVP, below autograd: no graph, no zero products", {"jvp": "stopgrad"}),
        Method(
            "stopgrad_rows",
            "the same on the rows with r != t alone, the others in a second call",
            {"jvp": "stopgrad", "rows": "moving"},
        ),
        Method(
            "stopgrad_bf16",
            "the stop-gradient JVP, its matrix products and convolutions of tangents in bfloat16",
            {"jvp": "stopgrad_bf16"},
            exact=False,
        ),
        Method("func", "torch.func.jvp, the graph recorded through it", {"jvp": "func"}),
        Method("forward_ad", "dual tensors of torch.autograd.forward_ad", {"jvp": "forward_ad"}),
        Method("two_pass", "torch.func.jvp without a graph, then a forward pass", {"jvp": "func", "two_pass": True}),
        Method(
            "finite_difference",
            "central difference of the network's values",
            {"jvp": "finite_difference"},
            exact=False,
        ),
        Method(
            "one_sided_difference",
            "one-sided difference: four units of work, the least there is",
            {"jvp": FiniteDifference(order=1)},
            exact=False,
        ),
    )
}
