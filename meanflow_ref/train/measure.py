"""What is looked at now and then during a run: the error of u, rounding, and where the time goes."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from meanflow_ref.train.batches import Batch
from meanflow_ref.train.metrics import Points, velocity_error
from meanflow_ref.train.objective import Step
from meanflow_ref.train.precision import rounding_errors
from meanflow_ref.train.watch import peak_memory


def measure(
    net: nn.Module, average: nn.Module, step: Step, batch: Batch, points: Points | None, device: torch.device
) -> dict[str, Any]:
    """One measurement of a network that is not sharded.

    Args:
        net: The network in training.
        average: Its moving average.
        step: The loss around ``net``, neither compiled nor replicated.
        batch: A batch.
        points: Where the exact u is known, or None.
        device: Where the network is.

    Returns:
        ``u_error``, ``rounding_*``, ``split`` (seconds of forward, JVP, backward) and ``peak_bytes``.

    """
    numbers: dict[str, Any] = {"peak_bytes": peak_memory(device)}
    if points is not None:
        average.eval()
        numbers["u_error"] = velocity_error(average, points, device=device)
    # Neither dropout's random numbers nor gradients of the probe may touch the run.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if step.config.objective == "meanflow":
            numbers |= rounding_errors(net, step.terms, batch)
        numbers["split"] = split(net, step, batch, device)
    return numbers


def split(net: nn.Module, step: Step, batch: Batch, device: torch.device) -> dict[str, float]:
    """Seconds of a forward pass, of what the JVP (and the rest of the loss) adds to it, and of the backward pass."""
    labels = () if batch.label is None else (batch.label,)
    start = _now(device)
    net(batch.x, batch.r, batch.t, *labels)
    forward = _now(device) - start
    terms = step(*batch)
    loss = _now(device) - start - forward
    parameters = [p for p in net.parameters() if p.requires_grad]
    torch.autograd.grad(terms.loss, parameters, allow_unused=True)
    backward = _now(device) - start - forward - loss
    return {"forward": forward, "jvp": loss - forward, "backward": backward}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
