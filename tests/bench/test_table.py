"""Measuring a scenario, and what is printed, kept and concluded from it."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from meanflow_ref.bench.counters import Cost, Passes
from meanflow_ref.bench.interleaved import Ratio
from meanflow_ref.bench.measure import Refusal, Row, measure
from meanflow_ref.bench.methods import BASELINE, METHODS, YARDSTICK
from meanflow_ref.bench.plot import draw
from meanflow_ref.bench.scenarios import SMALL_SCENARIOS
from meanflow_ref.bench.table import FORMAT, finding, record, save, to_markdown

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


RATIO = {"median": float, "low": float, "high": float, "confidence": float}
PASSES = {"primal": float, "tangent": float, "backward": float}
COST = {"flops": int, "peak_bytes": int, "kernels": (int, None), "kept_bytes": (int, None)}
# What readers of jvp.json rely on; a change of it raises FORMAT.
ROW_SCHEMA: dict[str, Any] = {
    "scenario": str, "method": str, "time": RATIO, "time_to_baseline": (RATIO, None), "milliseconds": float,
    "flops": float, "peak_bytes": float, "kernels": (float, None), "passes": (PASSES, None), "cost": COST,
    "limit": float, "error": (float, None), "share": float, "yardstick": str, "kept_bytes": (float, None),
}  # fmt: skip
REFUSAL_SCHEMA: dict[str, Any] = {"scenario": str, "method": str, "reason": str, "share": float}
ENVIRONMENT_SCHEMA: dict[str, Any] = {
    "torch": str, "python": str, "machine": str, "cpus": int, "threads": int, "device": str,
    "freed memory": str,
}  # fmt: skip
SCHEMA: dict[str, Any] = {
    "format": int, "environment": ENVIRONMENT_SCHEMA, "rows": [ROW_SCHEMA], "refused": [REFUSAL_SCHEMA],
}  # fmt: skip


def misfits(value: Any, schema: Any, where: str = "") -> list[str]:
    """Places where a value is not what the schema says: a type, a record, a list, or alternatives."""
    if isinstance(schema, tuple):
        return [] if value is None else misfits(value, schema[0], where)
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [where]
        return [bad for i, item in enumerate(value) for bad in misfits(item, schema[0], f"{where}[{i}]")]
    if isinstance(schema, dict):
        if not isinstance(value, dict) or value.keys() != schema.keys():
            return [where]
        return [bad for key, part in schema.items() for bad in misfits(value[key], part, f"{where}.{key}")]
    return [] if type(value) is schema else [where]


def test_the_record_keeps_its_schema(rows: list[Row]) -> None:
    bare = replace(ROW, time_to_baseline=None, passes=None, kernels=None, kept_bytes=None)
    content = json.loads(json.dumps(record([*rows, bare, Refusal("mlp", "func_compiled", "why")])))
    assert not misfits(content, SCHEMA)
    assert content["format"] == FORMAT == 2
    del content["rows"][0]["share"]
    content["rows"][1]["flops"] = "1.0"
    content["rows"][2]["time"]["low"] = None
    assert misfits(content, SCHEMA) == [".rows[0]", ".rows[1].flops", ".rows[2].time.low"]


ROOT = Path(__file__).parents[2]


def load_writer() -> Any:
    """``benchmarks/write_readme.py``, which is a script and in no package."""
    spec = spec_from_file_location("write_readme", ROOT / "benchmarks" / "write_readme.py")
    assert spec is not None
    assert spec.loader is not None
    writer = module_from_spec(spec)
    spec.loader.exec_module(writer)
    return writer


def test_the_figures_of_the_readme_are_those_of_the_committed_run() -> None:
    writer = load_writer()
    run = json.loads(writer.RUN.read_text())
    figures = (ROOT / "benchmarks" / "README.md").read_text().partition(writer.BEGIN)[2].partition(writer.END)[0]
    assert figures.strip() == writer.block(run).strip(), "run benchmarks/write_readme.py"


def test_the_readme_has_the_compiled_rows_and_refusals_of_a_run(rows: list[Row]) -> None:
    writer = load_writer()
    compiled = replace(ROW, method="stopgrad_compiled", time=Ratio(1.29, 1.2, 1.3, 0.95), kernels=None, passes=None)
    block = writer.block(record([*rows, compiled, Refusal("unet", "func_compiled", "no kernel")]))
    assert "| 100 %, `stopgrad_compiled` | 1.29 [1.20, 1.30], 3.40, 1.67 |" in block
    assert "Refused: unet, `func_compiled`: no kernel" in block
    assert "`functional_jvp`" in block


def test_bars_have_a_panel_for_each_model_share_and_yardstick() -> None:
    compiled = replace(ROW, method="stopgrad_compiled", yardstick="flow_matching_compiled")
    figure = draw([ROW, replace(ROW, share=0.25), compiled, replace(ROW, scenario="dit")])
    titles = [axes.get_title() for axes in figure.axes if axes.axison]
    assert titles == [
        "mlp, r != t on 100 %",
        "mlp, r != t on 25 %",
        "mlp, compiled, r != t on 100 %",
        "dit, r != t on 100 %",
    ]
