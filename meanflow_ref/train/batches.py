"""The batches of a run: part ``k`` of step ``s`` is a function of (seed, s, k) and of nothing else."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from meanflow_ref.objectives.guidance import drop_labels
from meanflow_ref.train.config import Config
from meanflow_ref.train.data import AbstractSource
from meanflow_ref.train.distributed import Ranks
from meanflow_ref.train.objective import times_of
from meanflow_ref.train.random import generator


class Batch(NamedTuple):
    """What the loss is given: data, noise, times and labels, ``(B, ...)`` each."""

    x: Tensor
    eps: Tensor
    r: Tensor
    t: Tensor
    label: Tensor | None


class Batches:
    """Draws the parts of a step that belong to a rank.

    A step has ``world * accumulate`` parts of equal size. Rank ``k`` has the parts ``k * accumulate`` and on, so that
    one process with ``--accumulate 2`` sees the very parts that two ranks see.

    Args:
        source: The data.
        config: The options.
        ranks: The ranks.

    """

    def __init__(self, source: AbstractSource, config: Config, ranks: Ranks) -> None:
        self.source, self.config, self.ranks = source, config, ranks
        self.times = times_of(config)
        self.rows = config.batch // (ranks.world * config.accumulate)

    def draw(self, step: int, part: int) -> Batch:
        """Part ``part`` (from 0 to ``accumulate - 1``) of this rank at ``step`` (from 1); drawn on the CPU."""
        c, device = self.config, self.ranks.device
        k = self.ranks.rank * c.accumulate + part
        fresh = generator(c.seed, "batch", step, k)
        x, label = self.source.take((step - 1) * c.batch + k * self.rows, self.rows, fresh)
        if c.flip:
            mirrored = torch.rand(self.rows, generator=fresh) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
        if label is not None and c.label_dropout:
            assert self.source.classes is not None
            label = drop_labels(label, c.label_dropout, self.source.classes, fresh)
        eps = torch.randn(x.shape, generator=fresh)
        r, t = self.times.sample(self.rows, fresh)
        moved = (None if a is None else a.to(device, non_blocking=True) for a in (x, eps, r, t, label))
        return Batch(*moved)  # type: ignore[arg-type]
