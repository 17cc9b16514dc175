"""Random numbers for a shard of a batch that are those of its rows in the joined batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SIZED = {torch.rand, torch.randn}
_LIKE = {torch.rand_like: torch.rand, torch.randn_like: torch.randn}
_IN_PLACE = {Tensor.normal_, Tensor.uniform_}


class JoinedDraws(TorchFunctionMode):
    """Draws of ``rows`` rows become the rank's part of a draw for all ranks' rows, from one seed on every rank.

    Sees ``rand``, ``randn``, their ``_like`` forms, ``randint``, ``normal_`` and ``uniform_``; neither dropout nor
    permutations nor numpy.
    """

    def __init__(self, rank: int, world: int, rows: int) -> None:
        super().__init__()
        self.rank, self.world, self.rows = rank, world, rows

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Intercept a draw; hand on everything else."""
        options = dict(kwargs or {})
        if func in _SIZED:
            size = list(args[0] if len(args) == 1 and not isinstance(args[0], int) else args)
            if size and size[0] == self.rows and "size" not in options:
                return self._part(func(size[0] * self.world, *size[1:], **options))
        elif func is torch.randint and "size" not in options:
            *bounds, size = args
            if len(size) and size[0] == self.rows:
                return self._part(func(*bounds, (size[0] * self.world, *size[1:]), **options))  # type: ignore[call-overload]
        elif func in _LIKE and args[0].dim() and args[0].shape[0] == self.rows:
            x = args[0]
            options = {"dtype": x.dtype, "device": x.device, **options}
            options.pop("memory_format", None)
            return self._part(_LIKE[func](self.rows * self.world, *x.shape[1:], **options))
        elif func in _IN_PLACE and args[0].dim() and args[0].shape[0] == self.rows:
            x = args[0]
            joined = func(x.new_empty(self.rows * self.world, *x.shape[1:]), *args[1:], **options)
            with torch.no_grad():
                return x.copy_(self._part(joined))
        return func(*args, **options)

    def _part(self, joined: Tensor) -> Tensor:
        return joined[self.rank * self.rows : (self.rank + 1) * self.rows].clone()
