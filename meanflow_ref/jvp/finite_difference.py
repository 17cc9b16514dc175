r"""JVP by finite differences of whole network evaluations, for a network that no automatic differentiation can enter.

The step along the tangents balances truncation :math:`O(h^k)` against rounding :math:`O(\epsilon/h)`, both relative to
quantities of order one, which states, times and velocities of a generative model are: :math:`h = \epsilon^{1/(k+1)}`,
rounded to a power of two so that ``t + h`` is nearly exact.

========  ==========  ==================  ==================
order k   points      h, float64 (error)  h, float32 (error)
========  ==========  ==================  ==================
1         2           2^-26 (1e-8)        2^-12 (3e-4)
2         2 + centre  2^-17 (6e-11)       2^-8  (2e-5)
4         4 + centre  2^-10 (1e-12)       2^-5  (4e-6)
========  ==========  ==================  ==================

The errors grow with the derivatives of order k + 1: a time embedding of high frequency (``1000 t``) wants a smaller
step and tolerates none in low precision. bfloat16 and float16 leave an error of tens of per cent at any step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from meanflow_ref._typing import TensorFunction
from meanflow_ref.errors import ParameterError
from meanflow_ref.jvp._moving import moving_part
from meanflow_ref.jvp.rng import replayed_rng


@dataclass(frozen=True)
class FiniteDifference:
    """A JVP backend by finite differences along the tangents.

    Args:
        step: Step along the tangents; ``None`` chooses by dtype and order.
        order: 1 (one-sided, ahead), 2 or 4 (central). The network is evaluated up to ``2 step`` outside [0, 1].

    Raises:
        ParameterError: If the step is not positive or the order is not 1, 2 or 4.

    """

    step: float | None = None
    order: int = 2

    # order -> offset in steps: weight. The centre (offset 0) reuses u.
    stencils: ClassVar[dict[int, dict[int, float]]] = {
        1: {0: -1.0, 1: 1.0},
        2: {-1: -0.5, 1: 0.5},
        4: {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12},
    }

    def __post_init__(self) -> None:
        if self.step is not None and not 0 < self.step < math.inf:
            raise ParameterError(f"step={self.step!r}.", "a positive number, or None", "")
        if self.order not in self.stencils:
            raise ParameterError(f"order={self.order!r}.", "order 1, 2 or 4", "")

    def step_for(self, dtype: torch.dtype) -> float:
        """Step used for primals of ``dtype``."""
        if self.step is not None:
            return self.step
        return float(2.0 ** round(math.log2(torch.finfo(dtype).eps) / (self.order + 1)))

    def __call__(
        self, fn: TensorFunction, primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...], /
    ) -> tuple[Tensor, Tensor]:
        """Value and difference quotient. Source: mf:8.

        Random layers draw the same numbers in every evaluation.

        Args:
            fn: A function of ``primals`` that returns one tensor.
            primals: Where to differentiate.
            tangents: Direction, each of its primal's shape and dtype, or ``None`` for zero.

        Returns:
            ``u``, which carries the graph to the parameters that ``fn`` closes over, and ``du_dt``, which carries none.

        """
        of_moving, at, along = moving_part(fn, primals, tangents)
        quotients: list[tuple[float, Tensor]] = []
        step = max((self.step_for(x.dtype) for x in at), default=1.0)
        if at:
            for offset, weight in self.stencils[self.order].items():
                if offset:
                    points = (x + offset * step * d for x, d in zip(at, along, strict=True))
                    with torch.no_grad(), replayed_rng(*at):
                        quotients.append((weight, of_moving(*points)))
        u = of_moving(*at)
        du_dt = torch.zeros_like(u)
        for weight, value in quotients:
            du_dt = du_dt + weight * value
        if at and self.order == 1:
            du_dt = du_dt - u.detach()
        return u, du_dt / step


finite_difference_jvp = FiniteDifference()
