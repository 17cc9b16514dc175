"""What a loss is handed: its inputs by letters, the shapes of the proof, and a symbol for every entry."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from meanflow_ref.errors import ParameterError
from meanflow_ref.kit.prove.ring import Ring
from meanflow_ref.kit.prove.table import Array
from meanflow_ref.kit.prove.trace import LETTERS, SAMPLES, SCALES, STATES, Question

UNIT = (Fraction(0), Fraction(1))


def read_letters(loss: Callable[..., Any], inputs: str | None) -> tuple[str, ...]:
    """The loss's inputs after the network, as given or by their number."""
    if inputs is not None:
        letters = tuple(part.strip() for part in inputs.split(",") if part.strip())
        unknown = [letter for letter in letters if letter not in LETTERS]
        if unknown or len(set(letters)) < len(letters) or not set(letters) & set(STATES):
            raise ParameterError(
                f"inputs={inputs!r}.",
                f"each at most once, a state among them: {', '.join(LETTERS)}",
                'inputs="x, eps, r, t"',
            )
        if "v" in letters and "z" not in letters:
            raise ParameterError(
                f"inputs={inputs!r}: a velocity without its state.",
                "v together with z, or neither (the path's velocity is then derived)",
                'inputs="z, v, r, t" or inputs="x, eps, r, t"',
            )
        return letters
    count = _required(loss)
    guesses: dict[int, tuple[str, ...]] = {1: ("x",), 2: ("x", "y"), 4: ("x", "eps", "r", "t")}
    if count not in guesses:
        raise ParameterError(
            f"the loss takes {count} arguments after the network.",
            "loss(network, x), loss(network, x, y) or loss(network, x, eps, r, t), or the letters of its arguments",
            'for example inputs="z, v, r, t"',
        )
    return guesses[count]


def _required(loss: Callable[..., Any]) -> int:
    """How many positional arguments without a default a loss takes after its network."""
    if not callable(loss):
        raise ParameterError(f"the loss is {type(loss).__name__}.", "a function", "")
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(loss).parameters.values()
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters) - 1


def check_shapes(shapes: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Shapes ``(B, *event)``, few and small."""
    checked = tuple(tuple(int(n) for n in shape) for shape in shapes)
    if not checked or any(len(shape) < 2 or min(shape) < 1 for shape in checked):
        raise ParameterError(f"shapes={shapes!r}.", "at least one shape (B, *event)", "shapes=[(2, 3)]")
    if any(np.prod(shape) > 64 for shape in checked):
        raise ParameterError(
            f"shapes={shapes!r}.", "at most 64 entries each: a proof is about formulas", "(2, 3, 2, 2)"
        )
    return checked


def symbols(ring: Ring, question: Question) -> dict[str, Array]:
    """An array of symbols for every input."""
    batch = question.shape[0]
    arrays: dict[str, Array] = {}
    for letter in question.letters:
        shape = question.shape if letter in STATES else () if letter in SCALES else (batch,)
        array = np.empty(shape, dtype=object)
        for index in np.ndindex(*shape):
            name = letter + (f"[{','.join(map(str, index))}]" if index else "")
            array[index] = ring.symbol(name, "input", **_properties(ring, letter, index))
        arrays[letter] = array
    return arrays


def _properties(ring: Ring, letter: str, index: tuple[int, ...]) -> dict[str, Any]:
    if letter in SCALES:
        return {"law": letter, "value": SAMPLES[letter]}
    if letter in ("r", "t"):
        # r <= t at the witness as well.
        half = ring.random_value(bounds=UNIT) / 2
        return {"law": letter, "bounds": UNIT, "value": half if letter == "r" else half + Fraction(1, 2)}
    if letter == "y":
        return {"law": "integer", "value": Fraction(1 + index[0])}
    return {"law": letter}
