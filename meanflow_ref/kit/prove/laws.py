"""What must hold of the draws and conditions whatever the formula: how noise, times and labels are made."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from typing import Any

from meanflow_ref.kit.prove.calculus import evaluated
from meanflow_ref.kit.prove.deciding import is_zero
from meanflow_ref.kit.prove.errors import NotExactError
from meanflow_ref.kit.prove.execute import Outcome
from meanflow_ref.kit.prove.functions import bounds_of
from meanflow_ref.kit.prove.guided import Guided
from meanflow_ref.kit.prove.reading import Reading
from meanflow_ref.kit.prove.ring import Number, Ring

# At how many points times are looked at.
SAMPLES = 16
# What is left of 0 with 50 digits.
TINY = 1e-30
# Name of a fault, and what is wrong.
Found = tuple[str, str]


def broken_laws(outcome: Outcome, reading: Reading, guided: Guided | None, reseeded: bool) -> dict[str, str]:
    """Faults of the draws, times and scales, by name."""
    found = [*_noise(outcome, reading), *_times(outcome, reading)]
    if reseeded:
        found.append(("DRAWS_REPEAT", "the loss seeds the generator that it draws from: the same draws at every call"))
    kappa = guided.kappa.as_constant() if guided is not None else None
    if kappa is not None and kappa >= 1:
        found.append(("KAPPA_TOO_LARGE", f"kappa is {kappa}: the guided field exists for kappa < 1 alone"))
    return dict(reversed(found))


def _noise(outcome: Outcome, reading: Reading) -> Iterator[Found]:
    """Noise that is shared, of another law, or tied to the times."""
    ring = outcome.ring
    noises = [noise.only_atom() for row in reading.rows for noise in row.noise]
    drawn = [i for i in noises if ring.atoms[i].kind == "draw"]
    if len(set(noises)) < len(noises):
        yield "NOISE_SHARED", "entries of the noise, or rows, share one draw"
    if any(ring.atoms[i].law != "normal" for i in drawn):
        yield "NOISE_NOT_NORMAL", f"the noise is drawn with law `{ring.atoms[drawn[0]].law}`, not normal"
    if set(noises) & _of_times(reading):
        yield "NOISE_TIED_TO_TIMES", "the noise and the times share their draws"


def _times(outcome: Outcome, reading: Reading) -> Iterator[Found]:
    """Times that follow the data, leave [0, 1], never differ or never change."""
    ring = outcome.ring
    if any(ring.atoms[i].law in {"x", "eps", "z", "v"} for i in _of_times(reading)):
        yield "TIMES_TIED_TO_DATA", "the times depend on the data or the noise"
    for row in reading.rows:
        for name, time in (("t", row.main.t), ("r", row.main.r)):
            if any(ring.atoms[i].law == "normal" for i in time.atoms()):
                yield "TIMES_OUT_OF_RANGE", f"the time {name} is a normal draw, not confined to [0, 1]"
            elif _leaves_the_unit_interval(time):
                yield "TIMES_OUT_OF_RANGE", f"the time {name} = {time} is not confined to [0, 1]"
    if all(is_zero(row.main.t - row.main.r) for row in reading.rows):
        yield "NEVER_R_NEQ_T", "r = t in every row: this is flow matching"
    if reading.rows[0].main.t.as_constant() is not None:
        yield "TIMES_CONSTANT", f"the time t is always {reading.rows[0].main.t}"


def _of_times(reading: Reading) -> frozenset[int]:
    return frozenset[int]().union(*(row.main.t.support() | row.main.r.support() for row in reading.rows))


def _leaves_the_unit_interval(time: Number) -> bool:
    """Whether a time is outside of [0, 1] somewhere: by its bounds, if they are known, or at the witness."""
    low, high = bounds_of(time)
    if low is not None and high is not None:
        return low < 0 or high > 1
    return any(not -1e-9 <= value <= 1 + 1e-9 for value in sampled(time))


def sampled(number: Number) -> list[float]:
    """Values of a number for some values of its symbols, within their laws and bounds."""
    ring = number.ring
    others = [{i: _another(ring, i) for i in number.support()} for _ in range(SAMPLES)]
    return [float(evaluated(number, values)) for values in ({}, *others)]


def _another(ring: Ring, symbol: int) -> Fraction:
    """Another value of a symbol; a truth value and an integer keep theirs."""
    atom = ring.atoms[symbol]
    if atom.kind == "mask" or atom.law == "integer":
        return Fraction(atom.value)
    return ring.random_value(atom.law, atom.bounds)


def notes(outcome: Outcome, reading: Reading) -> list[str]:
    """What is no fault but worth knowing."""
    found = []
    main = reading.rows[0].main
    if main.r.as_constant() is not None:
        found.append(f"the time r is always {main.r}")
    if {"r", "t"}.isdisjoint(outcome.inputs) and any(value < 0 for value in sampled(main.t - main.r)):
        found.append("r > t occurs: the formula holds there too, but the average is then taken backwards")
    if "y" in outcome.inputs and [n.key() for n in main.y] != [outcome.inputs["y"][0].key()]:
        found.append(f"the network is told the label {', '.join(map(str, main.y))}")
    return found


def undefined_at_equal_times(outcome: Outcome, reading: Reading) -> str:
    """A divisor that vanishes where r = t, if there is one and r = t happens; empty otherwise."""
    for row in reading.rows:
        for values in _equal_times(row.main.r, row.main.t):
            for divisor in outcome.ring.conditions.values():
                try:
                    vanishes = abs(evaluated(divisor, values)) < TINY
                except (NotExactError, ZeroDivisionError):
                    # A power of a divisor that is itself among the conditions.
                    continue
                if vanishes and abs(divisor.value()) > TINY:
                    return str(divisor)
    return ""


def _equal_times(r: Number, t: Number) -> Iterator[dict[int, Any]]:
    """Values of atoms with which r = t, where that happens: given or opaque times, and whatever masks make equal."""
    ring, interval = r.ring, (t - r).expanded()
    if not interval.terms:
        return
    start = r.affine()
    if start is not None and start[1] not in t.atoms() and ring.atoms[start[1]].kind in {"input", "opaque"}:
        # Of two draws without a mask, r = t has probability 0.
        yield {start[1]: ((t - start[2]) / start[0]).value()}
    masks = sorted(i for i in interval.atoms() if ring.atoms[i].kind == "mask")[:6]
    for choice in product((0, 1), repeat=len(masks)):
        values: dict[int, Any] = dict(zip(masks, choice, strict=True))
        if masks and abs(evaluated(interval, values)) < TINY:
            yield values
