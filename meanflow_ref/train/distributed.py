"""Ranks: one process, or several that ``torchrun`` started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from meanflow_ref.errors import ParameterError
from meanflow_ref.train.config import Config


@dataclass(frozen=True)
class Ranks:
    """The processes of a run.

    Attributes:
        rank: This one, from 0.
        world: How many there are.
        device: Where this one computes.

    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    def mean(self, numbers: Tensor) -> Tensor:
        """Mean over the ranks."""
        if self.world == 1:
            return numbers
        numbers = numbers.clone()
        torch.distributed.all_reduce(numbers)
        return numbers / self.world

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            torch.distributed.barrier()


@contextmanager
def open_ranks(config: Config) -> Iterator[Ranks]:
    """The ranks, joined under ``torchrun`` and alone otherwise.

    Raises:
        ParameterError: If the device is not there, or the batch cannot be cut into equal parts.

    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if config.batch % (world * config.accumulate):
        raise ParameterError(
            f"--batch {config.batch} over {world} ranks and --accumulate {config.accumulate}.",
            "a batch that these divide",
            f"--batch {max(1, config.batch // (world * config.accumulate)) * world * config.accumulate}",
        )
    if world == 1 and "RANK" not in os.environ:
        if config.parallel == "fsdp":
            raise ParameterError("--parallel fsdp of one process.", "ranks", "torchrun --nproc-per-node N -m ...")
        yield Ranks(0, 1, find_device(config.device))
        return
    if config.parallel == "fsdp":
        require_shardable(config)
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    device = find_device(config.device)
    if device.type == "cuda":
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, timeout=timedelta(seconds=config.rank_timeout))
    try:
        yield Ranks(rank, world, device)
        # None leaves while another still speaks to it. After an error there is nobody to wait for.
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


def find_device(name: str) -> torch.device:
    """The device of that name, if it is there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).add_(1)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # torch says what is wrong in its first line; the rest is for its own developers.
        raise ParameterError(
            f"--device {name} cannot be used: {str(error).splitlines()[0]}", "a device of this machine", "--device cpu"
        ) from error
    return device


def require_shardable(config: Config) -> None:
    """Raise if the derivative cannot be taken through sharded weights.

    Double backward differentiates a graph whose weights have been freed again by then (torch 2.13: "setStorage: out of
    bounds"). Forward mode is done with each block while its weights are there.
    """
    if config.jvp == "double_backward" and config.objective == "meanflow":
        raise ParameterError(
            "--parallel fsdp with --jvp double_backward: sharded weights are gone before its second pass.",
            "a forward-mode backend",
            "--jvp stopgrad",
        )


def shard(net: nn.Module) -> None:
    """FSDP2: shard the weights of a network, block by block, in place."""
    from torch.distributed.fsdp import fully_shard

    for child in net.modules():
        if isinstance(child, nn.ModuleList):
            for block in child:
                fully_shard(block)
    fully_shard(net)


def replicate(step: nn.Module, ranks: Ranks) -> nn.Module:
    """DDP around the loss: gradients are averaged over the ranks as they are made."""
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(step, device_ids=[ranks.device] if ranks.device.type == "cuda" else None)


def unsynchronised(step: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
    """Context of a backward pass whose gradients need not be reduced, since more follow."""
    if last:
        return nullcontext()
    no_sync = getattr(step, "no_sync", None)
    return no_sync() if no_sync is not None else nullcontext()


def whole(x: Tensor) -> Tensor:
    """A tensor on the CPU, gathered if it is sharded; every rank must ask for it."""
    full = getattr(x, "full_tensor", None)
    return (x if full is None else full()).detach().cpu()


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a tensor that may be sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)
