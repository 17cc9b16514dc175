"""The theorems are about the shipped formulas: break a formula, and a theorem falls."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import pytest

from meanflow_ref import formulas
from proofs import Theorem, TheoremResult, theorems
from proofs.theorem import REGISTRY

Formula = Callable[..., Any]
FORMULAS: dict[str, Formula] = {
    name: f for name, f in vars(formulas).items() if inspect.isfunction(f) and not name.startswith("_")
}


def mutants_of(name: str) -> Iterator[tuple[str, Formula]]:
    """Sign, factor, and every exchange of two arguments that changes the value of the formula."""
    f = FORMULAS[name]
    yield "negated", lambda *a: -f(*a)
    yield "doubled", lambda *a: 2 * f(*a)
    names = list(inspect.signature(f).parameters)
    rng = random.Random(name)
    point = [Fraction(rng.randint(1, 40), rng.randint(41, 60)) for _ in names]
    for i in range(len(names)):
        for j in range(i + 1, len(names)):
            order = list(range(len(names)))
            order[i], order[j] = j, i

            def exchanged(*a: Any, order: list[int] = order) -> Any:
                return f(*(a[k] for k in order))

            # A product does not mind: an exchange without effect at a random point is no mutant.
            if abs(float(exchanged(*point) - f(*point))) > 1e-9:
                yield f"{names[i]} and {names[j]} exchanged", exchanged


@pytest.fixture(scope="module")
def users(
    result_of: Callable[[str], TheoremResult], formulas_of: Callable[[str], frozenset[str]]
) -> dict[str, list[str]]:
    """Theorems that call each formula, the quickest first."""
    ids = sorted((spec.id for spec in theorems()), key=lambda id: result_of(id).seconds)
    return {name: [id for id in ids if name in formulas_of(id)] for name in FORMULAS}


def _falls(ids: list[str]) -> str:
    for id in ids:
        if not Theorem(REGISTRY[id], fail_fast=True).run().ok:
            return id
    return ""


@pytest.mark.parametrize("name", FORMULAS)
def test_every_mutant_of_a_formula_is_caught(
    name: str, users: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert users[name], f"no theorem is about {name}"
    mutants = dict(mutants_of(name))
    assert len(mutants) >= 2
    survivors = []
    for what, mutant in mutants.items():
        monkeypatch.setattr(formulas, name, mutant)
        if not _falls(users[name]):
            survivors.append(what)
    assert survivors == []


@pytest.mark.parametrize(
    ("formula", "wrong", "theorem"),
    [
        ("meanflow_target", lambda v, du_dt, r, t: v + (t - r) * du_dt, "identity"),
        ("meanflow_target", lambda v, du_dt, r, t: v - (r - t) * du_dt, "identity-families"),
        ("total_derivative", lambda a, b, c, dz, dr, dt: a * dz + b * dr - c * dt, "total-derivative-limit"),
        ("consistency_residual", lambda a, b, c, r, s, t: (t - r) * a - (t - s) * b - (s - r) * c, "consistency"),
        ("discrete_target", lambda v, n, u, r, t, tn: v - (t - r) * (n - u) / (tn - t), "discrete"),
        ("step", lambda z, u, r, t: z + (t - r) * u, "sampling"),
        ("step", lambda z, u, r, t: z - t * u, "sampling"),
        ("effective_guidance", lambda omega, kappa: omega / (1 + kappa), "guided-scale"),
        ("adaptive_weight", lambda q, p, c: (q + c) ** (-2 * p), "adaptive-weight"),
        ("gaussian_variance", lambda s, a, b: a * a * s * s + b * b, "gaussian-velocity"),
        ("transfer_time", lambda a, b: a / (a + b), "transfer"),
        ("lagrangian_residual", lambda u, v, d, r, t: u - v + (t - r) * d, "lagrangian"),
    ],
)
def test_a_named_mistake_fells_the_named_theorem(
    formula: str, wrong: Formula, theorem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Theorem(REGISTRY[theorem]).run().ok
    monkeypatch.setattr(formulas, formula, wrong)
    assert not Theorem(REGISTRY[theorem]).run().ok
