"""What is measured: a network, a batch and their sizes, drawn alike for correctness tests and for benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from meanflow_ref.models import MLP, DiT, UNet


class Batch(NamedTuple):
    """Data, noise and times of one training step."""

    x: Tensor
    eps: Tensor
    r: Tensor
    t: Tensor


@dataclass(frozen=True)
class Scenario:
    """A network and the shape of its batch.

    Attributes:
        name: What tables call it.
        build: Builds the network.
        event: Shape of one sample.
        batch: Samples of a step.
        about: Sizes, in words.

    """

    name: str
    build: Callable[[], nn.Module]
    event: tuple[int, ...]
    batch: int
    about: str

    def network(
        self, *, seed: int = 0, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> nn.Module:
        """The network with every parameter drawn afresh.

        Zero-initialised layers would make ``u`` and ``du/dt`` vanish, so that a test of them could not fail.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            net = self.build()
        with torch.no_grad():
            for name, p in net.named_parameters():
                noise = torch.randn(p.shape, generator=generator)
                if p.dim() > 1:
                    p.copy_(noise / math.sqrt(p[0].numel()))
                else:
                    # The weight of a norm is near one, a bias near zero.
                    p.copy_(float(name.endswith("weight")) + 0.1 * noise)
        return net.to(device=device, dtype=dtype)

    def data(
        self,
        *,
        seed: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        share: float = 1.0,
    ) -> Batch:
        """A batch with standard normal data and noise; the times in float32 at least.

        Of its rows ``share`` have ``r < t``, one at least.
        """
        generator = torch.Generator().manual_seed(seed)
        x, eps = (torch.randn(self.batch, *self.event, generator=generator, dtype=torch.float64) for _ in range(2))
        times = torch.rand(self.batch, 2, generator=generator, dtype=torch.float64)
        r, t = times.amin(-1), times.amax(-1)
        if share < 1:
            order = torch.randperm(self.batch, generator=generator)
            r = torch.where(order < max(1, round(share * self.batch)), r, t)
        wide = torch.promote_types(dtype, torch.float32)
        return Batch(x.to(device, dtype), eps.to(device, dtype), r.to(device, wide), t.to(device, wide))

    def resized(self, batch: int) -> Scenario:
        """The same with another batch."""
        return replace(self, batch=batch)


# Sized so that a flow-matching step takes some tens of milliseconds on one CPU core: large enough that kernels and
# not Python are timed, small enough that all methods on all networks finish in a few minutes; a quarter of each batch
# is more than one row. The tiny one is the opposite on purpose: there nothing but Python is timed.
SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("mlp", lambda: MLP(64, 384, 4), (64,), 512, "perceptron 64-384x4-64, batch 512"),
        Scenario(
            "dit",
            lambda: DiT(16, 4, 2, 192, 6, 3),
            (4, 16, 16),
            8,
            "transformer (DiT) 192 wide, 6 deep, batch 8 of 64 tokens",
        ),
        Scenario("unet", lambda: UNet(3, 32, (1, 2, 4)), (3, 32, 32), 8, "U-Net 32-64-128, batch 8 of 3x32x32"),
        Scenario("tiny", lambda: MLP(2, 64, 3), (2,), 64, "perceptron 2-64x3-2, batch 64"),
    )
}

# The same networks, small enough to be differentiated in float64 many times a second.
SMALL_SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("mlp", lambda: MLP(5, 16, 2), (5,), 4, "perceptron 5-16x2-5, batch 4"),
        Scenario("dit", lambda: DiT(4, 2, 2, 16, 2, 2), (2, 4, 4), 3, "transformer 16 wide, 2 deep, batch 3 x 4"),
        Scenario("unet", lambda: UNet(2, 8, (1, 2), groups=4), (2, 8, 8), 3, "U-Net 8-16, batch 3 of 2x8x8"),
    )
}
