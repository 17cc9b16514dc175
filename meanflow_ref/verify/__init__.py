"""The main job, ``meanflow-ref verify``: every claim of this library measured against its bound.

``SECTIONS`` is the one table. To add rows, write a module with a function that returns a list of checks and add its
name here.
"""

from __future__ import annotations

from importlib import import_module

from meanflow_ref.verify.check import Check, Result, run_check

# "module:function", in the order of the report.
SECTIONS: tuple[str, ...] = (
    "meanflow_ref.verify.rows_proofs:checks",
    "meanflow_ref.verify.rows_traced:checks",
    "meanflow_ref.verify.rows_truth:checks",
    "meanflow_ref.verify.rows_loss:checks",
    "meanflow_ref.verify.rows_golden:checks",
    "meanflow_ref.verify.rows_mutants:checks",
    "meanflow_ref.verify.rows_sisters:checks",
    "meanflow_ref.verify.rows_kit_loss:checks",
)


def collect(only: str = "") -> list[Check]:
    """All checks in order; ``only`` keeps those whose group or name contains it, ignoring case."""
    checks: list[Check] = []
    for section in SECTIONS:
        module, function = section.split(":")
        checks += getattr(import_module(module), function)()
    return [check for check in checks if only.lower() in f"{check.group}: {check.name}".lower()]


__all__ = ["SECTIONS", "Check", "Result", "collect", "run_check"]
