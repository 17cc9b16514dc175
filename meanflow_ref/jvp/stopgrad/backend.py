"""The stop-gradient JVP with options, as a backend.

*Products of tangents in half precision.* du/dt only enters a target behind a stop-gradient, times ``t - r`` and beside
the noise of a sample, so that its rounding is not the gradient's. The bilinear operations (matrix products,
convolutions) are nearly all of its cost: their operands are rounded to half precision, a product at a time, and what
they return is wide again. Everything else of the tangent (sums, norms, softmax, fused attention) stays in the dtype of
the primal, as does u with its whole graph.

*A guard.* du/dt has no graph, so that an objective that lacks its stop-gradient trains as if it had it. That is what
MeanFlow wants and what another objective must not be left to find out: the guard raises where a gradient arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meanflow_ref._typing import TensorFunction
from meanflow_ref.errors import ParameterError, TangentError
from meanflow_ref.jvp.stopgrad.front import stopgrad_jvp, stopgrad_jvp_of_rows
from meanflow_ref.jvp.stopgrad.products import SWITCH
from meanflow_ref.jvp.stopgrad.traced import traced_jvp, traced_jvp_of_rows


@dataclass(frozen=True)
class StopgradJvp:
    """The stop-gradient JVP as a backend with options: ``meanflow_loss(..., jvp=StopgradJvp(torch.bfloat16))``.

    ``jvp="stopgrad_bf16"``, and ``--jvp stopgrad_bf16`` of the trainer, name that one.

    bfloat16 pays where it multiplies faster than float32: on GPUs, and on CPUs with AVX512-BF16 or AMX; elsewhere it is
    slower than none. On the networks of the benchmark du/dt is off by 0.4 to 0.8 % (root mean square; its table has the
    column), ten thousand times float32's own error, and below the spread that the velocity of a sample brings into a
    target. Loss and gradients are those of the target that results. Keep ``None`` where du/dt itself is the result.

    Args:
        tangent_dtype: ``torch.bfloat16``, or ``torch.float16``, whose error is an eighth of that but which overflows
            beyond 65504, where a stiff time embedding can take a tangent; ``None`` is the dtype of the primal.
        guard: Whether du_dt raises ``TangentError`` in a backward pass that reaches it, for objectives that are ported
            to this backend. ``meanflow_loss`` detaches du_dt and never meets it. Not under ``torch.compile``.
        traced: Whether to record the network once and replay it, see :mod:`meanflow_ref.jvp.stopgrad.traced`;
            ``jvp="stopgrad_traced"`` names that one.

    Raises:
        ParameterError: If the dtype is another one.

    """

    tangent_dtype: torch.dtype | None = None
    guard: bool = False
    traced: bool = False

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
        """Value with its graph, derivative without one, by :func:`stopgrad_jvp`. Source: mf:8.

        Args:
            fn: A function of ``primals`` that returns one tensor.
            primals: Where to differentiate.
            tangents: Direction, each of its primal's shape and dtype, or ``None`` for zero.

        Returns:
            ``u``, bit for bit that of ``fn(*primals)``, and ``du_dt`` in u's dtype.

        Raises:
            MeanFlowError: As :func:`stopgrad_jvp`.

        """
        engine = traced_jvp if self.traced else stopgrad_jvp
        return self._with_options(lambda: engine(fn, primals, tangents))

    def of_rows(
        self, fn: TensorFunction, primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...], moving: int, /
    ) -> tuple[Tensor, Tensor]:
        """The same on the first rows, by :func:`stopgrad_jvp_of_rows` or recorded. Source: mf:8.

        Args:
            fn: A function of ``primals`` that returns one tensor; where it is recorded, of nothing else that has rows.
            primals: Where to differentiate, ``(B, ...)`` each.
            tangents: Direction.
            moving: Rows that move.

        Returns:
            ``u`` and ``du_dt``.

        Raises:
            MeanFlowError: As :func:`stopgrad_jvp`.

        """
        engine = traced_jvp_of_rows if self.traced else stopgrad_jvp_of_rows
        return self._with_options(lambda: engine(fn, primals, tangents, moving))

    def _with_options(self, jvp: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        before = SWITCH.dtype
        SWITCH.dtype = self.tangent_dtype
        try:
            u, du_dt = jvp()
        finally:
            SWITCH.dtype = before
        if self.guard and u.requires_grad and not torch.compiler.is_compiling():
            du_dt = _Guard.apply(du_dt, u)  # type: ignore[no-untyped-call]
        return u, du_dt


class _Guard(torch.autograd.Function):
    """du_dt as a function of u by name alone, so that the engine comes here with its gradient."""

    @staticmethod
    def forward(ctx: Any, du_dt: Tensor, u: Tensor) -> Tensor:
        return du_dt.view_as(du_dt)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Any:
        raise TangentError(
            "a gradient goes through du_dt, which carries none: it comes from a stop-gradient JVP.",
            "a stop-gradient around du_dt, as MeanFlow has one: target = (v - (t - r) * du_dt).detach()",
            'jvp="func" or jvp="forward_ad", whose du_dt has a graph, for an objective that differentiates through it',
        )


stopgrad_bf16_jvp = StopgradJvp(torch.bfloat16)
stopgrad_traced_jvp = StopgradJvp(traced=True)
