"""Every theorem can fall: break a side of its first steps (sign, factor, times exchanged), and the step is refuted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sympy as sp

import proofs
from proofs.engine import decide
from proofs.notation import r, t
from proofs.theorem import Step

Runner = Callable[[str], proofs.TheoremResult]
IDS = [spec.id for spec in proofs.theorems()]
STEPS_BROKEN = 2
# Whose first steps are true of r and t exchanged as well: equations for every pair of times, or symmetric ones.
UNMOVED = {
    "identity-families",
    "discrete",
    "sampling",
    "reversed-time",
    "average-acceleration",
    "general-path",
    "quantile",
}


def is_zero(side: Any) -> bool:
    return all(entry == 0 for entry in side) if isinstance(side, sp.MatrixBase) else bool(side == 0)


def broken(step: Step) -> Iterator[tuple[str, Any, Any]]:
    """The step with one side's sign turned, one side doubled, and its times exchanged on one side."""
    lhs, rhs = step.lhs, step.rhs
    if not is_zero(rhs):
        yield "sign", lhs, -1 * rhs
        yield "factor", lhs, 2 * rhs
    elif isinstance(lhs, sp.Add):
        first = lhs.args[0]
        yield "sign", lhs - 2 * first, rhs
        yield "factor", lhs + first, rhs
    swap = {r: t, t: r}
    exchanged = lhs.subs(swap, simultaneous=True) if hasattr(lhs, "subs") else lhs
    # A derivative in t may become one in t of something without t, or a quotient 0/0.
    if exchanged != lhs and not exchanged.has(sp.nan, sp.zoo, sp.oo):
        yield "times", exchanged, rhs


@pytest.mark.parametrize("id", IDS)
def test_a_broken_step_of_every_theorem_is_refuted(id: str, result_of: Runner) -> None:
    result = result_of(id)
    tried = [step for step in result.steps if not step.decision.restates and any(True for _ in broken(step))]
    assert tried
    seen: dict[str, list[str]] = {"sign": [], "factor": [], "times": []}
    for step in tried[:STEPS_BROKEN]:
        for what, lhs, rhs in broken(step):
            seen[what].append(decide(lhs, rhs, result.conditions).verdict)
    assert seen["sign"]
    assert set(seen["sign"] + seen["factor"]) == {"REFUTED"}, seen
    assert (id in UNMOVED) == (set(seen["times"]) == {"PROVED"}), seen
