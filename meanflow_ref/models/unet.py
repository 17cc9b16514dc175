"""A small convolutional U-Net with group norms."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from meanflow_ref.errors import ParameterError, ShapeError
from meanflow_ref.models.embedding import TIME_SCALE, Conditioning


class GroupNorm(nn.GroupNorm):
    """Group norm by way of the layer-norm kernel.

    The same function as :class:`torch.nn.GroupNorm`, whose own kernel cannot be traced by ``torch.compile`` under
    ``torch.func.jvp`` (torch 2.13: an internal assertion about inference mode).
    """

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        """Return ``x`` with each group of channels normalised, then scaled and shifted by channel."""
        grouped = x.reshape(x.shape[0], self.num_groups, -1)
        normal = nn.functional.layer_norm(grouped, grouped.shape[-1:], eps=self.eps).reshape(x.shape)
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


class ResidualBlock(nn.Module):
    """Two convolutions behind group norms, shifted by the conditioning."""

    def __init__(self, inputs: int, outputs: int, conditioning: int, groups: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_in = GroupNorm(groups, inputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.shift = nn.Linear(conditioning, outputs)
        self.norm_out = GroupNorm(groups, outputs)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        # A block starts as its skip connection.
        nn.init.zeros_(self.conv_out.weight)
        bias = self.conv_out.bias
        assert bias is not None
        nn.init.zeros_(bias)

    def forward(self, x: Float[Tensor, "batch inputs h w"], c: Tensor) -> Float[Tensor, "batch outputs h w"]:
        """Return the features after the block; ``c`` is the activated conditioning, ``(batch, conditioning)``."""
        h = self.conv_in(nn.functional.silu(self.norm_in(x))) + self.shift(c)[:, :, None, None]
        h = self.conv_out(self.dropout(nn.functional.silu(self.norm_out(h))))
        features: Tensor = self.skip(x) + h
        return features


class UNet(nn.Module):
    """Convolutional ``u(z, r, t)`` on images: down, through, and up again with skip connections.

    Args:
        channels: Channels of an image.
        width: Channels of the finest level; a multiple of ``groups``.
        multipliers: Channels of each level in units of ``width``, finest first; the height and width of an image must
            be divisible by ``2 ** (len(multipliers) - 1)``.
        classes: Number of classes, or None.
        groups: Groups of the group norms.
        blocks: Residual blocks of each level, on the way down and again on the way up; each hands its features across.
        dropout: Probability that a feature is dropped in a block, in [0, 1).
        scale: Highest angular frequency of the time features.

    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        classes: int | None = None,
        *,
        groups: int = 8,
        blocks: int = 1,
        dropout: float = 0.0,
        scale: float = TIME_SCALE,
    ) -> None:
        super().__init__()
        if blocks < 1 or not 0 <= dropout < 1:
            raise ParameterError(f"blocks = {blocks}, dropout = {dropout}.", "at least one block, dropout in [0, 1)")
        if not multipliers or min(multipliers) < 1:
            raise ParameterError(f"multipliers = {tuple(multipliers)}.", "at least one level, each at least 1")
        if groups < 1 or width % groups:
            raise ParameterError(f"width = {width}, groups = {groups}.", "width a multiple of groups")
        self.channels = channels
        self.stride = 2 ** (len(multipliers) - 1)
        levels = [width * m for m in multipliers]
        vector = 4 * width
        self.conditioning = Conditioning(vector, classes=classes, scale=scale)
        self.inlet = nn.Conv2d(channels, levels[0], 3, padding=1)
        self.blocks = blocks
        self.down = nn.ModuleList(ResidualBlock(n, n, vector, groups, dropout) for n in levels for _ in range(blocks))
        pairs = list(pairwise(levels))
        self.shrink = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairs)
        # The first block of a level takes what comes up from the coarser one, the others what the one before made.
        self.up = nn.ModuleList(
            ResidualBlock(fine + (fine if i else coarse), fine, vector, groups, dropout)
            for fine, coarse in reversed(pairs)
            for i in range(blocks)
        )
        self.norm = GroupNorm(groups, levels[0])
        self.outlet = nn.Conv2d(levels[0], channels, 3, padding=1)

    def forward(
        self,
        z: Float[Tensor, "batch channels h w"],
        r: Float[Tensor, " batch"],
        t: Float[Tensor, " batch"],
        label: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels h w"]:
        """Return ``u``, of ``z``'s shape."""
        if z.dim() != 4 or z.shape[1] != self.channels or z.shape[2] % self.stride or z.shape[3] % self.stride:
            raise ShapeError(
                f"`z` has shape {tuple(z.shape)}.",
                f"(batch, {self.channels}, h, w) with h and w multiples of {self.stride}",
            )
        c = nn.functional.silu(self.conditioning(r, t, label))
        h = self.inlet(z)
        finer: list[Tensor] = []
        for i, block in enumerate(self.down):
            if i and i % self.blocks == 0:
                h = self.shrink[i // self.blocks - 1](h)
            h = block(h, c)
            finer.append(h)
        # The coarsest level has no way up of its own.
        del finer[-self.blocks :]
        for i, block in enumerate(self.up):
            if i % self.blocks == 0:
                h = nn.functional.interpolate(h, scale_factor=2.0, mode="nearest")
            h = block(torch.cat([h, finer.pop()], dim=1), c)
        u: Tensor = self.outlet(nn.functional.silu(self.norm(h)))
        return u
