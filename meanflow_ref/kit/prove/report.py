"""What is said about a loss."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from meanflow_ref.kit.prove.execute import Constant

Verdict = Literal["PROVED", "REFUTED", "NOT_EXACT"]


@dataclass(frozen=True)
class Part:
    """One side of the loss, its value or its gradient.

    Args:
        verdict: PROVED: equal to the formula. REFUTED: not equal, and ``witness`` shows it. NOT_EXACT: could not be
            settled.
        why: The reason, for a person.
        faults: Names of what is wrong; ``UNKNOWN_DIFFERENCE`` if no wrong formula fits either.
        witness: The loss's and the formula's number at one point.
        where: The user's ``file:line``, if one line is to blame.

    """

    verdict: Verdict
    why: str
    faults: tuple[str, ...] = ()
    witness: str = ""
    where: str = ""


@dataclass(frozen=True)
class ProofReport:
    """The proof of a loss, or what stands in its way.

    Args:
        value: The loss's value.
        gradient: Its gradient in the network's parameters.
        formula: What the loss was proved to be, or the right formula nearest to it; empty if there is none.
        shapes: The shapes of the state at which it was traced.
        conditions: Expressions by which the loss divides or whose roots it takes: not covered where one is 0.
        hypotheses: What else was assumed.
        constants: Numbers that the trace holds fixed, and where.
        notes: What was found besides.
        network_calls: Evaluations of the network in the traced loss and gradient, by kind: ``u`` (value), ``du``
            (forward derivative), ``vu`` (backward derivative), ``d2`` and ``d2v`` (second derivatives).

    """

    value: Part
    gradient: Part
    formula: str
    shapes: tuple[tuple[int, ...], ...]
    conditions: tuple[str, ...] = ()
    hypotheses: tuple[str, ...] = ()
    constants: tuple[Constant, ...] = ()
    notes: tuple[str, ...] = ()
    network_calls: tuple[tuple[str, int], ...] = ()

    @property
    def verdict(self) -> Verdict:
        """REFUTED if either side is, PROVED if both are, NOT_EXACT otherwise."""
        verdicts = {self.value.verdict, self.gradient.verdict}
        if "REFUTED" in verdicts:
            return "REFUTED"
        return "PROVED" if verdicts == {"PROVED"} else "NOT_EXACT"

    @property
    def ok(self) -> bool:
        """Whether value and gradient are proved."""
        return self.verdict == "PROVED"

    @property
    def faults(self) -> tuple[str, ...]:
        """Names of all that is wrong, each once."""
        return tuple(dict.fromkeys((*self.value.faults, *self.gradient.faults)))

    def to_json(self) -> str:
        """The report for machines."""
        document = {"verdict": self.verdict, "faults": self.faults, **asdict(self)}
        return json.dumps(document, indent=1, default=str) + "\n"

    def __str__(self) -> str:
        nearest = "nearest: " if self.formula and not self.ok else ""
        lines = [f"{self.verdict}  {nearest}{self.formula}".rstrip()]
        for name, part in (("value", self.value), ("gradient", self.gradient)):
            lines.append(f"  {name:9} {part.verdict}: {part.why}" + (f" [{part.where}]" if part.where else ""))
            lines += [f"            {part.witness}"] if part.witness else []
        lines.append(f"  traced at {', '.join(map(str, self.shapes))}")
        if self.ok:
            lines.append(
                "  holds for every differentiable, deterministic, row-wise network at these shapes, over the reals"
            )
        calls = ", ".join(f"{count} {kind}" for kind, count in self.network_calls)
        lines += [f"  network   {calls}"] if calls else []
        lines += [f"  unless    {condition}" for condition in self.conditions]
        lines += [f"  assuming  {hypothesis}" for hypothesis in self.hypotheses]
        lines += [
            f"  constant  {constant.text}" + (f" [{constant.where}]" if constant.where else "")
            for constant in self.constants
        ]
        lines += [f"  note      {note}" for note in self.notes]
        return "\n".join(lines)
