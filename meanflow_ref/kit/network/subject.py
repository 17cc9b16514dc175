"""The network under test, with its inputs: copies that may be changed, and its modules' calls."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from meanflow_ref.convention import Convention
from meanflow_ref.kit.calling import seeded

# Wrappers of distributed and compiled modules, in whose paths nobody thinks.
_WRAPPERS = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Subject:
    """A network, where to evaluate it, and how.

    Attributes:
        net: A copy of the user's network; its state may change.
        convention: How it is called.
        z: States, ``(B, *event)``.
        r: Times, ``(B,)``.
        t: Times, ``(B,)``.
        v: Directions in z.
        label: Labels, ``(B,)``, or None.
        seed: For random layers.
        math_attention: Whether attention must be written out for a forward-mode derivative to exist.

    """

    net: Callable[..., Any]
    convention: Convention
    z: Tensor
    r: Tensor
    t: Tensor
    v: Tensor
    label: Tensor | None
    seed: int
    math_attention: bool = False

    def u(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """The network's average velocity."""
        return self.convention.adapt(self.net)(z, r, t, self.label)

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Context in which every evaluation starts with the same random numbers and with the attention that works."""
        attention: AbstractContextManager[Any] = sdpa_kernel(SDPBackend.MATH) if self.math_attention else nullcontext()
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(fast and not self.math_attention)
        try:
            with seeded(self.seed), attention, warnings.catch_warnings():
                # Probing makes torch warn of things that training does not do.
                warnings.simplefilter("ignore")
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)

    @property
    def root(self) -> nn.Module | None:
        """The network, if it is a module."""
        return self.net if isinstance(self.net, nn.Module) else None

    def copied(self) -> Subject:
        """The same with a copy of the network, or with the network itself where it cannot be copied."""
        try:
            return replace(self, net=copy.deepcopy(self.net))
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return self

    def in_dtype(self, dtype: torch.dtype, times: torch.dtype | None = None) -> Subject:
        """A copy in another precision, in evaluation mode, with layers that are zero at the start woken up."""
        other = self.copied()
        if other.root is not None:
            other.root.to(dtype).eval()
            wake(other.root, self.seed)
        return replace(
            other,
            z=self.z.to(dtype),
            v=self.v.to(dtype),
            r=self.r.to(times or dtype),
            t=self.t.to(times or dtype),
            math_attention=True,
        )


def wake(root: nn.Module, seed: int) -> None:
    """Give parameters that are all zero small seeded values: a network that is 0 at the start has no derivative."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in root.parameters():
            if parameter.numel() and not bool(parameter.any()):
                noise = 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(noise.to(parameter))


@dataclass(frozen=True)
class ModuleCall:
    """The first call of one module."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def title(self) -> str:
        """For messages."""
        kind = type(self.module).__name__
        return f"module `{self.path}` ({kind})" if self.path else f"the network itself ({kind})"


def clean(path: str) -> str:
    """A module's path without wrappers."""
    for wrapper in _WRAPPERS:
        while path.startswith(wrapper):
            path = path[len(wrapper) :]
    return "" if path in {"module", "_orig_mod"} else path


def module_calls(subject: Subject, z: Tensor | None = None) -> list[ModuleCall]:
    """First calls of all modules in one evaluation, inner modules before those around them."""
    calls: dict[str, ModuleCall] = {}
    handles = []
    if subject.root is None:
        return []

    def keep(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.setdefault(path, ModuleCall(path, module, args, kwargs, output))

    for path, module in subject.root.named_modules():

        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, path: str = clean(path)
        ) -> None:
            keep(path, module, args, kwargs, output)

        handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        with torch.no_grad():
            subject.u(subject.z if z is None else z, subject.r, subject.t)
    finally:
        for handle in handles:
            handle.remove()
    return list(calls.values())


def innermost(calls: list[ModuleCall], bad: Callable[[ModuleCall], bool]) -> list[ModuleCall]:
    """Bad calls that hold no other bad call."""
    found: list[ModuleCall] = []
    for call in calls:
        prefix = f"{call.path}." if call.path else ""
        if not any(one.path.startswith(prefix) for one in found) and bad(call):
            found.append(call)
    return found


def tensors(value: Any) -> list[Tensor]:
    """Floating-point tensors in a value, one level deep."""
    items = value if isinstance(value, tuple | list) else value.values() if isinstance(value, dict) else [value]
    return [item for item in items if isinstance(item, Tensor) and item.is_floating_point()]
