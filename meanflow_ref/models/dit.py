"""A diffusion transformer: patches, attention, and adaptive layer norms that start as the identity (adaLN-zero)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from meanflow_ref.errors import ParameterError, ShapeError
from meanflow_ref.models.embedding import TIME_SCALE, Conditioning

# (batch, heads, tokens, channels) each, to the same shape.
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by two matrix products and a softmax.

    Fused kernels (flash, memory-efficient) have no forward derivative in PyTorch; this composition has, at the price
    of the tokens-by-tokens matrix.
    """
    scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
    return torch.matmul(scores.softmax(dim=-1), v)


def position_features(side: int, width: int) -> Float[Tensor, "tokens width"]:
    """Fixed sines and cosines of the row and the column of each patch, ``(side * side, width)``, in float32."""
    quarter = width // 4
    frequencies = 10_000.0 ** -(torch.arange(quarter) / quarter)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    phases = [position.reshape(-1, 1) * frequencies for position in (row, column)]
    return torch.cat([f for phase in phases for f in (phase.sin(), phase.cos())], dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale the tokens of each row, ``x (1 + scale) + shift``."""
    return x * (1 + scale[:, None]) + shift[:, None]


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens."""

    def __init__(self, width: int, heads: int, attention: Attention) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """Return the attended tokens."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self.attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        attended: Tensor = self.out(mixed)
        return attended


class Block(nn.Module):
    """Attention and perceptron, each behind a norm that the conditioning shifts, scales and gates."""

    def __init__(self, width: int, heads: int, expansion: int, attention: Attention) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = SelfAttention(width, heads, attention)
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, expansion * width), nn.GELU(approximate="tanh"), nn.Linear(expansion * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)
        # adaLN-zero: the gates start at zero, so that a block starts as the identity.
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Float[Tensor, "batch tokens width"], c: Tensor) -> Float[Tensor, "batch tokens width"]:
        """Return the tokens after the block; ``c`` is the activated conditioning, ``(batch, width)``."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c).chunk(6, dim=-1)
        x = x + gate_a[:, None] * self.attention(modulate(self.norm_attention(x), shift_a, scale_a))
        x = x + gate_m[:, None] * self.mlp(modulate(self.norm_mlp(x), shift_m, scale_m))
        return x


class DiT(nn.Module):
    """Diffusion transformer ``u(z, r, t)`` on square images.

    Args:
        size: Height and width of an image.
        channels: Channels of an image.
        patch: Height and width of a patch; divides ``size``.
        width: Width of a token; a multiple of 4 and of ``heads``.
        depth: Number of blocks.
        heads: Number of attention heads.
        classes: Number of classes, or None.
        expansion: Hidden width of a block's perceptron, in units of ``width``.
        attention: What mixes the tokens; anything with a forward derivative.
        scale: Highest angular frequency of the time features.

    """

    def __init__(
        self,
        size: int,
        channels: int = 4,
        patch: int = 2,
        width: int = 192,
        depth: int = 4,
        heads: int = 3,
        classes: int | None = None,
        *,
        expansion: int = 4,
        attention: Attention = softmax_attention,
        scale: float = TIME_SCALE,
    ) -> None:
        super().__init__()
        if patch < 1 or size % patch:
            raise ParameterError(f"patch = {patch} does not divide size = {size}.", "size a multiple of patch")
        if width % 4 or width % heads:
            raise ParameterError(f"width = {width}, heads = {heads}.", "width a multiple of 4 and of heads")
        self.size, self.channels, self.patch = size, channels, patch
        self.inlet = nn.Linear(channels * patch * patch, width)
        self.positions: Tensor
        self.register_buffer("positions", position_features(size // patch, width), persistent=False)
        self.conditioning = Conditioning(width, classes=classes, scale=scale)
        self.blocks = nn.ModuleList(Block(width, heads, expansion, attention) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.outlet = nn.Linear(width, channels * patch * patch)
        for layer in (self.modulation, self.outlet):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        z: Float[Tensor, "batch channels size size"],
        r: Float[Tensor, " batch"],
        t: Float[Tensor, " batch"],
        label: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels size size"]:
        """Return ``u``, of ``z``'s shape."""
        if z.shape[1:] != (self.channels, self.size, self.size):
            raise ShapeError(f"`z` has shape {tuple(z.shape)}.", f"(batch, {self.channels}, {self.size}, {self.size})")
        c = nn.functional.silu(self.conditioning(r, t, label))
        x = self.inlet(self._to_patches(z)) + self.positions
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.modulation(c).chunk(2, dim=-1)
        return self._to_image(self.outlet(modulate(self.norm(x), shift, scale)))

    def _to_patches(self, z: Tensor) -> Tensor:
        """Cut images into rows of patches, ``(B, C, H, W) -> (B, tokens, C p p)``."""
        side, p = self.size // self.patch, self.patch
        z = z.reshape(z.shape[0], self.channels, side, p, side, p)
        return z.permute(0, 2, 4, 1, 3, 5).reshape(z.shape[0], side * side, self.channels * p * p)

    def _to_image(self, x: Tensor) -> Tensor:
        """Undo :meth:`_to_patches`."""
        side, p = self.size // self.patch, self.patch
        x = x.reshape(x.shape[0], side, side, self.channels, p, p)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(x.shape[0], self.channels, self.size, self.size)
