"""The training loop, as a generator: one report a step, and the caller decides when to stop.

This file is the whole of the training. Read it from the top: a step draws the parts of its batch, sums their
gradients, looks whether the result may be used, and moves the weights and their average.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from meanflow_ref.objectives.meanflow import MeanFlowTerms
from meanflow_ref.train import guard
from meanflow_ref.train.batches import Batch
from meanflow_ref.train.config import Config
from meanflow_ref.train.distributed import Ranks, unsynchronised
from meanflow_ref.train.random import seed_of
from meanflow_ref.train.state import State


@dataclass(frozen=True)
class Report:
    """What a step did.

    Attributes:
        step: Number of steps taken, from 1.
        loss: What was minimised; with a weight power of 1 it is near 1 whatever happens.
        raw_loss: Mean of ``|u - target|^2``, the number to watch; most of it is noise of the conditional velocity.
        equal_loss: The same over the rows with r = t alone, where it is flow matching's; NaN if there were none.
        tangent_ratio: Mean of ``(t - r) |du/dt|`` over the mean of ``|v|``, over the rows with r < t: how much of the
            target is the network's own.
        gradient_norm: Norm of the gradient, before clipping.
        learning_rate: Learning rate used.
        skipped: Whether the step was left out.
        seconds: Wall-clock seconds of data, forward pass with its JVP, backward pass and update; on a GPU they are
            those of launching the work, unless the step is measured.

    """

    step: int
    loss: float
    raw_loss: float
    equal_loss: float
    tangent_ratio: float
    gradient_norm: float
    learning_rate: float
    skipped: bool
    seconds: dict[str, float]


def train(
    state: State, draw: Callable[[int, int], Batch], config: Config, ranks: Ranks, *, evidence: Path
) -> Iterator[Report]:
    """Train ``state`` in place until ``config.steps``.

    Args:
        state: The run, at its beginning or resumed.
        draw: Gives part ``k`` of step ``s`` of this rank.
        config: The options.
        ranks: The ranks.
        evidence: Folder for what is kept of a step that went wrong.

    Yields:
        A report after each step; the state is whole whenever one is handed out.

    Raises:
        NonFiniteError: If a loss or gradient is not finite or spikes, and the options say stop. The weights are those
            of the step before.

    """
    parameters = [p for p in state.net.parameters() if p.requires_grad]
    state.net.train()
    while state.step < config.steps:
        step = state.step + 1
        rate = config.learning_rate * schedule(step, config)
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        state.optimiser.zero_grad(set_to_none=True)

        # Gradient of the mean over all rows: the parts are of one size, so that their means may be averaged.
        clock = _Clock()
        sums = torch.zeros(len(_NUMBERS), dtype=torch.float64, device=ranks.device)
        worst: tuple[float, Batch, MeanFlowTerms] | None = None
        for part in range(config.accumulate):
            batch = draw(step, part)
            clock.lap("data")
            if config.dropout:
                # Its random numbers, like all others, follow from the step.
                torch.manual_seed(seed_of(config.seed, "dropout", step, ranks.rank * config.accumulate + part))
            terms: MeanFlowTerms = state.loss(*batch)
            clock.lap("forward")
            with unsynchronised(state.loss, last=part == config.accumulate - 1):
                (terms.loss / config.accumulate).backward()  # type: ignore[no-untyped-call]
            clock.lap("backward")
            sums += _numbers(terms, batch)
            value = float(terms.loss.detach())
            if worst is None or not value <= worst[0]:
                worst = value, batch, terms
        sums = ranks.mean(sums / config.accumulate)
        norm = _norm(parameters)

        # May this step be taken? All ranks see the same numbers, so that all decide alike.
        numbers = dict(zip(_NUMBERS, sums.tolist(), strict=True))
        skipped = False
        assert worst is not None
        if what := guard.trouble_with(numbers["loss"], norm, state, config):
            _, batch, terms = worst
            trouble = guard.locate(what, state, batch, terms, numbers["loss"], norm)
            place = guard.keep_evidence(evidence, trouble, batch, terms, config, ranks)
            state.skipped += 1
            if config.on_trouble == "stop" or state.skipped > config.most_skips:
                raise guard.stop(trouble, place)
            skipped = True
        else:
            if config.clip and norm > config.clip:
                torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], config.clip / norm)
            state.optimiser.step()
            state.average.update_parameters(state.net)
            state.norms.append(norm)
            state.skipped = 0
        state.step = step
        clock.lap("update")
        yield _report(step, numbers, norm, rate, skipped, clock.seconds)


def schedule(step: int, config: Config) -> float:
    """Learning rate at a step from 1 to ``steps``, over the highest: a linear rise, then a cosine to zero, or none."""
    rise = min(step / config.warmup, 1.0) if config.warmup else 1.0
    if config.decay == "constant":
        return rise
    return rise * (1 + math.cos(math.pi * (step - 1) / config.steps)) / 2


# What is averaged over parts and ranks; sums of rows, so that they can be.
_NUMBERS = ("loss", "raw", "equal_sum", "equal_rows", "tangent", "speed")


@torch.no_grad()
def _numbers(terms: MeanFlowTerms, batch: Batch) -> Tensor:
    """The numbers of one part."""
    equal = batch.r == batch.t
    gap = (batch.t - batch.r) * terms.du_dt.flatten(1).norm(dim=1)
    speed = torch.where(equal, torch.zeros_like(gap), terms.v.flatten(1).norm(dim=1))
    error = terms.squared_error
    rows = (error[equal].sum(), equal.sum(), gap.sum(), speed.sum())
    return torch.stack([x.detach().double() for x in (terms.loss, error.mean(), *rows)])


def _norm(parameters: list[torch.nn.Parameter]) -> float:
    """Norm of the whole gradient; of sharded ones too."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    full = getattr(norm, "full_tensor", None)
    return float(norm if full is None else full())


def _report(
    step: int, n: dict[str, float], norm: float, rate: float, skipped: bool, seconds: dict[str, float]
) -> Report:
    equal = n["equal_sum"] / n["equal_rows"] if n["equal_rows"] else math.nan
    ratio = n["tangent"] / n["speed"] if n["speed"] else 0.0
    return Report(step, n["loss"], n["raw"], equal, ratio, norm, rate, skipped, seconds)


class _Clock:
    """Seconds between laps, added up by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
