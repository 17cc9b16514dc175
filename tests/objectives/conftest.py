"""A fixed seed for torch's global generator, which networks are initialised from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20250513)


class SmallNet(nn.Module):
    """Two layers on (z, r, t), with ``tanh`` between and, if wanted, dropout."""

    def __init__(self, dim: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dim + 2, 16), nn.Linear(16, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        inputs = torch.cat([z, torch.stack([r, t], 1).to(z.dtype)], 1)
        out: Tensor = self.second(self.dropout(torch.tanh(self.first(inputs))))
        return out


@dataclass
class Batch:
    """Inputs of a loss; rows 0 and 3 have r = t."""

    x: Tensor
    eps: Tensor
    r: Tensor
    t: Tensor

    @property
    def args(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.x, self.eps, self.r, self.t


@pytest.fixture
def small_net() -> Callable[..., SmallNet]:
    """Maker of seeded float64 networks."""

    def make(dim: int = 3, dropout: float = 0.0) -> SmallNet:
        torch.manual_seed(7)
        return SmallNet(dim, dropout).double()

    return make


@pytest.fixture
def net(small_net: Callable[..., SmallNet]) -> SmallNet:
    return small_net()


@pytest.fixture
def batch(generator: torch.Generator) -> Batch:
    x, eps = torch.randn(2, 8, 3, dtype=torch.float64, generator=generator)
    r, t = torch.rand(2, 8, dtype=torch.float64, generator=generator).sort(0).values
    r[[0, 3]] = t[[0, 3]]
    return Batch(x, eps, r, t)


def gradient(loss: Tensor, net: nn.Module) -> Tensor:
    """Gradient of a loss in all parameters, as one vector."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)])


@pytest.fixture
def gradient_of() -> Callable[[Tensor, nn.Module], Tensor]:
    return gradient
