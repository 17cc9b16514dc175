"""Reference networks ``u(z, r, t, label=None)``, all differentiable forwards, backwards and twice."""

from __future__ import annotations

from meanflow_ref.models.dit import DiT
from meanflow_ref.models.embedding import TIME_SCALE, Conditioning, TimeEmbedding, time_features
from meanflow_ref.models.mlp import MLP
from meanflow_ref.models.unet import UNet

__all__ = ["MLP", "TIME_SCALE", "Conditioning", "DiT", "TimeEmbedding", "UNet", "time_features"]
