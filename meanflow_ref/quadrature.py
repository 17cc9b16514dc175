"""Gauss-Legendre nodes on [0, 1], which the paths, the fields and the truth share."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=32)
def _nodes(n: int) -> tuple[Tensor, Tensor]:
    x, w = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


def gauss_legendre(
    n: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the n-point rule on [0, 1]: exact for polynomials up to degree 2n - 1."""
    nodes, weights = _nodes(n)
    return nodes.to(device, dtype), weights.to(device, dtype)


def leading_gauss_legendre(n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights as ``(n, 1, ..., 1)``: a leading dimension before those of ``like``, in its kind."""
    nodes, weights = gauss_legendre(n, dtype=like.dtype, device=like.device)
    shape = (-1, *[1] * like.dim())
    return nodes.reshape(shape), weights.reshape(shape)
