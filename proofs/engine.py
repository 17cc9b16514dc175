"""The proof engine: an equation is PROVED, REFUTED by a witness, or UNKNOWN; never a bare yes or no.

PROVED
    ``NF``    the numerator of ``lhs - rhs`` expands to 0: a rational identity in its atoms, true whatever they are;
    ``ALG``   the same modulo ``root^q = base`` and ``sin^2 + cos^2 = 1``;
    ``SIMP``  ``sympy.simplify`` found 0: heuristic, so it must agree numerically at five points. Reported as such.
REFUTED
    a point that satisfies the hypotheses, with concrete functions, where the sides differ: in exact fractions, or in
    intervals that do not touch. Failing to simplify is never a refutation, nor a proof.
UNKNOWN
    anything else, the end of the time-box included. UNKNOWN fails.

Every equation is first evaluated at random points by code that shares nothing with the rewriting (:mod:`.evaluate`):
a second opinion on what is then proved.
"""

from __future__ import annotations

import gc
import signal
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from types import FrameType
from typing import Any

import sympy as sp

from .conditions import Hypotheses
from .evaluate import NotEvaluable, compare, text, value
from .language import ProofError, check_language, entries

NO_HYPOTHESES = Hypotheses()


@dataclass(frozen=True)
class Witness:
    """A point where two sides differ: ``left`` and ``right`` are their values, exact unless ``exact`` is False."""

    point: dict[str, str]
    functions: dict[str, str]
    left: str
    right: str
    exact: bool


@dataclass(frozen=True)
class Decision:
    """Verdict on one equation."""

    verdict: str
    method: str = ""
    restates: bool = False
    witness: Witness | None = None
    points: int = 0
    reason: str = ""


class _OutOfTime(BaseException):
    """Not an Exception: sympy catches those now and then."""


# Code whose exceptions Python prints and drops, besides __del__ and the collector's callbacks.
_WEAKREF_FILES = {weakref.__file__, weakref.WeakSet.add.__code__.co_filename}


def _would_be_dropped(frame: FrameType | None) -> bool:
    """Whether Python may drop, with a warning, what is raised in ``frame``: below it runs a finalizer or a callback."""
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks} - {None}
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__del__" or code in callbacks or code.co_filename in _WEAKREF_FILES:
            return True
        frame = frame.f_back
    return False


@contextmanager
def time_box(seconds: float) -> Iterator[None]:
    """Raise ``_OutOfTime`` after ``seconds`` of this process's own computing time.

    CPU time rather than the clock: the verdict must not depend on what else the machine does. Without effect outside
    the main thread and where the system has no such timer.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_: int, frame: FrameType | None) -> None:
        if _would_be_dropped(frame):
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.01, 1.0)  # soon again
        else:
            raise _OutOfTime

    handler = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)


def decide(lhs: Any, rhs: Any, hypotheses: Hypotheses = NO_HYPOTHESES, seconds: float = 20.0) -> Decision:
    """Decide ``lhs = rhs``, entry by entry for matrices.

    Args:
        lhs: An expression or matrix of the language of :mod:`.language`.
        rhs: The other side, of the same shape.
        hypotheses: Where a witness must lie.
        seconds: Computing time before the verdict is UNKNOWN.

    Returns:
        The decision. Divisors are not examined here: see :meth:`proofs.theorem.Theorem.step`.

    Raises:
        ProofError: if a side is outside the language, or the shapes differ.
    """
    pairs = _pairs(lhs, rhs)
    try:
        with time_box(seconds):
            return _merge([_decide(a, b, hypotheses) for a, b in pairs])
    except _OutOfTime:
        return Decision("UNKNOWN", reason=f"no verdict in {seconds:g} s")


def _pairs(lhs: Any, rhs: Any) -> list[tuple[Any, Any]]:
    shapes = [x.shape if isinstance(x, sp.MatrixBase) else None for x in (lhs, rhs)]
    if shapes[0] != shapes[1]:
        raise ProofError(f"sides of shapes {shapes[0]} and {shapes[1]}", "equal shapes", "compare like with like")
    pairs = list(zip(entries(lhs), entries(rhs), strict=True))
    # One tuple of all entries, so that one letter has one meaning across the whole equation.
    check_language(sp.Tuple(*(side for pair in pairs for side in pair)))
    return pairs


def _merge(decisions: list[Decision]) -> Decision:
    for verdict in ("REFUTED", "UNKNOWN"):
        for d in decisions:
            if d.verdict == verdict:
                return d
    method = max((d.method for d in decisions), key=("NF", "ALG", "SIMP").index)
    restates, points = all(d.restates for d in decisions), min(d.points for d in decisions)
    return Decision("PROVED", method, restates, points=points)


def _decide(lhs: Any, rhs: Any, hypotheses: Hypotheses) -> Decision:
    # The evaluation goes first: a false statement falls in milliseconds, a true one has its second opinion already.
    witness, agreed = search(lhs, rhs, hypotheses, points=2)
    if witness:
        return Decision("REFUTED", witness=witness)
    lhs_value, rhs_value = carry_out(lhs), carry_out(rhs)
    check_language(sp.Tuple(lhs_value, rhs_value))
    difference = lhs_value - rhs_value
    restates = difference == 0
    method = "NF" if normal_form(difference) == 0 else "ALG" if algebraic_form(difference) == 0 else ""
    if method:
        return Decision("PROVED", method, restates, points=agreed)
    witness, agreed = search(lhs, rhs, hypotheses, points=8)
    if witness:
        return Decision("REFUTED", witness=witness)
    if agreed >= 5 and sp.simplify(difference) == 0:
        return Decision("PROVED", "SIMP", points=agreed)
    return Decision("UNKNOWN", reason=f"neither a normal form nor a witness ({agreed} points agree)")


def carry_out(e: Any) -> Any:
    """Evaluate derivatives and substitutions, and leave integrals as they stand (sympy's integrals are not trusted)."""
    return e.doit(integrals=False)


def normal_form(e: Any) -> Any:
    """Expanded numerator of ``e`` over a common denominator; 0 only if ``e`` vanishes wherever it is defined."""
    return sp.expand(sp.fraction(sp.together(e))[0])


def algebraic_form(e: Any) -> Any:
    """Normal form of ``e``, reduced by ``root^q = base`` and ``sin^2 = 1 - cos^2``."""
    relations = []
    e = sp.expand_power_base(e)
    for base in sorted({p.base for p in e.atoms(sp.Pow) if _is_root(p)}, key=sp.default_sort_key):
        q = sp.ilcm(*(p.exp.q for p in e.atoms(sp.Pow) if _is_root(p) and p.base == base), 1)
        root = sp.Dummy("root")
        powers = {p: root ** (p.exp * q) for p in e.atoms(sp.Pow) if p.base == base and p.exp.is_Rational}
        e = e.xreplace(powers)
        relations.append((root, root**q - base))
    for angle in sorted({f.args[0] for f in e.atoms(sp.sin, sp.cos)}, key=sp.default_sort_key):
        sine, cosine = sp.Dummy("sine"), sp.Dummy("cosine")
        e = e.xreplace({sp.sin(angle): sine, sp.cos(angle): cosine})
        relations.append((sine, sine**2 + cosine**2 - 1))
    form = normal_form(e)
    for unknown, relation in relations:
        # Monic in `unknown`: the remainder divides by nothing. `base` may hold divisors, so it is cleared again.
        form = normal_form(sp.rem(form, relation, unknown))
    return form


def _is_root(p: Any) -> bool:
    return bool(p.exp.is_Rational and not p.exp.is_Integer and not p.base.is_number)


def search(lhs: Any, rhs: Any, hypotheses: Hypotheses, points: int) -> tuple[Witness | None, int]:
    """Look for a witness against ``lhs = rhs`` at up to ``points`` points; also count the points that agree."""
    agreed = 0
    for instance, point in hypotheses.points(lhs.free_symbols | rhs.free_symbols, seed=1, tries=points):
        try:
            left, right = (value(instance.concrete(side), point) for side in (lhs, rhs))
            equal = compare(left, right)
        except (NotEvaluable, ZeroDivisionError):
            continue
        if equal is False:
            exact = isinstance(left, Fraction) and isinstance(right, Fraction)
            shown = {str(s): str(q) for s, q in sorted(point.items(), key=lambda item: str(item[0]))}
            functions = {name.split("/")[0]: _readable(*choice) for name, choice in instance.functions.items()}
            return Witness(shown, functions, text(left), text(right), exact), agreed
        agreed += equal is True
    return None, agreed


def _readable(variables: tuple[Any, ...], polynomial: Any) -> str:
    names = sp.symbols(f"x1:{len(variables) + 1}") if len(variables) > 1 else (sp.Symbol("x"),)
    return str(polynomial.xreplace(dict(zip(variables, names, strict=True))))
