"""What a network is and draws, held still while a recording of it is compared with the dispatch form."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from meanflow_ref.jvp.stopgrad.products import SWITCH


class State:
    """Random generators and buffers as they are now.

    Args:
        owner: A network; what is no module has no buffers.
        near: Tensors whose devices' generators count, besides the CPU's.

    """

    def __init__(self, owner: Any, near: tuple[Tensor, ...]) -> None:
        modules = list(owner.modules()) if isinstance(owner, nn.Module) else []
        buffers = [(m, k, b) for m in modules for k, b in m._buffers.items() if b is not None]
        self._buffers = [(weakref.ref(m), name, x, x._version, x.clone()) for m, name, x in buffers]
        self._devices = {x.device for x in near if x.device.type not in ("cpu", "meta")}
        self._generators = self._read()

    def put_back(self) -> None:
        """Make generators and buffers again what they were."""
        self._write(self._generators)
        with torch.no_grad():
            for reference, name, buffer, version, value in self._buffers:
                if buffer._version != version:  # a write that is not needed would spoil graphs that saved the buffer
                    buffer.copy_(value)
                if (module := reference()) is not None:
                    module._buffers[name] = buffer

    def _read(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(getattr(torch, d.type).get_rng_state(d) for d in self._devices)]

    def _write(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._devices, states[1:], strict=True):
            getattr(torch, device.type).set_rng_state(state, device)


class Modes:
    """Autograd's and autocast's switches as they are now."""

    def __init__(self) -> None:
        self._grad, self._depth = torch.is_grad_enabled(), _autocast_depth()
        self._autocast = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")]

    def put_back(self) -> None:
        """Make them again what they were."""
        torch.set_grad_enabled(self._grad)
        for device, enabled, dtype in self._autocast:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        for _ in range(_autocast_depth() - self._depth):
            torch.autocast_decrement_nesting()


def _autocast_depth() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


@contextmanager
def zeros_replaced(owner: Any) -> Iterator[None]:
    """Context in which parameters that are all zero, as initialisations have them, hold small random numbers.

    A network whose last layer is zero has the value and the derivative 0, whatever is wrong with them.
    """
    modules = list(owner.modules()) if isinstance(owner, nn.Module) else []
    places = [(m, k, p) for m in modules for k, p in m._parameters.items() if p is not None]
    others = {p: _random_like(p) for p in {p for _, _, p in places} if p.is_floating_point() and not bool(p.any())}
    try:
        for module, name, parameter in places:
            module._parameters[name] = others.get(parameter, parameter)
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter


def _random_like(parameter: nn.Parameter) -> nn.Parameter:
    values = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    # Of the parameter's strides too, which Dynamo guards.
    like = torch.empty_like(parameter.detach()).copy_(values)
    return nn.Parameter(like, requires_grad=parameter.requires_grad)


def distance(found: Tensor, wanted: Tensor) -> float:
    """Relative distance of two tensors, 0 if both are 0."""
    wide = torch.promote_types(wanted.dtype, torch.float32)
    difference, size = (found.to(wide) - wanted.to(wide)).norm(), wanted.to(wide).norm()
    return float(difference / size) if bool(size > 0) else float(difference)


def tolerance(x: Tensor) -> float:
    """Distance that rounding may make: half the digits of the coarsest dtype that computes ``x``."""
    dtypes = [x.dtype] + ([SWITCH.dtype] if SWITCH.dtype is not None else [])
    if torch.is_autocast_enabled(x.device.type):
        dtypes.append(torch.get_autocast_dtype(x.device.type))
    return float(max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5)
