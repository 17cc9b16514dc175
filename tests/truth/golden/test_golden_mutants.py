"""The checker is checked: each mistake that a flag names is rejected by its cases, and right code is not.

A share and not all of the cases need reject it: at a state where two formulas happen to agree nothing can be seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from golden_mutants import RIGHT, Array, Mistakes, distance, loss, runge_kutta, values, velocity
from scipy.stats import norm

from meanflow_ref.truth import average_velocity
from meanflow_ref.truth.golden import FieldCase, GuidedData, LossCase, MixtureData, flat, load
from meanflow_ref.truth.golden.rebuild import batches

EPS = 2.0**-52
# Right code in float64 is within some hundred roundings; the integrator's own error is below this.
INTEGRATED, ROUNDED = 1e-6, 200 * EPS


def cases(flag: str, *, at_most: int = 60, where: Callable[[FieldCase], bool] = lambda case: True) -> list[FieldCase]:
    found = [case for case in load(1).fields if flag in case.flags and where(case)]
    return found[:: max(1, len(found) // at_most)]


def rejected(chosen: list[FieldCase], name: str, mutant: Callable[[FieldCase], Array | float], bound: float) -> float:
    """Share of the cases that reject a mutant."""
    assert len(chosen) >= 3
    return sum(distance(case, name, mutant(case)) > bound for case in chosen) / len(chosen)


def integrated(case: FieldCase, wrong: Mistakes = RIGHT, steps: int = 300) -> Array:
    return runge_kutta(velocity(case, wrong), np.array(case.z), case.r, case.t, steps)


def instant(case: FieldCase, wrong: Mistakes = RIGHT) -> Array:
    return velocity(case, wrong)(np.array(case.z), case.t)


def h(case: FieldCase) -> float:
    return case.t - case.r


# ---------------------------------------------------------------- right code


def test_a_textbook_velocity_is_accepted_everywhere() -> None:
    for case in load(1).fields:
        assert distance(case, "v", instant(case)) < ROUNDED, case.id


@pytest.mark.parametrize("flag", ["ORDINARY", "ONE_STEP", "SHORT", "NEAR_DATA", "NEAR_NOISE", "FAR_TAIL", "GUIDED"])
def test_a_textbook_integrator_is_accepted(flag: str) -> None:
    for case in cases(flag, at_most=12, where=lambda case: "NARROW_MODES" not in case.flags):
        assert distance(case, "u", integrated(case)) < INTEGRATED, case.id


# ---------------------------------------------------------------- mistakes in v and u


def test_ordinary_cases_reject_signs_factors_and_exchanged_times() -> None:
    chosen = cases("ORDINARY", at_most=40)
    assert rejected(chosen, "u", lambda c: -values(c, "u"), INTEGRATED) > 0.9
    assert rejected(chosen, "u", lambda c: values(c, "u") * h(c), INTEGRATED) > 0.9
    assert rejected(chosen, "du_dt", lambda c: values(c, "dr_u"), INTEGRATED) > 0.9
    exchanged = cases("ORDINARY", at_most=12)
    assert rejected(
        exchanged, "u", lambda c: runge_kutta(velocity(c), np.array(c.z), c.t, c.r, 100), INTEGRATED
    ) > 0.9  # fmt: skip


def test_one_step_cases_reject_the_instantaneous_velocity() -> None:
    assert rejected(cases("ONE_STEP"), "u", lambda c: values(c, "v"), INTEGRATED) > 0.9


def test_limits_reject_a_division_by_zero_and_the_whole_acceleration() -> None:
    chosen = cases("LIMIT")
    assert rejected(chosen, "u", lambda c: np.array([math.nan]), INTEGRATED) == 1
    assert rejected(chosen, "du_dt", lambda c: 2 * values(c, "du_dt"), INTEGRATED) > 0.85
    assert rejected(chosen, "du_dt", lambda c: 0 * values(c, "du_dt"), INTEGRATED) > 0.85


def test_short_intervals_reject_a_subtraction() -> None:
    chosen = cases("SHORT", where=lambda c: h(c) < 1e-5)
    # Even with the end point correctly rounded.
    assert rejected(chosen, "u", lambda c: (np.array(c.z) - values(c, "end")) / h(c), ROUNDED) > 0.8


def test_cases_near_the_data_reject_a_division_by_sigma() -> None:
    chosen = cases("NEAR_DATA", where=lambda c: c.path == "linear" and c.t < 2e-3)
    # v = (z - E[x|z])/t, with E[x|z] correctly rounded.
    assert (
        rejected(chosen, "v", lambda c: (np.array(c.z) - (np.array(c.z) - c.t * values(c, "v"))) / c.t, 16 * EPS) > 0.4
    )


def test_cases_near_the_noise_reject_a_division_by_alpha() -> None:
    chosen = cases("NEAR_NOISE", where=lambda c: c.path == "linear")

    def by_noise(case: FieldCase) -> Array:
        """``v = (E[eps|z] - z)/(1 - t)``."""
        z, v = np.array(case.z), values(case, "v")
        noise = z + (1 - case.t) * v
        with np.errstate(all="ignore"):
            found: Array = (noise - z) / (1 - case.t)
            return found

    assert rejected(chosen, "v", by_noise, 16 * EPS) > 0.6


def test_far_tails_reject_densities_and_distributions_outside_the_logarithm() -> None:
    chosen = cases("FAR_TAIL", where=lambda c: isinstance(c.field, MixtureData))
    assert rejected(chosen, "v", lambda c: instant(c, Mistakes(no_logs=True)), ROUNDED) > 0.25

    def by_distribution(case: FieldCase) -> float:
        """F_r^{-1}(F_t(z)) of one normal law, on the upper side."""
        data = case.field
        assert isinstance(data, MixtureData)
        (m,), (s,) = data.means[0], data.stds[0]
        law = [norm((1 - x) * m, math.hypot((1 - x) * s, x)) for x in (case.t, case.r)]
        return float((case.z[0] - law[1].ppf(law[0].cdf(case.z[0]))) / h(case))

    one = [c for c in cases("FAR_TAIL", at_most=999) if c.path == "linear" and len(c.z) == 1]
    upper = [c for c in one if isinstance(c.field, MixtureData) and len(c.field.weights) == 1 and c.z[0] > 0]
    assert rejected(upper, "u", by_distribution, 1e-6) > 0.7


def test_separatrices_reject_a_tolerance_without_the_jacobian() -> None:
    """The ODE route at 1e-9 keeps 1e-8 (1 + |J|), and on many of these cases no 1e-9."""
    chosen = cases("SEPARATRIX", at_most=16, where=lambda c: len(c.z) < 3)
    naive = []
    for batch in batches(chosen):
        errors = batch.errors(
            "u", average_velocity(batch.field, batch.z, batch.r, batch.t, method="ode", tol=1e-9).value
        )
        assert bool((errors < 1e-8 * batch.amplification).all())
        naive += (errors > 1e-9).tolist()
    assert sum(naive) / len(naive) > 0.3


def test_narrow_modes_reject_a_few_fixed_steps() -> None:
    chosen = cases("NARROW_MODES", where=lambda c: "ONE_STEP" in c.flags or "SEPARATRIX" in c.flags)
    assert rejected(chosen, "u", lambda c: integrated(c, steps=8), 1e-4) > 0.5


@pytest.mark.parametrize(
    ("flag", "wrong", "share"),
    [
        ("UNEQUAL_WEIGHTS", Mistakes(no_weights=True), 0.5),
        ("UNEQUAL_WIDTHS", Mistakes(no_norms=True), 0.4),
        ("OTHER_PATH", Mistakes(path="linear"), 0.9),
        ("GUIDED", Mistakes(prior_weights=True), 0.7),
    ],
)
def test_a_property_of_the_field_rejects_a_velocity_without_it(flag: str, wrong: Mistakes, share: float) -> None:
    assert rejected(cases(flag, at_most=200), "v", lambda c: instant(c, wrong), 1e-9) > share


def test_guided_cases_reject_guided_averages() -> None:
    def averages(case: FieldCase) -> Array:
        data = case.field
        assert isinstance(data, GuidedData)
        plain, scale = GuidedData(data.classes, data.priors, data.label, 0.0, 0.0), data.omega / (1 - data.kappa)
        label = GuidedData(data.classes, data.priors, data.label, 1.0, 0.0)
        label_u, plain_u = (
            integrated(FieldCase("", "", one, case.path, case.z, case.r, case.t, (), "")) for one in (label, plain)
        )
        return scale * label_u + (1 - scale) * plain_u

    chosen = cases("GUIDED", at_most=12, where=lambda c: "ORDINARY" in c.flags or "ONE_STEP" in c.flags)
    assert rejected(chosen, "u", averages, 1e-5) > 0.8


# ---------------------------------------------------------------- mistakes in the loss


def off(case: LossCase, name: str, value: Any) -> float:
    numbers = list(flat(case.outputs[name]))
    found = np.concatenate(
        [np.atleast_1d(np.asarray(part)).ravel() for part in (value if name == "gradient" else [value])]
    )
    size = max(1.0, *(abs(number.float64) for number in numbers))
    return float(np.abs(found - np.array([number.float64 for number in numbers])).max()) / size


def chosen_losses(flag: str) -> list[LossCase]:
    return [case for case in load(1).losses if flag in case.flags]


def test_a_textbook_loss_is_accepted_everywhere() -> None:
    for case in load(1).losses:
        for name, value in loss(case).items():
            assert off(case, name, value) < ROUNDED, (case.id, name)


@pytest.mark.parametrize(
    ("flag", "mistake", "output", "share"),
    [
        ("ORDINARY", "sign", "target", 1.0),
        ("ORDINARY", "no time", "target", 1.0),
        ("ORDINARY", "time of r", "target", 1.0),
        ("ORDINARY", "both times", "target", 1.0),
        ("ORDINARY", "exchanged", "loss", 0.95),
        ("LIMIT", "no interval", "target", 1.0),
        ("SHORT", "difference", "du_dt", 1.0),
        ("WEIGHTED", "leaking weight", "gradient", 0.95),
        ("STOP_GRADIENT", "leaking target", "gradient", 1.0),
        ("MEAN_NORM", "sum", "gradient", 0.7),
        ("IMPROVED", "sample tangent", "tangent", 1.0),
        ("GUIDED", "sample tangent", "tangent", 1.0),
        ("NULL_LABEL", "null guided", "target", 1.0),
        ("OTHER_PATH", "linear path", "target", 1.0),
    ],
)
def test_a_mistake_in_the_loss_is_rejected(flag: str, mistake: str, output: str, share: float) -> None:
    chosen = chosen_losses(flag)
    assert len(chosen) >= 9

    seen = [off(case, output, loss(case, mistake)[output]) > 1e-11 for case in chosen]
    assert sum(seen) / len(seen) >= share
