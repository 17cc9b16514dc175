r"""The network that the kit puts in the place of somebody's own.

.. math:: u_k = a\,\mathrm{roll}(z) + b\,r D_r + g\,t D_t + \beta_k + \ell\,\phi(z,t)

is linear, so that switching one term on at a time reads one coefficient of the loss's target. ``roll`` rather than a
multiple of z: with a diagonal Jacobian J and its transpose look alike. ``beta_k`` is a leaf of its own in each call k:
its gradient is dL/du there. ``l`` is 0 and has a gradient beyond the calls' own if the target is not detached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from meanflow_ref.convention.grammar import CallSpec, Token
from meanflow_ref.errors import NetworkError
from meanflow_ref.jvp.stopgrad import seen_tangent
from meanflow_ref.kit.calling import require_device
from meanflow_ref.kit.loss.stack import user_lines

_FUNCTORCH: Any = torch._C._functorch
_FORWARD: Any = forward_ad
MAX_CALLS = 48
NUM_CLASSES = 10


@dataclass
class Call:
    """What one call of the network was given."""

    z: Tensor
    r: Tensor
    t: Tensor
    y: Tensor | None
    u: Tensor
    tangents: dict[str, Tensor | None]
    engine: str
    with_grad: bool
    training: bool
    autocast: bool
    dtype: torch.dtype
    where: str
    mask: Tensor | None = None
    # Filled after the backward pass: dL/du in this call, by row, and the same of its second head.
    grad: Tensor | None = None
    head_grad: Tensor | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.z.shape[0]


@dataclass(frozen=True)
class Setting:
    """Which terms of the probe are switched on; ``bias`` is by call index, ``(rows, *event)``."""

    a: float = 0.0
    b: float = 0.0
    g: float = 0.0
    bias: Mapping[int, Tensor] = field(default_factory=dict)
    random: bool = False
    tanh: bool = False
    # Of the loss's times: the tanh network divides by it, or times in thousands would saturate it and hide the states.
    unit: float = 1.0


def plain(x: Tensor) -> Tensor:
    """A tensor without its functorch levels, tangent or graph."""
    while True:
        if _FUNCTORCH.is_functorch_wrapped_tensor(x):
            x = _FUNCTORCH.get_unwrapped(x)
            continue
        return x.detach().clone()


def tangent_of(x: Tensor) -> Tensor | None:
    """The tangent that ``x`` carries, by forward mode or by the stop-gradient JVP, plain."""
    if not x.is_floating_point():
        return None
    if (seen := seen_tangent(x)) is not None:
        return plain(seen)
    if _FORWARD._current_level < 0:
        return None
    tangent = _FORWARD.unpack_dual(x).tangent
    return None if tangent is None else plain(tangent)


def derivative_engine(*tensors: Tensor) -> str:
    """Which derivative is being taken around the present call, as far as it shows: ``""`` if none does."""
    if tensors and seen_tangent(tensors[0]) is not None:
        return "stop-gradient JVP"
    interpreter = _FUNCTORCH.peek_interpreter_stack()
    if interpreter is not None:
        key = str(interpreter.key()).rsplit(".", 1)[-1].lower()
        return {"jvp": "func.jvp", "grad": "func.vjp", "vmap": "vmap"}.get(key, key)
    if _FORWARD._current_level >= 0:
        return "forward AD"
    return "double backward" if any(x.requires_grad for x in tensors) else ""


class Probe(nn.Module):
    """The linear probe, or with ``Setting(tanh=True)`` a small tanh network.

    Args:
        spec: How the loss calls its network.
        outputs: Names of the outputs; a tuple is returned if ``returns_tuple``.
        returns_tuple: Whether the network returns a tuple.
        event: Shape of one datum.
        rows: Rows that a call may have at most.
        setting: What is switched on.
        attributes: What else the loss asks its network for.

    """

    is_probe = True

    def __init__(
        self,
        spec: CallSpec,
        outputs: tuple[str, ...],
        returns_tuple: bool,
        event: tuple[int, ...],
        rows: int,
        setting: Setting,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.outputs, self.returns_tuple = spec, outputs, returns_tuple
        self.event, self.setting = event, setting
        self.calls: list[Call] = []
        self.num_classes = NUM_CLASSES
        size = math.prod(event)
        generator = torch.Generator().manual_seed(5)
        self.size = size

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

        self.along_r, self.along_t = draw(1, *event), draw(1, *event)
        width = 24
        self.w_in = nn.Parameter(draw(size + 2, width, scale=0.7 / math.sqrt(size)))
        self.w_time = nn.Parameter(draw(2, width, scale=0.8))
        self.w_out = nn.Parameter(draw(width, size, scale=1 / math.sqrt(width)))
        self.shift = nn.Parameter(draw(width, scale=0.5))
        self.embed = nn.Parameter(draw(64, width, scale=0.6))
        self.leak = nn.Parameter(torch.zeros((), dtype=torch.float64))
        # Leaves are made here: one made inside a functorch transform would get no gradient.
        self.pool: list[Tensor] = []
        for index in range(MAX_CALLS):
            leaf = torch.zeros(rows, *event, dtype=torch.float64)
            if index in setting.bias:
                bias = setting.bias[index]
                leaf[: bias.shape[0]] = bias
            self.pool.append(leaf.requires_grad_())
        self.heads = [torch.zeros(rows, *event, dtype=torch.float64, requires_grad=True) for _ in range(MAX_CALLS)]
        for name, value in (attributes or {}).items():
            object.__setattr__(self, name, value)

    @property
    def module(self) -> Probe:
        """Itself, for code that unwraps ``DistributedDataParallel``."""
        return self

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Double precision."""
        return torch.float64

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs, recorded."""
        values = read_call(self.spec, args, kwargs)
        z, r, t = self._state(values)
        y = values.get("y")
        y = y if isinstance(y, Tensor) else None
        index = len(self.calls)
        if index >= MAX_CALLS:
            raise NetworkError(f"the loss calls its network more than {MAX_CALLS} times.", "", "check a smaller loss")
        engine = derivative_engine(*(v for v in values.values() if isinstance(v, Tensor) and v.is_floating_point()))
        mask = torch.rand(z.shape[0], dtype=torch.float64) if self.setting.random and self.training else None
        u = self.value(z, r, t, y, index, mask)
        self.calls.append(
            Call(
                plain(z),
                plain(r).reshape(-1),
                plain(t).reshape(-1),
                None if y is None else plain(y),
                plain(u),
                {name: tangent_of(value) for name, value in (("z", z), ("r", r), ("t", t))},
                engine,
                torch.is_grad_enabled(),
                self.training,
                _autocast(),
                z.dtype,
                user_lines(),
                None if mask is None else plain(mask),
            )
        )
        return self._pack(u, z, t, y, index)

    def value(self, z: Tensor, r: Tensor, t: Tensor, y: Tensor | None, index: int | None, mask: Any = None) -> Tensor:
        """``u`` at states and ``(B, 1, ..., 1)`` times, with the bias of call ``index``."""
        dtype, s = z.dtype, self.setting
        if s.tanh:
            # In the loss's own precision: this is what autocast acts on.
            u = self._tanh(z, r.to(dtype), t.to(dtype), y).double()
        z, r, t = z.double(), r.double(), t.double()
        if not s.tanh:
            u = s.a * torch.roll(z.flatten(1), 1, 1).reshape(z.shape) + s.b * r * self.along_r + s.g * t * self.along_t
        u = u + self.leak * self.phi(z, t)
        if index is not None:
            u = u + self.pool[index][: z.shape[0]]
        if mask is not None:
            u = u + mask.reshape(-1, *[1] * (z.dim() - 1)) * 1e-3
        return u.to(dtype)

    @staticmethod
    def phi(z: Tensor, t: Tensor) -> Tensor:
        """What the leak multiplies."""
        return torch.sin(z) + torch.cos(3 * t)

    def _tanh(self, z: Tensor, r: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        times = torch.cat([r.reshape(-1, 1), t.reshape(-1, 1)], 1) / self.setting.unit
        kind = z.dtype
        state = torch.cat([z.flatten(1), times], 1)
        hidden = state @ self.w_in.to(kind) + times @ self.w_time.to(kind) + self.shift.to(kind)
        if y is not None:
            hidden = hidden + self.embed[y.long().reshape(-1) % 64].to(kind)
        return (torch.tanh(hidden) @ self.w_out.to(kind)).reshape(z.shape)

    def _state(self, values: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        z = values["z"]
        if not isinstance(z, Tensor) or z.shape[1:] != self.event or z.shape[0] > self.pool[0].shape[0]:
            seen = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise NetworkError(
                f"the loss calls its network with a state of {seen}.", f"(rows, {', '.join(map(str, self.event))})",
                "say how the network is called: call=...",
            )  # fmt: skip
        require_device(z)
        time = {name: column(values[name], z, name) for name in ("r", "t", "h", "-h") if name in values}
        if "-h" in time:
            time["h"] = -time["-h"]
        if not {"r", "t"} & set(time):
            return z, torch.zeros_like(time["h"]), time["h"]
        t = time["t"] if "t" in time else time["r"] + time["h"] if "h" in time else time["r"]
        # A network that is told t alone stands at r = t.
        return z, time["r"] if "r" in time else t - time["h"] if "h" in time else t, t

    def _pack(self, u: Tensor, z: Tensor, t: Tensor, y: Tensor | None, index: int) -> Any:
        if not self.returns_tuple:
            return u
        start = column(t, z, "t")
        heads = {
            "u": lambda: u,
            "v": lambda: self.value(z, start, start, y, None) + self.heads[index][: z.shape[0]].to(z.dtype),
            "_": lambda: torch.zeros_like(u),
        }
        return tuple(heads[name]() for name in self.outputs)


def read_call(spec: CallSpec, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Values by letter; a label may be missing and further keywords are let through."""
    values: dict[str, Any] = {}
    positional = [token for token in spec.positional if token != "y"] if len(args) < len(spec.positional) else None
    tokens = list(positional if positional is not None else spec.positional)
    names = dict(spec.keyword)
    missing = [name for name, token in names.items() if name not in kwargs and token != "y"]
    if len(args) != len(tokens) or missing:
        raise NetworkError(
            f"the loss calls its network with {describe_arguments(args, kwargs)}.",
            f"{len(spec.positional)} positional arguments" + (f" and {', '.join(names)}" if names else ""),
            "say how it is called: call=..., for example call='z, t, r' or call='x=z, start=r, end=t'",
        )
    for token, value in zip(tokens, args, strict=True):
        _unpack(token, value, values)
    for name, token in names.items():
        if name in kwargs:
            _unpack(token, kwargs[name], values)
    return values


def _unpack(token: Token, value: Any, values: dict[str, Any]) -> None:
    if isinstance(token, str):
        values[token] = value
        return
    if isinstance(value, Tensor) and value.dim() == 2 and value.shape[1] == len(token):
        value = value.unbind(1)  # two times a row in one tensor
    if not isinstance(value, tuple | list) or len(value) != len(token):
        raise NetworkError(
            f"the network got {describe_arguments((value,), {})} where `call` has a tuple of {len(token)}.", "", ""
        )
    for item, part in zip(token, value, strict=True):
        _unpack(item, part, values)


def describe_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """The arguments by shape."""

    def one(value: Any) -> str:
        if isinstance(value, Tensor):
            return str(tuple(value.shape))
        if isinstance(value, tuple | list):
            return "(" + ", ".join(map(one, value)) + ")"
        return type(value).__name__

    return ", ".join([*map(one, args), *(f"{name}={one(value)}" for name, value in kwargs.items())]) or "no arguments"


def column(time: Any, z: Tensor, name: str) -> Tensor:
    """A time as ``(B, 1, ..., 1)``, whatever its shape."""
    if not isinstance(time, Tensor):
        time = torch.as_tensor(time, dtype=z.dtype)
    if time.numel() == 1:
        time = time.reshape(1).expand(z.shape[0])
    if time.numel() != z.shape[0]:
        raise NetworkError(
            f"`{name}` reaches the network with shape {tuple(time.shape)} beside a state of {tuple(z.shape)}.",
            "one time a row: (B,), (B, 1) or (B, 1, ..., 1)",
            "check `call`: the arguments may stand in another order",
        )
    shaped: Tensor = time.reshape(-1, *[1] * (z.dim() - 1))
    return shaped


def _autocast() -> bool:
    return any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))
