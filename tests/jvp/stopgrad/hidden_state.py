"""A small network around a function of its hidden state, and batches for it: what recordings are tried on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

F64 = torch.float64
WIDTH = 6


class HiddenState(nn.Module):
    """``u(z, r, t)``, in float64 when ``double()`` is called."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.time, self.last = nn.Linear(1, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.middle = middle

    def hidden(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """What ``middle`` is given."""
        return z + torch.sin(self.time((t - r)[:, None]))

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.last(self.middle(self, self.hidden(z, r, t)))
        return out


def inputs(batch: int = 5) -> tuple[Any, Any]:
    """Primals and tangents, ``(batch, WIDTH)`` the first."""
    generator = torch.Generator().manual_seed(batch)
    z, v = torch.randn(2, batch, WIDTH, dtype=F64, generator=generator)
    times = torch.rand(2, batch, dtype=F64, generator=generator).sort(0).values
    return (z, times[0], times[1]), (v, None, torch.ones(batch, dtype=F64))
