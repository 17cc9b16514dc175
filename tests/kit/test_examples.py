"""The examples of README and docs run as they stand, and print what the text says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def example(file: str, name: str) -> str:
    """The code after ``<!-- example: name -->``."""
    pattern = rf"<!-- example: {name} -->\n```python\n(.*?)```"
    found = re.search(pattern, (ROOT / file).read_text(), re.DOTALL)
    assert found, f"{file} has no example `{name}`"
    return found.group(1)


def run(code: str, folder: Path) -> str:
    """Run as a user's script in a folder of its own; anything on stderr but JAX's chatter is shown on failure."""
    script = folder / "mine.py"
    script.write_text(code)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "mine.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def command(*arguments: str, folder: Path) -> tuple[int, str]:
    line = [sys.executable, "-m", "meanflow_ref", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


def test_parts(tmp_path: Path) -> None:
    lines = run(example("README.md", "parts"), tmp_path).splitlines()
    assert lines[0] == "correct"
    assert lines[1].startswith("correct 0.75")
    assert lines[2:] == ["['ATTENTION_NO_FORWARD_AD']", "correct"]


@pytest.mark.slow
def test_distributed(tmp_path: Path) -> None:
    (tmp_path / "my_step.py").write_text(example("README.md", "distributed"))
    assert run("import runpy; runpy.run_path('my_step.py', run_name='__main__')", tmp_path).strip() == "correct"


def test_jax(tmp_path: Path) -> None:
    pytest.importorskip("jax")
    code = example("README.md", "jax")
    line = next(i for i, text in enumerate(code.splitlines(), 1) if "jax.jvp" in text)
    assert run(code, tmp_path).strip() == f"wrong [('R_AND_T_SWAPPED', 'mine.py:{line}')]"


@pytest.mark.parametrize(
    ("file", "name"), [("README.md", "tape"), pytest.param("docs/tape.md", "recorder", marks=pytest.mark.slow)]
)
def test_tape(file: str, name: str, tmp_path: Path) -> None:
    if name == "recorder":
        pytest.importorskip("jax")
    assert command("tape", "init", "probe.npz", folder=tmp_path)[0] == 0
    run(example(file, name), tmp_path)
    code, text = command("tape", "check", "tape.npz", folder=tmp_path)
    assert code == 0, text
    assert "CORRECT (meanflow)" in text
    # The same recorder with a bug in the loss is told apart.
    broken = example(file, name).replace("(t - r)[:, None]", "(r - t)[:, None]")
    run(broken, tmp_path)
    code, text = command("tape", "check", "tape.npz", folder=tmp_path)
    assert code == 1
    assert "INTERVAL_SIGN" in text
