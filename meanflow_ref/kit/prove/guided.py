"""Guidance as a loss has it: its scales, its null label, and the rows in which it is active."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from meanflow_ref.kit.prove.calculus import rebuilt
from meanflow_ref.kit.prove.deciding import is_zero
from meanflow_ref.kit.prove.execute import Outcome
from meanflow_ref.kit.prove.monomial import Coefficient, Monomial
from meanflow_ref.kit.prove.reading import Reading, Row
from meanflow_ref.kit.prove.ring import Number


@dataclass(frozen=True)
class Guided:
    """Guidance as read from the loss: scales, null label and the rows in which it is active."""

    omega: Number
    kappa: Number
    null_label: tuple[Number, ...]
    active: tuple[Number, ...]


def read_guidance(outcome: Outcome, reading: Reading) -> Guided | None:
    """Guidance, if the loss evaluates its network at the same state under another, constant label.

    Its scales and the rows in which it is active are read off the gradient, as the coefficients of the noise and of
    the other evaluations beside that of u. (They are only read: the proof that follows compares whole expressions.)
    """
    labels = [_null_label(row) for row in reading.rows]
    null = next((label for label in labels if label is not None), None)
    if null is None:
        return None
    ring = outcome.ring
    given = {letter: outcome.inputs[letter].reshape(-1)[0] for letter in ("omega", "kappa") if letter in outcome.inputs}
    shares = [_shares(outcome.gradient, row, null) for row in reading.rows] if outcome.gradient is not None else [None]
    if None in shares:
        # Nothing can be read: the scales must be given, and all rows are taken to be guided.
        if "omega" not in given:
            return None
        zero, one = ring.constant(0), ring.constant(1)
        return Guided(given["omega"], given.get("kappa", zero), null, (one,) * len(reading.rows))
    read = [share for share in shares if share is not None]
    omega, kappa, _ = read[0]
    return Guided(given.get("omega", omega), given.get("kappa", kappa), null, tuple(mask for _, _, mask in read))


def _null_label(row: Row) -> tuple[Number, ...] | None:
    own = [n.key() for n in row.main.y]
    for site in row.others:
        if site.y and [n.key() for n in site.y] != own and all(n.as_constant() is not None for n in site.y):
            return site.y
    return None


def _shares(gradient: Number, row: Row, null: tuple[Number, ...]) -> tuple[Number, Number, Number] | None:
    """``omega``, ``kappa`` and the truth value "guided" of one row, from its first component's cotangent."""
    ring, main = gradient.ring, row.main
    cotangent = _coefficient(gradient, main.du(0, main.dim + 2).only_atom())
    own = _alone(_coefficient(cotangent, main.u(0).only_atom()))
    if own is None:
        return None
    nulls = [s for s in row.others if [n.key() for n in s.y] == [n.key() for n in null]]
    conditionals = [s for s in row.others if [n.key() for n in s.y] == [n.key() for n in main.y]]
    spread = sum((_per(cotangent, s.u(0), own) for s in nulls), ring.constant(0))
    switches = sorted(i for i in spread.atoms() if ring.atoms[i].kind == "mask")
    on, active = _switched_on(spread, switches)
    if active is None:
        return None
    kappa = -sum((_per(cotangent, s.u(0), own) for s in conditionals), ring.constant(0))
    reference = row.noise[0] if row.noise else row.v[0]
    omega = -_per(cotangent, reference, own)
    return on(omega), on(kappa), active


def _coefficient(number: Number, atom: int) -> Number:
    """The terms with the first power of an atom, without it."""
    terms = {tuple(pair for pair in m if pair[0] != atom): c for m, c in number.terms.items() if dict(m).get(atom) == 1}
    return Number(number.ring, terms)


def _alone(number: Number) -> Any:
    """Coefficient and monomial of the term made of weights alone (of bases with negative powers, or of nothing)."""
    ring = number.ring
    for monomial, coefficient in number.terms.items():
        if all(ring.atoms[i].kind == "base" for i, _ in monomial):
            return monomial, Fraction(coefficient)
    return None


def _per(cotangent: Number, symbol: Number, own: Any) -> Number:
    """Coefficient of a symbol in a cotangent, in units of that of u, without network symbols or times."""
    monomial, unit = own
    part = _coefficient(cotangent, symbol.only_atom())
    ring = part.ring
    weights = dict(monomial)
    kept = {
        tuple(pair for pair in m if pair[0] not in weights): c / unit
        for m, c in part.terms.items()
        if all(dict(m).get(i) == e for i, e in monomial)
        and all(i in weights or ring.atoms[i].kind == "mask" or ring.atoms[i].law in ("omega", "kappa") for i, _ in m)
    }
    return Number(ring, kept)


def _switched_on(spread: Number, switches: Sequence[int]) -> Any:
    """How to evaluate a coefficient where guidance is on, and the truth value of "on"."""
    ring = spread.ring
    for choice in range(2 ** min(len(switches), 6) - 1, -1, -1):
        values = {mask: ring.constant(choice >> k & 1) for k, mask in enumerate(switches)}

        def on(number: Number, values: dict[int, Number] = values) -> Number:
            return rebuilt(number, values.get)

        level = on(spread)
        if level.terms:
            return on, _ratio(spread, level)
    return None, None


def _ratio(spread: Number, level: Number) -> Number | None:
    """``spread / level`` if that is a truth value."""
    ring = spread.ring
    monomial, coefficient = next(iter(level.terms.items()))
    scales = {i for i, _ in monomial}
    part: dict[Monomial, Coefficient] = {
        tuple(p for p in m if p[0] not in scales): Fraction(c) / Fraction(coefficient)
        for m, c in spread.terms.items()
        if tuple(p for p in m if ring.atoms[p[0]].kind != "mask") == monomial
    }
    active = Number(ring, part)
    return active if is_zero(active * level - spread) and is_zero(active * active - active) else None
