"""The language of the proofs: which sympy expressions the engine reads, and opaque functions.

Soundness begins by refusing. An expression outside the whitelist (a Float, an infinity, a Piecewise, a user-made
subclass of Function with its own ``fdiff``) raises :class:`ProofError`; nothing unknown is ever reasoned about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sympy as sp
from sympy.core.function import AppliedUndef

from meanflow_ref.errors import MeanFlowError


class ProofError(MeanFlowError, ValueError):
    """A statement that the engine refuses to read, because it could not judge it soundly."""


class Opaque(sp.Function):  # type: ignore[misc]
    """A function known by name alone, whose partial derivatives are again named functions.

    Made by :func:`opaque`. sympy's own chain rule runs on it, and no ``Subs`` or ``Derivative`` objects appear, so that
    total derivatives read ``v d_z u + d_t u``. Partials are symmetric: the function is taken to be C^2 or better.
    """

    base: str = ""
    variables: tuple[str, ...] = ()
    partials: tuple[int, ...] = ()

    def fdiff(self, argindex: int = 1) -> Any:
        """Return the partial derivative in argument ``argindex``, applied to the same arguments."""
        return _opaque(self.base, self.variables, tuple(sorted((*self.partials, argindex))))(*self.args)

    def _latex(self, printer: Any, exp: Any = None) -> str:
        head = "".join(rf"\partial_{{{self.variables[i - 1]}}} " for i in self.partials) + self.base
        body = head + r"\left(" + ", ".join(printer._print(a) for a in self.args) + r"\right)"
        return body if exp is None else rf"\left({body}\right)^{{{exp}}}"


_OPAQUE: dict[tuple[str, tuple[str, ...], tuple[int, ...]], Any] = {}


def _opaque(base: str, variables: tuple[str, ...], partials: tuple[int, ...]) -> Any:
    key = (base, variables, partials)
    if key not in _OPAQUE:
        name = "".join(f"d{variables[i - 1]}_" for i in partials) + base
        attributes = {"base": base, "variables": variables, "partials": partials, "nargs": len(variables)}
        _OPAQUE[key] = type(name, (Opaque,), attributes)
    return _OPAQUE[key]


def opaque(base: str, variables: Sequence[str]) -> Any:
    """Opaque function of the named variables, e.g. ``opaque("u", ("z", "r", "t"))``."""
    return _opaque(base, tuple(variables), ())


_LEAVES: tuple[type, ...] = (sp.Symbol, sp.Dummy, sp.Integer, sp.Rational, type(sp.pi), type(sp.E))
_LEAVES += tuple(type(n) for n in (sp.S.Zero, sp.S.One, sp.S.NegativeOne, sp.S.Half))
_NODES: tuple[type, ...] = (sp.Add, sp.Mul, sp.Pow, sp.exp, sp.log, sp.sin, sp.cos, sp.erf)
_NODES += (sp.Integral, sp.Derivative, sp.Subs, sp.Tuple)

# The assumptions a symbol may carry, strongest first, and how each reads as a hypothesis.
_ASSUMPTIONS = (
    ("positive", "{0} > 0"),
    ("negative", "{0} < 0"),
    ("nonnegative", "{0} >= 0"),
    ("nonzero", "{0} != 0"),
    ("integer", "{0} an integer"),
    ("real", ""),
)


def assumption(symbol: Any) -> str:
    """What a symbol is assumed to be beyond a real number, e.g. ``"sigma > 0"``, or the empty string."""
    given = {name for name, value in symbol._assumptions_orig.items() if value}
    refused = {name for name, value in symbol._assumptions_orig.items() if not value} - {"commutative"}
    known = {name for name, _ in _ASSUMPTIONS} | {"commutative"}
    if given - known or refused or not symbol.is_commutative:
        raise ProofError(
            f"symbol {symbol} is declared {dict(symbol._assumptions_orig)}",
            f"assumptions among {sorted(known)}, and none of them False",
            "state anything else as a hypothesis",
        )
    return " and ".join(text.format(symbol) for name, text in _ASSUMPTIONS if name in given and text)


def entries(e: Any) -> list[Any]:
    """Scalar entries of an expression or a matrix, in order."""
    return list(e) if isinstance(e, sp.MatrixBase) else [sp.sympify(e)]


def bound_symbols(e: Any) -> set[Any]:
    """Symbols bound by an integral or a ``Subs`` somewhere inside ``e``."""
    return {s for node in e.atoms(sp.Integral, sp.Subs) for s in node.bound_symbols}


def check_language(e: Any) -> None:
    """Raise :class:`ProofError` unless every part of the scalar ``e`` is in the engine's language."""
    for node in sp.preorder_traversal(e):
        if isinstance(node, sp.Float):
            raise ProofError(f"a floating-point number {node}", "exact numbers", "write sympy.Rational")
        known = type(node) in _LEAVES or type(node) in _NODES or isinstance(node, AppliedUndef)
        if isinstance(node, Opaque):
            known = type(node) in _OPAQUE.values()
        if not known:
            raise ProofError(
                f"`{node}`, a {type(node).__name__}, which is outside the language of the proofs",
                "+ - * / **, exp, log, sin, cos, erf, undefined and opaque functions, definite integrals, derivatives",
                "restate the step without it",
            )
        if isinstance(node, sp.Integral) and any(len(limit) != 3 for limit in node.limits):
            raise ProofError(f"the indefinite integral `{node}`", "definite integrals", "give both limits")
    _check_names(e)


def _check_names(e: Any) -> None:
    """Refuse two different symbols (or functions) that print alike: one letter, one meaning."""
    seen: dict[str, Any] = {}
    for name, meaning in _named(e):
        if seen.setdefault(name, meaning) != meaning:
            raise ProofError(f"two different objects are both written `{name}`", "one letter, one meaning", "rename")


def _named(e: Any) -> Iterator[tuple[str, Any]]:
    for node in sp.preorder_traversal(e):
        if isinstance(node, sp.Symbol) and not isinstance(node, sp.Dummy):
            assumption(node)
            yield str(node), node
        elif isinstance(node, AppliedUndef):
            yield f"{node.func.__name__}(..)", node.func
        elif isinstance(node, Opaque):
            yield f"{node.base}(..)", node.variables
