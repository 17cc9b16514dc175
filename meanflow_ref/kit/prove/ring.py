r"""Exact arithmetic on the numbers that a traced loss computes.

A number is a sum of terms, each a rational coefficient times powers of *atoms*. An atom is a free symbol (an entry of
an input, a random draw, a value or derivative of the opaque network), a truth value ``m`` with ``m m = m``, a power
base ``A`` that stands for a whole expression ``P`` so that :math:`P^{-3/4}` is the monomial :math:`A^{-3/4}`, or an
elementary function of expressions, of which no more is assumed than that equal arguments give equal values.

Equality is decided (by :mod:`.deciding`), not guessed: negative powers are cleared, positive ones expanded, and every
coefficient must vanish. What is found to be zero is therefore zero for all real values of the symbols at which
everything is defined. The other direction is settled by a witness: every symbol carries a value, and a difference that
is not zero there is not zero.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeAlias

import mpmath

from meanflow_ref.kit.prove.errors import NotExactError
from meanflow_ref.kit.prove.monomial import (
    DIGITS,
    LARGEST_PRODUCT,
    Coefficient,
    Exponent,
    Monomial,
    as_mpf,
    factor_text,
    power_of_value,
    simple,
)

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
    _values: dict[int, Any] = field(default_factory=dict)
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
        if not callable(atom.value):
            return atom.value
        if index not in self._values:
            self._values[index] = atom.value(*(argument.value() for argument in atom.arguments))
        return self._values[index]

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
                total = simple(merged[index] + exponent)
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
        factors = [factor_text(self.ring.atoms[i].name, e) for i, e in monomial]
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
                return Number(self.ring, {tuple((i, simple(e * power)) for i, e in monomial): 1})
        index = self.ring.base(self).only_atom()
        return Number(self.ring, {((index, power),): 1})

    # ------------------------------------------------------------ names for long sums

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
                (number,) = list(number.without(index)) or [self.ring.constant(0)]
        return number

    def without(self, base: int) -> Iterator[Number]:
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
