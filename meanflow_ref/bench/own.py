"""A scenario from somebody's own network, named on a command line."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from meanflow_ref.bench.scenarios import Scenario
from meanflow_ref.errors import ParameterError
from meanflow_ref.kit.target import load_target


def own_scenario(target: str, shape: str, batch: int) -> Scenario:
    """Scenario of the network at ``target``, ``pkg.mod:net``: a module, or a function that returns one.

    Args:
        target: Module and attribute, or ``file.py:net``; see :func:`meanflow_ref.kit.target.load_target`.
        shape: Shape of one sample, ``4,32,32`` or ``4x32x32``.
        batch: Samples of a step.

    Raises:
        ParameterError: If one of these cannot be read.

    """
    build = _load(target)
    try:
        event = tuple(int(n) for n in shape.replace("x", ",").split(","))
    except ValueError:
        event = ()
    if not event or min(event) < 1:
        raise ParameterError(f"--shape {shape!r}.", "the shape of one sample", "--shape 4,32,32, or --shape 64")
    if batch < 1:
        raise ParameterError(f"--batch {batch}.", "at least one sample", "--batch 8")
    about = f"{target}, batch {batch} of {'x'.join(map(str, event))}"
    # The whole address, so that a network called "dit" is not taken for this library's.
    return Scenario(target, build, event, batch, about)


def _load(target: str) -> Callable[[], nn.Module]:
    found = load_target(target)
    if isinstance(found, nn.Module):
        return lambda: found
    if callable(found):
        return found  # type: ignore[no-any-return]
    raise ParameterError(f"{target!r} is {type(found).__name__}.", "an nn.Module, or a function that returns one", "")
