"""Theorems: a statement with its hypotheses, and a body of steps and controls that the engine decides.

A body receives a :class:`Theorem` and calls ``step`` (must be PROVED), ``control`` (must be REFUTED) and ``mutants``.
A theorem holds if all of these come out so, at least one step is more than a restatement, at least one control is
there, every divisor met is declared, every root is of something positive, some point satisfies all hypotheses, and
every source exists.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy as sp
from sympy.core.function import AppliedUndef

from meanflow_ref.sources import EQUATIONS

from .conditions import Hypotheses, Ledger, divisors, roots, watch
from .engine import Decision, carry_out, decide
from .language import ProofError, assumption, entries


@dataclass(frozen=True)
class Spec:
    """What a theorem claims. ``statement`` is LaTeX; ``hypotheses`` and ``notes`` are sentences."""

    id: str
    title: str
    statement: str
    hypotheses: tuple[str, ...]
    sources: tuple[str, ...]
    conditions: Hypotheses
    notes: tuple[str, ...]
    family: str
    body: Callable[[Theorem], None]


@dataclass(frozen=True)
class Step:
    """One equation as it was checked: a step (wanted PROVED) or a control (wanted REFUTED)."""

    text: str
    lhs: Any
    rhs: Any
    decision: Decision
    wanted: str
    missing: tuple[str, ...] = ()
    reads: str = ""

    @property
    def failure(self) -> str:
        """Why this line does not stand, or the empty string."""
        if self.decision.verdict != self.wanted:
            why = f": {self.decision.reason}" if self.decision.reason else ""
            return f"{self.text}: {self.decision.verdict} where {self.wanted} is wanted{why}"
        return f"{self.text}: undeclared condition {', '.join(self.missing)}" if self.missing else ""


@dataclass(frozen=True)
class TheoremResult:
    """Outcome of one theorem."""

    spec: Spec
    steps: tuple[Step, ...]
    controls: tuple[Step, ...]
    assumptions: tuple[str, ...]
    conditions: Hypotheses
    failures: tuple[str, ...]
    seconds: float

    @property
    def id(self) -> str:
        """Name of the theorem."""
        return self.spec.id

    @property
    def title(self) -> str:
        """Title of the theorem."""
        return self.spec.title

    @property
    def ok(self) -> bool:
        """Whether the theorem holds."""
        return not self.failures

    @property
    def n_steps(self) -> int:
        """Number of steps."""
        return len(self.steps)

    @property
    def n_controls(self) -> int:
        """Number of negative controls."""
        return len(self.controls)

    @property
    def n_restates(self) -> int:
        """Number of steps whose sides are equal as soon as they are written down."""
        return sum(step.decision.restates for step in self.steps)


class _Stop(Exception):
    """The first failure of a run that asked for no more."""


class Theorem:
    """One run of a theorem's body: records and judges its steps."""

    def __init__(self, spec: Spec, fail_fast: bool = False) -> None:
        self.spec = spec
        self.steps: list[Step] = []
        self.controls: list[Step] = []
        self.failures: list[str] = []
        self._conditions = spec.conditions
        self._divisors: dict[Any, None] = {}
        self._listening = True
        self._fail_fast = fail_fast
        self._ledger = Ledger(self._conditions)

    def assume(self, nonzero: Sequence[Any] = (), positive: Sequence[Any] = (), where: Sequence[Any] = ()) -> None:
        """Add hypotheses about symbols that the body makes; they are printed with the others."""
        c = self._conditions
        joined = ((*c.nonzero, *nonzero), (*c.positive, *positive), (*c.where, *where))
        self._conditions = Hypotheses(*joined)
        self._ledger = Ledger(self._conditions)

    def step(self, text: str, lhs: Any, rhs: Any, reads: str = "") -> Decision:
        """Record the step ``lhs = rhs``, which must be PROVED and divide by declared expressions only.

        ``reads`` is the equation in the letters of the paper, for the document, where ``lhs`` and ``rhs`` are long.
        """
        decision = decide(lhs, rhs, self._conditions)
        missing = self._missing([*entries(lhs), *entries(rhs)])
        self._keep(self.steps, Step(text, lhs, rhs, decision, "PROVED", missing, reads))
        return decision

    def control(self, text: str, lhs: Any, rhs: Any) -> Decision:
        """Record the false equation ``lhs = rhs``, which must be REFUTED.

        A side may be a function of no arguments: what it divides by is then no condition of the theorem.
        """
        self._listening = False
        try:
            lhs, rhs = (side() if callable(side) and not isinstance(side, sp.Basic) else side for side in (lhs, rhs))
        finally:
            self._listening = True
        decision = decide(lhs, rhs, self._conditions)
        self._keep(self.controls, Step(text, lhs, rhs, decision, "REFUTED"))
        return decision

    def mutants(self, terms: Mapping[str, Any]) -> None:
        """Refute every sign flip and every omission in an equation ``sum of terms = 0``, after proving it."""
        total = sum(terms.values(), sp.Integer(0))
        if decide(total, 0, self._conditions).verdict != "PROVED":
            self.fail(f"the terms {', '.join(terms)} do not add up to 0, so mutating them means nothing")
        for name, term in terms.items():
            self.control(f"sign of [{name}] flipped", total - 2 * term, sp.Integer(0))
            self.control(f"[{name}] left out", total - term, sp.Integer(0))

    def integral(self, integrand: Any, variable: Any, low: Any, high: Any) -> Any:
        """Integral by an antiderivative that is checked by differentiation, and has no pole in the variable."""
        primitive = sp.integrate(integrand, variable)
        if decide(sp.Derivative(primitive, variable), integrand, self._conditions).verdict != "PROVED":
            self.fail(f"sympy's antiderivative of {integrand} is not one")
        if any(variable in e.free_symbols for e in (*divisors(primitive), *roots(primitive))):
            self.fail(f"the antiderivative of {integrand} may be singular between the limits")
        return primitive.subs(variable, high) - primitive.subs(variable, low)

    def fail(self, why: str) -> None:
        """Record a failure."""
        self.failures.append(why)
        if self._fail_fast:
            raise _Stop

    def _keep(self, lines: list[Step], line: Step) -> None:
        lines.append(line)
        if line.failure:
            self.fail(line.failure)

    def _missing(self, sides: list[Any]) -> tuple[str, ...]:
        """Conditions that the sides need, as given and once derivatives are carried out, and that nobody declared."""
        needed: dict[str, None] = {}
        for e in {*sides, *(carry_out(side) for side in sides)}:
            for divisor in {*divisors(e)}:
                needed.update((f"{f} != 0", None) for f in self._ledger.missing(divisor))
            needed.update((f"{b} > 0", None) for b in self._ledger.unproven_roots(e))
        return tuple(sorted(needed))

    def _record(self, divisor: Any) -> None:
        if self._listening:
            self._divisors[divisor] = None

    def run(self) -> TheoremResult:
        """Run the body, then the checks that concern the theorem as a whole."""
        start = time.perf_counter()
        try:
            with watch(self._record):
                self.spec.body(self)
            self._audit()
        except _Stop:
            pass
        except Exception as error:
            self.failures.append(f"the derivation stopped: {type(error).__name__}: {error}")
        assumed = tuple(sorted(self._assumed()))
        result = TheoremResult(
            self.spec, tuple(self.steps), tuple(self.controls), assumed, self._conditions, tuple(self.failures), 0.0
        )
        return replace(result, seconds=time.perf_counter() - start)

    def _audit(self) -> None:
        for divisor in self._divisors:
            for f in self._ledger.missing(divisor):
                self.fail(f"divides by {f}, which is not declared nonzero")
        if not any(True for _ in self._conditions.points(set(), seed=1, tries=3)):
            self.fail("no point found that satisfies all hypotheses: the theorem may be empty")
        if all(line.decision.restates for line in self.steps):
            self.fail("every step restates its other side: nothing is proved")
        if not self.controls:
            self.fail("no negative control")
        for source in self.spec.sources:
            if source not in EQUATIONS:
                self.fail(f"unknown source {source}")

    def _assumed(self) -> set[str]:
        texts: set[str] = set()
        for line in self.steps:
            for e in (*entries(line.lhs), *entries(line.rhs)):
                texts |= {assumption(s) for s in e.free_symbols if not isinstance(s, sp.Dummy)}
                texts |= {f"{f.func} > 0" for f in e.atoms(AppliedUndef) if f.is_positive}
        return texts - {""}


REGISTRY: dict[str, Spec] = {}


def theorem(
    id: str,
    title: str,
    statement: str,
    *,
    hypotheses: Sequence[str] = (),
    sources: Sequence[str] = (),
    nonzero: Sequence[Any] = (),
    positive: Sequence[Any] = (),
    where: Sequence[Any] = (),
    notes: Sequence[str] = (),
) -> Callable[[Callable[[Theorem], None]], Spec]:
    """Register the decorated body as the theorem ``id``."""

    def register(body: Callable[[Theorem], None]) -> Spec:
        if id in REGISTRY:
            raise ProofError(f"two theorems are called {id}", "one name, one theorem", "rename one")
        conditions = Hypotheses(tuple(nonzero), tuple(positive), tuple(where))
        family = body.__module__.rsplit(".", 1)[-1]
        REGISTRY[id] = Spec(
            id, title, statement, tuple(hypotheses), tuple(sources), conditions, tuple(notes), family, body
        )
        return REGISTRY[id]

    return register
