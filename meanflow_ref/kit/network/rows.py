"""Rows that know of each other, and evaluations that differ from one another."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from meanflow_ref.kit.diagnosis import Diagnosis
from meanflow_ref.kit.finding import finding
from meanflow_ref.kit.network.derivatives import rms
from meanflow_ref.kit.network.subject import ModuleCall, Subject, module_calls, tensors


def _outputs(subject: Subject, z: Tensor) -> tuple[Tensor, list[ModuleCall]]:
    """u and the modules' calls, from one state of the network's buffers."""
    fresh = subject.copied()
    with fresh.prepared(), torch.no_grad():
        u = fresh.u(z, fresh.r, fresh.t)
    fresh = subject.copied()
    with fresh.prepared():
        return u, module_calls(fresh, z)


def _first_that_differs(a: list[ModuleCall], b: list[ModuleCall], rows: slice) -> str:
    """The first module, in the order of completion, whose output differs in ``rows``."""
    others = {call.path: call for call in b}
    for call in a:
        here, there = tensors(call.output)[:1], tensors(others[call.path].output)[:1] if call.path in others else []
        if here and there and here[0].shape == there[0].shape and here[0].dim():
            x, y = here[0][rows], there[0][rows]
            if x.numel() and rms(x - y) > 1e-5 * max(rms(x), 1e-12):
                return call.title
    return "the network"


def coupled_rows(subject: Subject) -> Diagnosis | None:
    """Whether row 0 of the input changes other rows of u. Needs two rows."""
    moved = subject.z.clone()
    moved[0] = moved[0] + 3 * subject.v[0] + 1
    u, calls = _outputs(subject, subject.z)
    other, other_calls = _outputs(subject, moved)
    gap = rms(u[1:] - other[1:])
    if gap <= 1e-5 * max(rms(u), 1e-12):
        return None
    where = _first_that_differs(calls, other_calls, slice(1, None))
    seen = f"changing row 0 changes the other rows of u by {gap:.3g} (|u| {rms(u):.3g}), first seen after {where}"
    return finding("BATCH_COUPLING", seen, "every row of u depends on its own row of z alone")


def random_layers(subject: Subject) -> Diagnosis | None:
    """Whether two evaluations with different random numbers differ."""
    u, calls = _outputs(subject, subject.z)
    other, other_calls = _outputs(replace(subject, seed=subject.seed + 1), subject.z)
    gap = rms(u - other)
    if gap <= 1e-6 * max(rms(u), 1e-12):
        return None
    where = _first_that_differs(calls, other_calls, slice(None))
    seen = f"two evaluations of one input differ by {gap:.3g} (|u| {rms(u):.3g}), first seen after {where}"
    expected = "the same random numbers in the pass for du/dt and in the pass for u, if there are two"
    remedy = (
        "one pass: u, du_dt = torch.func.jvp(net, (z, r, t), (v, zeros, ones))\n"
        "or: with meanflow_ref.jvp.rng.replayed_rng(z): first pass; second pass right after"
    )
    return finding("DROPOUT_MISMATCH", seen, expected, remedy=remedy, severity="note")
