"""Checks of a loss's inputs: kinds and shapes always, values only outside compiled code and with one device wait."""

from __future__ import annotations

import torch
from torch import Tensor

from meanflow_ref._validate import require_finite, require_state, require_time_tensor, require_times
from meanflow_ref.errors import DtypeError, ShapeError

_HALF = (torch.float16, torch.bfloat16)


def check_inputs(states: dict[str, Tensor], r: Tensor, t: Tensor, label: Tensor | None) -> None:
    """Raise unless the states agree with one another and with the times, one time and label a row.

    What they hold is looked at by :func:`check_values`.

    Args:
        states: Name to ``(B, *event)``; the first fixes shape, dtype and device.
        r: Start of the interval, ``(B,)``.
        t: End of the interval, ``(B,)``.
        label: Labels, ``(B,)``, or ``None``.

    """
    first, anchor = next(iter(states.items()))
    for name, state in states.items():
        require_state(state, name)
        _require_kind(anchor, state, first, name)
        if state.shape != anchor.shape:
            raise ShapeError(
                f"`{name}` has shape {tuple(state.shape)}, `{first}` has shape {tuple(anchor.shape)}.", "equal shapes"
            )
    if anchor.numel() == 0:
        raise ShapeError(f"`{first}` has shape {tuple(anchor.shape)}: nothing in it.", "at least one state", "")
    for name, time in (("r", r), ("t", t)):
        _require_kind(anchor, require_time_tensor(time, name), first, f"time {name}")
        _require_rows(time, anchor, f"time `{name}`", first, name)
    if r.dtype != t.dtype:
        raise DtypeError(f"time `r` is {r.dtype}, time `t` is {t.dtype}.", "one dtype", "r.to(t)")
    if label is not None:
        if not isinstance(label, torch.Tensor):
            raise DtypeError(
                f"`label` is {type(label).__name__}.", "a torch.Tensor, one label a row", "torch.as_tensor(label)"
            )
        _require_rows(label, anchor, "`label`", first, "label")


def _require_kind(anchor: Tensor, x: Tensor, first: str, name: str) -> None:
    """Raise unless ``x`` has ``anchor``'s device, and its dtype or float32 beside a half-precision one."""
    same = x.dtype == anchor.dtype or (anchor.dtype in _HALF and x.dtype == torch.float32)
    if not same or x.device != anchor.device:
        raise DtypeError(
            f"`{first}` is {anchor.dtype} on {anchor.device}, {name} is {x.dtype} on {x.device}.",
            "one dtype and one device (float32 is accepted beside a half-precision state)",
            f"convert one of them with .to({anchor.dtype})",
        )


def _require_rows(x: Tensor, anchor: Tensor, name: str, first: str, variable: str) -> None:
    batch = anchor.shape[:1]
    if x.shape[:1] != batch or (x.shape != batch and variable != "label"):
        raise ShapeError(
            f"{name} has shape {tuple(x.shape)}, `{first}` has shape {tuple(anchor.shape)}.",
            f"one for each of the {batch[0]} rows: shape {tuple(batch)}",
            f"{variable}.reshape({batch[0]})" if x.numel() == batch[0] else "",
        )


def check_values(states: dict[str, Tensor], z: Tensor, v: Tensor, r: Tensor, t: Tensor) -> None:
    """Raise unless ``0 <= r <= t <= 1`` and all states are finite.

    Nothing is looked at under ``torch.compile`` or ``torch.func.vmap``, which cannot branch on values.

    Args:
        states: Name to state, for the message.
        z: State on the path; finite only where the data and the noise that it is a sum of are.
        v: Velocity.
        r: Start of the interval, ``(B,)``.
        t: End of the interval, ``(B,)``.

    """
    if torch.compiler.is_compiling():
        return
    # NaN times fail every comparison. One infinite or NaN number makes a sum so, and then the sum less itself is NaN.
    total = z.sum(dtype=torch.promote_types(z.dtype, torch.float32)) + v.sum()
    sound = ((r >= 0) & (r <= t) & (t <= 1)).all() & (total - total == 0)
    try:
        if bool(sound):
            return
    except RuntimeError as error:
        if "vmap" in str(error):  # of a batched tensor no value can be asked
            return
        raise
    require_times(r, t)
    for name, state in states.items():
        require_finite(state, name)
