"""Which line of somebody's code is running: theirs, not torch's and not ours."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

# The whole library: of a loss that is called from it, the line of the call is theirs.
_OURS = str(Path(__file__).parents[2]) + os.sep
# Losses that the kit ships to check itself are somebody's code as well.
_THEIRS = tuple(str(Path(__file__).parents[1] / name) + os.sep for name in ("mutants",))


@cache
def _kind(file: str) -> str:
    if file.startswith(_OURS) and not file.startswith(_THEIRS):
        return "ours"
    if "torch" in Path(file).parts[-6:] or f"{os.sep}torch{os.sep}" in file or file.startswith("<"):
        return "torch"
    return "theirs"


def user_lines() -> str:
    """``file:line`` of the derivative call that is running around the probe, or of the call of the network itself."""
    frame = sys._getframe(2)
    innermost, inside_derivative = "", False
    while frame is not None:
        file = frame.f_code.co_filename
        kind = _kind(file)
        if kind == "torch" and frame.f_code.co_name in {"jvp", "jvp_wrapper", "_jvp_with_argnums", "vjp", "linearize"}:
            inside_derivative = True
        elif kind == "theirs":
            place = f"{_short(file)}:{frame.f_lineno}"
            if inside_derivative:
                return place
            innermost = innermost or place
        elif kind == "ours" and frame.f_code.co_name == "call_loss":
            break
        frame = frame.f_back  # type: ignore[assignment]
    return innermost


@cache
def _short(file: str) -> str:
    with suppress(ValueError):
        return str(Path(file).relative_to(Path.cwd()))
    return file
