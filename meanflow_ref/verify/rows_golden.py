"""Rows about the golden vectors: the frozen files are whole, come out again, and hold the library's own evaluators."""

from __future__ import annotations

import math
from collections.abc import Iterable

from meanflow_ref.truth.golden import FieldCase, load
from meanflow_ref.verify.check import Check
from meanflow_ref.verify.vectors import Answers, Held, closed_value, has_closed_flow, held, ode, velocity
from meanflow_ref.verify.vectors_loss import held_loss

GROUP = "Golden vectors"
# Cases certified again at each run, of fields and of losses.
LIVE = 20
SEED = 0


def not_reproduced() -> float:
    """Frozen outputs that do not come out when certified anew. Every file's digest is checked on the way."""
    # Here, so that without python-flint this row fails and says so, and no other.
    from meanflow_ref.truth.golden.recertify import cheap, differences

    return float(sum(len(differences(case)) for case in cheap(load(), LIVE, SEED)))


def worst(lines: Iterable[Held]) -> float:
    """The worst of several quantities."""
    return max((line.worst for line in lines), default=math.nan)


def _fields(answers: Answers, cases: Iterable[FieldCase]) -> float:
    return worst(held(answers, cases, ""))


def velocity_units() -> float:
    """Exact velocity against all vectors. Source: mf:1."""
    return _fields(velocity, load().fields)


def closed_units() -> float:
    """Closed u against all vectors of fields with a closed flow. Source: ref:quantile."""
    return _fields(closed_value, [case for case in load().fields if has_closed_flow(case)])


def ode_units() -> float:
    """The ODE route against every fiftieth vector. Source: ref:u-ode."""
    return _fields(ode, load().fields[::50])


def loss_units() -> float:
    """The reference loss, its parts and gradient against all loss targets. Source: mf:9, mf:11."""
    return worst(held_loss(load().losses, ""))


_UNITS = "units of the last place times (1 + |J|), and the largest of |z|, |value| and 1"


def checks() -> list[Check]:
    """The rows."""
    number = load().number
    return [
        Check(
            GROUP,
            f"oracle {number}: {LIVE} field values and {LIVE} loss targets certified again, outputs that differ",
            not_reproduced,
            0.0,
            note="drawn by a seed; the time is beside it",
        ),
        Check(GROUP, f"oracle {number}: exact v, all field values, ulps", velocity_units, 50.0, note=_UNITS),
        Check(GROUP, f"oracle {number}: closed u, ulps", closed_units, 80.0, note=_UNITS),
        Check(GROUP, f"oracle {number}: u by torchdiffeq, every 50th value, ulps", ode_units, 300.0, note=_UNITS),
        Check(GROUP, f"oracle {number}: reference loss and gradient, all targets, ulps", loss_units, 80.0),
    ]
