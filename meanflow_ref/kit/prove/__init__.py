"""Proofs about code: that a loss as shipped, value and gradient, is the formula.

In order of use: ``trace`` (a loss as a graph around ``network``, a mere symbol), ``execute`` (the graph over the exact
numbers of ``ring``, by the tables of ``elementwise``, ``shaping`` and ``draws``), ``reading`` (what the network's calls
mean), ``formula`` and ``catalogue`` (right and wrong losses), ``match`` (which one it is), ``report``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meanflow_ref.kit.prove.errors import LossError
    from meanflow_ref.kit.prove.prove import prove_loss
    from meanflow_ref.kit.prove.report import Part, ProofReport

__all__ = ["LossError", "Part", "ProofReport", "prove_loss"]

# Imported on first use: the command line reads the options of `command` without torch.
_MODULES = {"LossError": "errors", "Part": "report", "ProofReport": "report", "prove_loss": "prove"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
