"""A loss as a graph of elementary tensor operations, by ``make_fx`` on tensors without data.

The tensors being without data, no value of an input can enter a decision or a constant unseen: ``.item()``, a branch on
data, ``.numpy()`` all fail, and say where. The loss is traced twice and both graphs must agree, constants included:
what a loss remembers from call to call, or draws with numpy, shows as a difference.
"""

from __future__ import annotations

import logging
import pickle
import random
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from meanflow_ref.convention import Convention
from meanflow_ref.errors import MeanFlowError
from meanflow_ref.kit.prove.errors import LossError, NotExactError
from meanflow_ref.kit.prove.network import OpaqueNetwork
from meanflow_ref.kit.prove.scale import Scale
from meanflow_ref.objectives import meanflow  # noqa: F401  # a loss that imports it late would do so inside the trace

STATES, TIMES, SCALES = ("x", "eps", "z", "v"), ("r", "t"), ("omega", "kappa")
LETTERS = (*STATES, *TIMES, "y", *SCALES)
# Values for which a symbolic scale answers comparisons, and its value at the witness.
SAMPLES = {"omega": Fraction(7, 4), "kappa": Fraction(2, 5)}

_HERE = str(Path(__file__).parent)
# The network's calls go through it, on their way into the opaque network.
_CALLS = str(Path(__file__).parents[2] / "convention")
_PACKAGE = str(Path(__file__).parents[2])
_TORCH = str(Path(torch.__file__).parent)
_PYTHON = sysconfig.get_paths()["stdlib"]
_NO_VALUE = (
    "DataDependentOutputException",
    "GuardOnDataDependentSymNode",
    "DynamicOutputShapeException",
    "trying to get value out of a tracing tensor",
    ".numpy() is not supported",
)
WHERE = "meanflow_ref_where"


@dataclass(frozen=True)
class Question:
    """What is to be traced.

    Args:
        loss: Called as ``loss(network, *inputs)``.
        letters: The inputs: states x, eps, z, v; times r, t; labels y; scales omega, kappa.
        convention: How the loss calls its network.
        shape: Shape of a state, ``(B, *event)``.
        dtype: Of states and times.

    """

    loss: Callable[..., Any]
    letters: tuple[str, ...]
    convention: Convention
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def examples(self) -> list[Tensor]:
        """Tensors of the inputs' shapes and dtypes; their values are never looked at."""
        batch = self.shape[0]
        makers: dict[str, Callable[[], Tensor]] = {
            **dict.fromkeys(STATES, lambda: torch.zeros(self.shape, dtype=self.dtype)),
            **dict.fromkeys(TIMES, lambda: torch.zeros(batch, dtype=self.dtype)),
            **dict.fromkeys(SCALES, lambda: torch.zeros((), dtype=self.dtype)),
            "y": lambda: torch.zeros(batch, dtype=torch.int64),
        }
        return [makers[letter]() for letter in self.letters]


@dataclass
class Traced:
    """A traced loss: placeholders are the parameter and the inputs, outputs the loss and (if asked) its gradient."""

    module: fx.GraphModule
    calls: int
    hypotheses: list[str]
    has_gradient: bool
    # Whether the loss seeds a generator that it draws from, so that its draws repeat.
    reseeded: bool = False


def trace(question: Question, gradient: bool = True) -> Traced:
    """Trace a loss, twice.

    Raises:
        NotExactError: If it cannot be traced, or is not the same function twice.
        LossError: If it is not a loss of a network.

    """
    first = _trace(question, gradient)
    generators = _generators(first.module)
    starts = [generator.initial_seed() for generator in generators]
    with _other_seeds(generators) as seeds:
        second = _trace(question, gradient)
        _require_same(first.module, second.module)
        kept = {_address(generator): seed for generator, seed in zip(generators, seeds, strict=True)}
        for generator in _generators(second.module):
            # One of the loss's own must have kept the other seed; one made at every call must not start the same.
            seed, mine = generator.initial_seed(), kept.get(_address(generator))
            first.reseeded |= seed != mine if mine is not None else seed in starts
    return first


def _trace(question: Question, gradient: bool) -> Traced:
    network = OpaqueNetwork(question.convention, question.dtype)
    hypotheses: list[str] = []
    reseeded: list[bool] = []
    has_gradient = [False]

    def joint(theta: Tensor, *inputs: Tensor) -> Any:
        theta = theta.detach().requires_grad_(True)
        network._parameters["theta"] = theta  # type: ignore[assignment]
        arguments = [
            Scale(letter, value, SAMPLES[letter], hypotheses) if letter in SCALES else value
            for letter, value in zip(question.letters, inputs, strict=True)
        ]
        with _Lines():
            loss = _require_scalar(question.loss(network, *arguments))
        if not network.calls:
            raise LossError(
                "the loss never calls the network it is given.",
                "loss(model, x) that calls model",
                "look for a network that is captured from outside, as in a class or a closure",
            )
        if not gradient:
            return loss
        has_gradient[0] = loss.requires_grad
        if not loss.requires_grad:
            return loss, torch.zeros_like(theta)
        with _Lines("in the backward pass"):
            (slope,) = torch.autograd.grad(loss, theta, allow_unused=True)
        has_gradient[0] = slope is not None
        return loss, torch.zeros_like(theta) if slope is None else slope

    theta = torch.zeros(1, dtype=question.dtype)
    with _same_randomness(reseeded), _unchecked_values(hypotheses), _quiet(), _blamed():
        module = make_fx(joint, tracing_mode="fake")(theta, *question.examples())
    return Traced(module, network.calls, hypotheses, has_gradient[0], any(reseeded))


def _require_scalar(loss: Any) -> Tensor:
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point():
        return loss.reshape(())
    if isinstance(loss, Tensor):
        seen = f"the loss returned a tensor of shape {tuple(loss.shape)} and {loss.dtype}."
        remedy = "reduce it, for example with .mean()"
    else:
        seen = f"the loss returned {type(loss).__name__}."
        several = isinstance(loss, tuple | list | dict)
        remedy = "hand over lambda *a: loss(*a)[0], or whichever part is the loss" if several else ""
    raise LossError(seen, "one floating-point scalar", remedy)


# ---------------------------------------------------------------- where


class _Lines(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes at every traced operation the line of the user's code that made it."""

    def __init__(self, otherwise: str = "") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.otherwise = otherwise

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        mode = get_proxy_mode()
        result = func(*args, **(kwargs or {}))
        if mode is not None:
            where = user_line(sys._getframe(1)) or self.otherwise
            for node in reversed(mode.tracer.graph.nodes):
                if WHERE in node.meta:
                    break
                node.meta[WHERE] = where
        return result


def user_line(frame: FrameType | None) -> str:
    """``file:line`` of the innermost frame that is neither torch's nor this package's, below the trace itself."""
    while frame is not None and frame.f_code.co_filename != __file__:
        if is_user_file(frame.f_code.co_filename):
            return f"{_shown(frame.f_code.co_filename)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def is_user_file(filename: str) -> bool:
    """Whether a file is neither torch's nor this package's nor of Python's own library."""
    if filename.startswith(("<", _HERE, _TORCH, _CALLS)):
        return False
    return "site-packages" in filename or not filename.startswith(_PYTHON)


def _line_of_error(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_user_file(f.filename)]
    return f"{_shown(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""


def _shown(filename: str) -> str:
    """A file as seen from the working directory, if it is below it."""
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename


# ---------------------------------------------------------------- refusals

VALUE_ASKED = "a value is asked for"
UNCHECKED = "the inputs pass meanflow_ref's own checks of values, which are left out of the trace"


@contextmanager
def _blamed() -> Iterator[None]:
    """Context that turns every failure of a trace into its reason and the user's line."""
    try:
        yield
    except LossError:
        raise
    except NotExactError as error:
        raise NotExactError(error.reason, error.where or _line_of_error(error)) from error
    except MeanFlowError as error:
        raise NotExactError(str(error), _line_of_error(error)) from error
    except Exception as error:
        raise NotExactError(_reason(error), _line_of_error(error)) from error


def _reason(error: Exception) -> str:
    text = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    if "DynamicOutputShape" in text or "Size-like" in str(error):
        return f"{VALUE_ASKED}: a shape depends on data (rows picked by a mask); use torch.where ({text})"
    if any(name in text or name in str(error) for name in _NO_VALUE):
        return f"{VALUE_ASKED}: .item(), a Python branch on data, or .numpy() ({text[:160]})"
    if "vmap support" in text:
        return "the loss maps its network over rows with vmap: call the network on the whole batch"
    if "dynamo" in text.lower():
        return f"the loss is compiled: hand over the function that was given to torch.compile ({text[:160]})"
    if isinstance(error, TypeError) and "positional argument" in text:
        return f'the loss does not take these inputs ({text}); say which with inputs="x, eps, r, t"'
    return f"the loss cannot be traced ({text[:300]})"


@contextmanager
def _same_randomness(reseeded: list[bool]) -> Iterator[None]:
    """Context that refuses numbers drawn outside torch, which a trace would take for constants.

    Inside it torch's own generator has a seed that no loss would choose, so that a loss which seeds it is seen.
    """
    python, numpy, state = random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    seed = torch.seed()
    try:
        yield
        reseeded.append(seed != torch.initial_seed())
    finally:
        torch.set_rng_state(state)
    if python != random.getstate():
        raise NotExactError("numbers are drawn with Python's `random`, which the trace cannot see: draw with torch")
    if numpy != pickle.dumps(np.random.get_state()):  # noqa: NPY002
        raise NotExactError("numbers are drawn with numpy, which the trace cannot see: draw with torch")


def _generators(module: fx.GraphModule) -> list[torch.Generator]:
    """The generators that a traced loss draws from, each once, torch's own left out."""
    values = [value for node in module.graph.nodes for value in node.kwargs.values()]
    values += [getattr(module, str(node.target)) for node in module.graph.nodes if node.op == "get_attr"]
    found = [getattr(value, "real_obj", value) for value in values]
    mine = [g for g in found if isinstance(g, torch.Generator) and _address(g) != _address(torch.default_generator)]
    return list({_address(generator): generator for generator in mine}.values())


def _address(generator: Any) -> int:
    """What tells generators apart: a trace wraps them anew."""
    return int(generator._cdata)


@contextmanager
def _other_seeds(generators: list[torch.Generator]) -> Iterator[list[int]]:
    """Context in which generators have other seeds, which are what it yields."""
    states = [generator.get_state() for generator in generators]
    try:
        yield [generator.seed() for generator in generators]
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


@contextmanager
def _quiet() -> Iterator[None]:
    """Context in which torch does not print the traceback of a failed operation, which is reported anyway."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


@contextmanager
def _unchecked_values(hypotheses: list[str]) -> Iterator[None]:
    """Context in which this library leaves out its own checks of input values, as it does under ``torch.compile``.

    Everybody else's question whether it is being compiled is answered as in eager code.
    """
    ask = torch.compiler.is_compiling

    def is_compiling() -> bool:
        if not sys._getframe(1).f_code.co_filename.startswith(_PACKAGE):
            return ask()
        if UNCHECKED not in hypotheses:
            hypotheses.append(UNCHECKED)
        return True

    torch.compiler.is_compiling = is_compiling
    try:
        yield
    finally:
        torch.compiler.is_compiling = ask


def _require_same(first: fx.GraphModule, second: fx.GraphModule) -> None:
    """Raise unless two traces agree node by node, constants included."""
    for a, b in zip(first.graph.nodes, second.graph.nodes, strict=False):
        if _fingerprint(first, a) != _fingerprint(second, b):
            what = "a constant" if a.op == b.op == "get_attr" else f"`{a.target}`"
            raise NotExactError(
                f"the loss is not the same function twice: {what} differs between two traces of it "
                "(numbers drawn outside torch, a cache, or a counter)",
                a.meta.get(WHERE, ""),
            )
    if len(first.graph.nodes) != len(second.graph.nodes):
        raise NotExactError("the loss is not the same function twice: two traces of it differ in length")


def _fingerprint(module: fx.GraphModule, node: fx.Node) -> Any:
    if node.op == "get_attr":
        value = getattr(module, str(node.target))
        return node.op, value.tolist() if isinstance(value, Tensor) else type(value).__name__
    return node.op, str(node.target), _plain(node.args), _plain(node.kwargs)


def _plain(arguments: Any) -> str:
    if isinstance(arguments, dict):
        return str({name: _plain(value) for name, value in arguments.items()})
    if isinstance(arguments, Sequence) and not isinstance(arguments, str):
        return str([_plain(value) for value in arguments])
    # A generator is another object in each trace, and says nothing.
    return type(arguments).__name__ if isinstance(arguments, torch.Generator) else str(arguments)
