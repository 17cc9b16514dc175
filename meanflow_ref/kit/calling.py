"""Calling somebody's code: seeded, blamed on the right line, and with errors that say what to do."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

import meanflow_ref
from meanflow_ref.errors import MeanFlowError, NetworkError, ParameterError

_PACKAGES = tuple(str(Path(str(module.__file__)).parent) for module in (meanflow_ref, torch))


def user_line() -> str:
    """``file:line`` of the innermost frame outside this library, torch and jax, relative to the working folder."""
    packages = (
        *_PACKAGES,
        *(str(Path(str(sys.modules[name].__file__)).parent) for name in ("jax",) if name in sys.modules),
    )
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((*packages, "<")):
            with suppress(ValueError):
                file = str(Path(file).relative_to(Path.cwd()))
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def describe(target: Any) -> str:
    """A target's name, for the report."""
    module, name = getattr(target, "__module__", ""), getattr(target, "__qualname__", "")
    return f"{module}:{name}" if module and name else type(target).__name__


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context in which the global generators of torch, numpy and random start at ``seed``; restored afterwards."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


def uncompiled() -> AbstractContextManager[Any]:
    """Context in which compiled code runs eagerly. Nothing is compiled where dynamo was never imported."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def blame(what: str, remedy: str = "") -> Iterator[None]:
    """Context that turns any exception of somebody's code into one clear error; our own pass through."""
    try:
        yield
    except MeanFlowError:
        raise
    except AttributeError as error:
        owner = type(error.obj).__name__ if error.obj is not None else "?"
        if getattr(error.obj, "is_probe", False):
            raise NetworkError(
                f"{what} asks the network for `.{error.name}`, which the probe in its place does not have.",
                "",
                f"supply it: attributes={{{error.name!r}: ...}}",
            ) from error
        raise ParameterError(f"{what} raised AttributeError on {owner}: {error}", "", remedy) from error
    except Exception as error:
        raise ParameterError(f"{what} raised {type(error).__name__}: {error}", "", remedy) from error


def require_device(tensor: torch.Tensor) -> None:
    """Refuse a tensor that left the CPU, where the probes' data are made."""
    if tensor.device.type != "cpu":
        raise NetworkError(
            f"the loss moves its data to {tensor.device}; the kit measures on the CPU.",
            "a loss that keeps the device of the data that it is given",
            "take the device from the data: device=x.device, not a fixed one",
        )


def require_callable(target: Any, what: str, example: str) -> Callable[..., Any]:
    """``target`` if it can be called."""
    if not callable(target):
        raise ParameterError(f"{what} is {type(target).__name__}.", f"a function {example}", "")
    return target  # type: ignore[no-any-return]
