"""Consumers: the README's blocks run as they stand, accept right code and reject wrong code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from meanflow_ref import cli

README = Path(__file__).parents[3] / "README.md"
# Block -> a mistake that it must see, and modules that it may not need.
BLOCKS = {
    "torch": ("v - (t - r)", "v + (t - r)", ()),
    "JAX": (
        "jnp.zeros_like(r), jnp.ones_like(t)",
        "jnp.ones_like(r), jnp.zeros_like(t)",
        ("torch", "meanflow_ref", "flint"),
    ),
    "numpy": ("- 0.5 * np.log(variance)", "", ("torch", "meanflow_ref", "flint", "scipy", "jax")),
}


def block(name: str) -> str:
    """The first Python block after the name in bold."""
    text = README.read_text()
    found = re.search(rf"\*\*{name}\*\*.*?```python\n(.*?)```", text, re.DOTALL)
    assert found, name
    return found[1]


def run(code: str, folder: Path, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    hidden = "".join(f"sys.modules[{name!r}] = None\n" for name in without)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import sys\n{hidden}{code}"],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("consumer")
    assert cli.main(["vectors", str(place / "vectors")]) == 0
    return place


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_of_the_readme_accepts_right_code_and_rejects_wrong(name: str, folder: Path) -> None:
    right, wrong, without = BLOCKS[name]
    code = block(name)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    done = run(code, folder, without)
    assert done.returncode == 0, done.stderr[-2000:]
    assert code.count(right) == 1
    rejected = run(code.replace(right, wrong), folder, without)
    assert rejected.returncode == 1
    assert "AssertionError" in rejected.stderr


CONSUMER = """
import json, sys
from decimal import Decimal, getcontext
import numpy as np

getcontext().prec = 60
cases = numbers = 0
manifest = json.load(open("vectors/oracle-1/manifest.json"))
for name in manifest["files"]:
    file = json.load(open(f"vectors/oracle-1/{name}"))
    for case in file["cases"]:
        cases += 1
        stack = list(case["outputs"].values())
        while stack:
            entry = stack.pop()
            if isinstance(entry, list):
                stack += entry
                continue
            numbers += 1
            mid, rad, near = Decimal(entry["mid"]), Decimal(entry["rad"]), float.fromhex(entry["f64"])
            assert float(mid) == near and np.float64(near) == near
            # Half the distance to the neighbours, where it is proved that the float is the nearest.
            gaps = [abs(Decimal(float(np.nextafter(near, s))) - Decimal(near)) / 2 for s in (np.inf, -np.inf)]
            assert not entry["rounded"] or abs(Decimal(near) - mid) + rad <= max(gaps)
        # One identity that ties outputs together, in decimals: u + (t - r) du/dt = v.
        if "end" in case["outputs"]:
            h = Decimal(float.fromhex(case["t"])) - Decimal(float.fromhex(case["r"]))
            for u, v, du in zip(*(case["outputs"][k] for k in ("u", "v", "du_dt"))):
                radius = Decimal(u["rad"]) + Decimal(v["rad"]) + h * Decimal(du["rad"])
                assert abs(Decimal(u["mid"]) + h * Decimal(du["mid"]) - Decimal(v["mid"])) <= radius, case["id"]
print(cases, numbers, sorted({"torch", "scipy", "meanflow_ref", "flint", "jax"} & set(sys.modules)))
"""


def test_a_consumer_needs_json_decimal_and_numpy_alone(folder: Path) -> None:
    done = run(CONSUMER, folder)
    assert done.stdout.split() == ["1156", "30143", "[]"], done.stderr[-2000:]
