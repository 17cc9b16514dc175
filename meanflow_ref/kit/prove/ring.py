r"""Exact arithmetic on the numbers that a traced loss computes.

A number is a sum of terms, each a rational coefficient times powers of *atoms*. An atom is a free symbol (an entry of
an input, a random draw, a value or derivative of the opaque network), a truth value ``m`` with ``m m = m``, a power
base ``A`` that stands for a whole expression ``P`` so that :math:`P^{-3/4}` is the monomial :math:`A^{-3/4}`, or an
elementary function of expressions, of which no more is assumed than that equal arguments give equal values.

Equality is decided, not guessed: negative powers are cleared, positive ones expanded, and every coefficient must
vanish. ``is_zero() == True`` therefore holds for all real values of the symbols at which everything is defined. The
other direction is settled by a witness: every symbol carries a value, and a difference that is not zero there is not
zero.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeAlias

import mpmath

from meanflow_ref.kit.prove.errors import NotExactError

# Digits of a witness: far more than any cancellation between a loss and its formula can eat.
DIGITS = 50
# Products of terms in one multiplication beyond which an expansion is given up.
LARGEST_PRODUCT = 1_000_000

Exponent: TypeAlias = "int | Fraction"
Coefficient: TypeAlias = "int | Fraction"
# Pairs (atom, exponent), by increasing atom.
Monomial: TypeAlias = tuple[tuple[int, Exponent], ...]
# Whatever can stand beside a number in + - * /.
Operand: TypeAlias = "Number | int | Fraction"


@dataclass
class Atom:
    """What a number is made of.

    Args:
        name: As printed.
        kind: ``"input"``, ``"draw"``, ``"network"``, ``"mask"``, ``"base"``, ``"function"`` or ``"opaque"``.
        law: Law of a draw (``"normal"``, ``"uniform"``, ``"integer"``) or letter of an input.
        head: The function or relation that the atom applies to its arguments.
        arguments: The expressions that a mask, base, function or opaque atom is made of.
        value: The witness: a value, or how to find it.
        bounds: Closed interval that the value is known to lie in, if any.
        parent: The network evaluation that a network atom belongs to.

    """

    name: str
    kind: str
    law: str = ""
    head: str = ""
    arguments: tuple[Number, ...] = ()
    value: Any = None
    bounds: tuple[Fraction, Fraction] | None = None
    parent: int | None = None


@dataclass
class Ring:
    """The atoms of one run, and the divisors met on the way."""

    seed: int = 0
    atoms: list[Atom] = field(default_factory=list)
    conditions: dict[Any, Number] = field(default_factory=dict)
    _known: dict[Any, int] = field(default_factory=dict)
    _masks: set[int] = field(default_factory=set)
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    # ------------------------------------------------------------ making numbers

    def constant(self, value: Coefficient) -> Number:
        """A rational constant."""
        return Number(self, {(): value} if value else {})

    def symbol(self, name: str, kind: str, **properties: Any) -> Number:
        """A new free symbol with a random value."""
        if properties.get("value") is None:
            properties["value"] = self.random_value(properties.get("law", ""), properties.get("bounds"))
        return self._new(Atom(name, kind, **properties))

    def random_value(self, law: str = "", bounds: tuple[Fraction, Fraction] | None = None) -> Fraction:
        """A random rational that a symbol of this law or in these bounds may have."""
        if law == "uniform" or bounds is not None:
            low, high = bounds or (Fraction(0), Fraction(1))
            return low + (high - low) * Fraction(self._random.randint(1, 996), 997)
        # Odd numerators: never 0.
        return Fraction(2 * self._random.randint(-991, 990) + 1, 991)

    def function(self, name: str, arguments: tuple[Number, ...], evaluate: Callable[..., Any], **more: Any) -> Number:
        """The function ``name`` of expressions: the same atom for the same arguments."""
        key = (name, tuple(argument.key() for argument in arguments))
        if key not in self._known:
            shown = ", ".join(map(str, arguments))
            text = more.pop("text", f"{name}({shown})" if arguments else name)
            kind = more.pop("kind", "function")
            number = self._new(Atom(text, kind, head=name, arguments=arguments, value=evaluate, **more))
            self._known[key] = number.only_atom()
        return self.atom(self._known[key])

    def base(self, expression: Number) -> Number:
        """An atom that stands for ``expression``, so that it can take any power."""

        def value(base: Any) -> Any:
            return base

        return self.function("", (expression,), value, kind="base")

    def mask(self, relation: str, argument: Number, holds: Callable[[Any], bool], text: str) -> Number:
        """The truth value of a relation of an expression to zero."""
        return self.function(relation, (argument,), lambda value: int(holds(value)), kind="mask", text=text)

    def atom(self, index: int) -> Number:
        """The number that is one atom."""
        return Number(self, {((index, 1),): 1})

    def _new(self, atom: Atom) -> Number:
        if atom.kind == "mask":
            self._masks.add(len(self.atoms))
        self.atoms.append(atom)
        return self.atom(len(self.atoms) - 1)

    # ------------------------------------------------------------ the witness

    def value(self, index: int) -> Any:
        """Value of an atom at the witness."""
        atom = self.atoms[index]
        if callable(atom.value):
            atom.value = atom.value(*(argument.value() for argument in atom.arguments))
        return atom.value

    def support(self, index: int) -> frozenset[int]:
        """The free symbols that an atom is made of."""
        atom = self.atoms[index]
        return frozenset().union(*(argument.support() for argument in atom.arguments)) | (
            frozenset() if atom.arguments else frozenset([index])
        )

    # ------------------------------------------------------------ arithmetic of monomials

    def multiply(self, a: Monomial, b: Monomial) -> Monomial:
        """Product of two monomials."""
        if not a or not b:
            return a or b
        if a[-1][0] < b[0][0]:
            return a + b
        if b[-1][0] < a[0][0]:
            return b + a
        merged: dict[int, Exponent] = dict(a)
        for index, exponent in b:
            if index not in merged:
                merged[index] = exponent
            elif index not in self._masks:
                total = _simple(merged[index] + exponent)
                if total:
                    merged[index] = total
                else:
                    del merged[index]
        return tuple(sorted(merged.items()))


class Number:
    """An element of a :class:`Ring`; immutable. ``+ - * / **`` are exact."""

    __slots__ = ("_key", "ring", "terms")

    def __init__(self, ring: Ring, terms: dict[Monomial, Coefficient]) -> None:
        self.ring, self.terms = ring, terms
        self._key: frozenset[tuple[Monomial, Coefficient]] | None = None

    # ------------------------------------------------------------ looking

    def key(self) -> frozenset[tuple[Monomial, Coefficient]]:
        """What identifies the number: equal keys are equal numbers, unequal ones may be."""
        if self._key is None:
            self._key = frozenset(self.terms.items())
        return self._key

    def atoms(self) -> set[int]:
        """The atoms that occur."""
        return {index for monomial in self.terms for index, _ in monomial}

    def support(self) -> frozenset[int]:
        """The free symbols that occur, inside functions too."""
        return frozenset().union(*(self.ring.support(index) for index in self.atoms()))

    def kinds(self) -> set[str]:
        """The kinds of the free symbols that occur."""
        return {self.ring.atoms[index].kind for index in self.support()}

    def as_constant(self) -> Fraction | None:
        """The rational that this number is, if it is one."""
        if not self.terms:
            return Fraction(0)
        return Fraction(self.terms[()]) if self.terms.keys() == {()} else None

    def only_atom(self) -> int:
        """The atom that this number is."""
        ((((index, _),), _),) = self.terms.items()
        return index

    def affine(self) -> tuple[Fraction, int, Fraction] | None:
        """``(a, s, c)`` if the number is ``a s + c`` with one atom s, else ``None``."""
        rest = [(m, c) for m, c in self.terms.items() if m]
        if len(rest) != 1 or len(rest[0][0]) != 1 or rest[0][0][0][1] != 1:
            return None
        return Fraction(rest[0][1]), rest[0][0][0][0], Fraction(self.terms.get((), 0))

    def value(self) -> Any:
        """Value at the witness, to :data:`DIGITS` digits."""
        powers: dict[tuple[int, Exponent], Any] = {}
        total = mpmath.mpf(0)
        with mpmath.workdps(DIGITS):
            for monomial, coefficient in self.terms.items():
                product = as_mpf(coefficient)
                for pair in monomial:
                    if pair not in powers:
                        powers[pair] = power_of_value(self.ring.value(pair[0]), pair[1])
                    product = product * powers[pair]
                total = total + product
        return total

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        if not self.terms:
            return "0"
        shown = [self._term_text(m, c) for m, c in list(self.terms.items())[:6]]
        more = f" + ... ({len(self.terms)} terms)" if len(self.terms) > 6 else ""
        return (" + ".join(shown) + more).replace("+ -", "- ")

    def _term_text(self, monomial: Monomial, coefficient: Coefficient) -> str:
        factors = [_factor_text(self.ring.atoms[i].name, e) for i, e in monomial]
        if not factors or coefficient not in (1, -1):
            factors.insert(0, str(coefficient))
        return ("-" if factors and coefficient == -1 and monomial else "") + " ".join(factors)

    # ------------------------------------------------------------ arithmetic

    def _coerce(self, other: object) -> Number | None:
        if isinstance(other, Number):
            return other
        return self.ring.constant(other) if isinstance(other, int | Fraction) else None

    def __add__(self, other: object) -> Number:
        right = self._coerce(other)
        if right is None:
            return NotImplemented
        large, small = (self, right) if len(self.terms) >= len(right.terms) else (right, self)
        terms = dict(large.terms)
        for monomial, coefficient in small.terms.items():
            total = terms.get(monomial, 0) + coefficient
            if total:
                terms[monomial] = total
            else:
                del terms[monomial]
        return Number(self.ring, terms)

    __radd__ = __add__

    def __neg__(self) -> Number:
        return Number(self.ring, {m: -c for m, c in self.terms.items()})

    def __sub__(self, other: object) -> Number:
        right = self._coerce(other)
        return NotImplemented if right is None else self + (-right)

    def __rsub__(self, other: object) -> Number:
        return (-self) + other

    def __mul__(self, other: object) -> Number:
        right = self._coerce(other)
        if right is None:
            return NotImplemented
        if len(self.terms) * len(right.terms) > LARGEST_PRODUCT:
            raise NotExactError(f"a product of {len(self.terms)} by {len(right.terms)} terms is too large to expand")
        if right is self and len(self.terms) > 1:
            return self._square()
        multiply = self.ring.multiply
        terms: dict[Monomial, Coefficient] = {}
        for m, c in self.terms.items():
            for n, e in right.terms.items():
                monomial = multiply(m, n)
                terms[monomial] = terms.get(monomial, 0) + c * e
        return Number(self.ring, {m: c for m, c in terms.items() if c})

    __rmul__ = __mul__

    def _square(self) -> Number:
        """``self * self``, each mixed product once."""
        multiply = self.ring.multiply
        items = list(self.terms.items())
        terms: dict[Monomial, Coefficient] = {}
        for k, (m, c) in enumerate(items):
            square = multiply(m, m)
            terms[square] = terms.get(square, 0) + c * c
            double = 2 * c
            for n, e in items[k + 1 :]:
                monomial = multiply(m, n)
                terms[monomial] = terms.get(monomial, 0) + double * e
        return Number(self.ring, {m: c for m, c in terms.items() if c})

    def __truediv__(self, other: object) -> Number:
        right = self._coerce(other)
        return NotImplemented if right is None else self * right**-1

    def __rtruediv__(self, other: object) -> Number:
        return self**-1 * other

    def __pow__(self, exponent: object) -> Number:
        if not isinstance(exponent, int | Fraction):
            return NotImplemented
        power = int(exponent) if exponent == int(exponent) else exponent
        if isinstance(power, int) and power >= 0:
            result = self.ring.constant(1)
            for _ in range(power // 2):
                result = result * (self * self)
            return result * self if power % 2 else result
        if not self.terms:
            if power > 0:
                return self
            raise NotExactError("division by zero")
        if self.as_constant() is None:
            self.ring.conditions.setdefault(self.key(), self)
        if len(self.terms) == 1 and isinstance(power, int):
            return self._inverse_monomial() ** -power
        return self._power_of_base(power)

    def _inverse_monomial(self) -> Number:
        ((monomial, coefficient),) = self.terms.items()
        if any(self.ring.atoms[index].kind == "mask" for index, _ in monomial):
            raise NotExactError("division by a truth value")
        return Number(self.ring, {tuple((i, -e) for i, e in monomial): Fraction(1) / Fraction(coefficient)})

    def _power_of_base(self, power: Exponent) -> Number:
        if len(self.terms) == 1:
            ((monomial, coefficient),) = self.terms.items()
            # (A^(1/2))^(1/2) = A^(1/4) holds, since A^(1/2) is defined for A >= 0 alone; (A^2)^(1/2) = A need not.
            if coefficient == 1 and monomial and all(not isinstance(e, int) for _, e in monomial):
                return Number(self.ring, {tuple((i, _simple(e * power)) for i, e in monomial): 1})
        index = self.ring.base(self).only_atom()
        return Number(self.ring, {((index, power),): 1})

    # ------------------------------------------------------------ deciding

    def is_zero(self, given: tuple[Number, ...] = ()) -> bool:
        """Whether the number vanishes for all values of the symbols at which it is defined.

        Args:
            given: Numbers that are zero where the question is asked.

        """
        if not self.terms:
            return True
        for index in self.atoms():
            if self.ring.atoms[index].head == "zero":
                return self._zero_in_both_cases(index, given)
        bases = [index for index in self.atoms() if self.ring.atoms[index].kind == "base"]
        if bases:
            # The last made can be inside no other's expression.
            return all(part.is_zero(given) for part in self._expanded(max(bases)))
        number = self
        for equation in given:
            number = number.remainder(equation)
        return not number.terms

    def _zero_in_both_cases(self, mask: int, given: tuple[Number, ...]) -> bool:
        """Whether the number vanishes where the equation behind ``mask`` holds, and where it does not."""
        zero, one = self.ring.constant(0), self.ring.constant(1)
        (equation,) = self.ring.atoms[mask].arguments
        fails = self.rebuilt(lambda i: zero if i == mask else None)
        holds = self.rebuilt(lambda i: one if i == mask else None)
        return fails.is_zero(given) and holds.is_zero((*given, equation))

    def remainder(self, divisor: Number) -> Number:
        """What is left of a polynomial on division by another; 0 if and only if that divides it."""
        leading = max(divisor.terms, key=_order)
        if any(not isinstance(e, int) or e < 0 for m in (*self.terms, *divisor.terms) for _, e in m):
            return self
        rest, left = self, self.ring.constant(0)
        while rest.terms:
            monomial = max(rest.terms, key=_order)
            term = Number(self.ring, {monomial: rest.terms[monomial]})
            quotient = _quotient(monomial, leading)
            if quotient is None:
                rest, left = rest - term, left + term
            else:
                factor = Fraction(rest.terms[monomial]) / Fraction(divisor.terms[leading])
                rest = rest - Number(self.ring, {quotient: factor}) * divisor
        return left

    def named(self, longest: int = 40) -> Number:
        """The number itself or, if it has many terms, a multiple of an atom that stands for them.

        Equal numbers, and multiples of one number, get the same atom. What is computed from a sum of squares then
        stays small, and :meth:`is_zero` multiplies out what it must.
        """
        if len(self.terms) <= longest:
            return self
        first = Fraction(self.terms[min(self.terms)])
        return self.ring.base(self * (1 / first)) * first

    def expanded(self) -> Number:
        """The number with every positive whole power of a base multiplied out."""
        number = self
        for index in sorted(self.atoms(), reverse=True):
            if self.ring.atoms[index].kind == "base" and all(
                isinstance(e, int) and e > 0 for m in number.terms for i, e in m if i == index
            ):
                (number,) = list(number._expanded(index)) or [self.ring.constant(0)]
        return number

    def _expanded(self, base: int) -> Iterator[Number]:
        """The parts with different fractional powers of ``base``, each times what clears its negative powers."""
        groups: dict[Fraction, dict[Exponent, dict[Monomial, Coefficient]]] = {}
        for monomial, coefficient in self.terms.items():
            exponent = dict(monomial).get(base, 0)
            rest = tuple(pair for pair in monomial if pair[0] != base)
            powers = groups.setdefault(Fraction(exponent) % 1, {})
            powers.setdefault(exponent, {})[rest] = coefficient
        (expression,) = self.ring.atoms[base].arguments
        for fraction, powers in groups.items():
            lowest = min([*powers, fraction])
            total = self.ring.constant(0)
            for exponent, terms in powers.items():
                total = total + Number(self.ring, terms) * expression ** int(exponent - lowest)
            yield total

    # ------------------------------------------------------------ calculus

    def rebuilt(self, replace: Callable[[int], Number | None]) -> Number:
        """The number with atoms replaced, inside functions too; ``None`` keeps an atom."""
        done: dict[int, Number] = {}

        def atom(index: int) -> Number:
            if index not in done:
                done[index] = replace(index) or self._rebuilt_atom(index, replace)
            return done[index]

        return sum_of(
            self.ring, (product_of(self.ring, c, (atom(i) ** e for i, e in m)) for m, c in self.terms.items())
        )

    def _rebuilt_atom(self, index: int, replace: Callable[[int], Number | None]) -> Number:
        atom = self.ring.atoms[index]
        arguments = tuple(argument.rebuilt(replace) for argument in atom.arguments)
        if all(new.key() == old.key() for new, old in zip(arguments, atom.arguments, strict=True)):
            return self.ring.atom(index)
        if atom.kind == "base":
            return arguments[0]
        rebuild = REBUILDERS.get(atom.head)
        if rebuild is None:
            raise NotExactError(f"{atom.name} cannot be evaluated elsewhere")
        return rebuild(*arguments)

    def derivative(self, symbol: int) -> Number:
        """Partial derivative with respect to a symbol."""
        total = self.ring.constant(0)
        for monomial, coefficient in self.terms.items():
            for k, (index, exponent) in enumerate(monomial):
                inner = self._atom_derivative(index, symbol)
                if inner.terms:
                    rest = monomial[:k] + monomial[k + 1 :]
                    lowered = rest if exponent == 1 else tuple(sorted((*rest, (index, _simple(exponent - 1)))))
                    total = total + Number(self.ring, {lowered: coefficient * exponent}) * inner
        return total

    def _atom_derivative(self, index: int, symbol: int) -> Number:
        if index == symbol:
            return self.ring.constant(1)
        atom = self.ring.atoms[index]
        inner = [argument.derivative(symbol) for argument in atom.arguments]
        if all(not part.terms for part in inner):
            return self.ring.constant(0)
        if atom.kind == "base":
            return inner[0]
        rule = DERIVATIVES.get(atom.head)
        if rule is None:
            raise NotExactError(f"{atom.name} has no derivative here")
        return rule(atom.arguments[0]) * inner[0]


# Elementary function -> itself on numbers, and its derivative; filled by `functions`.
REBUILDERS: dict[str, Callable[..., Number]] = {}
DERIVATIVES: dict[str, Callable[[Number], Number]] = {}


def _order(monomial: Monomial) -> tuple[tuple[int, Exponent], ...]:
    """Lexicographic order of monomials, the last atom first."""
    return tuple(reversed(monomial))


def _quotient(monomial: Monomial, divisor: Monomial) -> Monomial | None:
    """``monomial / divisor`` if that has no negative power."""
    powers = dict(monomial)
    for index, exponent in divisor:
        powers[index] = powers.get(index, 0) - exponent
        if powers[index] < 0:
            return None
    return tuple(sorted((i, e) for i, e in powers.items() if e))


def sum_of(ring: Ring, numbers: Iterable[Number]) -> Number:
    """Sum of numbers."""
    total = ring.constant(0)
    for number in numbers:
        total = total + number
    return total


def product_of(ring: Ring, coefficient: Coefficient, numbers: Iterable[Number]) -> Number:
    """Product of numbers."""
    total = ring.constant(coefficient)
    for number in numbers:
        total = total * number
    return total


def power_of_value(value: Any, exponent: Exponent) -> Any:
    """``value ** exponent``."""
    base = as_mpf(value)
    if base < 0 and not isinstance(exponent, int):
        raise NotExactError("a fractional power of a negative number")
    return base**exponent if isinstance(exponent, int) else base ** as_mpf(exponent)


def as_mpf(value: Any) -> Any:
    """A value as a multi-precision float."""
    if isinstance(value, int | Fraction):
        with mpmath.workdps(DIGITS):
            return mpmath.mpf(value.numerator) / value.denominator
    return mpmath.mpf(value)


def _simple(exponent: Exponent) -> Exponent:
    if isinstance(exponent, int):
        return exponent
    return int(exponent) if exponent == int(exponent) else exponent


def _factor_text(name: str, exponent: Exponent) -> str:
    return name if exponent == 1 else f"{name}^{exponent if isinstance(exponent, int) else f'({exponent})'}"
