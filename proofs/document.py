"""The readable derivations, written from the steps as they were checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sympy as sp

from meanflow_ref.sources import equation

from .theorem import Step, TheoremResult

PATH = Path(__file__).with_name("DERIVATIONS.md")

# A longer equation is shown by its shorthand alone (`Step.reads`).
_LONGEST = 700

_PREFACE = """# Derivations

Written by `python -m proofs --write` from the run that checked them, with sympy {version}. Do not edit.

Every equation below was handed to the engine as two expressions, built from the functions of `meanflow_ref/formulas.py`
themselves. **Proved** means that the numerator of their difference expands to 0 (a rational identity in its atoms), or
does so modulo `root^q = base` and `sin^2 + cos^2 = 1`; where that is not so it says which heuristic was used.
*Restates* marks an equation whose sides are equal as soon as sympy has written them down: a rule of differentiation or
a cancellation is then the whole content. Under *what fails* stand false neighbours of the theorem, each refuted at a
point that satisfies the hypotheses, with concrete polynomials for the undefined functions; values without a sign of
approximation are exact.

What sympy contributes and does not prove: the rules of differentiation (product, chain, and that of an integral in its
limits), the symmetry of second derivatives, and that a substitution may be made under an integral. Limits, bounds and
uniqueness are arguments in words, and are marked as such. Nothing here is about floating-point numbers.

| theorem | steps | of which restate | refuted |
|---|---|---|---|
"""


def document(results: Sequence[TheoremResult]) -> str:
    """Markdown of all derivations; depends on nothing but the theorems and sympy's version."""
    rows = [
        f"| [{r.title}](#{r.id}) | {r.n_steps} | {r.n_restates} | {r.n_controls} |{'' if r.ok else ' **FAILS**'}"
        for r in results
    ]
    total = [sum(column) for column in zip(*((r.n_steps, r.n_restates, r.n_controls) for r in results), strict=True)]
    rows.append(f"| **{len(results)} theorems** | {total[0]} | {total[1]} | {total[2]} |")
    head = _PREFACE.format(version=sp.__version__) + "\n".join(rows)
    return "\n\n".join([head, *(_theorem(r) for r in results)]) + "\n"


def _theorem(result: TheoremResult) -> str:
    spec = result.spec
    parts = [f'<a id="{spec.id}"></a>\n\n## {spec.title}', f"`{spec.id}`, in `proofs/{spec.family}.py`"]
    parts += [_display(spec.statement), "**Hypotheses**\n\n" + "\n".join(f"- {line}" for line in _hypotheses(result))]
    sources = [f"`{id}` ({equation(id).label}; {equation(id).paper.where})" for id in spec.sources]
    parts.append("**Sources** " + "; ".join(sources))
    parts.append("**Derivation**")
    parts += [_step(number, step) for number, step in enumerate(result.steps, 1)]
    parts.append("**What fails**")
    parts.append("\n".join(_control(step) for step in result.controls))
    parts += [f"> {note}" for note in spec.notes]
    parts += [f"**FAILS** {failure}" for failure in result.failures]
    return _inline("\n\n".join(parts))


def _hypotheses(result: TheoremResult) -> list[str]:
    """Stated hypotheses, then those the engine enforced, in symbols."""
    c = result.conditions
    formal = [f"${_latex(e)} \\neq 0$" for e in dict.fromkeys(c.nonzero)]
    formal += [f"${_latex(e)} > 0$" for e in dict.fromkeys(c.positive)]
    formal += [
        f"${sp.latex(sp.Symbol(text.split()[0]))} {_RELATION.get(text.split(' ', 1)[1], text.split(' ', 1)[1])}$"
        for texts in result.assumptions
        for text in texts.split(" and ")
    ]
    lines = [*result.spec.hypotheses]
    if formal:
        lines.append("enforced: " + ", ".join(formal))
    if c.where:
        lines.append(
            "counter-examples are looked for in " + ", ".join(f"${_latex(e)}$" for e in dict.fromkeys(c.where))
        )
    return lines


_RELATION = {"> 0": "> 0", "!= 0": r"\neq 0", "an integer": r"\in \mathbb Z", ">= 0": r"\geq 0", "< 0": "< 0"}


def _step(number: int, step: Step) -> str:
    d = step.decision
    verdict = "*restates*" if d.restates else "**proved**"
    verdict = verdict if d.verdict == "PROVED" else f"**{d.verdict}**"
    method = f" ({d.method})" if d.method not in ("", "NF") else ""
    checked = f"{_latex(step.lhs)}\n= {_latex(step.rhs)}"
    long = len(checked) > _LONGEST
    shown = [step.reads] if step.reads else []
    shown += [] if long else [checked]
    after = f"\n\n(In full, as checked: {len(checked)} characters.)" if long else ""
    displays = "\n\n".join(_display(latex) for latex in shown)
    return f"**{number}.** {step.text}: {verdict}{method}.\n\n{displays}{after}"


def _control(step: Step) -> str:
    witness = step.decision.witness
    if witness is None:
        return f"- {step.text}: **{step.decision.verdict}**"
    left, right = (_number(side) for side in (witness.left, witness.right))
    point = ", ".join(f"${sp.latex(sp.Symbol(name))}={value}$" for name, value in witness.point.items())
    return f"- {step.text}: refuted, left ${left}$, right ${right}$" + (f", at {point}" if len(point) < 200 else "")


def _number(text: str) -> str:
    if "." in text:
        return rf"\approx {float(text):.6g}"
    return text if len(text) <= 16 else rf"\approx {float(sp.Rational(text)):.6g}"


def _latex(e: Any) -> str:
    """LaTeX by sympy, with the differences of times the way round that the paper writes them."""
    return re.sub(r"(?:^|(?<=[({]))- ([rs]) \+ ([st])(?=\\right\)|\}|$)", r"\2 - \1", str(sp.latex(e)))


def _display(latex: str) -> str:
    return f"```math\n{latex}\n```"


def _inline(text: str) -> str:
    """Inline mathematics in the form that GitHub renders even beside underscores and asterisks."""
    return re.sub(r"\$([^$\n]+)\$", r"$`\1`$", text)
