"""The worked example of the README prints what the README says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from meanflow_ref.cli import main

README = (Path(__file__).parents[2] / "README.md").read_text().split("## Prove your loss")[1].split("\n## ")[0]


def test_the_example_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    refuted, proved = re.findall(r"```\n(?:\$.*?\n)?((?:REFUTED|PROVED).*?)```", README, re.DOTALL)
    assert code.count("(u - (v - h * du_dt))") == 1
    (tmp_path / "leaking_loss.py").write_text(code)
    (tmp_path / "mended_loss.py").write_text(code.replace("(u - (v - h * du_dt))", "(u - (v - h * du_dt).detach())"))
    assert main(["prove", "leaking_loss:loss"]) == 1
    assert capsys.readouterr().out.startswith(refuted.replace("  ...\n", ""))
    assert main(["prove", "mended_loss:loss"]) == 0
    assert capsys.readouterr().out.replace("mended_loss.py", "mine.py") == proved
