"""Theorems are run once per session, whichever tests look at them; which formulas each one calls is noted."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

import proofs
from meanflow_ref import formulas
from proofs.theorem import REGISTRY


@cache
def _run(id: str) -> tuple[proofs.TheoremResult, frozenset[str]]:
    called: set[str] = set()

    def noting(name: str, f: Callable[..., Any]) -> Callable[..., Any]:
        def note(*a: Any) -> Any:
            called.add(name)
            return f(*a)

        return note

    with pytest.MonkeyPatch.context() as patch:
        for name, f in list(vars(formulas).items()):
            if inspect.isfunction(f):
                patch.setattr(formulas, name, noting(name, f))
        return proofs.Theorem(REGISTRY[id]).run(), frozenset(called)


@pytest.fixture(scope="session")
def result_of() -> Callable[[str], proofs.TheoremResult]:
    """Result of a theorem by its id."""
    return lambda id: _run(id)[0]


@pytest.fixture(scope="session")
def formulas_of() -> Callable[[str], frozenset[str]]:
    """Names of the formulas that a theorem calls, by its id."""
    return lambda id: _run(id)[1]
