"""Losses of masked data (padding, missing pixels): what the mask drops must have no gradient."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from meanflow_ref.errors import ParameterError
from meanflow_ref.kit.loss.formula import Judgement
from meanflow_ref.kit.loss.probe import Setting
from meanflow_ref.kit.loss.run import Target, run


@dataclass(frozen=True)
class Masked:
    """A loss whose last argument is a mask, as one of data alone: the mask keeps everything, or drops some."""

    loss: Callable[..., Any]
    shape: tuple[int, ...]
    drops: bool = False

    def __call__(self, model: Any, *data: Tensor) -> Any:
        """The loss under the mask."""
        rows = len(data[0])
        mask = mask_of(rows, self.shape) if self.drops else torch.ones(rows, *self.shape, dtype=torch.bool)
        return self.loss(model, *data, mask)


def mask_of(rows: int, shape: tuple[int, ...]) -> Tensor:
    """Which elements count, ``(rows, *shape)``, bool; in every row some do and, where there are two, some do not."""
    generator = torch.Generator().manual_seed(3)
    order = torch.rand(rows, *shape, generator=generator, dtype=torch.float64).flatten(1).argsort(1)
    size = order.shape[1]
    if size == 1:
        return (torch.arange(rows) % 2 == 0).reshape(rows, *shape)
    return (order < max(1, size // 2)).reshape(rows, *shape)


def takes_labels(loss: Callable[..., Any]) -> bool:
    """Whether a masked loss has an argument between the data and the mask."""
    try:
        parameters = inspect.signature(loss).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return sum(p.default is p.empty and p.kind in positional for p in parameters) > 3


def judge_mask(target: Target, out: Judgement) -> None:
    """Record what share of the gradient is at elements that the mask drops.

    Raises:
        ParameterError: If the mask does not broadcast against a datum.

    """
    masked: Any = target.loss
    trace = run(replace(target, loss=replace(masked, drops=True)), Setting(tanh=True))
    lost = whole = 0.0
    for k in trace.mains:
        call = trace.calls[k]
        grad = call.grad
        assert grad is not None
        keep = mask_of(call.rows, masked.shape)
        try:
            keep = keep.expand_as(grad)
        except RuntimeError:
            raise ParameterError(
                f"mask={masked.shape} does not broadcast against a datum of shape {target.event}.",
                "the shape of one datum, with 1 where the mask is shared",
                f"mask={(1, *target.event[1:])}",
            ) from None
        lost += float(grad[~keep].abs().sum())
        whole += float(grad.abs().sum())
    share = lost / whole if whole else 0.0
    out.facts["gradient_of_masked"] = float(f"{share:.3g}")
    if share > 1e-9:
        out.find(
            "target", "UNKNOWN_FORMULA",
            f"{100 * share:.0f} % of the gradient is at elements that the mask drops: it is applied after the error was "
            "reduced, or not at all",
            "no gradient there", trace.calls[trace.mains[0]].where,
            cause="The mask multiplies a scalar, or the mean over all elements, and not the error of each element.",
            remedy="s = (((u - target) ** 2) * mask).flatten(1).sum(1)",
        )  # fmt: skip
