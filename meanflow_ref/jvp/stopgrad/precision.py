"""Products of tangents in half precision under a wider primal.

du/dt only enters a target behind a stop-gradient, times ``t - r`` and beside the noise of a sample, so that its
rounding is not the gradient's. The bilinear operations (matrix products, convolutions) are nearly all of its cost:
their operands are rounded to half precision, a product at a time, and what they return is wide again. Everything else
of the tangent (sums, norms, softmax, fused attention) stays in the dtype of the primal, as does u with its whole graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow_ref._typing import TensorFunction
from meanflow_ref.errors import ParameterError
from meanflow_ref.jvp.stopgrad.front import stopgrad_jvp
from meanflow_ref.jvp.stopgrad.products import SWITCH


@dataclass(frozen=True)
class StopgradJvp:
    """The stop-gradient JVP as a backend with options: ``meanflow_loss(..., jvp=StopgradJvp(torch.bfloat16))``.

    ``jvp="stopgrad_bf16"``, and ``--jvp stopgrad_bf16`` of the trainer, name that one.

    bfloat16 pays where it multiplies faster than float32: on GPUs, and on CPUs with AVX512-BF16 or AMX; elsewhere it is
    slower than none. On the networks of the benchmark du/dt is off by 0.4 to 0.8 % (root mean square; its table has the
    column), ten thousand times float32's own error, and below the spread that the velocity of a sample brings into a
    target. Loss and gradients are exact for the target that results. Keep ``None`` where du/dt itself is the result.

    Args:
        tangent_dtype: ``torch.bfloat16``, or ``torch.float16``, whose error is an eighth of that but which overflows
            beyond 65504, where a stiff time embedding can take a tangent; ``None`` is the dtype of the primal.

    Raises:
        ParameterError: If the dtype is another one.

    """

    tangent_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.tangent_dtype not in (None, torch.bfloat16, torch.float16):
            raise ParameterError(
                f"tangent_dtype={self.tangent_dtype!r}.",
                "torch.bfloat16, torch.float16, or None for the dtype of the primal",
                "StopgradJvp(tangent_dtype=torch.bfloat16)",
            )

    def __call__(
        self, fn: TensorFunction, primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...], /
    ) -> tuple[Tensor, Tensor]:
        """Value with its graph, derivative without one; :func:`stopgrad_jvp`, which it calls. Source: mf:8.

        Args:
            fn: A function of ``primals`` that returns one tensor.
            primals: Where to differentiate.
            tangents: Direction, each of its primal's shape and dtype, or ``None`` for zero.

        Returns:
            ``u``, bit for bit that of ``fn(*primals)``, and ``du_dt`` in u's dtype.

        """
        before = SWITCH.dtype
        SWITCH.dtype = self.tangent_dtype
        try:
            return stopgrad_jvp(fn, primals, tangents)
        finally:
            SWITCH.dtype = before


stopgrad_bf16_jvp = StopgradJvp(torch.bfloat16)
