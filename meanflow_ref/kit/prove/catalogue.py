"""Right formulas, and wrong ones by the names of their faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from meanflow_ref.kit.prove import formula as f
from meanflow_ref.kit.prove.formula import Formula


@dataclass(frozen=True)
class Right:
    """A formula that a loss may be proved to be."""

    name: str
    formula: Formula
    guided: bool = False


@dataclass(frozen=True)
class Fault:
    """One departure from a right formula: the choices that it replaces."""

    name: str
    text: str
    changes: dict[str, Any]
    guided: bool = False


RIGHT = (
    Right("MeanFlow", Formula()),
    Right("guided MeanFlow", Formula(velocity=f.guided_velocity), guided=True),
    Right("improved MeanFlow (tangent u(z, t, t))", Formula(tangent=f.own_velocity)),
    Right(
        "guided improved MeanFlow (tangent u(z, t, t))",
        Formula(velocity=f.guided_velocity, tangent=f.own_velocity),
        guided=True,
    ),
)

FAULTS = (
    # The tangents (dz/dt, dr/dt, dt/dt), wanted (v, 0, 1).
    Fault("R_AND_T_SWAPPED", "tangent (v, 1, 0) instead of (v, 0, 1)", {"dr": 1, "dt": 0}),
    Fault("R_MOVES", "tangent (v, 1, 1) instead of (v, 0, 1)", {"dr": 1}),
    Fault("TIME_TANGENT_MISSING", "tangent (v, 0, 0) instead of (v, 0, 1)", {"dt": 0}),
    Fault("TIME_TANGENT_SIGN", "tangent (v, 0, -1) instead of (v, 0, 1)", {"dt": -1}),
    Fault("SPATIAL_TANGENT_MISSING", "tangent (0, 0, 1) instead of (v, 0, 1)", {"tangent": f.no_velocity}),
    Fault("TANGENT_SIGN", "tangent (-v, 0, 1) instead of (v, 0, 1)", {"tangent": f.opposite_velocity}),
    Fault("TANGENT_NOT_VELOCITY", "tangent (eps, 0, 1) instead of (v, 0, 1)", {"tangent": f.noise_velocity}),
    Fault("TANGENT_NOT_VELOCITY", "tangent (x, 0, 1) instead of (v, 0, 1)", {"tangent": f.data_velocity}),
    Fault("TRANSPOSED_JACOBIAN", "v^T J instead of J v: a VJP where a JVP belongs", {"jacobian": f.transposed}),
    Fault(
        "SUMMED_OUTPUTS",
        "grad(u.sum()) instead of a JVP: the outputs are summed",
        {"jacobian": f.summed, "time_partial": f.summed_partial},
    ),
    # The coefficient of du/dt, wanted t - r.
    Fault("INTERVAL_SIGN", "coefficient r - t instead of t - r", {"interval": "r - t"}),
    Fault("FLOW_MATCHING_ONLY", "the du/dt term is absent: this is flow matching", {"interval": "0"}),
    *(
        Fault("INTERVAL_NOT_T_MINUS_R", f"coefficient {interval} instead of t - r", {"interval": interval})
        for interval in ("t", "r", "1", "-1", "1 - t", "1 - r", "(t - r)^2", "t + r", "t r")
    ),
    *(
        Fault("COEFFICIENT", f"coefficient {interval} instead of t - r", {"interval": interval})
        for interval in ("2 (t - r)", "(t - r)/2")
    ),
    # The velocity in the target, wanted dz/dt.
    Fault("VELOCITY_SIGN", "-v for v, in target and tangent", {"velocity": f.opposite_velocity, "tangent": None}),
    Fault(
        "VELOCITY_SIGN_IN_TARGET",
        "-v for v, in the target alone",
        {"velocity": f.opposite_velocity, "tangent": f.sample_velocity},
    ),
    Fault("VELOCITY_IS_NOISE", "eps for v, in target and tangent", {"velocity": f.noise_velocity, "tangent": None}),
    Fault("VELOCITY_IS_DATA", "x for v, in target and tangent", {"velocity": f.data_velocity, "tangent": None}),
    Fault(
        "VELOCITY_MISSING",
        "v is absent from the target",
        {"velocity": f.no_velocity, "tangent": f.sample_velocity},
    ),
    # Behind the stop-gradient.
    Fault("TARGET_NOT_DETACHED", "the target is not behind a stop-gradient", {"leaks": frozenset({"target"})}),
    Fault("DERIVATIVE_NOT_DETACHED", "du/dt is not behind a stop-gradient", {"leaks": frozenset({"derivative"})}),
    Fault("PREDICTION_DETACHED", "u itself is detached: there is no gradient", {"leaks": frozenset({"prediction"})}),
    Fault("WEIGHT_NOT_DETACHED", "the weight is not behind a stop-gradient", {"leaks": frozenset({"weight"})}),
    Fault(
        "TARGET_AND_WEIGHT_NOT_DETACHED",
        "neither target nor weight is behind a stop-gradient",
        {"leaks": frozenset({"target", "weight"})},
    ),
    # Guidance.
    Fault(
        "GUIDED_TARGET_UNGUIDED_TANGENT",
        "the tangent is v, not the guided velocity",
        {"tangent": f.sample_velocity},
        guided=True,
    ),
    Fault(
        "GUIDED_TANGENT_UNGUIDED_TARGET",
        "the target has v, not the guided velocity",
        {"velocity": f.sample_velocity, "tangent": f.guided_velocity},
        guided=True,
    ),
    Fault(
        "GUIDANCE_AT_R", "both branches are evaluated at (z, r, t), not (z, t, t)", {"velocity": f.guided_at_r}, True
    ),
    Fault(
        "NULL_BRANCH_AT_R",
        "the null branch is evaluated at (z, r, t), not (z, t, t)",
        {"velocity": f.guided_null_at_r},
        guided=True,
    ),
    Fault(
        "KAPPA_MISSING",
        "the null branch has weight 1 - omega, not 1 - omega - kappa",
        {"velocity": f.guided_without_kappa},
        True,
    ),
    Fault(
        "NULL_BRANCH_CONDITIONAL", "the null branch is evaluated with the label", {"velocity": f.guided_from_null}, True
    ),
    Fault(
        "GUIDANCE_EXTRAPOLATES",
        "v + omega (v - u) instead of omega v + (1 - omega) u",
        {"velocity": f.guided_unmixed},
        True,
    ),
    Fault(
        "GUIDANCE_NOT_DETACHED",
        "the guided velocity is not behind a stop-gradient",
        {"leaks": frozenset({"velocity"})},
        guided=True,
    ),
)

# Faults of the weight alone, which change `Formula.weight`.
WEIGHT_FAULTS = (
    ("WEIGHT_BATCH_COUPLED", "one weight for the batch, made of its mean error", "batch"),
    ("WEIGHT_PER_ELEMENT", "one weight for each component, not each sample", "element"),
    ("WEIGHT_SQUARED_TWICE", "the weight is made of the squared error squared", "squared"),
)


def wrong(right: Right) -> Iterator[tuple[tuple[Fault, ...], Formula]]:
    """The formulas with one fault, then those with two that touch different choices."""
    faults = [fault for fault in FAULTS if right.guided or not fault.guided]
    for fault in faults:
        yield (fault,), replace(right.formula, **fault.changes)
    for a, b in combinations(faults, 2):
        if not a.changes.keys() & b.changes.keys():
            yield (a, b), replace(right.formula, **a.changes, **b.changes)
