"""The training loop, as a generator: one report a step, and the caller decides when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from meanflow_ref.errors import NonFiniteError

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Report:
    """What a step did.

    Attributes:
        step: Number of steps taken, from 1.
        loss: Loss of the batch; its noise and its irreducible part hide most of the progress.
        gradient_norm: Norm of the gradient.
        learning_rate: Learning rate used.

    """

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float


def train(
    net: nn.Module,
    average: AveragedModel,
    draw: Callable[[], Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    *,
    steps: int,
    learning_rate: float,
    warmup: int,
) -> Iterator[Report]:
    """Train ``net`` in place by Adam, and keep ``average`` up to date.

    Args:
        net: What is trained.
        average: Moving average of its weights.
        draw: Gives the next ``(x, eps, r, t)``.
        loss: Scalar loss of a batch.
        steps: Number of steps.
        learning_rate: Highest learning rate.
        warmup: Steps over which it rises.

    Yields:
        A report after each step.

    Raises:
        NonFiniteError: If the loss or the gradient is NaN or infinite; the weights are those of the last good step.

    """
    optimiser = torch.optim.Adam(net.parameters(), lr=learning_rate)
    net.train()
    for step in range(1, steps + 1):
        rate = learning_rate * schedule(step, steps, warmup)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        value = loss(net, draw())
        torch.autograd.backward(value)
        norm = torch.nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
        report = Report(step, float(value.detach()), float(norm), rate)
        if not (math.isfinite(report.loss) and math.isfinite(report.gradient_norm)):
            raise NonFiniteError(
                f"step {step}: loss {report.loss}, norm of the gradient {report.gradient_norm}.",
                "finite values",
                "a lower --learning-rate, or a longer --warmup",
            )
        optimiser.step()
        average.update_parameters(net)
        yield report


def schedule(step: int, steps: int, warmup: int) -> float:
    """Learning rate at a step from 1 to ``steps``, over the highest: linear rise, then a cosine to zero."""
    rise = min(step / warmup, 1.0)
    return rise * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
