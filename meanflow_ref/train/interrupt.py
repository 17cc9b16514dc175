"""Ctrl-C and SIGTERM as a wish and not as an accident: the step in hand is finished, then the run ends as it should."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
    """Context that yields a function: the number of the signal that asked to stop, or 0.

    The first SIGINT or SIGTERM only sets that number; after it the signal does again what it did before.
    """
    asked = 0
    before: dict[int, object] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    # Python delivers signals to the main thread alone, and lets no other set a handler.
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    for wish in (signal.SIGINT, signal.SIGTERM):
        before[wish] = signal.signal(wish, ask)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
