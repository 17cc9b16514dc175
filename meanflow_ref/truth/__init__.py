"""Ground truth: the average velocity of a known velocity, by routes that know nothing of the code they judge."""

from __future__ import annotations

from meanflow_ref.truth.average import average_velocity, flow_map
from meanflow_ref.truth.ode import average_velocity_ode
from meanflow_ref.truth.result import Truth

__all__ = ["Truth", "average_velocity", "average_velocity_ode", "flow_map"]
