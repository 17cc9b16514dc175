"""Measuring a scenario, and what is printed, kept and concluded from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from meanflow_ref.bench.counters import Cost, Passes
from meanflow_ref.bench.interleaved import Ratio
from meanflow_ref.bench.measure import Row, measure
from meanflow_ref.bench.methods import BASELINE, METHODS, YARDSTICK
from meanflow_ref.bench.scenarios import SMALL_SCENARIOS
from meanflow_ref.bench.table import finding, save, to_markdown

ROW = Row(
    "mlp", "func", Ratio(2.0, 1.9, 2.1, 0.95), Ratio(1.0, 0.9, 1.1, 0.95), 3.0, 1.67, 3.4, 3.3, Passes(1, 1, 1),
    Cost(10, 20, 30),
)  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return measure(SMALL_SCENARIOS["mlp"], rounds=6)


def test_measure_has_a_row_for_every_method_in_order(rows: list[Row]) -> None:
    assert [row.method for row in rows] == list(METHODS)


def test_yardstick_and_baseline_are_one(rows: list[Row]) -> None:
    by_name = {row.method: row for row in rows}
    yardstick, baseline = by_name[YARDSTICK], by_name[BASELINE]
    assert yardstick.time.median == yardstick.flops == yardstick.peak_bytes == yardstick.kernels == 1
    assert baseline.time_to_baseline is not None
    assert baseline.time_to_baseline.median == 1
    # Each ratio is the counts' own.
    assert baseline.flops * yardstick.cost.flops == pytest.approx(baseline.cost.flops)
    assert baseline.peak_bytes * yardstick.cost.peak_bytes == pytest.approx(baseline.cost.peak_bytes)


def test_table_is_aligned_and_whole(rows: list[Row]) -> None:
    lines = to_markdown(rows).splitlines()
    assert len(lines) == 2 + len(METHODS)
    assert len({len(line) for line in lines}) == 1
    assert all(method in line for method, line in zip(METHODS, lines[2:], strict=True))


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.8, 0.95, "faster on"), (1.05, 1.2, "slower on"), (0.9, 1.1, "not told apart on")]
)
def test_finding_follows_the_interval(low: float, high: float, verdict: str) -> None:
    row = replace(ROW, time_to_baseline=Ratio((low + high) / 2, low, high, 0.95))
    assert f"{verdict} mlp" in finding([row])


def test_finding_is_silent_without_its_method() -> None:
    assert finding([replace(ROW, method="two_pass")]) == ""


def test_record_reads_back(rows: list[Row], tmp_path: Path) -> None:
    record, table, plot = save(rows, tmp_path / "results" / "here")
    content = json.loads(record.read_text())
    assert content["environment"]["threads"] == 1
    assert [row["method"] for row in content["rows"]] == list(METHODS)
    assert content["rows"][1]["passes"] == {"primal": 1.0, "tangent": 1.0, "backward": 2.0}
    assert to_markdown(rows) in table.read_text()
    assert "stopgrad" in plot.read_text()
