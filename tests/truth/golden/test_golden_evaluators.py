"""The library's own evaluators hold the golden vectors; bounds are in units of the last place times (1 + |J|)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from meanflow_ref.errors import ParameterError
from meanflow_ref.truth import average_velocity
from meanflow_ref.truth.golden import flat, load
from meanflow_ref.truth.golden.rebuild import Batch, batches
from meanflow_ref.verify import vectors
from meanflow_ref.verify.rows_golden import checks
from meanflow_ref.verify.vectors import Held, closed_field, flagged, has_closed_flow, held
from meanflow_ref.verify.vectors_loss import held_loss
from meanflow_ref.verify.vectors_readme import BEGIN, END, table, update

FIELDS, LOSSES = load(1).fields, load(1).losses
CLOSED = [case for case in FIELDS if has_closed_flow(case)]
# Some two to four times what was measured.
BOUNDS = {
    "v": 40, "u": 80, "end": 10, "log_det_jacobian": 1500, "du_dt": 1500, "dr_u": 1500, "dz_u": 2500, "jacobian": 1500,
}  # fmt: skip


def within(lines: list[Held], bounds: Mapping[str, float], count: int) -> None:
    assert lines
    for line in lines:
        assert line.count == count
        assert line.worst <= bounds[line.what.split(": ")[1]], line


def test_exact_velocities_and_closed_forms_hold_every_vector() -> None:
    within(held(vectors.velocity, FIELDS, "v"), BOUNDS, 1024)
    within(held(vectors.closed, CLOSED, "closed"), BOUNDS, len(CLOSED))
    assert len(CLOSED) > 700


def test_the_ode_holds_every_30th_vector() -> None:
    within(held(vectors.ode, FIELDS[::30], "ode"), {"u": 300}, len(FIELDS[::30]))


@pytest.mark.slow
def test_the_ode_its_derivatives_and_quadrature_hold_every_vector() -> None:
    within(held(vectors.ode, FIELDS, "ode"), {"u": 300}, 1024)
    within(held(vectors.ode_derivatives, FIELDS, "ode"), dict.fromkeys(BOUNDS, 1000), 1024)
    line = [case for case in CLOSED if vectors.quadrature_settles(case)]
    within(held(vectors.quadrature, line, "quadrature"), {"u": 200}, 565)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_short_precisions_round_once(dtype: str) -> None:
    """A field is evaluated in float64 and rounded: half a unit of the value, which is at most one of the table's."""
    within(held(vectors.velocity, flagged(FIELDS, dtype), "v", dtype), {"v": 1}, len(flagged(FIELDS, dtype)))
    closed = flagged(CLOSED, dtype)
    within(held(vectors.closed_value, closed, "u", dtype), {"u": 1}, len(closed))


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 80.0), ("float32", 12.0), ("bfloat16", 8.0)])
def test_the_loss_holds_every_target(dtype: str, bound: float) -> None:
    cases = LOSSES if dtype == "float64" else [case for case in LOSSES if f"{dtype.upper()}_INPUTS" in case.flags]
    lines = held_loss(cases, "loss", dtype)
    assert {line.what.split(": ")[1] for line in lines} == set(LOSSES[0].outputs)
    within(lines, dict.fromkeys(LOSSES[0].outputs, bound), len(cases))


@pytest.mark.parametrize("backend", ["forward_ad", "double_backward"])
def test_other_backends_hold_the_targets(backend: str) -> None:
    within(held_loss(LOSSES[::8], "loss", jvp=backend), dict.fromkeys(LOSSES[0].outputs, 80.0), len(LOSSES[::8]))


def test_estimated_errors_are_not_exceeded() -> None:
    """An estimate, not a bound: but over all closed vectors, and some of the others, the truth is within it."""
    for batch in batches(CLOSED):
        truth = average_velocity(closed_field(batch), batch.z, batch.r, batch.t, method="closed")
        assert bool((batch.errors("u", truth.value) <= truth.error).all())
    for batch in batches(FIELDS[::40]):
        truth = average_velocity(batch.field, batch.z, batch.r, batch.t, method="ode", tol=1e-9)
        assert bool((batch.errors("u", truth.value) <= truth.error).all())


# ---------------------------------------------------------------- the measurement itself


def test_a_perturbed_evaluator_is_measured_as_such() -> None:
    def off(batch: Batch) -> dict[str, torch.Tensor]:
        units = vectors.units(batch, "v", torch.float64)[:, None]
        return {"v": batch.truth("v") + 1000 * units}

    (line,) = held(off, FIELDS[:40], "off")
    assert line.worst == pytest.approx(1000, rel=0.01)

    def broken(batch: Batch) -> dict[str, torch.Tensor]:
        return {"v": batch.truth("v") * math.nan}

    assert held(broken, FIELDS[:40], "broken")[0].worst == math.inf


def test_errors_are_taken_from_the_decimals() -> None:
    """The float64 nearest to the truth is off by up to half a unit, and is seen to be."""
    (batch,) = batches(FIELDS[:1])
    (number,) = flat(FIELDS[0].outputs["v"])
    error = float(batch.errors("v", batch.truth("v"))[0])
    assert error == pytest.approx(number.error(number.float64))
    assert 0 < error <= math.ulp(number.float64) / 2


def test_verify_has_the_rows() -> None:
    """The first is run here; the others measure what the tests above do."""
    rows = checks()
    assert len(rows) == 5
    assert rows[0].measure() == 0
    assert {row.bound for row in rows[1:]} == {50.0, 80.0, 300.0}


def test_the_table_is_put_between_its_markers(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n")
    lines = [Held("closed form: u", "float64", 7, 1.25, "F0001"), Held("closed form: u", "float32", 3, 0.5, "F0002")]
    update(path, table(lines, load(1)))
    text = path.read_text()
    assert "| closed form | u | 1.2 (7) | 0.5 (3) |  |" in text
    assert "stale" not in text
    assert text.endswith("after\n")
    path.write_text("no markers\n")
    with pytest.raises(ParameterError, match="lacks the markers"):
        update(path, "")


def test_the_readme_has_a_table_of_this_oracle() -> None:
    text = (Path(__file__).parents[3] / "README.md").read_text()
    assert load(1).digest in text[text.index(BEGIN) : text.index(END)]
