"""Docstrings cite equations that exist, and every equation's formula is cited where it is computed."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from meanflow_ref import formulas
from meanflow_ref.sources import EQUATIONS, PAPERS, equation

PACKAGE = Path(__file__).parents[2] / "meanflow_ref"
CITATION = re.compile(r"Source: ((?:[\w-]+:[\w-]+(?:, )?)+)")


def cited(text: str) -> set[str]:
    """Ids after every ``Source:`` in a text."""
    return {id for match in CITATION.findall(text) for id in match.split(", ") if id}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_cited_equation_exists(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            assert cited(ast.get_docstring(node) or "") <= set(EQUATIONS), getattr(node, "name", path.name)


def test_the_check_sees_an_unknown_id() -> None:
    assert cited("Target. Source: mf:6, mf:99.") - set(EQUATIONS) == {"mf:99"}


@pytest.mark.parametrize(
    "function", [f for _, f in inspect.getmembers(formulas, inspect.isfunction)], ids=lambda f: f.__name__
)
def test_every_formula_names_its_equation(function: object) -> None:
    assert cited(inspect.getdoc(function) or "")


def test_equations_name_their_papers() -> None:
    assert all(entry.paper is PAPERS[id.split(":")[0]] for id, entry in EQUATIONS.items())


def test_an_unknown_id_suggests_the_nearest() -> None:
    with pytest.raises(KeyError, match="did you mean 'mf:consistency'"):
        equation("mf:consistancy")
