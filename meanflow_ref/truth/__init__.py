"""Ground truth: the average velocity of a known velocity, by routes that know nothing of the code they judge.

Names load on first use, so that the golden vectors can be read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meanflow_ref.truth.average import average_velocity, flow_map
    from meanflow_ref.truth.ode import average_velocity_ode
    from meanflow_ref.truth.result import Truth

_PUBLIC = {"Truth": "result", "average_velocity": "average", "average_velocity_ode": "ode", "flow_map": "average"}

__all__ = ["Truth", "average_velocity", "average_velocity_ode", "flow_map"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
