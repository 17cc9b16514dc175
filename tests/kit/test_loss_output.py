"""Formats, the command line, the configuration and the pytest plugin."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from meanflow_ref.cli import main
from meanflow_ref.errors import ParameterError
from meanflow_ref.kit.config import read_config
from meanflow_ref.kit.diagnosis import CheckResult, Diagnosis, Report
from meanflow_ref.kit.finding import pages
from meanflow_ref.kit.output import badge, render

LOSS = """
import torch
from torch.func import jvp


def loss(net, x, swapped=False):
    s = torch.rand(len(x), 2).sort(1).values
    r, t = torch.where(torch.rand(len(x)) < 0.5, s[:, 1], s[:, 0]), s[:, 1]
    e = torch.randn_like(x)
    t_, r_ = t.view(-1, 1, 1, 1), r.view(-1, 1, 1, 1)
    z, v = (1 - t_) * x + t_ * e, e - x
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    u, du = jvp(net, (z, r, t), (v, one, zero) if swapped else (v, zero, one))
    return ((u - (v - (t_ - r_) * du).detach()) ** 2).sum((1, 2, 3)).mean()


def wrong(net, x):
    return loss(net, x, swapped=True)
"""

DOCUMENT: dict[str, type | tuple[type, ...]] = {
    "schema": str, "version": str, "oracle": int, "target": str, "kind": str, "verdict": str, "ok": bool,
    "formula": (str, type(None)), "counts": dict, "checks": list, "diagnoses": list, "measured": dict, "seconds": float,
}  # fmt: skip


@pytest.fixture
def fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fork_losses.py").write_text(LOSS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "fork_losses", raising=False)
    return tmp_path


def report(verdict: Any = "wrong") -> Report:
    wrong = verdict == "wrong"
    found = Diagnosis("INTERVAL_SIGN", "50% | +1", "-1", "my,file.py:12", "cause", "v - (t - r) * du", "far off")
    checks = (
        CheckResult("coefficient", "failed" if wrong else "passed", "50% | +1"),
        CheckResult("precision", "skipped", "why"),
    )
    return Report("pkg:loss", "loss", verdict, checks, (found,) if wrong else (), "meanflow", {"a": float("nan")})


def test_json_has_its_schema() -> None:
    document = json.loads(report().to_json())
    assert {key: type(value) for key, value in document.items()}.keys() == DOCUMENT.keys()
    assert all(isinstance(document[key], kind) for key, kind in DOCUMENT.items())
    assert document["measured"] == {"a": None}
    assert document["counts"] == {"run": 1, "passed": 0, "failed": 1, "noted": 0, "skipped": 1}
    assert document["diagnoses"][0]["where"] == "my,file.py:12"
    assert len(json.loads(render([report(), report()], "json"))) == 2


def test_junit_is_read_back() -> None:
    suite = ElementTree.fromstring(report().to_junit())[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "1", "1")
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert "v - (t - r) * du" in str(failure.text)
    assert ElementTree.fromstring(report("inconclusive").to_junit())[0].get("errors") == "1"


def test_github_escapes_and_points_at_the_line() -> None:
    line = render([report()], "github").splitlines()[0]
    assert line.startswith("::error file=my%2Cfile.py,line=12,title=meanflow-ref INTERVAL_SIGN::")
    assert "50%25" in line
    assert "%0A" in line


def test_markdown_escapes_bars() -> None:
    assert "50% \\| +1" in report().to_markdown()


@pytest.mark.parametrize(
    ("verdict", "color"), [("correct", "brightgreen"), ("wrong", "red"), ("inconclusive", "lightgrey")]
)
def test_badge(verdict: str, color: str) -> None:
    assert json.loads(badge([report(verdict)]))["color"] == color


def test_the_command(fork: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "fork_losses:loss"]) == 0
    assert "CORRECT (meanflow)" in capsys.readouterr().out
    assert main(["check", "fork_losses:wrong", "--format", "github", "--badge", "b.json", "--summary", "s.md"]) == 1
    assert "::error file=fork_losses.py,line=13,title=meanflow-ref R_AND_T_SWAPPED" in capsys.readouterr().out
    assert json.loads((fork / "b.json").read_text())["color"] == "red"
    assert "R_AND_T_SWAPPED" in (fork / "s.md").read_text()
    assert main(["check", "fork_losses:wrong", "--xfail", 'R_AND_T_SWAPPED="on purpose"', "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "variant"


def test_the_command_that_cannot_run(fork: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "fork_losses:los"]) == 2
    assert "fork_losses:loss" in capsys.readouterr().err
    assert main(["check"]) == 2
    assert main(["check", "fork_losses:loss", "--call", "z, t, q"]) == 2
    assert "none of" in capsys.readouterr().err
    assert main(["check", "fork_losses:loss", "--out", "nowhere/x", "--format", "json"]) == 2


def test_configuration(fork: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fork / "pyproject.toml"
    path.write_text(
        '[tool.meanflow-ref]\noracle = "1"\n[[tool.meanflow-ref.loss]]\ntarget = "fork_losses:wrong"\n'
        'call = "z, r, t"\n'
        'xfail = { R_AND_T_SWAPPED = "on purpose" }\n'
    )
    assert read_config(fork)[0].xfail == {"R_AND_T_SWAPPED": "on purpose"}
    assert main(["check"]) == 0
    path.write_text('[[tool.meanflow-ref.loss]]\ntarget = "a:b"\ncal = "z"\n')
    with pytest.raises(ParameterError, match="call"):
        read_config(fork)
    path.write_text("[tool.meanflow-ref]\nlosses = 1\n")
    with pytest.raises(ParameterError, match="losses"):
        read_config(fork)


def test_explain_and_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "r_and_t_swapped"]) == 0
    assert "jvp(net, (z, r, t), (v, zero, one))" in capsys.readouterr().out
    assert main(["explain", "R_AND_T_SWAPED"]) == 2
    assert "R_AND_T_SWAPPED" in capsys.readouterr().err
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in pages())


def test_the_plugin(fork: Path) -> None:
    (fork / "test_mine.py").write_text(
        "import meanflow_ref as mf\nfrom fork_losses import loss, wrong\n\n\n"
        '@mf.meanflow_checks(loss, call="z, r, t")\ndef test_mine(check):\n    pass\n'
    )
    plugin = ["-p", "meanflow_ref.kit.plugin"] if not _installed() else []
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        *plugin,
        "-p",
        "no:cacheprovider",
        "--meanflow-loss",
        "fork_losses:wrong",
    ]
    done = subprocess.run(command, cwd=fork, capture_output=True, text=True, timeout=300, check=False,
                          env={**__import__("os").environ, "PYTHONPATH": str(fork)})  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "R_AND_T_SWAPPED" in done.stdout
    assert "1 failed" in done.stdout
    # 16 tests a loss, of which the skipped say why.
    assert "27 passed, 4 skipped" in done.stdout


def _installed() -> bool:
    from importlib.metadata import entry_points

    return any(entry.value == "meanflow_ref.kit.plugin" for entry in entry_points(group="pytest11"))


def test_the_plugin_starts_without_torch() -> None:
    heavy = "{'torch', 'numpy', 'rich'}"
    code = f"import sys, meanflow_ref.kit.plugin, meanflow_ref.kit.command; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
