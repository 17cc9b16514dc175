"""A step that must not be taken: what is not finite, or a spike; and the evidence that is kept."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from meanflow_ref.errors import NonFiniteError
from meanflow_ref.files import write_atomic
from meanflow_ref.objectives.meanflow import MeanFlowTerms
from meanflow_ref.train.batches import Batch
from meanflow_ref.train.checkpoint import dump_tensors
from meanflow_ref.train.config import Config
from meanflow_ref.train.distributed import Ranks
from meanflow_ref.train.state import RECENT, State


@dataclass(frozen=True)
class Trouble:
    """What is wrong with a step.

    Attributes:
        step: The step that was not taken.
        what: "loss" or "gradient" is not finite, or "spike".
        row: Row of the batch with the worst error.
        module: The first module whose output is not finite, or whose gradient is largest.
        loss: The loss.
        gradient_norm: The norm of the gradient.

    """

    step: int
    what: str
    row: int
    module: str
    loss: float
    gradient_norm: float

    def __str__(self) -> str:
        return (
            f"step {self.step}: {self.what}; loss {self.loss:g}, norm of the gradient {self.gradient_norm:g}, "
            f"row {self.row}, module {self.module}"
        )


def trouble_with(loss: float, norm: float, state: State, config: Config) -> str:
    """What is wrong with a step's loss and gradient, or nothing."""
    if not math.isfinite(loss):
        return "the loss is not finite"
    if not math.isfinite(norm):
        return "the gradient is not finite"
    if config.spike and len(state.norms) == RECENT:
        median = statistics.median(state.norms)
        if norm > config.spike * median:
            return f"a spike of {norm / median:.1f} medians"
    return ""


def locate(what: str, state: State, batch: Batch, terms: MeanFlowTerms, loss: float, norm: float) -> Trouble:
    """The row and the module to look at."""
    error = terms.squared_error.detach()
    worst = torch.where(torch.isfinite(error), error, torch.full_like(error, math.inf)).argmax()
    return Trouble(state.step + 1, what, int(worst), _module(state, batch), loss, norm)


def _module(state: State, batch: Batch) -> str:
    """First module whose output is not finite; without one, the parameter with the largest gradient."""
    names: list[str] = []
    handles = [module.register_forward_hook(_watch(name, names)) for name, module in state.net.named_modules() if name]
    try:
        with torch.no_grad():
            state.net(batch.x, batch.r, batch.t, *(() if batch.label is None else (batch.label,)))
    finally:
        for handle in handles:
            handle.remove()
    if names:
        return names[0]
    norms = {name: float(p.grad.norm()) for name, p in state.net.named_parameters() if p.grad is not None}
    return max(norms, key=lambda name: math.inf if math.isnan(norms[name]) else norms[name]) if norms else "none"


def _watch(name: str, names: list[str]) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
            names.append(name)

    return hook


def keep_evidence(
    folder: Path, trouble: Trouble, batch: Batch, terms: MeanFlowTerms, config: Config, ranks: Ranks
) -> Path:
    """Write the batch, where its random numbers came from, and the options, so that the step can be run again."""
    place = folder / f"step-{trouble.step:08d}-rank-{ranks.rank}"
    place.mkdir(parents=True, exist_ok=True)
    tensors = {name: x for name, x in batch._asdict().items() if x is not None}
    tensors |= {"squared_error": terms.squared_error, "u": terms.u, "target": terms.target}
    write_atomic(place / "batch.safetensors", dump_tensors(tensors))
    note = {
        "step": trouble.step,
        "what": trouble.what,
        "row": trouble.row,
        "module": trouble.module,
        "loss": str(trouble.loss),
        "gradient_norm": str(trouble.gradient_norm),
        "generators": {"seed": config.seed, "purpose": ["batch", trouble.step, "part of the step"]},
        "rank": ranks.rank,
        "world": ranks.world,
        "config": config.to_dict(),
    }
    write_atomic(place / "trouble.json", json.dumps(note, indent=1) + "\n")
    return place


def stop(trouble: Trouble, place: Path) -> NonFiniteError:
    """The error that ends a run."""
    return NonFiniteError(
        f"{trouble}. The weights are those of the step before.",
        "finite values and no spike",
        f"look at {place}; a lower --learning-rate, a longer --warmup, --clip 1, a smaller --time-scale, or "
        "--on-trouble skip",
    )
