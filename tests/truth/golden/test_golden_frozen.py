"""Oracle 1 is frozen: its digests, counts and schema are written down here, apart from the code that reads them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from meanflow_ref.truth.golden import FieldCase, MixtureData, flat, load
from meanflow_ref.truth.golden.archive import HERE, MANIFEST, ORACLES, sha256
from meanflow_ref.truth.golden.data import fits
from meanflow_ref.truth.golden.flags import FIELD_FLAGS, LOSS_FLAGS
from meanflow_ref.truth.golden.recertify import differences, is_slow, sample
from meanflow_ref.truth.golden.regenerate import DESIGNS, compared, designed

# Never change a line of this table: a new oracle adds one.
FROZEN = {1: "163780d1a2b7ce8eb588f9c9998d22757f63aa5894748db294ad85cce56f4e6b"}
COUNTS = {
    "fields-1d.json": 640,
    "fields-2d.json": 200,
    "fields-3d.json": 100,
    "fields-8d.json": 12,
    "fields-guided.json": 72,
    "losses.json": 66,
    "losses-guided.json": 66,
}
SCHEMA = json.loads((HERE / "schema.json").read_text())
ROOT = Path(__file__).parents[3]


def document(name: str) -> Any:
    return json.loads((HERE / "oracle-1" / name).read_text())


# ---------------------------------------------------------------- nothing changes


def test_nothing_in_a_frozen_oracle_has_changed() -> None:
    for number, digest in FROZEN.items():
        assert ORACLES[number] == digest
        assert sha256((HERE / f"oracle-{number}" / MANIFEST).read_bytes()) == digest
        listed = document(MANIFEST)["files"]
        assert {path.name for path in (HERE / f"oracle-{number}").iterdir()} == {*listed, MANIFEST}
        for name, entry in listed.items():
            data = (HERE / f"oracle-{number}" / name).read_bytes()
            assert (sha256(data), len(data)) == (entry["sha256"], entry["bytes"]), name
    assert set(ORACLES) == set(FROZEN) == set(DESIGNS)


def test_counts_and_size() -> None:
    entries = document(MANIFEST)["files"]
    assert {name: entry["cases"] for name, entry in entries.items()} == COUNTS
    assert sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file()) < 5_000_000
    oracle = load(1)
    assert len(oracle.fields) >= 1000
    assert len(oracle.losses) >= 120


@pytest.mark.parametrize("name", [MANIFEST, *COUNTS])
def test_files_follow_the_schema(name: str) -> None:
    errors = list(Draft202012Validator(SCHEMA).iter_errors(document(name)))
    assert not errors, errors[0].message


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema",), "meanflow-ref/golden-fields/2"),
        (("oracle",), 0),
        (("cases", 0, "id"), "1"),
        (("cases", 0, "z", 0), "0.5"),
        (("cases", 0, "path"), "cosine"),
        (("cases", 0, "outputs", "u", 0, "rad"), "0"),
        (("cases", 0, "outputs", "u", 0, "mid"), 0.5),
        (("cases", 0, "note"), ""),
        (("cases", 0, "outputs", "extra"), []),
    ],
)
def test_the_schema_refuses(place: tuple[Any, ...], value: Any) -> None:
    wrong = document("fields-8d.json")
    inner = wrong
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert not Draft202012Validator(SCHEMA).is_valid(wrong)


# ---------------------------------------------------------------- what the cases are


def test_every_number_has_30_digits_and_is_consistent() -> None:
    for case in load(1).cases:
        for name, output in case.outputs.items():
            for number in flat(output):
                assert number.digits >= 30, (case.id, name)
                assert float(number.middle) == number.float64
                # The flag, from its definition: both ends of the ball have one nearest float64.
                low, high = (float(number.middle + sign * Fraction(number.rad)) for sign in (-1, 1))
                assert number.rounded == (low == high == number.float64), (case.id, name)
    line = [case for case in load(1).fields if isinstance(case.field, MixtureData) and len(case.z) == 1]
    assert len(line) == 640
    assert min(number.digits for case in line for value in case.outputs.values() for number in flat(value)) >= 36


def test_ids_are_given_once_and_in_order() -> None:
    oracle = load(1)
    for letter, cases in (("F", oracle.fields), ("L", oracle.losses)):
        assert [case.id for case in cases] == [f"{letter}{n:04d}" for n in range(1, len(cases) + 1)]
    states = [(case.name, case.path, case.z, case.r, case.t) for case in oracle.fields]
    assert len(set(states)) == len(states)


def test_every_flag_is_explained_used_and_true() -> None:
    oracle = load(1)
    used = Counter(flag for case in oracle.fields for flag in case.flags)
    assert set(used) == set(FIELD_FLAGS)
    assert set(Counter(flag for case in oracle.losses for flag in case.flags)) == set(LOSS_FLAGS)
    for case in oracle.cases:
        assert len(case.note) > 20
        for dtype in ("float32", "bfloat16"):
            assert (f"{dtype.upper()}_INPUTS" in case.flags) == all(fits(x, dtype) for x in case.inputs())
    for case in oracle.fields:
        h = case.t - case.r
        assert ("LIMIT" in case.flags) == (h == 0)
        assert "SHORT" not in case.flags or 0 < h <= 1.001e-3
        assert ("OTHER_PATH" in case.flags) == (case.path != "linear")


def test_the_hard_regions_are_there() -> None:
    cases = load(1).fields
    by = {flag: [case for case in cases if flag in case.flags] for flag in FIELD_FLAGS}
    assert min(case.t - case.r for case in by["SHORT"]) < 1.1e-12
    assert min(case.t for case in by["NEAR_DATA"]) < 1e-4
    assert max(case.r for case in by["NEAR_NOISE"]) > 0.98
    assert max(abs(case.z[0]) for case in by["FAR_TAIL"]) > 100
    steep = sorted(case.amplification for case in by["SEPARATRIX"])
    assert steep[len(steep) // 10] > 2
    assert steep[len(steep) // 2] > 30
    assert steep[-1] > 1e6


@pytest.mark.parametrize(("value", "dtype", "exact"), [
    (0.5, "bfloat16", True), (1.0078125, "bfloat16", True), (1.00390625, "bfloat16", False),
    (1.00390625, "float32", True), (0.1, "float32", False), (1e300, "float32", False), (2.0**-140, "float32", False),
])  # fmt: skip
def test_exactness_in_short_formats(value: float, dtype: str, exact: bool) -> None:
    assert fits(value, dtype) is exact


# ---------------------------------------------------------------- they come out again


def seed() -> int:
    """The sample's seed: another one can be asked for, and continuous integration may count its runs."""
    return int(os.environ.get("MEANFLOW_REF_SEED", "0"))


@pytest.mark.parametrize("case", [c for c in sample(load(1).cases, 0.02, seed()) if not is_slow(c)], ids=lambda c: c.id)
def test_a_sample_is_certified_again(case: Any) -> None:
    assert differences(case) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in load(1).cases if is_slow(c)], ids=lambda c: c.id)
def test_the_slow_cases_are_certified_again(case: Any) -> None:
    assert differences(case) == []


def test_a_changed_number_is_seen() -> None:
    from dataclasses import replace

    case = load(1).fields[0]
    (u,) = flat(case.outputs["u"])
    digits = str(u.mid)
    wrong = replace(u, mid=digits[:-1] + ("1" if digits[-1] != "1" else "2"))
    assert differences(replace(case, outputs={**case.outputs, "u": (wrong,)})) == ["u"]
    assert differences(replace(case, t=case.t + 2.0**-30)) != []


def test_the_design_gives_the_frozen_inputs() -> None:
    """Ids, fields, states, flags and notes of the design are those of the files: only outputs take long."""
    from dataclasses import replace

    for name, cases in designed(1).items():
        frozen = [case for case in load(1).cases if load(1).files[case.id] == name]
        assert [replace(case, outputs={}) for case in frozen] == cases, name


def test_rendering_the_frozen_cases_gives_the_frozen_bytes() -> None:
    from meanflow_ref.truth.golden.document import text_of

    oracle = load(1)
    texts = {
        name: text_of([case for case in oracle.cases if oracle.files[case.id] == name], 1).encode() for name in COUNTS
    }
    texts[MANIFEST] = (HERE / "oracle-1" / MANIFEST).read_bytes()
    assert compared(1, texts) == []
    texts["losses.json"] = texts["losses.json"].replace(b"L0003", b"L9999")
    texts.pop("fields-8d.json")
    wrong = compared(1, texts)
    assert len(wrong) == 2
    assert "losses.json, line" in wrong[0]
    assert "fields-8d.json" in wrong[1]


def test_the_draws_do_not_depend_on_hash_seeds() -> None:
    code = (
        "from meanflow_ref.truth.golden.design_points import field_cases;"
        "print([(c.name, c.path, c.z, c.r, c.t) for c in field_cases('fields-3d')])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": s}, capture_output=True, check=True
        ).stdout
        for s in ("1", "2")
    }
    assert len(runs) == 1


def test_the_wheel_holds_the_vectors(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    room = "meanflow_ref/truth/golden"
    assert {f"{room}/schema.json", *(f"{room}/oracle-1/{name}" for name in (*COUNTS, MANIFEST))} <= names


def test_cases_are_what_they_say() -> None:
    assert all(isinstance(case, FieldCase) for case in load(1).fields)
    assert load(1)["F0001"] is load(1).fields[0]
    with pytest.raises(KeyError, match="no case 'F9999'"):
        load(1)["F9999"]
