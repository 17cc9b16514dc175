"""A compiled network against the same one uncompiled: values, and derivatives by both forward-mode interfaces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from meanflow_ref.kit.diagnosis import Diagnosis
from meanflow_ref.kit.finding import finding
from meanflow_ref.kit.network.derivatives import rms
from meanflow_ref.kit.network.forward_mode import derivative
from meanflow_ref.kit.network.parts import dual, unpack
from meanflow_ref.kit.network.subject import Subject


def is_compiled(net: object) -> bool:
    """Whether a network is the result of ``torch.compile``."""
    return hasattr(net, "_orig_mod") or hasattr(net, "_torchdynamo_orig_callable")


def _original(net: Any) -> Any:
    return getattr(net, "_orig_mod", None) or getattr(net, "_torchdynamo_orig_callable", net)


def compare(subject: Subject, backend: str) -> tuple[list[Diagnosis], dict[str, float]]:
    """Compare u and du/dt of the compiled and the eager network.

    Args:
        subject: Its network may be compiled already; then its own backend is used.
        backend: Of ``torch.compile`` otherwise.

    """
    eager = replace(subject, net=_original(subject.net))
    net = subject.net if is_compiled(subject.net) else torch.compile(subject.net, backend=backend)
    compiled = replace(subject, net=net)
    u, du_dt = derivative(eager)
    other_u, other = derivative(compiled)
    tolerance = 1e-6 if u.dtype == torch.float64 else 1e-3 if u.dtype == torch.float32 else 0.1
    measured = {
        "compiled_u": rms(u - other_u) / max(rms(u), 1e-300),
        "compiled_du_dt": rms(du_dt - other) / max(rms(du_dt), 1e-300),
    }
    found = []
    if max(measured.values()) > tolerance:
        seen = f"u differs by {100 * measured['compiled_u']:.2g} %, du/dt by {100 * measured['compiled_du_dt']:.2g} %"
        found.append(finding("COMPILED_NEQ_EAGER", seen, f"at most {100 * tolerance:.1g} %"))
    lost = _dual_tangent(compiled, du_dt)
    if lost is not None and lost > tolerance:
        measured["compiled_forward_ad"] = lost
        seen = f"dual numbers (torch.autograd.forward_ad) through the compiled network: du/dt off by {100 * lost:.2g} %"
        found.append(finding("COMPILED_NEQ_EAGER", seen + "; torch.func.jvp was compared apart", "the eager du/dt"))
    return found[:1], measured


def _dual_tangent(subject: Subject, wanted: Tensor) -> float | None:
    """Relative error of du/dt by dual numbers, None where they raise (which nobody can overlook)."""
    frozen = subject.net
    if isinstance(frozen, nn.Module) and any(parameter.requires_grad for parameter in frozen.parameters()):
        return None
    try:
        with subject.prepared(), forward_ad.dual_level():
            z = dual(subject.z, subject.v)
            t = dual(subject.t, torch.ones_like(subject.t))
            tangent = unpack(subject.u(z, subject.r, t))[1]
    except Exception:
        return None
    got = torch.zeros_like(wanted) if tangent is None else tangent
    return rms(got - wanted) / max(rms(wanted), 1e-300)
