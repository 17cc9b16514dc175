"""A few shipped losses, traced and proved; ``python -m proofs --losses`` runs them all."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from meanflow_ref.verify.check import Check
from meanflow_ref.verify.rows_proofs import load_proofs

GROUP = "Proofs of shipped losses"
# (id in proofs.traced, how the row reads)
PROVED = (
    ("func-one-pass", "meanflow_loss, value and gradient"),
    ("double-backward-one-pass", "the same by double backward"),
    ("guided-func", "guided, omega and kappa symbolic"),
    ("bernoulli-times", "with times and noise drawn inside"),
)
REFUTED = (("finite-difference-one-pass", "finite differences are refuted"),)


def unsettled(id_: str) -> float:
    """0 if a shipped loss gets the verdict that it must, 1 if not."""
    load_proofs()
    from importlib import import_module

    traced = import_module("meanflow_ref._proofs.traced")
    (row,) = traced.shipped((id_,))
    # One shape is enough here; `python -m proofs --losses` takes two.
    result = traced.prove(replace(row, options={**row.options, "shapes": traced.ONE_SHAPE}))
    if not result.ok:
        raise AssertionError(result.report)
    return 0.0


def checks() -> list[Check]:
    """A row a loss."""
    note = "traced to tensor operations and compared with the formula in exact arithmetic, for every row-wise network"
    return [Check(GROUP, text, partial(unsettled, id_), 0.0, note=note) for id_, text in (*PROVED, *REFUTED)]
