"""A residual multilayer perceptron: the smallest network that learns an average velocity."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from meanflow_ref.errors import ParameterError, ShapeError
from meanflow_ref.models.embedding import TIME_SCALE, Conditioning


class MLP(nn.Module):
    """Residual perceptron ``u(z, r, t)`` on vectors.

    The conditioning scales and shifts every layer: velocities are sums of products of functions of time and of state,
    and on the plane mixture of the trainer a conditioning that is only added to the state leaves twice the error.

    Args:
        dim: Dimension of a state.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
        classes: Number of classes, or None.
        scale: Highest angular frequency of the time features.

    """

    def __init__(
        self, dim: int, width: int = 256, depth: int = 4, classes: int | None = None, *, scale: float = TIME_SCALE
    ) -> None:
        super().__init__()
        if min(dim, width, depth) < 1:
            raise ParameterError(f"dim = {dim}, width = {width}, depth = {depth}.", "each at least 1")
        self.dim = dim
        self.inlet = nn.Linear(dim, width)
        self.conditioning = Conditioning(width, classes=classes, scale=scale)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.modulation = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.outlet = nn.Linear(width, dim)

    def forward(
        self,
        z: Float[Tensor, "batch dim"],
        r: Float[Tensor, " batch"],
        t: Float[Tensor, " batch"],
        label: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Return ``u``, of ``z``'s shape."""
        if z.dim() != 2 or z.shape[-1] != self.dim:
            raise ShapeError(f"`z` has shape {tuple(z.shape)}.", f"(batch, {self.dim})")
        c = nn.functional.silu(self.conditioning(r, t, label))
        h = self.inlet(z)
        for layer, modulation in zip(self.hidden, self.modulation, strict=True):
            scale, shift = modulation(c).chunk(2, dim=-1)
            h = h + nn.functional.silu(layer(h) * (1 + scale) + shift)
        u: Tensor = self.outlet(h)
        return u
