"""The shipped losses, traced and proved: what the theorems say of formulas, said of the code that people run.

Every objective of this library on every exact derivative engine is PROVED by :func:`meanflow_ref.prove_loss`, value and
gradient; its finite-difference engine, which is no derivative, is REFUTED. Needs torch, unlike the theorems.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from .language import ProofError

GIVEN = "x, eps, r, t"
GUIDED = "x, eps, r, t, y, omega, kappa"
ONE_SHAPE = ((2, 3),)


@dataclass(frozen=True)
class Shipped:
    """A loss as this library ships it, and what is to be proved of it.

    Args:
        id: Its name in tables.
        title: What is special about it.
        loss: ``loss(network, *inputs)``.
        options: Of :func:`meanflow_ref.prove_loss`.
        verdict: What must come out.
        says: What the proved formula, or the name of the fault, must contain.

    """

    id: str
    title: str
    loss: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    verdict: str = "PROVED"
    says: str = "MeanFlow"


@dataclass(frozen=True)
class TracedResult:
    """The verdict on one loss, and the whole report as text."""

    shipped: Shipped
    verdict: str
    formula: str
    report: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether that came out which must."""
        return self.verdict == self.shipped.verdict and self.shipped.says in self.report


def _loss(**options: Any) -> Callable[..., Any]:
    """``meanflow_loss`` with options, returning the scalar."""
    from meanflow_ref.objectives.meanflow import meanflow_loss

    return lambda net, *inputs: meanflow_loss(net, *inputs, **options).loss


def _guided(backend: str, interval: tuple[float, float] = (0.0, 1.0)) -> Callable[..., Any]:
    from meanflow_ref.objectives.guidance import Guidance
    from meanflow_ref.objectives.meanflow import meanflow_loss

    def loss(net: Any, x: Any, eps: Any, r: Any, t: Any, y: Any, omega: Any, kappa: Any) -> Any:
        guidance = Guidance(omega, kappa, null_label=9, interval=interval)
        return meanflow_loss(net, x, eps, r, t, label=y, guidance=guidance, jvp=backend, weight_power=0.0).loss

    return loss


def _drawing(law: Any) -> Callable[..., Any]:
    """The loss of data alone: times by a law and noise are drawn inside."""
    import torch

    from meanflow_ref.objectives.meanflow import meanflow_loss

    def loss(net: Any, x: Any) -> Any:
        r, t = law.sample(x.shape[0], torch.default_generator)
        return meanflow_loss(net, x, torch.randn_like(x), r, t).loss

    return loss


def _engines() -> list[Shipped]:
    from meanflow_ref.jvp import BACKENDS

    rows = []
    for backend in BACKENDS:
        for two_pass in (False, True):
            passes = "two passes" if two_pass else "one pass"
            id_ = f"{backend}-{'two-pass' if two_pass else 'one-pass'}".replace("_", "-")
            loss = _loss(jvp=backend, two_pass=two_pass)
            options = {"inputs": GIVEN}
            if backend == "finite_difference":
                title = f"du/dt by finite differences, {passes}: no derivative"
                rows.append(Shipped(id_, title, loss, options, "REFUTED", "FINITE_DIFFERENCE"))
            else:
                rows.append(Shipped(id_, f"du/dt by {backend}, {passes}", loss, options))
    return rows


def _weights() -> list[Shipped]:
    return [
        Shipped(
            f"weight-{text.replace('/', '-')}-{norm}",
            f"weight power {text} of the {norm} over the event",
            _loss(weight_power=power, norm=norm),
            {"inputs": GIVEN, "shapes": ONE_SHAPE},
            says=f"weight power {text}",
        )
        for power, text in ((0.0, "0"), (0.5, "1/2"), (0.75, "3/4"), (1.0, "1"))
        for norm in ("sum", "mean")
    ]


def _guidance() -> list[Shipped]:
    from meanflow_ref.jvp import BACKENDS

    options = {"call": "z, r, t, y", "inputs": GUIDED, "shapes": ONE_SHAPE}
    return [
        *(
            Shipped(f"guided-{b}".replace("_", "-"), f"guidance, symbolic omega and kappa, {b}", _guided(b), options)
            for b in BACKENDS
            if b != "finite_difference"
        ),
        Shipped("guided-interval", "guidance for t in [1/4, 3/4] alone", _guided("func", (0.25, 0.75)), options),
    ]


def _conventions() -> list[Shipped]:
    from meanflow_ref.convention import Convention

    rows = []
    for name, convention in (
        ("z-t-h", Convention("z, t, h")),
        ("z-th", Convention("z, (t, h)")),
        ("keywords", Convention("x=z, end=t, start=r")),
        ("data-at-one", Convention("z, t, r", time="data_at_one")),
    ):
        options = {"call": convention.arguments, "inputs": GIVEN, "shapes": ONE_SHAPE}
        title = f"a network called as ({convention.arguments}), {convention.time}"
        rows.append(Shipped(f"call-{name}", title, _loss(convention=convention), options))
    return rows


def _paths_and_times() -> list[Shipped]:
    from meanflow_ref.objectives.meanflow import meanflow_loss_at
    from meanflow_ref.objectives.times import LogitNormalPair, UniformPair
    from meanflow_ref.paths import TRIGONOMETRIC, VARIANCE_PRESERVING

    given, drawn = {"inputs": GIVEN, "shapes": ONE_SHAPE}, {"shapes": ONE_SHAPE}
    return [
        Shipped("at", "a given state and velocity", lambda net, *a: meanflow_loss_at(net, *a).loss,
                {"inputs": "z, v, r, t"}, says="given z and v"),
        Shipped("trigonometric", "the trigonometric path", _loss(path=TRIGONOMETRIC), given),
        Shipped("variance-preserving", "the variance-preserving path", _loss(path=VARIANCE_PRESERVING), given),
        Shipped("uniform-times", "noise and uniform times drawn inside", _drawing(UniformPair()), drawn),
        Shipped("logit-normal-times", "noise and logit-normal times drawn inside", _drawing(LogitNormalPair()), drawn),
        Shipped("bernoulli-times", "r = t by a coin for each row, drawn inside",
                _drawing(UniformPair(equal=0.5, share="bernoulli")), drawn),
    ]  # fmt: skip


@cache
def shipped(names: tuple[str, ...] = ()) -> tuple[Shipped, ...]:
    """The shipped losses in order, or those of the given ids.

    Raises:
        ProofError: for an id that there is not.
    """
    rows = [*_engines(), *_weights(), *_guidance(), *_conventions(), *_paths_and_times()]
    unknown = sorted(set(names) - {row.id for row in rows})
    if unknown:
        raise ProofError(f"no shipped loss called {unknown[0]!r}", ", ".join(row.id for row in rows), "")
    return tuple(row for row in rows if not names or row.id in names)


def prove(row: Shipped) -> TracedResult:
    """Trace and decide one loss."""
    from meanflow_ref.kit.prove.prove import prove_loss

    start = time.perf_counter()
    report = prove_loss(row.loss, **row.options)
    return TracedResult(row, report.verdict, report.formula, str(report), time.perf_counter() - start)


def run(
    progress: Callable[[TracedResult, int, int], None] | None = None, names: Sequence[str] = ()
) -> list[TracedResult]:
    """Prove the shipped losses; ``progress`` as in :func:`proofs.run_all`."""
    rows, results = shipped(tuple(names)), []
    for number, row in enumerate(rows, 1):
        results.append(prove(row))
        if progress:
            progress(results[-1], number, len(rows))
    return results
