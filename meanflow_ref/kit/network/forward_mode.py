"""Operations that a forward-mode derivative cannot go through: all of them, each by the module that holds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from meanflow_ref.errors import ForwardADError
from meanflow_ref.jvp.func import func_jvp
from meanflow_ref.kit.diagnosis import Diagnosis
from meanflow_ref.kit.finding import finding
from meanflow_ref.kit.network.subject import ModuleCall, Subject, innermost, module_calls, tensors


def derivative(subject: Subject) -> tuple[Tensor, Tensor]:
    """u and du/dt along (v, 0, 1) by ``torch.func.jvp``."""
    with subject.prepared():
        return func_jvp(subject.u, (subject.z, subject.r, subject.t), (subject.v, None, torch.ones_like(subject.t)))


def obstacles(subject: Subject) -> list[Diagnosis]:
    """What stops the derivative: nothing, or one diagnosis for each innermost module that fails alone."""
    try:
        derivative(subject.copied())
    except Exception as error:
        reasons: dict[str, str] = {}
        with subject.prepared():
            calls = module_calls(subject.copied())
        guilty = innermost(calls, lambda call: _fails(call, subject, reasons))
        found = [_diagnosis(call.title, reasons[call.path]) for call in guilty]
        return found or [_diagnosis("the network", _reason(error))]
    return []


def _fails(call: ModuleCall, subject: Subject, reasons: dict[str, str]) -> bool:
    """Whether a module alone cannot be differentiated along random tangents of its own inputs."""
    inputs, rebuilt = split(call)
    if not inputs or not tensors(call.output):
        return False
    tangents = tuple(torch.randn_like(x) for x in inputs)
    try:
        with subject.prepared():
            func_jvp(rebuilt, tuple(inputs), tangents)
    except Exception as error:
        reasons[call.path] = _reason(error)
        return True
    return False


def split(call: ModuleCall) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """Floating-point inputs of a module's call, and the module as a function of them that returns one tensor."""
    flat = [*call.args, *call.kwargs.values()]
    moving = [i for i, x in enumerate(flat) if isinstance(x, Tensor) and x.is_floating_point()]

    def rebuilt(*values: Tensor) -> Tensor:
        arguments: list[Any] = list(flat)
        for i, value in zip(moving, values, strict=True):
            arguments[i] = value
        n = len(call.args)
        output = call.module(*arguments[:n], **dict(zip(call.kwargs, arguments[n:], strict=True)))
        return tensors(output)[0]

    return [flat[i].detach() for i in moving], rebuilt


def _reason(error: Exception) -> str:
    if isinstance(error, ForwardADError):
        return error.seen
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200]}" if str(error) else type(error).__name__


def _diagnosis(where: str, reason: str) -> Diagnosis:
    """The name of an obstacle, by torch's complaint."""
    uses = reason.split(" uses ", 1)[-1]
    expected = "operations that torch.func.jvp can go through"
    lowered = reason.lower()
    if "attention" in lowered and "autograd.function" not in lowered:
        name = "ATTENTION_NO_FORWARD_AD"
    elif "checkpoint" in lowered:
        name = "CHECKPOINT_REENTRANT"
    elif "_.tensor" in lowered or "in-place" in lowered or "batch_norm" in lowered:
        name = "BATCH_COUPLING"
    else:
        name = "CUSTOM_FUNCTION_NO_JVP"
    return finding(name, f"{where}: {uses}", expected)


def backward_fails(subject: Subject) -> Diagnosis | None:
    """Whether the graph of u cannot be walked back after a JVP, as with checkpoints that recompute without tangents."""
    copy = subject.copied()
    if copy.root is None or not any(parameter.requires_grad for parameter in copy.root.parameters()):
        return None
    u, _ = derivative(copy)
    try:
        with copy.prepared():
            u.double().square().sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        seen = f"the JVP runs, and the backward pass then raises {_reason(error)}"
        return finding("CHECKPOINT_REENTRANT", seen, "a backward pass through u after the JVP")
    return None
