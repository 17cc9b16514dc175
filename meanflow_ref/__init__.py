"""meanflow_ref: exact truth, a reference loss and proofs for MeanFlow (one-step generation by average velocity).

Names load on first use, so that ``import meanflow_ref`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> the module that defines it.
_PUBLIC: dict[str, str] = {}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'meanflow_ref' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
