"""The theorems as rows: what is counted is the steps and controls that did not come out."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

from meanflow_ref.verify.check import Check

GROUP = "Proofs"
_NAME = "meanflow_ref._proofs"


def load_proofs() -> ModuleType:
    """The proofs as ``meanflow_ref._proofs``: inside the package in a wheel, beside it in a checkout."""
    try:
        return import_module(_NAME)
    except ModuleNotFoundError as error:
        if error.name != _NAME:
            raise
    folder = Path(__file__).resolve().parents[2] / "proofs"
    spec = importlib.util.spec_from_file_location(
        _NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None or not (folder / "__init__.py").exists():
        raise ModuleNotFoundError(f"no proofs in the package nor in {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
    return module


def unproved(theorem: str) -> float:
    """Steps of a theorem that are not proved, and controls that are not refuted."""
    proofs = load_proofs()
    (spec,) = (spec for spec in proofs.theorems() if spec.id == theorem)
    result = proofs.Theorem(spec).run()
    if not result.ok:
        raise AssertionError("\n".join(map(str, result.failures)))
    return float(len(result.failures))


def checks() -> list[Check]:
    """A row a theorem."""
    return [
        Check(
            GROUP,
            f"{spec.id}: {spec.title}",
            partial(unproved, spec.id),
            0.0,
            note="every step proved, every false neighbour refuted by a witness",
        )
        for spec in load_proofs().theorems()
    ]
