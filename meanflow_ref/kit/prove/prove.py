"""The proof that a loss is a MeanFlow loss, value and gradient, or what it is instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from meanflow_ref.convention import Convention
from meanflow_ref.errors import ParameterError
from meanflow_ref.kit.prove.errors import NotExactError
from meanflow_ref.kit.prove.execute import Outcome, execute
from meanflow_ref.kit.prove.formula import Formula, Weight
from meanflow_ref.kit.prove.functions import truth_text
from meanflow_ref.kit.prove.guided import read_guidance
from meanflow_ref.kit.prove.inputs import check_shapes, read_letters, symbols
from meanflow_ref.kit.prove.laws import broken_laws, notes, undefined_at_equal_times
from meanflow_ref.kit.prove.match import PRECISE, ROUNDING, Candidate, Match, Matcher, to_float
from meanflow_ref.kit.prove.reading import UnreadableError, readings
from meanflow_ref.kit.prove.report import Part, ProofReport
from meanflow_ref.kit.prove.ring import Number, Ring
from meanflow_ref.kit.prove.trace import Question, Traced, trace

# B, d, B d and B/d differ from one another and from 1, and all change between the two traces: an axis taken for
# another, or a constant that happens to be 1/B, cannot pass both.
SHAPES = ((2, 3), (4, 2))


def prove_loss(
    loss: Callable[..., Any],
    call: str = "z, r, t",
    *,
    inputs: str | None = None,
    returns: str = "u",
    shapes: Sequence[Sequence[int]] = SHAPES,
    dtype: torch.dtype = torch.float32,
) -> ProofReport:
    r"""Proof that a loss and its gradient are MeanFlow's, for every differentiable row-wise network.

    The loss is traced to elementary tensor operations around a network that is a mere symbol, by whatever engine it
    differentiates with. The trace is executed over exact numbers and compared, value and parameter gradient, with

    .. math:: \frac1B\sum_b w_b\lVert u_\theta(z,r,t)-\mathrm{sg}(u_{\mathrm{tgt}})\rVert^2,\qquad
              u_{\mathrm{tgt}} = v - (t-r)(v\,\partial_z u_\theta + \partial_t u_\theta),

    its guided and improved forms, any weight power and eps, sum and mean. Source: mf:9, mf:11, mf:18, mf:21, mf:22.

    Random draws inside the loss become symbols. What is proved is the loss as a function of them; of their laws only
    this much is checked, that noise is normal, not shared and not tied to the times.

    Args:
        loss: ``loss(network, x)`` or with more inputs; returns a scalar.
        call: How the loss calls its network, as in :class:`meanflow_ref.convention.Convention`.
        inputs: The loss's inputs after the network, by letters: states ``x``, ``eps``, ``z``, ``v``; times ``r``,
            ``t``; labels ``y``; scales ``omega``, ``kappa``. By default ``"x"``, ``"x, y"`` or ``"x, eps, r, t"``, by
            how many the loss takes.
        returns: The network's output, as in :class:`meanflow_ref.convention.Convention`.
        shapes: Shapes ``(B, *event)`` of the state at which it is proved.
        dtype: Dtype of the trace, float32 or float64; the proof is over the reals in either.

    Returns:
        :class:`ProofReport`: PROVED, REFUTED with what is wrong and a witness, or NOT_EXACT with the reason.

    Raises:
        LossError: If the loss returns no scalar or never calls the network.
        ParameterError: If ``inputs``, ``shapes`` or ``dtype`` cannot be used.

    Precision:
        Over the real numbers, floating-point constants read as the simplest fractions that round to them. Rounding is
        not covered; a cast below float32 is refused.

    """
    letters = read_letters(loss, inputs)
    convention = Convention(call, returns)
    shapes = check_shapes(shapes)
    if dtype not in (torch.float32, torch.float64):
        raise ParameterError(f"dtype={dtype}.", "torch.float32 or torch.float64", "")
    found = [_prove(Question(loss, letters, convention, shape, dtype)) for shape in shapes]
    return _joined(found, shapes)


# ---------------------------------------------------------------- one shape


@dataclass(frozen=True)
class Settled:
    """The proof at one shape."""

    value: Part
    gradient: Part
    right: str = ""
    # Words for the factor that remain possible: (reduction, factor).
    scales: frozenset[tuple[str, Fraction]] = frozenset()
    outcome: Outcome | None = None
    traced: Traced | None = None
    notes: tuple[str, ...] = ()


def _prove(question: Question) -> Settled:
    reason = None
    try:
        traced = trace(question)
        outcome = _execute(question, traced)
    except NotExactError as error:
        reason = error
        try:
            # The gradient may be what cannot be had: a third derivative, for one.
            traced = trace(question, gradient=False)
            outcome = _execute(question, traced)
        except NotExactError:
            part = Part("NOT_EXACT", reason.reason, where=reason.where)
            return Settled(part, part)
    settled = _settle(question, traced, outcome)
    if reason is not None:
        gradient = Part("NOT_EXACT", reason.reason, where=reason.where)
        return Settled(settled.value, gradient, settled.right, settled.scales, outcome, traced, settled.notes)
    return settled


def _execute(question: Question, traced: Traced) -> Outcome:
    ring = Ring()
    return execute(traced, symbols(ring, question), ring)


def _settle(question: Question, traced: Traced, outcome: Outcome) -> Settled:
    found, failures = readings(outcome, question.shape[0])
    if not found:
        return _unreadable(outcome, traced, failures)
    settled = [
        _compare(question, traced, Matcher(outcome, reading, read_guidance(outcome, reading))) for reading in found
    ]
    return max(settled, key=_clarity)


def _clarity(settled: Settled) -> tuple[int, int]:
    """How much a reading of the network's calls explains: sides proved, then sides whose fault has a name."""
    parts = (settled.value, settled.gradient)
    named = sum(part.verdict == "REFUTED" and part.faults != ("UNKNOWN_DIFFERENCE",) for part in parts)
    return sum(part.verdict == "PROVED" for part in parts), named


def _unreadable(outcome: Outcome, traced: Traced, failures: list[UnreadableError]) -> Settled:
    """No network call is at a state on a path: refuted if the reason has a name, unsettled otherwise."""
    named = next((failure for failure in failures if failure.name), None)
    if named is not None:
        part = Part("REFUTED", f"{named.name}: {named.why}", (named.name,))
    else:
        why = failures[0].why if failures else "the network is not called on whole batches"
        part = Part("NOT_EXACT", why)
    return Settled(part, part, outcome=outcome, traced=traced)


def _compare(question: Question, traced: Traced, matcher: Matcher) -> Settled:
    """Value and gradient against the right formulas, then against the wrong ones."""
    reading = matcher.reading
    rights = list(matcher.matches(matcher.right()))
    best = next((m for m in rights if m.whole), None) or next((m for m in rights if m.value is not None), None)
    best = best or matcher.scaled()
    try:
        if best is None:
            value, gradient, best = _name_the_fault(matcher, rights)
        else:
            value, gradient = _decide(matcher, best)
    except NotExactError as error:
        value = gradient = Part("NOT_EXACT", error.reason)
    divisor = undefined_at_equal_times(matcher.outcome, reading)
    if divisor and value.verdict == "PROVED":
        value = Part("NOT_EXACT", f"the loss divides by {divisor}, which is 0 where r = t")
    broken = broken_laws(matcher.outcome, reading, matcher.guided, traced.reseeded)
    if broken:
        name, text = next(iter(broken.items()))
        value = Part("REFUTED", f"{name}: {text}", tuple(broken))
    shown = best or (rights[0] if rights else None)
    return Settled(
        value,
        gradient,
        _words(matcher, shown.candidate) if shown else "",
        _scales(question.shape, shown, matcher),
        matcher.outcome,
        traced,
        tuple(notes(matcher.outcome, reading)),
    )


def _decide(matcher: Matcher, match: Match) -> tuple[Part, Part]:
    """A right formula agrees at the witness, at least in value: decide both sides exactly."""
    value = _side(matcher, match, gradient=False)
    if matcher.outcome.gradient is None:
        return value, Part("NOT_EXACT", "no gradient was traced")
    if match.gradient is not None and match.gradient == match.value:
        return value, _side(matcher, match, gradient=True)
    if match.gradient is not None and match.value is not None and matcher.holds(match, gradient=True):
        times = match.gradient / match.value
        return value, Part("REFUTED", f"GRADIENT_SCALED: {times} times the gradient of the value", ("GRADIENT_SCALED",))
    for other in matcher.matches(matcher.wrong()):
        if other.whole and other.value == match.value and _holds_both(matcher, other):
            return value, _refuted(matcher, match, other.candidate, gradient=True)
    return value, _refuted(matcher, match, None, gradient=True)


def _side(matcher: Matcher, match: Match, gradient: bool) -> Part:
    if matcher.holds(match, gradient):
        return Part(
            "PROVED",
            "equal to the formula's" if not gradient else "equal to the formula's, target and weight held fixed",
        )
    distance = matcher.distance(match, gradient)
    if distance > PRECISE:
        why = f"differs from the formula by {distance:.1g} of its size: a constant that was rounded before it was used?"
        return Part("NOT_EXACT", why)
    return Part("NOT_EXACT", "loss and formula agree at a point but could not be shown equal")


def _holds_both(matcher: Matcher, match: Match) -> bool:
    return matcher.holds(match, gradient=False) and matcher.holds(match, gradient=True)


def _name_the_fault(matcher: Matcher, rights: list[Match]) -> tuple[Part, Part, Match | None]:
    """No right formula has the loss's value: look for the wrong one that has."""
    gradient_only = next((m for m in rights if m.gradient is not None), None)
    partial = None
    for match in matcher.matches(matcher.wrong()):
        if match.whole and _holds_both(matcher, match):
            nearest = _right_beside(match)
            return (
                _refuted(matcher, nearest, match.candidate, gradient=False),
                _refuted(matcher, nearest, match.candidate, gradient=True),
                nearest,
            )
        if partial is None and match.value is not None and matcher.holds(match, gradient=False):
            partial = match
    if partial is not None:
        nearest = _right_beside(partial)
        value = _refuted(matcher, nearest, partial.candidate, gradient=False)
        return value, _refuted(matcher, nearest, None, gradient=True), nearest
    if gradient_only is not None and matcher.holds(gradient_only, gradient=True):
        value = _refuted(matcher, gradient_only, None, gradient=False)
        return value, Part("PROVED", "equal to the formula's, target and weight held fixed"), gradient_only
    guess = Match(next(matcher.right()), Fraction(1), Fraction(1))
    return (
        _refuted(matcher, guess, None, gradient=False),
        _refuted(matcher, guess, None, gradient=True),
        None,
    )


def _right_beside(match: Match) -> Match:
    """The right formula with a wrong one's weight and factor."""
    candidate = match.candidate
    weight = candidate.formula.weight
    sample = Weight(weight.power, abs(weight.eps), weight.mean, form=weight.form)
    formula = Formula(velocity=candidate.right.formula.velocity, tangent=candidate.right.formula.tangent, weight=sample)
    factor = match.value or match.gradient or Fraction(1)
    return Match(Candidate(candidate.right, formula), factor, factor)


def _refuted(matcher: Matcher, nearest: Match, wrong: Candidate | None, gradient: bool) -> Part:
    """A side that differs from the nearest right formula: named if it is exactly a wrong one, with a witness."""
    mine = matcher.outcome.gradient if gradient else matcher.outcome.value
    if mine is None:
        return Part("NOT_EXACT", "no gradient was traced")
    factor = nearest.value or nearest.gradient or Fraction(1)
    nearest = Match(nearest.candidate, factor, factor)
    distance = matcher.distance(nearest, gradient)
    if distance <= ROUNDING:
        # The other side is what is wrong, or constants were rounded.
        return _side(matcher, nearest, gradient)
    seen, theirs = to_float(mine), float(matcher.precise(nearest.candidate, gradient)) * float(factor)
    witness = f"at one point the {'gradient' if gradient else 'loss'} is {seen:.10g}, the formula's {theirs:.10g}"
    if wrong is None and not _is_differentiated(matcher.outcome):
        why = (
            "FINITE_DIFFERENCE: the network is never differentiated in (z, t); its values elsewhere stand in for du/dt"
        )
        return Part("REFUTED", why, ("FINITE_DIFFERENCE",), witness)
    if wrong is None:
        return Part("REFUTED", "an unknown difference from the formula", ("UNKNOWN_DIFFERENCE",), witness)
    text = "; ".join(f"{name}: {text}" for name, text in wrong.faults)
    return Part("REFUTED", f"{text} (the loss is exactly that)", tuple(name for name, _ in wrong.faults), witness)


def _is_differentiated(outcome: Outcome) -> bool:
    """Whether a derivative of the network enters the loss, or the loss calls it at one point alone."""
    ring = outcome.ring
    rows = {tuple(n.key() for n in site.z) for call in outcome.calls for site in call}
    elsewhere = len(rows) > len(outcome.calls[0])
    return not elsewhere or any(
        "d_" in ring.atoms[i].name for i in outcome.value.atoms() if ring.atoms[i].kind == "network"
    )


# ---------------------------------------------------------------- words


def _words(matcher: Matcher, candidate: Candidate) -> str:
    weight = candidate.formula.weight
    parts = [candidate.right.name, f"path {matcher.reading.path}"]
    size = "mean" if weight.mean else "sum"
    if weight.form == "log":
        parts.append(f"log(S + {weight.eps}) of the {size} S over the event")
    elif weight.form == "root":
        parts.append(f"(S + {weight.eps})^({-weight.power}) of the {size} S over the event")
    elif weight.power:
        parts.append(f"weight power {weight.power}, eps {weight.eps}, of the {size} over the event")
    else:
        parts.append("weight power 0")
    if candidate.right.guided and matcher.guided is not None:
        g = matcher.guided
        rows = "all rows" if g.active[0].as_constant() == 1 else f"rows with {truth_text(g.active[0])}"
        parts.append(f"omega {g.omega}, kappa {g.kappa}, null label {g.null_label[0]}, guided: {rows}")
    return "; ".join(parts)


def _scales(shape: tuple[int, ...], match: Match | None, matcher: Matcher) -> frozenset[tuple[str, Fraction]]:
    """Ways to read the factor: reductions over event and batch, times a constant."""
    if match is None:
        return frozenset()
    factor = match.value or match.gradient or Fraction(1)
    weight = match.candidate.formula.weight
    batch, size = shape[0], int(np.prod(shape[1:]))
    event = {"sum over the event": Fraction(1)}
    if not weight.mean:
        event["mean over the event"] = Fraction(1, size)
    else:
        event = {"mean over the event": Fraction(1)}
    rows = {"mean over the batch": Fraction(1), "sum over the batch": Fraction(batch)}
    return frozenset((f"{e}, {b}", factor / (x * y)) for e, x in event.items() for b, y in rows.items())


def _joined(found: list[Settled], shapes: tuple[tuple[int, ...], ...]) -> ProofReport:
    """One report from the proofs at all shapes, which must be of one formula."""
    first = found[0]
    value, gradient = (_worst([getattr(one, side) for one in found]) for side in ("value", "gradient"))
    common = frozenset.intersection(*(one.scales for one in found))
    formula = first.right
    if common and formula:
        reduction, factor = min(
            common, key=lambda pair: (pair[1] != 1, pair[1].denominator, pair[1].numerator, pair[0])
        )
        formula += f"; {reduction}" + (f"; times {factor}" if factor != 1 else "")
    elif formula and value.verdict == gradient.verdict == "PROVED":
        value = gradient = Part(
            "REFUTED",
            "REDUCTION: the factor depends on the shape in a way that is neither sum nor mean",
            ("REDUCTION",),
        )
    if value.verdict == gradient.verdict == "PROVED" and len({one.right for one in found}) > 1:
        value = gradient = Part(
            "NOT_EXACT", f"different formulas at different shapes: {'; '.join(one.right for one in found)}"
        )
    return ProofReport(value, gradient, formula, shapes, *_circumstances(found))


def _worst(parts: list[Part]) -> Part:
    order = ("REFUTED", "NOT_EXACT", "PROVED")
    return min(parts, key=lambda part: order.index(part.verdict))


def _circumstances(found: list[Settled]) -> tuple[Any, ...]:
    """Conditions, hypotheses, constants, notes and network calls, from the first shape that has them."""
    one = next((settled for settled in found if settled.outcome is not None), None)
    if one is None or one.outcome is None or one.traced is None:
        return ()
    outcome, traced = one.outcome, one.traced
    conditions = tuple(
        f"{number} = 0" for number in outcome.ring.conditions.values() if number.support() and not _is_positive(number)
    )
    hypotheses = list(dict.fromkeys(traced.hypotheses))
    if {"r", "t"} & outcome.inputs.keys():
        hypotheses.append("0 <= r <= t <= 1 for the given times")
    prefix = "meanflow_ref_prove."
    calls = tuple((k.removeprefix(prefix), n) for k, n in outcome.operations.items() if k.startswith(prefix))
    return conditions, tuple(hypotheses), tuple(outcome.constants), one.notes, calls


def _is_positive(number: Number) -> bool:
    """Whether an expression is an error plus a positive constant, or a power of such: what weights are made of."""
    atoms = number.ring.atoms
    if len(number.terms) == 1:
        return all(atoms[i].kind == "base" and _is_positive(atoms[i].arguments[0]) for i in number.atoms())
    return number.terms.get((), 0) > 0 and "network" in number.kinds()
