"""What a page of the catalogue says."""

from __future__ import annotations

from dataclasses import dataclass

from meanflow_ref.kit.diagnosis import Severity


@dataclass(frozen=True)
class Page:
    """One diagnosis, explained.

    Attributes:
        name: Fixed name, in capitals.
        part: The part of the code that it is about.
        title: One phrase.
        symptom: What somebody sees.
        wrong: The wrong formula or line.
        right: The right one.
        cause: How it comes about.
        remedy: What to write instead, in code.
        effect: How far off the trained u ends, measured on a toy field, with the number.
        severity: ``"wrong"`` or ``"note"``.

    """

    name: str
    part: str
    title: str
    symptom: str
    wrong: str
    right: str
    cause: str
    remedy: str
    effect: str
    severity: Severity = "wrong"
