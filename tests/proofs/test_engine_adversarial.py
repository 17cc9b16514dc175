"""Ways to fool the engine into accepting a falsehood, or a theorem that says nothing. Each must fail."""

from __future__ import annotations

import gc
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sympy as sp

from proofs.conditions import Hypotheses, watch
from proofs.engine import Decision, _OutOfTime, decide, time_box
from proofs.language import ProofError, assumption, opaque
from proofs.notation import r, t, tau
from proofs.theorem import REGISTRY, Spec, Theorem, TheoremResult

x, y = sp.symbols("x y", real=True)
f, g = sp.Function("f"), sp.Function("g")
W = opaque("w", ("a", "b"))


def run(
    body: Callable[[Theorem], Any],
    nonzero: Sequence[Any] = (),
    positive: Sequence[Any] = (),
    where: Sequence[Any] = (),
    sources: Sequence[str] = ("mf:6",),
) -> TheoremResult:
    """Run a body as a theorem; one honest step and one honest control are added, so that only the trap decides."""

    def whole(T: Theorem) -> None:
        T.step("an honest step", (x + y) ** 2, x**2 + 2 * x * y + y**2)
        T.control("an honest control", x, y)
        body(T)

    conditions = Hypotheses(tuple(nonzero), tuple(positive), tuple(where))
    return Theorem(Spec("trap", "trap", "", (), tuple(sources), conditions, (), "trap", whole)).run()


def bare(body: Callable[[Theorem], Any]) -> TheoremResult:
    return Theorem(Spec("trap", "trap", "", (), ("mf:6",), Hypotheses(), (), "trap", body)).run()


def test_the_harness_itself_accepts_an_honest_theorem() -> None:
    assert run(lambda T: None).failures == ()


# ---------------------------------------------------------------- divisions


def test_a_divisor_cancelled_by_sympy_is_still_a_condition() -> None:
    """(t - r) * ((F(t) - F(r)) / (t - r)) holds no trace of t - r when the engine receives it."""

    def cancelled(T: Theorem) -> None:
        u = (f(t) - f(r)) / (t - r)
        T.step("displacement", (t - r) * u, f(t) - f(r))

    result = run(cancelled)
    assert "which is not declared nonzero" in result.failures[0]
    assert run(cancelled, nonzero=[t - r]).ok
    assert run(cancelled, nonzero=[2 * (r - t)]).ok
    assert not run(cancelled, nonzero=[t + r]).ok


@pytest.mark.parametrize(
    "quotient",
    [
        lambda: x * (1 / x),
        lambda: x * x**-1,
        lambda: x**2 / x / x,
        lambda: x * (sp.Integer(1) / x),
        lambda: x * (sp.Rational(1, 2) / x) * 2,
        lambda: (sp.Matrix([[x]]) / x)[0],
        lambda: x / x,
    ],
)
def test_every_way_to_divide_is_seen(quotient: Callable[[], Any]) -> None:
    result = run(lambda T: T.step("one", quotient() + y**2 - y**2, sp.Integer(1)))
    assert "divides by x, which is not declared nonzero" in result.failures


def test_a_visible_divisor_must_be_declared_with_all_its_factors() -> None:
    def step(T: Theorem) -> None:
        T.step("partial fractions", 1 / (x**2 - 1), (1 / (x - 1) - 1 / (x + 1)) / 2)

    assert not run(step, nonzero=[x - 1]).ok
    assert run(step, nonzero=[x - 1, x + 1]).ok
    assert run(step, nonzero=[3 - 3 * x**2]).ok


def test_the_search_region_licenses_no_division() -> None:
    """`where` narrows the search for witnesses; t < 1 there must not allow division by 1 - t."""
    assert not run(lambda T: T.step("one", (1 - t) / (1 - t), sp.Integer(1)), where=[t > 0, t < 1]).ok


def test_a_divisor_that_vanishes_in_disguise() -> None:
    """1/((x+1)^2 - x^2 - 2x - 1) is 1/0; no equation about it is proved, and declaring it leaves no point."""
    zero = (x + 1) ** 2 - x**2 - 2 * x - 1
    assert decide(1 / zero, 2 / zero).verdict == "UNKNOWN"
    assert not run(lambda T: T.step("absurd", 1 / zero, 2 / zero), nonzero=[zero]).ok
    result = run(lambda T: None, nonzero=[zero])
    assert "no point found that satisfies all hypotheses: the theorem may be empty" in result.failures


def test_a_number_that_vanishes_in_disguise() -> None:
    zero = sp.sin(1) ** 2 + sp.cos(1) ** 2 - 1
    absurd = run(lambda T: T.step("absurd", x / zero * zero + y * (1 + y), x + y + y**2))
    assert any("divides by" in failure for failure in absurd.failures)
    nonzero = sp.sqrt(2) + sp.cos(1)
    assert run(lambda T: T.step("fine", (x + y) ** 2 / nonzero, (x**2 + 2 * x * y + y**2) / nonzero)).ok


def test_division_by_zero_itself_is_refused() -> None:
    for e in (x / sp.Integer(0), sp.zoo, sp.nan, sp.oo, 1 / (x - x)):
        with pytest.raises(ProofError):
            decide(e, e)


def test_division_in_a_control_alone_is_no_condition_if_it_is_a_function() -> None:
    assert run(lambda T: T.control("x/y", x, lambda: x / y)).ok
    assert not run(lambda T: T.control("x/y", x, x / y)).ok


# ---------------------------------------------------------------- empty and contradictory hypotheses


def test_contradictory_hypotheses_are_found() -> None:
    assert not run(lambda T: None, where=[r < t, t < r]).ok
    assert not run(lambda T: None, positive=[x, -x]).ok


def test_a_constant_is_no_hypothesis() -> None:
    for e in (sp.Integer(0), sp.Integer(1), x - x):
        with pytest.raises(ProofError):
            Hypotheses(nonzero=(e,))
    with pytest.raises(ProofError):
        Hypotheses(where=(x >= 0,))


@pytest.mark.parametrize("kind", [{"zero": True}, {"positive": False}, {"even": True}, {"commutative": False}])
def test_assumptions_outside_the_list_are_refused(kind: dict[str, bool]) -> None:
    with pytest.raises(ProofError):
        decide(sp.Symbol("q", **kind), sp.Symbol("q", **kind))


def test_positivity_is_granted_only_in_the_open() -> None:
    """sqrt(p^2) = p is true for p > 0, and then the theorem says that it assumes so."""
    p = sp.Symbol("p", positive=True)
    result = run(lambda T: T.step("root", sp.sqrt(p**2 * (1 + x**2) ** 2), p * (1 + x**2)))
    assert result.ok
    assert result.assumptions == ("p > 0",)
    assert assumption(p) == "p > 0"
    with pytest.raises(ProofError, match="Abs"):
        decide(sp.sqrt(x**2), x)


# ---------------------------------------------------------------- roots, logarithms, branches


def test_a_root_needs_something_positive() -> None:
    def visible(T: Theorem) -> None:
        T.step("shift", sp.sqrt(x - y) * (x + 1), x * sp.sqrt(x - y) + sp.sqrt(x - y))

    assert any("x - y > 0" in failure for failure in run(visible).failures)
    assert run(visible, positive=[x - y]).ok

    def logarithm(T: Theorem) -> None:
        T.step("log", sp.log(x**2) * (1 + y), sp.log(x**2) + y * sp.log(x**2))

    assert any("x != 0" in failure for failure in run(logarithm).failures)
    assert run(logarithm, nonzero=[x]).ok


@pytest.mark.parametrize(
    ("lhs", "rhs"),
    [
        (sp.sqrt(x**2 - 2 * x * y + y**2), x - y),
        (sp.log(sp.exp(x) * y**2), x + 2 * sp.log(y) + 1),
        ((x**2 + 2 * x + 1) ** sp.Rational(3, 2), (x + 1) ** 3),
        (sp.exp(x) ** 2, sp.exp(x**2)),
        (sp.sin(2 * x), 2 * sp.sin(x)),
    ],
)
def test_false_identities_with_roots_and_functions_are_refuted(lhs: Any, rhs: Any) -> None:
    decision = decide(lhs, rhs)
    assert decision.verdict == "REFUTED"
    assert decision.witness is not None


@pytest.mark.parametrize(
    ("lhs", "rhs"),
    [
        (sp.sqrt(x) * sp.sqrt(y), sp.sqrt(x * y)),
        (sp.log(x) + sp.log(y), sp.log(x * y)),
        (sp.log(x**2), 2 * sp.log(x)),
    ],
)
def test_identities_that_hold_where_both_sides_are_real_are_not_refuted(lhs: Any, rhs: Any) -> None:
    """Over the reals both sides exist for positive arguments only, and agree there: a complex branch is no witness."""
    assert decide(lhs, rhs).verdict != "REFUTED"


# ---------------------------------------------------------------- numbers


def test_floats_are_refused() -> None:
    for e in (0.1 * x, sp.Float("0.5") + x, f(0.3), sp.Integral(f(tau) * 0.5, (tau, 0, 1)), x**2.0):
        with pytest.raises(ProofError, match="floating-point"):
            decide(e, e)


def test_a_tiny_difference_is_a_difference() -> None:
    assert decide(x, x + sp.Rational(1, 10**60)).verdict == "REFUTED"
    # exp(pi sqrt(163)) misses an integer by 7.5e-13: the famous near-identity.
    decision = decide(sp.exp(sp.pi * sp.sqrt(163)) + x, sp.Integer(262537412640768744) + x)
    assert decision.verdict == "REFUTED"
    assert decision.witness is not None
    assert not decision.witness.exact


def test_agreement_beyond_the_working_precision_is_no_proof() -> None:
    """sin(1) cut after 100 digits agrees to all digits that are computed; it must not be called equal."""
    cut = sp.Rational(int(sp.floor(sp.sin(1) * 10**100)), 10**100)
    assert decide(sp.sin(1) * x, cut * x).verdict == "UNKNOWN"


# ---------------------------------------------------------------- the language


class Lying(sp.Function):  # type: ignore[misc]
    """A function whose derivative is a lie."""

    def fdiff(self, argindex: int = 1) -> Any:
        return sp.Integer(0)


class Collapsing(sp.Function):  # type: ignore[misc]
    """A function that claims to be zero without saying so until asked."""

    def doit(self, **hints: Any) -> Any:
        return sp.Integer(0)


@pytest.mark.parametrize(
    "e",
    [
        Lying(x),
        sp.Derivative(Lying(x), x),
        Collapsing(x),
        sp.Piecewise((x, x > 0), (0, True)),
        sp.Abs(x),
        sp.I * x,
        sp.Integral(f(tau), tau),
        sp.Integral(sp.exp(-(tau**2)), (tau, 0, sp.oo)),
        sp.Sum(tau, (tau, 1, 3)),
        sp.Max(x, y),
        sp.tan(x),
        sp.gamma(x),
        sp.Limit(1 / x, x, 0),
    ],
)
def test_what_the_engine_does_not_know_is_refused(e: Any) -> None:
    with pytest.raises(ProofError):
        decide(e, e)


def test_one_letter_has_one_meaning() -> None:
    positive = sp.Symbol("x", positive=True)
    with pytest.raises(ProofError, match="both written"):
        decide(x, positive)
    with pytest.raises(ProofError, match="both written"):
        decide(f(x), sp.Function("f", positive=True)(x))
    with pytest.raises(ProofError, match="both written"):
        decide(f(x), opaque("f", ("x",))(x))
    assert not run(lambda T: T.step("mixed", sp.Matrix([x, 0]), sp.Matrix([0, positive]))).ok


def test_shapes_must_agree() -> None:
    with pytest.raises(ProofError, match="shapes"):
        decide(sp.Matrix([x, y]), x)
    with pytest.raises(ProofError, match="shapes"):
        decide(sp.Matrix([x, y]), sp.Matrix([[x, y]]))


def test_one_wrong_entry_of_a_matrix_is_enough() -> None:
    right = sp.Matrix([(x + y) ** 2, x])
    assert decide(right, right.applyfunc(sp.expand)).verdict == "PROVED"
    assert decide(right, sp.Matrix([sp.expand((x + y) ** 2), x + 1])).verdict == "REFUTED"


# ---------------------------------------------------------------- functions, derivatives, integrals


@pytest.mark.parametrize(
    ("lhs", "rhs"),
    [
        (sp.Derivative(f(2 * x), x), sp.Derivative(f(y), y).subs(y, 2 * x)),
        (sp.Derivative(f(x), x), f(x)),
        (sp.Derivative(f(x) * g(x), x), sp.Derivative(f(x), x) * sp.Derivative(g(x), x)),
        (sp.Derivative(f(g(x)), x), sp.Derivative(f(x), x)),
        (f(x + y), f(x) + f(y)),
        (f(x) - f(x + 1), sp.Integer(0)),
        (sp.Derivative(sp.Integral(f(tau), (tau, r, t)), r), f(r)),
        (
            sp.Integral(f(tau) * g(tau), (tau, r, t)),
            sp.Integral(f(tau), (tau, r, t)) * sp.Integral(g(tau), (tau, r, t)),
        ),
        (sp.Integral(f(tau + x), (tau, 0, 1)), sp.Integral(f(tau), (tau, 0, 1))),
        (W(x, y).fdiff(1), W(x, y).fdiff(2)),
        (W(x, y), W(y, x)),
    ],
)
def test_false_statements_about_functions_are_refuted(lhs: Any, rhs: Any) -> None:
    assert decide(lhs, rhs).verdict == "REFUTED"


@pytest.mark.parametrize(
    ("lhs", "rhs"),
    [
        (sp.Derivative(f(2 * x), x), 2 * sp.Derivative(f(y), y).subs(y, 2 * x)),
        (sp.Derivative(f(x) * g(x), x), sp.Derivative(f(x), x) * g(x) + f(x) * sp.Derivative(g(x), x)),
        (sp.Derivative(sp.Integral(f(tau), (tau, r, t**2)), t), 2 * t * f(t**2)),
        (sp.Derivative(W(x**2, x), x), 2 * x * W(x**2, x).fdiff(1) + W(x**2, x).fdiff(2)),
        (W(x, y).fdiff(1).fdiff(2), W(x, y).fdiff(2).fdiff(1)),
    ],
)
def test_true_statements_about_functions_are_proved(lhs: Any, rhs: Any) -> None:
    """The other side of the same coin: instances must be consistent across derivatives, or these would be 'refuted'."""
    decision = decide(lhs, rhs)
    assert decision.verdict == "PROVED"
    assert decision.points > 0


def test_a_hidden_dependence_does_not_pass() -> None:
    """A bare symbol u has no derivative: the identity then claims u = v, which is refuted."""
    u, v = sp.symbols("u v", real=True)
    assert decide(u, v - (t - r) * sp.Derivative(u, t)).verdict == "REFUTED"


def test_a_substitution_that_captures_is_refused() -> None:
    """sympy itself turns Integral(x tau, ...).subs(x, tau) into Integral(tau^2, ...)."""
    product = sp.Integral(x * tau, (tau, 0, 1))

    def capture(T: Theorem) -> None:
        T.step("captured", product.subs(x, tau) + y, sp.Integral(tau**2, (tau, 0, 1)) + y)

    assert any("captures no bound variable" in failure for failure in run(capture).failures)
    assert any("captures" in failure for failure in run(lambda T: product.xreplace({x: tau})).failures)
    assert run(lambda T: T.step("renamed", product.subs(x, y) * 2, 2 * y * sp.Integral(tau, (tau, 0, 1)))).steps


def test_an_antiderivative_through_a_pole_is_refused() -> None:
    result = run(lambda T: T.integral(1 / tau**2, tau, -1, 1), nonzero=[tau])
    assert any("may be singular between the limits" in failure for failure in result.failures)


def test_a_wrong_antiderivative_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sp, "integrate", lambda e, variable: e)
    result = run(lambda T: T.integral(tau**2, tau, 0, 1))
    assert any("is not one" in failure for failure in result.failures)


# ---------------------------------------------------------------- theorems that say nothing


def test_a_theorem_of_restatements_fails() -> None:
    def body(T: Theorem) -> None:
        T.step("itself", x + y, y + x)
        T.step("its own derivative", sp.Derivative(f(x), x), sp.diff(f(x), x))
        T.step("a rule of sympy", sp.Derivative(sp.Integral(f(tau), (tau, r, t)), t), f(t))
        T.control("no", x, y)

    result = bare(body)
    assert all(step.decision.restates for step in result.steps)
    assert result.failures == ("every step restates its other side: nothing is proved",)


def test_a_theorem_without_steps_or_controls_fails() -> None:
    assert not bare(lambda T: None).ok
    no_control = bare(lambda T: T.step("square", (x + y) ** 2, x**2 + 2 * x * y + y**2) and None)
    assert no_control.failures == ("no negative control",)
    assert not bare(lambda T: T.control("no", x, y) and None).ok


def test_a_true_control_and_a_false_step_fail() -> None:
    assert not run(lambda T: T.control("true", (x + y) ** 2, x**2 + 2 * x * y + y**2)).ok
    assert not run(lambda T: T.step("false", (x + y) ** 2, x**2 + y**2)).ok


def test_unknown_fails_on_both_sides() -> None:
    lhs, rhs = sp.log(x) + sp.log(y), sp.log(x * y)
    as_step = run(lambda T: T.step("logs", lhs, rhs), positive=[x, y, x * y])
    as_control = run(lambda T: T.control("logs", lhs, rhs), positive=[x, y, x * y])
    for result in (as_step, as_control):
        assert any("UNKNOWN" in failure for failure in result.failures)


def test_mutants_of_something_that_is_not_zero_fail() -> None:
    assert not run(lambda T: T.mutants({"x": x, "y": y})).ok
    assert run(lambda T: T.mutants({"square": (x + 1) ** 2, "rest": -(x**2) - 2 * x - 1})).ok


def test_a_mutant_without_effect_fails() -> None:
    assert not run(lambda T: T.mutants({"square": (x + 1) ** 2, "rest": -(x**2) - 2 * x - 1, "nothing": 0 * x})).ok


def test_an_error_in_the_body_is_a_failure() -> None:
    def breaks(T: Theorem) -> None:
        raise RuntimeError("no derivation")

    assert any("the derivation stopped" in failure for failure in run(breaks).failures)


def test_an_unknown_source_fails() -> None:
    assert run(lambda T: None, sources=["mf:99"]).failures == ("unknown source mf:99",)


# ---------------------------------------------------------------- the machinery


def test_the_watch_leaves_sympy_as_it_was() -> None:
    before = {name: vars(sp.Expr)[name] for name in ("__truediv__", "__rtruediv__", "__pow__")}
    seen: list[Any] = []

    def stopped() -> None:
        with watch(seen.append):
            assert vars(sp.Expr)["__truediv__"] is not before["__truediv__"]
            _ = x / y
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stopped()
    assert {name: vars(sp.Expr)[name] for name in before} == before
    assert seen == [y]


def test_the_time_box_ends_in_unknown_and_harms_nothing() -> None:
    symbols = sp.symbols("a0:9", real=True)
    huge = sum(symbols) ** 24
    assert decide(huge * sp.sin(1), huge * sp.sin(1) + 0 * x + (x - x), seconds=5).verdict == "PROVED"
    decision = decide(huge * (sp.sin(x) ** 2 + sp.cos(x) ** 2), huge, seconds=0.3)
    assert decision == Decision("UNKNOWN", reason="no verdict in 0.3 s")
    assert decide((x + y) ** 2, x**2 + 2 * x * y + y**2).verdict == "PROVED"


def _compute(seconds: float) -> None:
    start = time.process_time()
    while time.process_time() < start + seconds:
        pass


class _Ends:
    def __del__(self) -> None:
        _compute(0.2)


class _Short:
    pass


def _collects(*_: Any) -> None:
    _compute(0.2)


def _in_a_finalizer() -> None:
    _Ends()


def _in_a_callback_of_the_collector() -> None:
    gc.callbacks.append(_collects)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(_collects)


def _in_a_callback_of_a_weakref() -> None:
    weakref.finalize(_Short(), _compute, 0.2)


@pytest.mark.parametrize("place", [_in_a_finalizer, _in_a_callback_of_the_collector, _in_a_callback_of_a_weakref])
def test_the_time_box_does_not_ring_where_python_drops_the_exception(
    place: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)

    def work() -> None:
        with time_box(0.05):
            place()
            _compute(2.0)

    with pytest.raises(_OutOfTime):
        work()
    assert dropped == []


def test_witnesses_satisfy_the_hypotheses() -> None:
    hypotheses = Hypotheses(nonzero=(x - y,), positive=(x + y,), where=(r > 0, r < t, t < 1))
    decision = decide(x * r, y * t, hypotheses)
    assert decision.witness is not None
    at = {name: sp.Rational(value) for name, value in decision.witness.point.items()}
    assert 0 < at["r"] < at["t"] < 1
    assert at["x"] != at["y"]
    assert at["x"] + at["y"] > 0
    assert sp.Rational(decision.witness.left) == at["x"] * at["r"]
    assert sp.Rational(decision.witness.right) == at["y"] * at["t"]


def test_nothing_is_registered_by_these_tests() -> None:
    assert "trap" not in REGISTRY
