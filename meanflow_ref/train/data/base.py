"""What a source of data owes: rows by their place in one endless, seeded order."""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor

from meanflow_ref.errors import ParameterError
from meanflow_ref.fields import AbstractDataField
from meanflow_ref.train.config import Config
from meanflow_ref.train.random import generator

Rows = tuple[Tensor, Tensor | None]


class AbstractSource(abc.ABC):
    """Data of one shape, with labels or without.

    Attributes:
        shape: Shape of a sample.
        classes: Number of classes, or None.
        size: Number of samples, or None where every draw is fresh.
        field: The exact field behind the data, or None.

    """

    shape: tuple[int, ...]
    classes: int | None = None
    size: int | None = None
    field: AbstractDataField | None = None

    @abc.abstractmethod
    def take(self, position: int, n: int, fresh: torch.Generator) -> Rows:
        """Rows ``position`` to ``position + n - 1`` of the order, float32 and int64 on the CPU.

        Args:
            position: Rows taken by earlier steps, over all ranks.
            n: Number of rows.
            fresh: Randomness of this batch, for what is drawn anew.

        """

    @abc.abstractmethod
    def reference(self, n: int, seed: int) -> Rows:
        """At most ``n`` data samples to judge by, without augmentation."""

    def require(self, config: Config) -> None:
        """Raise unless the source can serve these options."""
        if self.size is not None and config.batch > self.size:
            raise ParameterError(
                f"--batch is {config.batch}, the data have {self.size} samples.",
                "a batch no larger than the data",
                f"--batch {self.size}",
            )
        if config.velocity == "marginal" and self.field is None:
            raise ParameterError(
                f"--velocity marginal of --data {config.data}.", "an exact field, whose v is known", "leave it out"
            )
        if self.classes is None and (config.guided or config.label_dropout):
            raise ParameterError(
                f"guidance or label dropout (--omega {config.omega}, --kappa {config.kappa}, --label-dropout "
                f"{config.label_dropout}) of data without classes.",
                "data with classes",
                "--omega 1 --kappa 0 --label-dropout 0",
            )
        if config.guided and not config.label_dropout:
            raise ParameterError(
                "guidance with --label-dropout 0.",
                "some dropped labels: without them the null class is never trained",
                "--label-dropout 0.1",
            )
        if config.flip and len(self.shape) != 3:
            raise ParameterError(f"--flip of samples of shape {self.shape}.", "images", "leave it out")


class Fresh(AbstractSource):
    """An exact field: every batch is drawn anew, and there are no epochs."""

    def __init__(self, field: AbstractDataField) -> None:
        self.field: AbstractDataField = field
        self.shape = (field.dim,)

    def take(self, position: int, n: int, fresh: torch.Generator) -> Rows:
        """``n`` exact samples."""
        return self.field.sample_data(n, fresh).float(), None

    def reference(self, n: int, seed: int) -> Rows:
        """``n`` exact samples."""
        return self.field.sample_data(n, generator(seed, "reference")).float(), None


class AbstractFinite(AbstractSource):
    """A fixed set of samples, shuffled anew each epoch by (seed, epoch)."""

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ParameterError("the data are empty.", "at least one sample", "")
        self.size: int = size
        self._seed = seed
        self._epoch: tuple[int, Tensor] | None = None

    @abc.abstractmethod
    def at(self, rows: Tensor) -> Rows:
        """The samples of these indices."""

    def order(self, position: int, n: int) -> Tensor:
        """Indices of rows ``position`` to ``position + n - 1``; each epoch has every sample once."""
        parts = []
        while n:
            epoch, start = divmod(position, self.size)
            part = self._permutation(epoch)[start : start + n]
            parts.append(part)
            position, n = position + len(part), n - len(part)
        return torch.cat(parts)

    def take(self, position: int, n: int, fresh: torch.Generator) -> Rows:
        """The next samples of the order."""
        return self.at(self.order(position, n))

    def reference(self, n: int, seed: int) -> Rows:
        """``n`` different samples, or all."""
        return self.at(torch.randperm(self.size, generator=generator(seed, "reference"))[:n])

    def _permutation(self, epoch: int) -> Tensor:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, torch.randperm(self.size, generator=generator(self._seed, "order", epoch))
        return self._epoch[1]


class Arrays(AbstractFinite):
    """Samples in memory, or mapped from a file.

    Args:
        x: Samples, indexable by an int64 tensor, ``(N, *shape)``.
        label: Labels in ``0..classes - 1``, ``(N,)``, or None.
        seed: Of the order.
        scale: Factor on the samples.

    Raises:
        ParameterError: If the labels do not fit.

    """

    def __init__(self, x: Any, label: Tensor | None, seed: int, *, scale: float = 1.0) -> None:
        super().__init__(len(x), seed)
        self.x, self.label, self.scale = x, label, scale
        self.shape = tuple(x.shape[1:])
        if label is not None:
            self.classes = require_labels(label, len(x))

    def at(self, rows: Tensor) -> Rows:
        """The samples of these indices."""
        x = torch.as_tensor(self.x[rows] if isinstance(self.x, Tensor) else self.x[rows.numpy()])
        return self.scale * x.float(), None if self.label is None else self.label[rows]


def require_labels(label: Tensor, n: int) -> int:
    """Number of classes, if there is one label for each of ``n`` samples and each is a class."""
    if label.is_floating_point() or label.shape != (n,):
        raise ParameterError(
            f"labels of shape {tuple(label.shape)} and dtype {label.dtype} for {n} samples.", f"integers, ({n},)", ""
        )
    if int(label.min()) < 0:
        raise ParameterError(f"labels range over [{int(label.min())}, {int(label.max())}].", "classes from 0", "")
    return int(label.max()) + 1
