r"""Time features and the conditioning vector that every model shares.

A MeanFlow network is differentiated in time, so the time embedding decides how stiff :math:`du/dt` is. The features
are :math:`\cos(\omega_k t), \sin(\omega_k t)`, and since :math:`\cos^2+\sin^2=1` their speed

.. math:: \lVert\partial_t\,\mathrm{features}(t)\rVert_2 = \Big(\sum_k \omega_k^2\Big)^{1/2}

does not depend on t: the highest frequency alone sets it. The embedding that diffusion transformers inherited (times
multiplied by 1000, base 10000) has :math:`\omega_0 = 1000`, and its 64 features move 153 times faster than ours; a
network on top of them has a tangent, and hence a target :math:`v-(t-r)\,du/dt`, larger by about that factor, which is
where many training runs diverge. :data:`TIME_SCALE` below is the only place that sets :math:`\omega_0`.

Times are embedded in float32 or better whatever the network's dtype: bfloat16 has 8 bits, so that neighbouring times
near 1 are 1/256 apart, and a difference ``t - r`` loses most of them. Under autocast the whole conditioning stays in
the dtype of its weights.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from meanflow_ref.errors import NetworkError, ParameterError, ShapeError

# Highest angular frequency of the time features, in radians over [0, 1]. On a ring of eight modes in the plane, where
# E|u|^2 = 1.6, a perceptron with scales of 4, 16 and 64 was left with E|u_theta - u|^2 = 0.066, 0.094 and 1.4.
TIME_SCALE = 4.0
# Ratio of the highest to the lowest angular frequency.
TIME_BASE = 16.0


def time_features(
    t: Float[Tensor, " batch"], count: int, *, scale: float = TIME_SCALE, base: float = TIME_BASE
) -> Float[Tensor, "batch features"]:
    r"""Cosines and sines of ``t`` at ``count / 2`` frequencies, geometric from ``scale`` down to ``scale / base``.

    Args:
        t: Times in [0, 1], ``(batch,)``.
        count: Number of features; even.
        scale: Highest angular frequency, in radians per unit of time.
        base: Ratio of the highest to the lowest frequency.

    Returns:
        ``(batch, count)``, in float32, or in float64 where ``t`` is; differentiable in ``t`` to any order.

    """
    # float64 stays, anything below float32 is raised.
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    half = count // 2
    exponents = torch.linspace(0, 1, half, dtype=t.dtype, device=t.device)
    phases = t[:, None] * (scale * base**-exponents)
    return torch.cat([phases.cos(), phases.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Two-layer network on the features of one time."""

    def __init__(self, width: int, *, features: int = 64, scale: float = TIME_SCALE) -> None:
        super().__init__()
        if features < 2 or features % 2:
            raise ParameterError(f"features = {features}.", "an even number of time features, at least 2")
        self.features, self.scale = features, scale
        self.hidden = nn.Linear(features, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Float[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        """Return the embedding of ``t``, in the dtype of the weights."""
        features = time_features(t, self.features, scale=self.scale).to(self.hidden.weight.dtype)
        embedding: Tensor = self.out(nn.functional.silu(self.hidden(features)))
        return embedding


class Conditioning(nn.Module):
    """The vector that tells a network ``(r, t, label)``: embeddings of ``t``, of ``t - r``, and of the class, added.

    Args:
        width: Length of the vector.
        classes: Number of classes, or None for an unconditional network. Index ``classes`` is the null class, which
            ``label=None`` means as well.
        scale: Highest angular frequency of the time features; see the module.

    """

    def __init__(self, width: int, *, classes: int | None = None, scale: float = TIME_SCALE) -> None:
        super().__init__()
        if width < 1:
            raise ParameterError(f"width = {width}.", "at least 1")
        if classes is not None and classes < 1:
            raise ParameterError(f"classes = {classes}.", "at least 1, or None for an unconditional network")
        self.classes = classes
        self.time = TimeEmbedding(width, scale=scale)
        self.duration = TimeEmbedding(width, scale=scale)
        self.label = None if classes is None else nn.Embedding(classes + 1, width)

    def forward(
        self, r: Float[Tensor, " batch"], t: Float[Tensor, " batch"], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch width"]:
        """Return the conditioning vector of each row, in the dtype of the weights."""
        if r.dim() != 1 or r.shape != t.shape:
            raise ShapeError(
                f"`r` has shape {tuple(r.shape)}, `t` has shape {tuple(t.shape)}.", "one r and one t a row: (batch,)"
            )
        # The difference is taken in float32 or better: in bfloat16 it would cancel.
        wide = torch.promote_types(t.dtype, torch.float32)
        with torch.autocast(t.device.type, enabled=False):
            vector: Tensor = self.time(t) + self.duration(t.to(wide) - r.to(wide))
        if self.label is None:
            if label is not None:
                raise NetworkError(
                    "an unconditional network was given a label.", "label=None", "build it with classes=..."
                )
            return vector
        if label is None:
            label = torch.full(t.shape, self.null_class, dtype=torch.long, device=t.device)
        conditioned: Tensor = vector + self.label(label)
        return conditioned

    @property
    def null_class(self) -> int:
        """Index of the class that stands for "no class"."""
        if self.classes is None:
            raise NetworkError("an unconditional network has no null class.", "classes=...")
        return self.classes
