"""Reading, exporting, freezing and citing: what is wrong is one clear error, and nothing half-written stays."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meanflow_ref import cli
from meanflow_ref.errors import CertificationError, MeanFlowError, ParameterError, VectorError
from meanflow_ref.truth.golden import FieldCase, LossCase, Number, archive, flat, load, regenerate
from meanflow_ref.truth.golden.archive import HERE, MANIFEST, ORACLES, sha256, texts
from meanflow_ref.truth.golden.command import main
from meanflow_ref.truth.golden.data import GuidedData, MixtureData
from meanflow_ref.truth.golden.document import cases_of
from meanflow_ref.truth.golden.produce import outputs_of
from meanflow_ref.truth.golden.regenerate import freeze, regenerated

FILE = "fields-8d.json"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder of oracles of one's own."""
    shutil.copytree(HERE / "oracle-1", tmp_path / "oracle-1")
    return tmp_path


# ---------------------------------------------------------------- reading


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def alter(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.4", 1))


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        (FILE, truncate, r"fields-8d.json has 1000 bytes and is truncated.*\nWanted: \d+ bytes\nWhat to do: reinstall"),
        (FILE, alter, r"fields-8d.json has the SHA-256 [0-9a-f]{64}\.\nWanted: [0-9a-f]{64}"),
        (FILE, Path.unlink, r"fields-8d.json cannot be read \(No such file"),
        (MANIFEST, truncate, r"manifest.json has the SHA-256"),
        (MANIFEST, Path.unlink, r"manifest.json cannot be read"),
    ],
)
def test_a_damaged_file_is_refused(copy: Path, name: str, damage: Callable[[Path], None], says: str) -> None:
    assert set(texts(1, copy)) == set(texts(1))
    damage(copy / "oracle-1" / name)
    with pytest.raises(VectorError, match=says):
        load(1, copy)


def test_a_manifest_of_another_schema_is_refused(copy: Path) -> None:
    path = copy / "oracle-1" / MANIFEST
    path.write_text(path.read_text().replace("golden-manifest/1", "golden-manifest/9"))
    with pytest.raises(VectorError, match=r"schema 'meanflow-ref/golden-manifest/9'.*\n.*\nWhat to do: update"):
        texts(1, copy, digest=sha256(path.read_bytes()))


def test_an_unknown_oracle_is_refused() -> None:
    with pytest.raises(VectorError, match=r"oracle 7\.\nWanted: one of 1\n"):
        load(7)


def edited(change: Callable[[Any], None]) -> str:
    document = json.loads(texts(1)[FILE])
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(schema="meanflow-ref/golden-fields/2"), "schema 'meanflow-ref/golden-fields/2'"),
        (lambda d: d.pop("schema"), "schema None"),
        (lambda d: d["cases"][3].pop("z"), r"case F09\d\d: KeyError 'z'"),
        (lambda d: d["cases"][3].update(field="none"), "KeyError 'none'"),
        (lambda d: d["cases"][3].update(t="half"), "ValueError"),
        (lambda d: d["cases"][3]["outputs"].update(u=[0.5]), r"case F09\d\d, u is '0.5'"),
        (lambda d: d["fields"]["eight-pair"].update(kind="uniform"), "kind 'uniform'"),
        (lambda d: d.pop("fields"), "KeyError 'fields'"),
    ],
)
def test_a_file_of_another_form_is_refused(change: Callable[[Any], None], says: str) -> None:
    with pytest.raises(VectorError, match=says):
        cases_of(edited(change), FILE)


@pytest.mark.parametrize("text", ["", "[", "[]", "null", "{"])
def test_what_is_no_file_is_refused(text: str) -> None:
    with pytest.raises(VectorError, match=FILE):
        cases_of(text, FILE)


def test_reading_needs_neither_torch_nor_numpy_nor_flint() -> None:
    code = (
        "import sys; [sys.modules.__setitem__(n, None) for n in ('torch', 'numpy', 'flint')];"
        "from meanflow_ref.truth import golden; print(len(golden.load(1).cases))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "1156", done.stderr


def test_certifying_without_flint_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['flint'] = None; sys.argv[1:] = [];"
        "import runpy; runpy.run_module('meanflow_ref.truth.golden', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "python-flint" in done.stderr
    assert "meanflow-ref[truth]" in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- outside what can be certified


def field_case(data: MixtureData | GuidedData, z: tuple[float, ...] = (0.5,), r: float = 0.25) -> FieldCase:
    return FieldCase("", "mine", data, "linear", z, r, 0.75, (), "")


LINE = MixtureData((0.5, 0.5), ((-1.0,), (1.0,)), ((0.25,), (0.25,)))
# Guided, so that no quantile route is open, and at a boundary between two needles.
NEEDLES = GuidedData((replace(LINE, stds=((0.02,), (0.02,))), LINE), (0.5, 0.5), 0, 3.0, 0.0)


@pytest.mark.parametrize(
    ("case", "hypothesis"),
    [
        (field_case(replace(LINE, weights=(1.0, 0.0))), "the hypothesis that every weight is positive"),
        (field_case(replace(LINE, stds=((0.0,), (1.0,)))), "the hypothesis that every deviation is positive"),
        (field_case(GuidedData((LINE, LINE), (0.5, 0.5), 0, 2.0, 1.0)), "kappa < 1"),
        (field_case(LINE, z=(0.5, 0.5)), "1 numbers"),
        (field_case(LINE, r=0.8), "0 <= r <= t <= 1"),
        (
            field_case(NEEDLES, z=(0.0,), r=0.0),
            "a trajectory along which they grow by at most",
        ),
    ],
)
def test_a_field_outside_says_which_hypothesis_fails(case: FieldCase, hypothesis: str) -> None:
    with pytest.raises(MeanFlowError, match=hypothesis):
        outputs_of(case)


def test_a_loss_that_is_infinite_is_refused() -> None:
    case = next(case for case in load(1).losses if case.path == "variance-preserving")
    with pytest.raises(CertificationError, match="derivatives are finite at t"):
        outputs_of(replace(case, r=0.0, t=0.0))


# ---------------------------------------------------------------- freezing


ORACLE_1 = regenerate.DESIGNS[1]


def small() -> dict[str, list[Any]]:
    return {FILE: ORACLE_1()["fields-1d.json"][:3], "losses.json": ORACLE_1()["losses.json"][:2]}


def test_an_oracle_is_frozen_once_and_a_second_one_adds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(regenerate, "DESIGNS", {1: small, 2: small})
    first, second = regenerated(1), regenerated(2)
    one = freeze(1, first, tmp_path)
    with pytest.raises(VectorError, match="oracle 1 is frozen"):
        freeze(1, second, tmp_path)
    assert (tmp_path / "oracle-1" / FILE).read_bytes() == first[FILE]
    two = freeze(2, second, tmp_path)
    monkeypatch.setattr(archive, "ORACLES", {1: one, 2: two})
    oracle = load(2, tmp_path)
    # Ids go on where the first oracle's end, in each series.
    assert [case.id for case in oracle.cases] == [
        *("F0001", "F0002", "F0003", "L0001", "L0002"),
        *("F0004", "F0005", "F0006", "L0003", "L0004"),
    ]
    assert load(1, tmp_path).cases == oracle.cases[:5]
    assert json.loads((tmp_path / "oracle-2" / MANIFEST).read_text())["previous"] == ORACLES[1]


def test_a_failed_freeze_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        freeze(1, {MANIFEST: b"x"}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_compares_and_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(regenerate, "DESIGNS", {1: small})
    monkeypatch.setattr("meanflow_ref.truth.golden.regenerate.produce", lambda cases, *_: cases)
    assert main(["--jobs", "1", "--cache", str(tmp_path / "cache")]) == 1
    assert "differs from the frozen file: losses.json, line" in capsys.readouterr().err
    with pytest.raises(ParameterError, match="oracle 1 is frozen"):
        main(["--freeze"])
    with pytest.raises(ParameterError, match="at least 1 worker"):
        main(["--jobs", "0"])
    with pytest.raises(VectorError, match="oracle 9"):
        main(["--oracle", "9", "--jobs", "1"])


def test_workers_and_the_cache_give_the_same(tmp_path: Path) -> None:
    from meanflow_ref.truth.golden.produce import produce

    cases = list(load(1).fields[:2]) + list(load(1).losses[:1])
    plain = [replace(case, outputs={}) for case in cases]
    assert produce(plain, 2, tmp_path) == cases
    assert len(list(tmp_path.glob("*.json"))) == 3
    assert produce(plain, 1, tmp_path) == cases


# ---------------------------------------------------------------- commands


def test_cite_prints_number_and_digest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cite"]) == 0
    printed = capsys.readouterr().out
    assert "@software{meanflow_ref" in printed
    assert "Oracle 1 (1024 field values, 132 loss targets)" in printed
    assert f"SHA-256 {ORACLES[1]}" in printed


def test_vectors_exports_json_and_npz(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["vectors", str(tmp_path / "out"), "--oracle", "1"]) == 0
    assert "1156 cases" in capsys.readouterr().out
    for name, text in texts(1).items():
        assert (tmp_path / "out" / "oracle-1" / name).read_text() == text
    seen: set[str] = set()
    for path in (tmp_path / "out" / "npz").iterdir():
        arrays = np.load(path)
        assert all(len(arrays[name]) == len(arrays["id"]) for name in arrays if name.startswith("out_"))
        for row, id in enumerate(arrays["id"]):
            seen.add(str(id))
            case = load(1)[str(id)]
            name = "u" if isinstance(case, FieldCase) else "target"
            assert arrays[f"out_{name}"][row].tolist() == [number.float64 for number in flat(case.outputs[name])]
            assert arrays["r"][row] == case.r
            if isinstance(case, LossCase):
                last = arrays["out_gradient_b_1"][row].tolist()
                assert last == [number.float64 for number in flat(case.outputs["gradient"][1][1])]  # type: ignore[index]
    assert seen == {case.id for case in load(1).cases}


@pytest.mark.parametrize(
    ("arguments", "says"), [(["vectors", "FILE"], "is a file"), (["vectors", "out", "--oracle", "5"], "oracle 5")]
)
def test_a_wrong_export_exits_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("mine")
    assert cli.main(arguments) == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


def test_a_number_has_its_parts() -> None:
    number = Number("0.5", "5E-33", 0.5, True)
    assert (number.lower + number.upper) / 2 == number.middle
    assert number.digits == 32
