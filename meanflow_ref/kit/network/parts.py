"""How large the spatial and the time part of du/dt are in every module, and how far rounding moves them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from meanflow_ref.kit.diagnosis import Diagnosis
from meanflow_ref.kit.finding import finding
from meanflow_ref.kit.network.derivatives import rms
from meanflow_ref.kit.network.subject import Subject, clean, module_calls, tensors

# torch leaves these two untyped.
dual: Callable[[Tensor, Tensor], Tensor] = forward_ad.make_dual
unpack: Callable[[Tensor], tuple[Tensor, Tensor | None]] = forward_ad.unpack_dual

# Rate of change of u in t, in units of u: sinusoids of angular frequency w give about w. The library's own networks
# stay below 5, times multiplied by 1000 give hundreds.
STIFF = 30.0
# Relative error of du/dt in the network's own precision that spoils the target.
SPOILED = 0.05


def tangents_by_module(subject: Subject, dz: Tensor | None, dt: Tensor | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Value and tangent of every module's first output, by path; "" is the network's u."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []

    def keep(path: str, output: Any) -> None:
        for tensor in tensors(output)[:1]:
            value, tangent = unpack(tensor)
            found.setdefault(path, (value.detach(), torch.zeros_like(value) if tangent is None else tangent.detach()))

    if subject.root is not None:
        for path, module in subject.root.named_modules():

            def hook(module: nn.Module, args: Any, output: Any, path: str = clean(path)) -> None:
                if path:
                    keep(path, output)

            handles.append(module.register_forward_hook(hook))
    try:
        with subject.prepared(), torch.no_grad(), forward_ad.dual_level():
            z = subject.z if dz is None else dual(subject.z, dz)
            t = subject.t if dt is None else dual(subject.t, dt)
            keep("", subject.u(z, subject.r, t))
    finally:
        for handle in handles:
            handle.remove()
    return found


def dead_module(exact: Subject) -> str:
    """The first module, in the order of completion, that changes with t and has no tangent; "" if none does.

    Args:
        exact: In float64.

    """
    later = replace(exact, t=0.9 * exact.t + 0.1, r=exact.r)
    with exact.prepared():
        now, then = module_calls(exact), {call.path: call for call in module_calls(later)}
    tangents = tangents_by_module(exact, None, torch.ones_like(exact.t))
    for call in now:
        here, there = tensors(call.output)[:1], tensors(then[call.path].output)[:1] if call.path in then else []
        if here and there and here[0].shape == there[0].shape and call.path in tangents:
            moved = rms(here[0] - there[0]) > 1e-6 * max(rms(here[0]), 1e-12)
            if moved and rms(tangents[call.path][1]) == 0:
                return call.title
    return ""


def by_module(exact: Subject, own: Subject) -> list[dict[str, Any]]:
    """A row a module: sizes of value, spatial and time part, and relative error of du/dt against float64.

    Args:
        exact: In float64.
        own: In the network's own precision, with the same weights.

    """
    one = torch.ones_like(exact.t)
    space, time = tangents_by_module(exact, exact.v, None), tangents_by_module(exact, None, one)
    rounded = tangents_by_module(own, own.v, torch.ones_like(own.t))
    kinds = (
        {}
        if exact.root is None
        else {clean(path): type(module).__name__ for path, module in exact.root.named_modules()}
    )
    rows = []
    for path, (value, spatial) in space.items():
        temporal = time[path][1] if path in time else torch.zeros_like(spatial)
        total = spatial + temporal
        error = rms(rounded[path][1].double() - total) / max(rms(total), 1e-300) if path in rounded else None
        rows.append(
            {
                "module": path,
                "kind": kinds.get(path, "network"),
                "value": rms(value),
                "spatial": rms(spatial),
                "time": rms(temporal),
                "error": error,
            }
        )
    return rows


def stiffness(
    rows: list[dict[str, Any]], dtype: torch.dtype, low: float | None
) -> tuple[list[Diagnosis], dict[str, Any]]:
    """Whether u moves so fast in t that rounding of t, or a finite difference, spoils du/dt.

    Args:
        rows: Of :func:`by_module`.
        dtype: The network's own.
        low: Relative error of du/dt in bfloat16, if measured.

    """
    whole = next(row for row in rows if row["module"] == "")
    rate = whole["time"] / max(whole["value"], 1e-300)
    error = whole["error"] or 0.0
    measured = {"rate_in_t": rate, "error_own_dtype": error, "error_bfloat16": low}
    if rate <= STIFF and error <= SPOILED:
        return [], measured
    inner = [row for row in rows if row["module"]]
    source = next((row for row in inner if row["time"] > STIFF * max(row["value"], 1e-300)), whole)
    where = f"first in `{source['module']}` ({source['kind']})" if source["module"] else "in the network itself"
    parts = f"time part {whole['time']:.3g}, spatial part {whole['spatial']:.3g}, |u| {whole['value']:.3g}"
    bfloat = f", {100 * low:.3g} % in bfloat16" if low is not None else ""
    seen = f"u changes at {rate:.3g} |u| per unit of t, {where}; {parts}; error of du/dt {100 * error:.2g} % in "
    severity = "wrong" if error > SPOILED else "note"
    seen += f"{str(dtype).removeprefix('torch.')}{bfloat}"
    expected = f"at most {STIFF:g} |u| per unit of t, and an error below {100 * SPOILED:g} %"
    return [finding("TIME_STIFFNESS", seen, expected, severity=severity)], measured  # type: ignore[arg-type]
