"""The network of a tape: one hidden layer of tanh, so that every derivative has a closed form in any language."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PARAMETERS = ("W1", "b1", "W2", "b2")


@dataclass(frozen=True)
class TanhNetwork:
    """``u(z, r, t) = W2 tanh(W1 [z, r, t] + b1) + b2``.

    Args:
        W1: ``(H, D + 2)``; the last two columns belong to r and t.
        b1: ``(H,)``.
        W2: ``(D, H)``.
        b2: ``(D,)``.

    """

    W1: Array
    b1: Array
    W2: Array
    b2: Array

    @classmethod
    def random(cls, dim: int, hidden: int = 24, seed: int = 0) -> TanhNetwork:
        """A network whose Jacobian is far from symmetric and whose derivatives in r and t differ."""
        g = np.random.default_rng(seed)
        w1 = g.normal(size=(hidden, dim + 2)) / np.sqrt(dim)
        w1[:, dim:] = 1.5 * g.normal(size=(hidden, 2))
        return cls(w1, 0.3 * g.normal(size=hidden), 1.5 * g.normal(size=(dim, hidden)) / np.sqrt(hidden),
                   0.3 * g.normal(size=dim))  # fmt: skip

    def _hidden(self, z: Array, r: Array, t: Array) -> Array:
        return np.tanh(np.concatenate([z, r[:, None], t[:, None]], 1) @ self.W1.T + self.b1)

    def u(self, z: Array, r: Array, t: Array) -> Array:
        """Value, ``(N, D)``."""
        return self._hidden(z, r, t) @ self.W2.T + self.b2

    def derivative(self, z: Array, r: Array, t: Array, dz: Array | None = None, dr: float = 0, dt: float = 0) -> Array:
        """Derivative along ``(dz, dr, dt)``, ``(N, D)``."""
        dim = z.shape[1]
        inner = dr * self.W1[:, dim] + dt * self.W1[:, dim + 1] + np.zeros((len(z), 1))
        if dz is not None:
            inner = inner + dz @ self.W1[:, :dim].T
        return ((1 - self._hidden(z, r, t) ** 2) * inner) @ self.W2.T

    def transposed(self, z: Array, r: Array, t: Array, v: Array) -> Array:
        """``J^T v`` with ``J = du/dz``, ``(N, D)``."""
        return ((1 - self._hidden(z, r, t) ** 2) * (v @ self.W2)) @ self.W1[:, : z.shape[1]]

    def gradients(self, z: Array, r: Array, t: Array, g: Array) -> dict[str, Array]:
        """Gradient to the parameters of ``sum(g * u)``."""
        h = self._hidden(z, r, t)
        inner = (1 - h**2) * (g @ self.W2)
        inputs = np.concatenate([z, r[:, None], t[:, None]], 1)
        return {"W1": inner.T @ inputs, "b1": inner.sum(0), "W2": g.T @ h, "b2": g.sum(0)}
