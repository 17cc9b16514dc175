"""The theorems as rows: what is counted is the steps and controls that did not come out."""

from __future__ import annotations

import importlib.util
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

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
