"""Which formula a loss is: screened at the witness, then decided exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import mpmath

from meanflow_ref.kit.prove.catalogue import RIGHT, WEIGHT_FAULTS, Right, wrong
from meanflow_ref.kit.prove.deciding import is_zero
from meanflow_ref.kit.prove.dual import Dual
from meanflow_ref.kit.prove.execute import Outcome
from meanflow_ref.kit.prove.formula import Formula, NotThereError, Vector, Weight
from meanflow_ref.kit.prove.guided import Guided
from meanflow_ref.kit.prove.monomial import DIGITS, Exponent, as_mpf
from meanflow_ref.kit.prove.reading import Reading
from meanflow_ref.kit.prove.ring import Number

# Floats agree to about 1e-13 after the cancellations of a loss; two formulas differ by far more at a random point.
SCREEN = 1e-9
# And to this much where the arithmetic has 50 digits.
PRECISE = 1e-30
# Differences below this are what is left when a constant was rounded before it entered the trace.
ROUNDING = 1e-10
# A loss may be a formula times a simple number (1/B, 1/d, 1/2, ...).
LARGEST_DENOMINATOR = 2000
# Or times a constant in binary: few enough that no other number is one to so many digits.
LARGEST_ODD_DENOMINATOR = 2**56
ALL_DIGITS = 1e-44


@dataclass(frozen=True)
class Candidate:
    """A formula, right or not, that the loss may be."""

    right: Right
    formula: Formula
    faults: tuple[tuple[str, str], ...] = ()

    @property
    def is_right(self) -> bool:
        """Whether it has no fault."""
        return not self.faults


@dataclass(frozen=True)
class Match:
    """How far a candidate agrees: each side with its factor, or ``None``."""

    candidate: Candidate
    value: Fraction | None
    gradient: Fraction | None

    @property
    def whole(self) -> bool:
        """Whether both sides agree with one factor."""
        return self.value is not None and self.value == self.gradient


@dataclass
class Matcher:
    """The comparison of one outcome, under one reading of its network calls, with the catalogue."""

    outcome: Outcome
    reading: Reading
    guided: Guided | None
    _values: dict[int, float] = field(default_factory=dict)
    _exact: dict[Formula, Dual] = field(default_factory=dict)
    _last: tuple[Formula, list[Vector]] | None = None

    # ------------------------------------------------------------ screening

    def matches(self, candidates: Iterator[Candidate]) -> Iterator[Match]:
        """The candidates that agree with the loss at the witness in value or gradient."""
        for candidate in candidates:
            try:
                spec = candidate.formula.weighted(self._squares(candidate.formula))
            except (NotThereError, ZeroDivisionError, OverflowError):
                continue
            value = _factor(self.value, float(spec.value))
            gradient = None if self.slope is None else _gradient_factor(self.slope, spec.derivative, value)
            if value is not None or gradient is not None:
                yield Match(candidate, value, gradient)

    def _squares(self, formula: Formula) -> list[Vector]:
        """Squared errors at the witness; candidates that differ in their weight alone come one after another."""
        unweighted = replace(formula, weight=Weight())
        if self._last is None or self._last[0] != unweighted:
            self._last = unweighted, unweighted.squares(self.reading, self.guided, self._float)
        return self._last[1]

    @cached_property
    def value(self) -> float:
        """The loss at the witness."""
        return to_float(self.outcome.value)

    @cached_property
    def slope(self) -> float | None:
        """Its gradient at the witness."""
        return None if self.outcome.gradient is None else to_float(self.outcome.gradient)

    def _float(self, number: Number) -> float:
        key = id(number)
        if key not in self._values:
            self._values[key] = to_float(number)
            # Keeps the number, and with it its id, alive.
            self._kept.append(number)
        return self._values[key]

    @cached_property
    def _kept(self) -> list[Number]:
        return []

    def scaled(self) -> Match | None:
        """A right formula of which value and gradient are one multiple at the witness, by however odd a factor."""
        for candidate in self.right():
            ratios = [self._ratio(candidate, gradient) for gradient in (False, True)]
            if None in ratios or abs(ratios[0] - ratios[1]) > PRECISE * abs(ratios[0]):
                continue
            factor = Fraction(*mpmath.libmp.to_rational(ratios[0]._mpf_)).limit_denominator(LARGEST_ODD_DENOMINATOR)
            if factor > 0 and abs(as_mpf(factor) - ratios[0]) <= ALL_DIGITS * abs(ratios[0]):
                return Match(candidate, factor, factor)
        return None

    def _ratio(self, candidate: Candidate, gradient: bool) -> Any:
        """A side of the loss over a candidate's, to many digits; ``None`` where that makes no sense."""
        mine = self.outcome.gradient if gradient else self.outcome.value
        try:
            theirs = None if mine is None else self.precise(candidate, gradient)
        except (NotThereError, ZeroDivisionError, OverflowError):
            return None
        with mpmath.workdps(DIGITS):
            return None if mine is None or not theirs else mine.value() / theirs

    # ------------------------------------------------------------ deciding

    def exact(self, candidate: Candidate) -> Dual:
        """A candidate's loss and gradient as exact numbers."""
        if candidate.formula not in self._exact:
            self._exact[candidate.formula] = candidate.formula.loss(self.reading, self.guided, lambda number: number)
        return self._exact[candidate.formula]

    def precise(self, candidate: Candidate, gradient: bool) -> Any:
        """A candidate's loss or gradient at the witness, to many digits."""
        with mpmath.workdps(DIGITS):
            spec = candidate.formula.loss(self.reading, self.guided, lambda number: number.value())
            return as_mpf(spec.derivative if gradient else spec.value)

    def distance(self, match: Match, gradient: bool) -> float:
        """Relative difference of one side of a match at the witness, from many digits; 1 if it has no such side."""
        factor = match.gradient if gradient else match.value
        mine = self.outcome.gradient if gradient else self.outcome.value
        if factor is None or mine is None:
            return 1.0
        with mpmath.workdps(DIGITS):
            seen, theirs = mine.value(), self.precise(match.candidate, gradient) * as_mpf(factor)
            size = abs(seen) + abs(theirs)
            return float(abs(seen - theirs) / size) if size > PRECISE else 0.0

    def holds(self, match: Match, gradient: bool) -> bool:
        """Whether one side of a match is an identity."""
        if self.distance(match, gradient) > PRECISE:
            return False
        factor = match.gradient if gradient else match.value
        mine = self.outcome.gradient if gradient else self.outcome.value
        spec = self.exact(match.candidate)
        assert factor is not None
        assert mine is not None
        difference: Number = mine - (spec.derivative if gradient else spec.value) * factor
        return is_zero(difference)

    # ------------------------------------------------------------ candidates

    def right(self) -> Iterator[Candidate]:
        """The right formulas with all weights that the loss may have."""
        for right in RIGHT:
            if right.guided <= (self.guided is not None):
                for weight in self.weights():
                    yield Candidate(right, replace(right.formula, weight=weight))

    def wrong(self) -> Iterator[Candidate]:
        """The wrong ones: faults of the formula first, then of the weight."""
        for right in RIGHT:
            if right.guided > (self.guided is not None):
                continue
            weights = list(self.weights())
            for faults, formula in wrong(right):
                named = tuple((fault.name, fault.text) for fault in faults)
                for weight in weights:
                    yield Candidate(right, replace(formula, weight=weight), named)
            for power, eps in sorted(self._powers):
                if eps < 0:
                    for mean in (False, True):
                        fault = ("WEIGHT_EPS", f"eps is {eps}: what the weight divides by can vanish")
                        yield Candidate(right, replace(right.formula, weight=Weight(power, eps, mean)), (fault,))
            for name, text, coupling in WEIGHT_FAULTS:
                for weight in weights:
                    if weight.power and weight.form == "weight":
                        coupled = replace(right.formula, weight=replace(weight, coupling=coupling))
                        yield Candidate(right, coupled, ((name, text),))

    def weights(self) -> Iterator[Weight]:
        """No weight, and every power and eps that occur in the loss, of the sum and of the mean over the event."""
        yield Weight()
        for mean in (False, True):
            for power, eps in sorted(self._powers):
                if eps >= 0:
                    yield Weight(power, eps, mean, form="weight" if power > 0 else "root")
            for eps in sorted(self._logarithms):
                if eps >= 0:
                    yield Weight(Fraction(1), eps, mean, form="log")

    @cached_property
    def _powers(self) -> set[tuple[Fraction, Fraction]]:
        """Pairs (p, c) such that ``(... + c)^-p`` occurs in the loss's value; p is negative where that is a root."""
        found: set[tuple[Fraction, Fraction]] = set()
        for index, exponent in _factors(self.outcome.value):
            (expression,) = self.outcome.ring.atoms[index].arguments
            if exponent < 0 or 0 < exponent < 1:
                found.add((-Fraction(exponent), Fraction(expression.terms.get((), 0))))
        return found

    @cached_property
    def _logarithms(self) -> set[Fraction]:
        ring, value = self.outcome.ring, self.outcome.value
        logs = [ring.atoms[i] for i in value.atoms() if ring.atoms[i].name.startswith("log(")]
        return {Fraction(atom.arguments[0].terms.get((), 0)) for atom in logs}


def _factors(number: Number) -> set[tuple[int, Exponent]]:
    """Powers of bases in a number, inside other bases too."""
    bases = {(i, e) for monomial in number.terms for i, e in monomial if number.ring.atoms[i].kind == "base"}
    return bases.union(*(_factors(number.ring.atoms[i].arguments[0]) for i, _ in bases))


def to_float(number: Any) -> float:
    """A number's value at the witness as a float."""
    return float(as_mpf(number.value()))


def _factor(mine: float, theirs: float) -> Fraction | None:
    """The simple fraction by which two numbers differ, if there is one."""
    if abs(theirs) < 1e-12:
        return Fraction(1) if abs(mine) < 1e-12 else None
    ratio = mine / theirs
    simple = Fraction(ratio).limit_denominator(LARGEST_DENOMINATOR)
    return simple if simple > 0 and abs(ratio - simple) <= SCREEN * abs(simple) else None


def _gradient_factor(mine: float, theirs: Any, value: Fraction | None) -> Fraction | None:
    """The same for gradients; where both vanish, whatever the value's factor is."""
    slope = float(theirs)
    if abs(slope) < 1e-12 and abs(mine) < 1e-12:
        return value
    return _factor(mine, slope)
