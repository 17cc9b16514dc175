"""What changes while a run runs, and how it goes into a checkpoint and comes out again, bit for bit."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from meanflow_ref.errors import ParameterError
from meanflow_ref.train.checkpoint import Checkpoint
from meanflow_ref.train.config import Config
from meanflow_ref.train.distributed import Ranks, fill, replicate, shard, whole
from meanflow_ref.train.objective import Step

RECENT = 100
"""Gradient norms that are kept to know a spike by."""


@dataclass
class State:
    """A run in the middle.

    Attributes:
        net: The network, sharded under FSDP.
        loss: The loss as a module around it, compiled and replicated as the options say: call this.
        plain: The same loss, neither compiled nor replicated.
        average: Moving average of the weights.
        optimiser: Adam.
        step: Steps taken.
        norms: The last gradient norms.
        skipped: Steps left out in a row.

    """

    net: nn.Module
    loss: nn.Module
    plain: Step
    average: AveragedModel
    optimiser: torch.optim.Optimizer
    step: int = 0
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    skipped: int = 0


def make_state(config: Config, net: nn.Module, step: Step, ranks: Ranks) -> State:
    """The state before the first step."""
    net.to(ranks.device)
    # Before sharding: a sharded module cannot be copied.
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(config.ema))  # type: ignore[no-untyped-call]
    sharded = ranks.world > 1 and config.parallel == "fsdp"
    if sharded:
        shard(net)
        shard(average.module)
    loss: nn.Module = step
    if config.compile:
        loss.compile()
    if ranks.world > 1 and not sharded:
        loss = replicate(step, ranks)
    betas = (config.beta1, config.beta2)
    optimiser = torch.optim.Adam(net.parameters(), lr=config.learning_rate, betas=betas)
    return State(net, loss, step, average, optimiser)


def to_checkpoint(state: State, config: Config) -> Checkpoint:
    """All of the state; every rank must call it, and each gets the whole."""
    random = {"cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available() and next(state.net.parameters()).device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state()
    tensors = {
        "weights": {name: whole(x) for name, x in state.net.state_dict().items()},
        "ema": {name: whole(x) for name, x in state.average.module.state_dict().items()},
        "optimizer": {
            f"{name}|{key}": whole(value)
            for name, p in state.net.named_parameters()
            for key, value in state.optimiser.state.get(p, {}).items()
        },
        "random": random,
    }
    numbers = {
        "position": state.step * config.batch,
        "averaged": int(state.average.n_averaged),
        "norms": list(state.norms),
        "skipped": state.skipped,
        # float16 alone needs a loss scale, and is refused.
        "scaler": None,
        "config": config.to_dict(),
    }
    return Checkpoint(state.step, tensors, numbers)


# Options that may differ between a checkpoint and the run that resumes it: they change nothing that was computed.
_FREE = {
    *("out", "overwrite", "resume", "init", "device", "threads", "compile", "parallel", "rank_timeout", "accumulate"),
    *("checkpoint_every", "keep", "measure_every", "tensorboard", "points", "samples", "quantile", "data_path"),
    *("on_trouble", "spike", "most_skips"),
}


def require_same(config: Config, checkpoint: Checkpoint) -> None:
    """Raise if a checkpoint was made under other options."""
    theirs, ours = checkpoint.numbers["config"], config.to_dict()
    ours["multipliers"] = list(ours["multipliers"])
    different = [key for key in ours if key not in _FREE and theirs.get(key) != ours[key]]
    if different:
        seen = ", ".join(f"--{key.replace('_', '-')} {ours[key]} (it has {theirs.get(key)})" for key in different)
        raise ParameterError(
            f"the checkpoint is of another config: {seen}.",
            "the options that it was trained with",
            "leave them out, or start anew in another --out",
        )


def from_checkpoint(state: State, checkpoint: Checkpoint) -> None:
    """Put a checkpoint into a state."""
    tensors, numbers = checkpoint.tensors, checkpoint.numbers
    _fill_all(dict(state.net.state_dict()), tensors["weights"], "weights")
    _fill_all(dict(state.average.module.state_dict()), tensors["ema"], "ema")
    for name, p in state.net.named_parameters():
        prefix = f"{name}|"
        entries = {k.removeprefix(prefix): x for k, x in tensors["optimizer"].items() if k.startswith(prefix)}
        if entries:
            state.optimiser.state[p] = {key: _like(p, key, x) for key, x in entries.items()}
    state.average.n_averaged.fill_(numbers["averaged"])
    state.step = checkpoint.step
    state.norms.clear()
    state.norms.extend(numbers["norms"])
    state.skipped = numbers["skipped"]
    torch.random.set_rng_state(tensors["random"]["cpu"])
    if "cuda" in tensors["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random"]["cuda"])


def _fill_all(targets: dict[str, Any], values: dict[str, Tensor], what: str) -> None:
    if set(targets) != set(values) or any(targets[name].shape != values[name].shape for name in targets):
        raise ParameterError(f"the {what} of the checkpoint are of another network.", "the same network", "")
    for name, target in targets.items():
        fill(target, values[name])


def _like(p: Tensor, key: str, value: Tensor) -> Tensor:
    """An entry of the optimiser's state for a parameter; Adam's step counts stay on the CPU."""
    if key == "step":
        return value
    entry = torch.zeros_like(p)
    fill(entry, value)
    return entry
