"""DiT-B/4 on 32 x 32 latents under bfloat16 autocast, the network of the GPU's table of JVP costs.

meanflow-ref bench benchmarks.dit_b4:net --shape 4,32,32 --batch 256 --device cuda --out benchmarks/results/DEVICE
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from meanflow_ref.models import DiT


class UnderAutocast(nn.Module):
    """A float32 network whose products run in bfloat16; in float64, the reference for du/dt, it is left alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """Return ``u``, of ``z``'s shape and dtype."""
        with torch.autocast(z.device.type, torch.bfloat16, enabled=z.dtype == torch.float32):
            u: Tensor = self.net(z, r, t)
        return u.to(z.dtype)


def net(width: int = 768, depth: int = 12, heads: int = 12) -> nn.Module:
    """The network: 130 million parameters, 64 tokens of 4 x 4 patches."""
    return UnderAutocast(DiT(32, 4, 4, width, depth, heads))
