"""A convention and the adapters both ways."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from meanflow_ref._validate import require_output
from meanflow_ref.convention.grammar import CallSpec, parse_call, parse_returns, unreadable
from meanflow_ref.errors import NetworkError, ParameterError

TIMES = ("noise_at_one", "data_at_one")
TIME_SHAPES = ("(B,)", "(B, 1)", "broadcast")


@dataclass(frozen=True)
class Convention:
    """How a network names, orders and orients what the paper calls ``u(z, r, t)``.

    Args:
        arguments: The call, in the paper's letters: ``z`` state, ``t`` its time, ``r`` the other end, ``h`` = t - r,
            ``-h``, ``y`` label; tuples ``"z, (t, h)"``, keywords ``"x=z, start=r, end=t"``.
        returns: The output: ``"u"``, or a tuple such as ``"u, v"`` or ``"u, _"`` of which u is used.
        time: ``"noise_at_one"`` (the paper) or ``"data_at_one"``: their times are one minus ours and ``u' = -u``.
        time_shape: Shape of their times: ``"(B,)"``, ``"(B, 1)"`` or ``"broadcast"``, that is (B, 1, ..., 1).

    Raises:
        ParameterError: If a specification cannot be read; it says what was seen and the nearest that can.

    """

    arguments: str = "z, r, t"
    returns: str = "u"
    time: Literal["noise_at_one", "data_at_one"] = "noise_at_one"
    time_shape: Literal["(B,)", "(B, 1)", "broadcast"] = "(B,)"
    # Parsed once, when built: the adapters run inside compiled code, which should see plain tuples.
    call: CallSpec = field(init=False, repr=False, compare=False)
    outputs: tuple[str, ...] = field(init=False, repr=False, compare=False)
    returns_tuple: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.time not in TIMES:
            raise unreadable("time", self.time, "no such direction", TIMES)
        if self.time_shape not in TIME_SHAPES:
            raise unreadable("time_shape", self.time_shape, "no such shape", TIME_SHAPES)
        names, is_tuple = parse_returns(self.returns)
        object.__setattr__(self, "call", parse_call(self.arguments))
        object.__setattr__(self, "outputs", names)
        object.__setattr__(self, "returns_tuple", is_tuple)

    def adapt(self, net: Callable[..., Any]) -> Adapted:
        """A network of this convention, as the paper's ``u(z, r, t[, label])``; differentiable as the network is."""
        return Adapted(net, self)

    def express(self, u: Callable[..., Tensor]) -> Callable[..., Any]:
        """The paper's ``u(z, r, t[, label])``, as a network of this convention: the inverse of :meth:`adapt`.

        An output ``v`` is u at r = t; an output ``_`` is ``None``.

        Raises:
            ParameterError: If the convention gives the network h alone, from which r and t cannot be recovered.

        """
        if not {"r", "t"} & set(self.call.letters):
            raise ParameterError(
                f"Convention(arguments={self.arguments!r}) gives the network h alone.",
                "r or t beside it, since u(z, r, t) depends on both",
                "",
            )

        def theirs(*args: Any, **kwargs: Any) -> Any:
            values = self.call.read(args, kwargs)
            z = values["z"]
            r, t = self._our_times(values, z)
            label = () if values.get("y") is None else (values["y"],)
            return self._pack(lambda start: self._sign * u(z, start, t, *label), r, t)

        return theirs

    # ------------------------------------------------------------ helpers

    @property
    def _sign(self) -> int:
        return 1 if self.time == "noise_at_one" else -1

    def _reversed(self, time: Tensor) -> Tensor:
        return time if self.time == "noise_at_one" else 1 - time

    def _shaped(self, time: Tensor, z: Tensor) -> Tensor:
        if self.time_shape == "(B,)":
            return time
        ones = 1 if self.time_shape == "(B, 1)" else z.dim() - time.dim()
        return time.reshape(*time.shape, *[1] * ones)

    def _their_values(self, z: Tensor, r: Tensor, t: Tensor, label: Any) -> dict[str, Any]:
        r, t = (self._shaped(self._reversed(time), z) for time in (r, t))
        return {"z": z, "r": r, "t": t, "h": t - r, "-h": r - t, "y": label}

    def _our_times(self, values: dict[str, Any], z: Tensor) -> tuple[Tensor, Tensor]:
        times = {name: values[name] for name in ("r", "t", "h", "-h") if name in values}
        if self.time_shape != "(B,)":
            times = {name: time.reshape(z.shape[:1]) for name, time in times.items()}
        if "-h" in times:
            times["h"] = -times["-h"]
        t = times["t"] if "t" in times else times["r"] + times["h"]
        r = times["r"] if "r" in times else t - times["h"]
        return self._reversed(r), self._reversed(t)

    def _pack(self, u_from: Callable[[Tensor], Tensor], r: Tensor, t: Tensor) -> Any:
        starts = {"u": r, "v": t}
        values = tuple(u_from(starts[name]) if name in starts else None for name in self.outputs)
        return values if self.returns_tuple else values[0]

    def _pick(self, output: Any) -> Any:
        if not self.returns_tuple:
            return output
        if not isinstance(output, tuple | list) or len(output) != len(self.outputs):
            size = f" of {len(output)}" if isinstance(output, tuple | list) else ""
            raise NetworkError(
                f"the network returned {type(output).__name__}{size}.",
                f"a tuple of {len(self.outputs)}, as Convention(returns={self.returns!r}) says",
                "",
            )
        return output[self.outputs.index("u")]


# Compared and hashed by identity: Dynamo of torch 2.11 hashes a callable while it is being built.
@dataclass(frozen=True, eq=False)
class Adapted:
    """A network behind a convention: the paper's ``u(z, r, t[, label])``. Made by :meth:`Convention.adapt`."""

    net: Callable[..., Any]
    convention: Convention

    def __call__(self, z: Tensor, r: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Average velocity of ``z`` at ``t`` back to ``r``.

        Args:
            z: States, ``(B, *event)``.
            r: Other end of the interval, ``(B,)``.
            t: Time of the states, ``(B,)``.
            label: Labels, ``(B,)``; the convention must have a place ``y`` for them.

        Returns:
            ``u``, of ``z``'s shape, with the network's graph.

        Raises:
            NetworkError: If the output is not one floating-point tensor of ``z``'s shape.

        """
        spec = self.convention.call
        if label is not None and "y" not in spec.letters:
            raise ParameterError(
                f"a label was given; Convention(arguments={self.convention.arguments!r}) has no place for it.",
                "the letter `y`",
                f'arguments="{self.convention.arguments}, y"',
            )
        args, kwargs = spec.build(self.convention._their_values(z, r, t, label))
        u = require_output(self.convention._pick(self.net(*args, **kwargs)), z)
        return u if self.convention._sign > 0 else -u


PAPER = Convention("z, r, t")
PAPER_WITH_LABEL = Convention("z, r, t, y")


def adapted(net: Callable[..., Any], convention: Convention | None, label: Tensor | None) -> Adapted:
    """A network in the paper's convention; called as ``net(z, r, t)`` or ``net(z, r, t, label)`` if none is given."""
    if convention is None:
        convention = PAPER if label is None else PAPER_WITH_LABEL
    if not isinstance(convention, Convention):
        raise ParameterError(f"convention={convention!r}.", "a Convention", f"Convention({convention!r})")
    if not torch.compiler.is_compiling():
        _require_call_fits(net, convention)
    return convention.adapt(net)


def _require_call_fits(net: Callable[..., Any], convention: Convention) -> None:
    """Raise if ``net`` cannot be called as the convention says; what has no signature is left to the call itself."""
    if not callable(net):
        raise NetworkError(f"the network is {type(net).__name__}.", f"a callable net({convention.arguments})", "")
    try:
        signature = inspect.signature(net.forward if isinstance(net, torch.nn.Module) else net)
    except (TypeError, ValueError):
        return
    args, kwargs = convention.call.build(dict.fromkeys(("z", "r", "t", "h", "-h", "y")))
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise NetworkError(
            f"the network's signature is {signature}: {error}.",
            f"a network that can be called as net({convention.arguments})",
            'say how yours is called, e.g. convention=Convention("z, (t, h)")',
        ) from None
