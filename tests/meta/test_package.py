"""The package as a whole: light to import, few public names, one version, nothing of one machine."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import meanflow_ref

ROOT = Path(__file__).parents[2]


def run_python(code: str) -> str:
    """Standard output of ``code`` in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HEAVY = "{'torch', 'numpy', 'scipy', 'sympy', 'matplotlib', 'torchdiffeq', 'rich'}"


@pytest.mark.parametrize(
    "module", ["meanflow_ref", "meanflow_ref.cli", "meanflow_ref.formulas", "meanflow_ref.sources"]
)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    assert run_python(f"import sys, {module}; print(sorted({HEAVY} & set(sys.modules)))") == "[]"


def test_the_check_sees_a_heavy_import() -> None:
    assert "torch" in run_python(f"import sys, meanflow_ref.paths; print(sorted({HEAVY} & set(sys.modules)))")


def test_at_most_30_public_names_and_each_is_what_it_says() -> None:
    names = [name for name in meanflow_ref.__all__ if not name.startswith("__")]
    assert 0 < len(names) <= 30
    assert set(names) <= set(dir(meanflow_ref))
    for name in names:
        value = getattr(meanflow_ref, name)
        assert value.__doc__, name
        assert import_module(value.__module__).__dict__[name] is value


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(AttributeError, match="did you mean 'meanflow_loss'"):
        meanflow_ref.meanflow_los  # noqa: B018


def test_one_version_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert meanflow_ref.__version__ == version
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def tracked() -> list[Path]:
    """Files that git tracks, or all of a source tree without git."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    files = [ROOT / line for line in done.stdout.splitlines()]
    return [path for path in files if path.is_file()] or sorted(ROOT.rglob("*.py"))


def test_nothing_large_is_committed() -> None:
    # Golden vectors may take up to 5 MB in all; no single file needs that much.
    assert [path for path in tracked() if path.stat().st_size > 2_000_000] == []


def test_no_path_of_one_machine() -> None:
    # Spelt in parts, so that this file does not match itself.
    local = re.compile("[\"' (=](?:/" + "|/".join(["tmp", "work", "root", "home", "Users"]) + ")/")
    texts = [path for path in tracked() if path.suffix in {".py", ".md", ".toml", ".yml", ".cff", ".txt", ""}]
    assert [str(path) for path in texts if local.search(path.read_text(errors="replace"))] == []
