"""The little language that says how a function is called: ``"z, (t, h)"``, ``"x=z, start=r, end=t"``."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeAlias

from meanflow_ref.errors import NetworkError, ParameterError

# A letter, or a tuple of tokens.
Token: TypeAlias = "str | tuple[Token, ...]"

LETTERS = ("z", "r", "t", "h", "-h", "y")
# Specifications seen in public code, to draw the nearest from.
COMMON_CALLS = (
    *("z, r, t", "z, t, r", "z, t, h", "z, t, -h", "z, (t, h)", "z, (t, r)", "z, h", "x=z, start=r, end=t"),
    *("z, r, t, y", "z, t, r, y", "z, t, h, y", "z, (t, h), y", "z=z, r=r, t=t", "z, t, h, y=y"),
)
COMMON_RETURNS = ("u", "u, v", "v, u", "u, _")


@dataclass(frozen=True)
class CallSpec:
    """A call's positional and keyword arguments, in the paper's letters."""

    positional: tuple[Token, ...]
    keyword: tuple[tuple[str, Token], ...]

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters used, in order."""
        return tuple(_letters((*self.positional, *(token for _, token in self.keyword))))

    def build(self, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments made of ``values``."""
        return (
            tuple(_fill(token, values) for token in self.positional),
            {name: _fill(token, values) for name, token in self.keyword},
        )

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Values by letter, from a call made in this way: the inverse of :meth:`build`.

        Raises:
            NetworkError: If the call was made in another way.

        """
        names = [name for name, _ in self.keyword]
        if len(args) != len(self.positional) or sorted(kwargs) != sorted(names):
            raise NetworkError(
                f"a call with {len(args)} positional arguments and keywords {sorted(kwargs)}.",
                f"{len(self.positional)} positional arguments and keywords {sorted(names)}",
            )
        values: dict[str, Any] = {}
        for token, value in zip(self.positional, args, strict=True):
            _unpack(token, value, values)
        for name, token in self.keyword:
            _unpack(token, kwargs[name], values)
        return values


def _fill(token: Token, values: Mapping[str, Any]) -> Any:
    return values[token] if isinstance(token, str) else tuple(_fill(item, values) for item in token)


def _unpack(token: Token, value: Any, values: dict[str, Any]) -> None:
    if isinstance(token, str):
        values[token] = value
        return
    for item, part in zip(token, value, strict=True):
        _unpack(item, part, values)


def _letters(tokens: Iterable[Token]) -> Iterator[str]:
    for token in tokens:
        if isinstance(token, str):
            yield token
        else:
            yield from _letters(token)


def parse_call(text: str) -> CallSpec:
    """Read a call such as ``"z, (t, h), y=y"``.

    Raises:
        ParameterError: If it cannot be read, repeats a letter, lacks z, or does not determine the interval.

    """
    node = _parse(f"call({text})", "arguments", text, COMMON_CALLS)
    one_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)  # "z)(z, r, t" reads as two
    if not isinstance(node, ast.Call) or not one_call or any(keyword.arg is None for keyword in node.keywords):
        raise unreadable("arguments", text, "it is not a list of arguments", COMMON_CALLS)
    spec = CallSpec(
        tuple(_token(argument, text) for argument in node.args),
        tuple((str(keyword.arg), _token(keyword.value, text)) for keyword in node.keywords),
    )
    keywords = [name for name, _ in spec.keyword]
    if len(set(keywords)) < len(keywords):
        raise unreadable("arguments", text, "a keyword stands twice", COMMON_CALLS)
    letters = [letter.lstrip("-") for letter in spec.letters]
    repeated = next((letter for letter in letters if letters.count(letter) > 1), None)
    if repeated:
        raise unreadable("arguments", text, f"`{repeated}` stands twice", COMMON_CALLS)
    if "z" not in letters:
        raise unreadable("arguments", text, "the state `z` is missing", COMMON_CALLS)
    if "h" not in letters and not {"r", "t"} <= set(letters):
        raise unreadable("arguments", text, "an average velocity needs both r and t, or h", COMMON_CALLS)
    return spec


def parse_returns(text: str) -> tuple[tuple[str, ...], bool]:
    """Read an output such as ``"u, v"``: its names, and whether it is a tuple.

    Raises:
        ParameterError: If it cannot be read, or u does not stand in it exactly once.

    """
    node = _parse(f"({text})", "returns", text, COMMON_RETURNS)
    nodes = node.elts if isinstance(node, ast.Tuple) else [node]
    names = tuple(item.id if isinstance(item, ast.Name) else "?" for item in nodes)
    if not set(names) <= {"u", "v", "_"}:
        raise unreadable("returns", text, "only u, v and _ (anything else) are known", COMMON_RETURNS)
    if names.count("u") != 1:
        raise unreadable("returns", text, f"`u` stands {names.count('u')} times, not once", COMMON_RETURNS)
    return names, isinstance(node, ast.Tuple)


def unreadable(name: str, seen: object, why: str, known: Iterable[str]) -> ParameterError:
    """Return the error for a specification that cannot be read: what was seen, why, and the nearest known one."""
    near = get_close_matches(str(seen), list(known), n=1, cutoff=0.3)
    return ParameterError(
        f"Convention({name}={seen!r}): {why}.",
        f"for example {', '.join(map(repr, list(known)[:6]))}",
        f'{name}="{near[0]}"' if near else "",
    )


def _parse(source: str, name: str, text: object, known: Iterable[str]) -> ast.expr:
    if not isinstance(text, str):
        raise unreadable(name, text, f"it is {type(text).__name__}, not a string", known)
    try:
        return ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise unreadable(name, text, f"it does not read as arguments ({error.args[0]})", known) from None


def _token(node: ast.expr, text: str) -> Token:
    if isinstance(node, ast.Tuple):
        return tuple(_token(item, text) for item in node.elts)
    minus = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    name = node.operand if isinstance(node, ast.UnaryOp) and minus else node
    letter = ("-" if minus else "") + (name.id if isinstance(name, ast.Name) else "?")
    if letter not in LETTERS:
        raise unreadable("arguments", text, f"`{ast.unparse(node)}` is none of {', '.join(LETTERS)}", COMMON_CALLS)
    return letter
