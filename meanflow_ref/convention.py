r"""What other people's code means by its arguments, its output and its times.

The paper's average velocity is ``u(z, r, t)`` with ``0 <= r <= t <= 1``, t = 1 noise, and ``t`` the time of ``z``. A
:class:`Convention` says how a network departs from that. With ``time="data_at_one"`` their times are one minus ours,

.. math:: t' = 1 - t, \quad r' = 1 - r \quad\Longrightarrow\quad
          v' = \frac{dz}{dt'} = -v, \qquad
          u' = \frac{1}{t' - r'}\int_{r'}^{t'} v'\,d\tau' = \frac{z_t - z_r}{-(t - r)} = -u,

and their ``h' = t' - r' = -(t - r)`` is negative: write ``-h`` for a network that is given the positive duration.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Literal

from torch import Tensor, nn

from meanflow_ref._validate import require_output
from meanflow_ref.errors import NetworkError, ParameterError, ShapeError

# Specifications seen in public code, for the remedy of a parse error.
COMMON_ARGUMENTS = (
    "z, r, t", "z, t, r", "z, t, h", "z, (t, h)", "z, h", "z, r, t, y", "z, t, r, y", "z, t, h, y", "z, (t, h), y",
    "z=z, r=r, t=t", "x=z, start=r, end=t", "z, t, -h",
)  # fmt: skip
COMMON_RETURNS = ("u", "u, v", "v, u", "u, _")
TIME_SHAPES = ("(B,)", "(B, 1)", "broadcast")

_Token = str | tuple["_Token", ...]


@dataclass(frozen=True)
class Convention:
    """How a network names, orders and orients what the paper calls ``u(z, r, t)``.

    Args:
        arguments: The call, in the paper's letters: ``z`` state, ``t`` its time, ``r`` the other end, ``h`` = t - r,
            ``-h``, ``y`` label; tuples ``"z, (t, h)"``, keywords ``"x=z, start=r, end=t"``.
        returns: The output: ``"u"``, or a tuple such as ``"u, v"`` or ``"u, _"`` of which u is used.
        time: ``"noise_at_one"`` (the paper) or ``"data_at_one"``: their times are one minus ours and ``u' = -u``.
        time_shape: Shape in which they take times: ``"(B,)"``, ``"(B, 1)"`` or ``"broadcast"``, that is (B, 1, ..., 1).

    Raises:
        ParameterError: If a specification cannot be read; it says what was seen and the nearest that can.

    """

    arguments: str = "z, r, t"
    returns: str = "u"
    time: Literal["noise_at_one", "data_at_one"] = "noise_at_one"
    time_shape: Literal["(B,)", "(B, 1)", "broadcast"] = "(B,)"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("time", self.time, ("noise_at_one", "data_at_one")),
            ("time_shape", self.time_shape, TIME_SHAPES),
        ):
            if value not in allowed:
                raise _unreadable(name, value, "it is none of those known", allowed)
        parsed = _parse_arguments(self.arguments), _parse_returns(self.returns)
        # Parsed once, here: the adapters are called inside compiled code, which should see plain tuples.
        object.__setattr__(self, "_call", parsed[0])
        object.__setattr__(self, "_outputs", parsed[1])
