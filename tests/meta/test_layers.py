"""A module imports only from rooms above it, and the two walls stand."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "meanflow_ref"

# The rooms in import order: a room may import those before it and itself.
ROOMS = [
    *("_typing", "errors", "files", "sources", "formulas", "quadrature", "_validate", "paths", "convention"),
    *("fields", "truth", "jvp", "objectives", "sampling", "models", "plots", "train", "kit", "bench", "verify"),
    *("doctor", "cli", "__init__", "__main__"),
]
# `plots` draws the cost that `bench` counts; it asks for it when the figure is drawn.
LATE = {("plots", "bench")}
WALLED_OFF = {"objectives", "jvp", "kit"}


def imports(source: str) -> Iterator[str]:
    """Rooms of meanflow_ref that a module imports, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "meanflow_ref":
            yield from (alias.name for alias in node.names if alias.name in ROOMS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("meanflow_ref."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("meanflow_ref."))


def violations(room: str, source: str) -> list[str]:
    """What the module of ``room`` imports and must not."""
    wrong = [other for other in imports(source) if ROOMS.index(other) > ROOMS.index(room) and (room, other) not in LATE]
    if room in {"formulas", "fields", "truth"}:
        wrong += [other for other in imports(source) if other in WALLED_OFF]
    return wrong


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_rooms_above_it(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert room in ROOMS, f"{room} has no place in the import order"
    assert violations(room, path.read_text()) == []


def test_the_check_sees_an_upward_import() -> None:
    assert violations("fields", "def f():\n    from meanflow_ref.objectives.meanflow import meanflow_loss\n")
    assert violations("paths", "import meanflow_ref.fields.base")
    assert violations("fields", "from meanflow_ref import truth")
    assert not violations("fields", "from meanflow_ref import formulas")


def test_formulas_import_nothing_but_typing() -> None:
    tree = ast.parse((PACKAGE / "formulas.py").read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in found] == ["from typing import Any"]
