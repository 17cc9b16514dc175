"""What runs in each process: the user's step on a part of the batch, and its gradients on disk."""

from __future__ import annotations

import datetime
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from meanflow_ref.kit.calling import seeded
from meanflow_ref.kit.distributed.draws import JoinedDraws


@dataclass(frozen=True)
class Job:
    """What a process does; sent to it whole.

    Attributes:
        folder: Where results go.
        world: Ranks.
        rows: Rows a rank.
        shape: Of one event.
        dtype: Of the data, by name.
        seed: Of data, models and draws.
        timeout: Of collectives, in seconds.

    """

    folder: Path
    world: int
    rows: int
    shape: tuple[int, ...]
    dtype: str
    seed: int
    timeout: float

    def data(self) -> Tensor:
        """The joined batch, ``(world * rows, *shape)``."""
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.world * self.rows, *self.shape, generator=generator, dtype=torch.float64)
        return x.to(getattr(torch, self.dtype))

    def part(self, rank: int) -> Tensor:
        """One rank's rows."""
        return self.data()[rank * self.rows : (rank + 1) * self.rows].clone()


def run_rank(rank: int, steps: Sequence[Callable[..., Any]], job: Job) -> None:
    """One of the ranks: each step on its part, with draws of its own and with those of the joined batch."""
    with _reported(job, f"rank{rank}"), _group(job, rank, job.world, "ranks"):
        for number, step in enumerate(steps):
            plain = _gradients(step, job.part(rank), job.seed)
            joined = _gradients(step, job.part(rank), job.seed, JoinedDraws(rank, job.world, job.rows))
            torch.save({"plain": plain, "joined": joined}, job.folder / f"step{number}-rank{rank}.pt")


def run_reference(steps: Sequence[Callable[..., Any]], job: Job) -> None:
    """One process in a group of its own: each step on every part, and on the joined batch."""
    with _reported(job, "single"), _group(job, 0, 1, "single"):
        for number, step in enumerate(steps):
            parts = [_gradients(step, job.part(rank), job.seed) for rank in range(job.world)]
            ranked = [parts[0], *(_as_rank(rank, step, job) for rank in range(1, job.world))]
            joined = _gradients(step, job.data(), job.seed)
            torch.save({"parts": parts, "ranked": ranked, "joined": joined}, job.folder / f"step{number}-single.pt")


def _as_rank(rank: int, step: Callable[..., Any], job: Job) -> dict[str, Tensor]:
    """A part in a process that believes to be ``rank``, for steps that seed by it; empty if that does not run."""
    rank_of = mock.patch.object(dist, "get_rank", return_value=rank)
    with suppress(Exception), rank_of, mock.patch.dict(os.environ, {"RANK": str(rank)}):
        return _gradients(step, job.part(rank), job.seed)
    return {}


def _gradients(step: Callable[..., Any], x: Tensor, seed: int, mode: JoinedDraws | None = None) -> dict[str, Tensor]:
    """Names and gradients of the parameters that the step returns."""
    with seeded(seed), mode or nullcontext():
        returned = step(x)
    parameters = (
        dict(returned.named_parameters())
        if isinstance(returned, nn.Module)
        else {str(i): parameter for i, parameter in enumerate(returned)}
    )
    gradients = {name: _whole(p.grad) for name, p in parameters.items() if p.grad is not None}
    if not gradients:
        raise ValueError("the step left no gradients: return the module after backward(), before zero_grad()")
    return gradients


def _whole(gradient: Tensor) -> Tensor:
    """A gradient, gathered if it is sharded; always float64."""
    gather = getattr(gradient, "full_tensor", None)
    whole: Tensor = gradient if gather is None else gather()
    return whole.detach().double().clone()


@contextmanager
def _group(job: Job, rank: int, world: int, name: str) -> Iterator[None]:
    """A gloo group that meets in a file and talks over the loopback interface."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group(
        "gloo",
        init_method=(job.folder / f"meet-{name}").absolute().as_uri(),
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=job.timeout),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _reported(job: Job, name: str) -> Iterator[None]:
    """What is raised goes to a file, for the parent's message."""
    try:
        yield
    except BaseException as error:
        text = f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}"
        (job.folder / f"{name}.error").write_text(text)
        raise SystemExit(1) from error
