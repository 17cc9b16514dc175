"""Proofs of the equations that the library computes with, on the very functions of ``meanflow_ref.formulas``.

``python -m proofs`` checks them; :func:`run_all` is the same for a program. The engine is :mod:`.engine`, a theorem's
rules are :mod:`.theorem`, and every other module is one family of theorems.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches

from . import (
    consistency,
    converse,
    discrete,
    expectation,
    flowmap,
    gaussian,
    guidance,
    identity,
    improved,
    limit,
    mixture,
    parameterisation,
    paths,
    sampling,
    total_derivative,
    weight,
)
from .language import ProofError
from .theorem import REGISTRY, Spec, Theorem, TheoremResult

__all__ = ["FAMILIES", "ProofError", "Spec", "Theorem", "TheoremResult", "run_all", "theorems"]

# In the order of the argument, which is that of the document.
FAMILIES = (
    identity,
    total_derivative,
    consistency,
    limit,
    converse,
    discrete,
    sampling,
    flowmap,
    paths,
    expectation,
    improved,
    weight,
    guidance,
    gaussian,
    mixture,
    parameterisation,
)


def theorems(names: Sequence[str] = ()) -> list[Spec]:
    """Theorems in the order of the document.

    Args:
        names: Ids of theorems or of families (``"gaussian"``); all of them if empty.

    Raises:
        ProofError: for a name that is neither.
    """
    order = [family.__name__.rsplit(".", 1)[-1] for family in FAMILIES]
    known = {*REGISTRY, *order}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise ProofError(
                f"no theorem or family called {name!r}",
                "an id of `python -m proofs --list`",
                f"type {near[0]!r}" if near else "list them first",
            )
    chosen = [spec for spec in REGISTRY.values() if not names or spec.id in names or spec.family in names]
    return sorted(chosen, key=lambda spec: order.index(spec.family))


def run_all(
    progress: Callable[[TheoremResult, int, int], None] | None = None, names: Sequence[str] = ()
) -> list[TheoremResult]:
    """Run theorems and return their results.

    Args:
        progress: Called after each theorem with its result, its number from 1, and the number of theorems.
        names: As in :func:`theorems`.

    Returns:
        One result each, with ``id``, ``title``, ``ok``, ``n_steps``, ``n_controls``, ``seconds`` and ``failures``.
    """
    chosen, results = theorems(names), []
    for number, spec in enumerate(chosen, 1):
        results.append(Theorem(spec).run())
        if progress:
            progress(results[-1], number, len(chosen))
    return results
