r"""Laws of the pair of times ``(r, t)``.

Each law draws two independent times a, b with distribution function F, takes t = max(a, b) and r = min(a, b), and
sets r = t in a share of the rows. These rows keep t, so that

.. math:: P(t \le x) = F^2, \qquad P(r \le x) = q F^2 + (1 - q)\,(1 - (1 - F)^2), \qquad q = \texttt{equal}.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from meanflow_ref.errors import ParameterError

SHARES = ("exact", "bernoulli")


@dataclass(frozen=True)
class AbstractTimePair(abc.ABC):
    """A law of ``(r, t)`` with ``0 <= r <= t <= 1``.

    Args:
        equal: Share of rows with r = t, in [0, 1]. (The paper quotes the share of r != t: its 25 % is ``equal=0.75``.)
        share: ``"exact"``: ``round(equal n)`` rows of every batch, at random positions; ``"bernoulli"``: each row
            for itself. The rows are never the first ones: labels dropped by index would then fall on them.

    """

    equal: float = field(default=0.75, kw_only=True)
    share: Literal["exact", "bernoulli"] = field(default="exact", kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.equal <= 1:
            raise ParameterError(f"equal={self.equal!r}.", "a share of rows, in [0, 1]", "")
        if self.share not in SHARES:
            raise ParameterError(f"share={self.share!r}.", 'share="exact" or share="bernoulli"', "")

    @abc.abstractmethod
    def cdf(self, x: Tensor) -> Tensor:
        """Distribution function F of one draw, for ``x`` in [0, 1]."""

    @abc.abstractmethod
    def _draw(self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor: ...

    def cdf_t(self, x: Tensor) -> Tensor:
        """Distribution function of t, the larger of two draws."""
        return self.cdf(x) ** 2

    def cdf_r(self, x: Tensor) -> Tensor:
        """Distribution function of r: of the smaller draw, or of t in the share of rows with r = t."""
        single = self.cdf(x)
        return self.equal * single**2 + (1 - self.equal) * single * (2 - single)

    @property
    def equal_share(self) -> float:
        """Probability that a row has r = t. For the exact share, in the limit of a large batch."""
        return self.equal

    def equal_rows(self, n: int, generator: torch.Generator) -> Tensor:
        """Which rows have r = t: a mask, ``(n,)``, independent of the row's index and of its times."""
        if self.share == "bernoulli":
            return torch.rand(n, generator=generator, device=generator.device) < self.equal
        rows = torch.zeros(n, dtype=torch.bool, device=generator.device)
        chosen = torch.randperm(n, generator=generator, device=generator.device)
        rows[chosen[: math.floor(self.equal * n + 0.5)]] = True
        return rows

    def sample(
        self,
        n: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw ``n`` pairs.

        Args:
            n: Number of rows, at least 1.
            generator: Source of randomness. The draws happen on its device, so that a CPU generator gives the same
                times for every ``device``.
            dtype: Of the result. The draws are in float32 at least; rounding to a lower precision keeps r <= t but
                makes more of them equal (0.3 % of pairs in bfloat16).
            device: Of the result; the generator's by default.

        Returns:
            ``(r, t)``, each ``(n,)``.

        """
        if n < 1:
            raise ParameterError(f"n={n!r} rows.", "at least one", "")
        draws = self._draw((2, n), generator, torch.promote_types(dtype, torch.float32))
        t = torch.maximum(draws[0], draws[1])
        r = torch.where(self.equal_rows(n, generator), t, torch.minimum(draws[0], draws[1]))
        return r.to(device=device, dtype=dtype), t.to(device=device, dtype=dtype)


@dataclass(frozen=True)
class UniformPair(AbstractTimePair):
    """Two uniform draws on [0, 1], sorted."""

    def cdf(self, x: Tensor) -> Tensor:
        """``x``."""
        return x.clamp(0, 1)

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)


@dataclass(frozen=True)
class LogitNormalPair(AbstractTimePair):
    """Two draws of ``sigmoid(N(mean, std^2))``, sorted; the paper's law is ``LogitNormalPair(-0.4, 1.0)``.

    Args:
        mean: Mean of the logit; negative leans towards data.
        std: Standard deviation of the logit, positive.
        equal: See :class:`AbstractTimePair`.
        share: See :class:`AbstractTimePair`.

    """

    mean: float = -0.4
    std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.mean) or not 0 < self.std < math.inf:
            raise ParameterError(f"mean={self.mean!r}, std={self.std!r}.", "a finite mean and a positive std", "")

    def cdf(self, x: Tensor) -> Tensor:
        """``Phi((logit(x) - mean)/std)``."""
        scores = (torch.logit(x.clamp(0, 1)) - self.mean) / self.std
        probability: Tensor = torch.special.ndtr(scores)
        return probability

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        normal = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
        return torch.sigmoid(self.mean + self.std * normal)
