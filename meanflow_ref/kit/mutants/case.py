"""One piece of code that a check must name, or leave alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """A target and what the check must say of it.

    Attributes:
        title: What it does.
        target: The code.
        name: The diagnosis that the check must put first, or None for code that it must not flag.
        options: How to call the check.
        note: Whether a note (a legal choice worth knowing) of that name is wanted instead of a failure.

    """

    title: str
    target: Callable[..., Any]
    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    note: bool = False
