"""The command line: exit codes, messages, and files written whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from meanflow_ref import cli, verify
from meanflow_ref.files import require_writable, write_atomic
from meanflow_ref.verify import Check, Result, run_check
from meanflow_ref.verify.command import as_json
from meanflow_ref.verify.readme import BEGIN, END, update_readme
from meanflow_ref.verify.runner import run_all


def observe(value: float) -> float:
    """A measurement that a worker process can be sent."""
    return value


def fail() -> float:
    """A measurement that raises."""
    raise RuntimeError("broken on purpose")


GOOD = Check("Truth", "good", partial(observe, 1e-15), 1e-14)
BAD = Check("Truth", "bad", partial(observe, 1e-3), 1e-14)
SEEN = Check("Mutants", "seen", partial(observe, 0.5), 1e-3, sense=">=")
UNSEEN = Check("Mutants", "unseen", partial(observe, 1e-9), 1e-3, sense=">=")
RAISES = Check("Truth", "raises", fail, 1e-14)
NOT_A_NUMBER = Check("Truth", "nan", partial(observe, float("nan")), 1e-14)


@pytest.mark.parametrize(
    ("check", "ok"),
    [(GOOD, True), (BAD, False), (SEEN, True), (UNSEEN, False), (RAISES, False), (NOT_A_NUMBER, False)],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_check_holds_only_on_the_right_side_of_its_bound(check: Check, ok: bool) -> None:
    assert run_check(check).ok is ok


def test_an_exception_is_a_failed_row_with_its_traceback() -> None:
    result = run_check(RAISES)
    assert "broken on purpose" in result.error
    assert "fail" in result.error


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_keep_the_order_of_the_checks(jobs: int) -> None:
    seen: list[Result] = []
    # In worker processes a check must be importable: one of the library's own stands in there.
    checks = [GOOD, BAD, SEEN] if jobs == 1 else [Check("g", str(i), partial(float, i), 9.0) for i in range(5)]
    results = run_all(checks, jobs, seen.append)
    assert [result.name for result in results] == [check.name for check in checks]
    assert sorted(result.name for result in seen) == sorted(check.name for check in checks)


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, checks: list[Check], *options: str) -> int:
    """Exit code of ``meanflow-ref verify`` with these checks, in ``folder``."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("meanflow_ref.verify.command.collect", lambda only: checks if not only else [])
    return cli.main(["verify", "--jobs", "1", "--no-report", *options])


def test_exit_code_0_when_all_checks_hold(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, [GOOD, SEEN], "--json", "out.json") == 0
    document = json.loads((tmp_path / "out.json").read_text())
    assert (document["checks"], document["failed"]) == (2, 0)
    assert "2 checks run, 2 hold, 0 failed" in capsys.readouterr().out


def test_a_name_in_brackets_is_printed_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, [Check("Truth", "E[v | z] is v", partial(observe, 0.0), 1.0)]) == 0
    assert "│ E[v | z] is v │" in capsys.readouterr().out


@pytest.mark.parametrize("check", [BAD, UNSEEN, RAISES, NOT_A_NUMBER], ids=lambda check: check.name)
def test_exit_code_1_when_one_check_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, check: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, [GOOD, check]) == 1
    assert f"FAILED {check.group}: {check.name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--only", "no such check"], "no check's name contains"),
        (["--jobs", "0"], "at least 1 worker"),
        (["--json", "missing/out.json"], "mkdir -p"),
        (["--readme", "."], "is a folder"),
    ],
)
def test_exit_code_2_when_it_cannot_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, [GOOD], *options) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_command_gets_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["verfy"])
    assert exit_.value.code == 2
    assert "Did you mean `meanflow-ref verify`?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["doctor", "cite"])
def test_small_commands_print_and_exit_0(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command]) == 0
    assert "meanflow" in capsys.readouterr().out


def test_the_table_lists_sections_that_exist() -> None:
    checks = verify.collect()
    names = [(check.group, check.name) for check in checks]
    assert len(set(names)) == len(names) > 50
    assert len(verify.collect("mutant")) >= 10


def test_json_has_no_nan() -> None:
    text = as_json([run_check(NOT_A_NUMBER), run_check(GOOD)], 1.0)
    assert json.loads(text)["results"][0]["observed"] is None


def test_readme_table_replaces_only_what_is_between_the_markers(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n")
    update_readme(path, [run_check(GOOD), run_check(SEEN)])
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "stale" not in text
    assert "| Truth | good | 1.0e-15 | ≤ 1.0e-14 |" in text
    assert "Mutants: 1 of 1 checks hold" in text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mkdir -p"):
        require_writable(tmp_path / "missing" / "report.html")
    with pytest.raises(IsADirectoryError, match="name of a file"):
        require_writable(tmp_path)


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "meanflow_ref", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.startswith("meanflow-ref 0.")
