"""The compile form without a compiler: what Dynamo records once is replayed by torch's own kernels.

The dispatch form looks at every operation of every call, from Python. Here the network is recorded with its tangents,
by the rules of :mod:`meanflow_ref.jvp.stopgrad.compiled`, at the first call; later ones check Dynamo's guards (shapes,
modes, Python values that the network read) and run the recorded operations. Nothing is generated or fused, so that the
kernels, and u, are those of eager code, but of attention with a mask or in a layout that its kernel cannot read, which
differ by rounding. Recording takes a second or a few, again when a guard fails.

A recording is rehearsed before it counts: it must agree with the dispatch form at the first call's inputs. Random
numbers, and tensors that the network writes, are set back; what it counts in Python sees four calls. A rehearsal is no
proof: an error that is zero, or below rounding, at those inputs is not seen. Dynamo guards what the network read, its
hooks included, but not all of Python: a method or an attribute that is given to a class later, the order of a dict, the
environment, what ``functools.lru_cache`` holds. While a network is recorded no other thread may run it: parameters that
are all zero are not, for that moment.

Where only the first rows move, the network is recorded with all rows and with those, and made one of both
(:mod:`meanflow_ref.jvp.stopgrad.first_rows`).

Networks that cannot be recorded whole (a write in place, a Python number taken from a tensor, hooks of a distributed
wrapper) or that differ run in the dispatch form, which is said once.
"""

from __future__ import annotations

import re
import threading
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from meanflow_ref._typing import TensorFunction
from meanflow_ref.jvp._moving import moving_part
from meanflow_ref.jvp.stopgrad.front import recorded, require_plain, stopgrad_jvp, stopgrad_jvp_of_rows
from meanflow_ref.jvp.stopgrad.rehearsal import (
    Modes,
    NotRecorded,
    State,
    distance,
    hooks_of_all_modules,
    tolerance,
    zeros_replaced,
)
from meanflow_ref.jvp.stopgrad.reuse import name_of, reuse_memory, writes

_Jvp: TypeAlias = Callable[..., tuple[Tensor, ...]]
# Kinds of module whose forward pass is more than its code: what hangs on it is not recorded.
_DISTRIBUTED = frozenset({"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DataParallel"})
# Recordings of one call: what a network makes at its first call is there at its second.
_ATTEMPTS = 4
# How deep the network may lie in closures, partial functions and bound methods.
_DEPTH = 5


class _Recording:
    """What was recorded of one network.

    Args:
        owner: The network.
        of_rows: Whether its first rows move alone.

    Attributes:
        refused: Why it could not be recorded, and runs in the dispatch form; empty where it can.
        later: Whether the last call could not be recorded, but the next one may.

    """

    def __init__(self, owner: Any, *, of_rows: bool) -> None:
        self._of_rows = of_rows
        self.later, self._attempts = False, _ATTEMPTS
        self.refused = "a distributed wrapper's hooks are not recorded" if _distributed(owner) else ""
        self._owner = weakref.ref(owner)
        self._hooks = hooks_of_all_modules()
        self._before: State | None = None
        self._replaying = self._rehearsing = False
        self._lock = threading.RLock()
        self._jvp = self._compiled()

    def _compiled(self) -> _Jvp:
        function = _with_first_rows if self._of_rows else _whole
        # A code object of its own: Dynamo keeps recordings by it, and few of them.
        own = FunctionType(function.__code__.replace(), globals(), "jvp")
        compiled: _Jvp = torch.compile(own, backend=self._backend, fullgraph=True)
        return compiled

    def _backend(self, graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        """What runs in place of a recording: itself. The network has not run yet when Dynamo asks."""
        from meanflow_ref.jvp.stopgrad.compiled import Pair
        from meanflow_ref.jvp.stopgrad.dynamo import changes_objects, leaves_behind
        from meanflow_ref.jvp.stopgrad.first_rows import FirstRows

        if leaves_behind(Pair):
            raise NotRecorded("it keeps a tensor that moves, in an attribute or by a hook.")
        if any(isinstance(node.target, HigherOrderOperator) for node in graph.graph.nodes):
            # Of a checkpoint the tangent would be computed in the backward pass again.
            raise NotRecorded("it checkpoints activations, or has other parts that are graphs of their own.")
        if any("inference_mode" in name_of(node) for node in graph.graph.nodes):
            raise NotRecorded("it enters torch.inference_mode.")
        if _writes_parameters(graph.graph, inputs):
            raise NotRecorded("it writes into a parameter.")
        both = None
        if self._of_rows:
            if changes_objects():
                # What it makes at its first call is there at its second.
                self._attempts -= 1
                self.later = self._attempts > 0
                raise NotRecorded("it changes objects of Python, and is recorded twice where some rows move.")
            both = FirstRows(graph)
        self._before = State(self._owner(), [x for x in inputs if isinstance(x, Tensor)])
        replay = self._ready(graph) if both is None else graph.forward

        def run(*args: Any) -> Any:
            nonlocal both, replay
            self._replaying, modes = True, Modes()
            try:
                if both is not None and self._rehearsing:
                    both.merge(args, grad_enabled=torch.is_grad_enabled())
                    both, replay = None, self._ready(graph)
                return replay(*args)
            except BaseException:
                # It switches autograd and autocast on and off as plain operations.
                modes.put_back()
                raise

        return run

    def _ready(self, graph: fx.GraphModule) -> Callable[..., Any]:
        reuse_memory(graph.graph, grad_enabled=torch.is_grad_enabled())
        graph.recompile()
        return graph.forward

    def __call__(self, fn: TensorFunction, primals: Any, tangents: Any, moving: int) -> tuple[Tensor, Tensor]:
        """Value and derivative, recorded or replayed; ``moving`` is looked at where rows are.

        Raises:
            NotRecorded: With Dynamo's reason, or if the dispatch form does not agree with what was recorded.

        """
        with self._lock:
            return self._call(fn, primals, tangents, moving)

    def _call(self, fn: TensorFunction, primals: Any, tangents: Any, moving: int) -> tuple[Tensor, Tensor]:
        if self._hooks != (hooks := hooks_of_all_modules()):  # which Dynamo does not guard
            self._jvp, self._hooks = self._compiled(), hooks
        new = self.later = False
        try:
            for _ in range(_ATTEMPTS):
                u, du_dt = self._run(fn, primals, tangents, moving)
                if self._before is None:
                    return _apart(u, primals), _apart(du_dt, tangents)
                # A new recording: it is rehearsed before it counts. Nothing of the first run is kept.
                del u, du_dt
                new, before = True, self._before
                try:
                    self._rehearse(before, fn, primals, tangents, moving)
                finally:
                    before.put_back()
                self._before = None
        except BaseException:
            if new or self._before is not None:
                # What was not rehearsed to the end counts for nothing.
                self._jvp, self._before = self._compiled(), None
            raise
        raise NotRecorded("nothing, but it is recorded anew at every call.")

    def _rehearse(self, before: State, fn: TensorFunction, primals: Any, tangents: Any, moving: int) -> None:
        before.put_back()
        with zeros_replaced(before.parameters):
            self._rehearsing = True
            try:
                found = [x.detach() for x in self._run(fn, primals, tangents, moving)]
            finally:
                self._rehearsing = False
            before.put_back()
            with torch.no_grad():
                expected = self.dispatched(fn, primals, tangents, moving)
        for name, x, y in zip(("u", "du/dt"), found, expected, strict=True):
            if not (error := distance(x, y)) <= tolerance(y):
                raise NotRecorded(f"nothing, but the recorded {name} is off by {error:.1e}")

    def dispatched(self, fn: TensorFunction, primals: Any, tangents: Any, moving: int) -> tuple[Tensor, Tensor]:
        """Value and derivative by the dispatch form."""
        if self._of_rows:
            return stopgrad_jvp_of_rows(fn, primals, tangents, moving)
        return stopgrad_jvp(fn, primals, tangents)

    def _run(self, fn: TensorFunction, primals: Any, tangents: Any, moving: int) -> tuple[Tensor, Tensor]:
        from meanflow_ref.jvp.stopgrad.dynamo import guarded_hooks

        self._replaying = False
        try:
            with guarded_hooks():
                if not self._of_rows:
                    u, du_dt = self._jvp(fn, primals, tangents)
                    return u, du_dt
                # Of each argument an object of its own: of two that are one, Dynamo would record one.
                primals = tuple(x.view_as(x) for x in primals)
                tangents = tuple(None if d is None else d.detach() for d in tangents)
                u, _, _, first = self._jvp(fn, primals, tangents, _first(primals, moving), _first(tangents, moving))
                return u, torch.cat([first, first.new_zeros(u.shape[0] - moving, *u.shape[1:])])
        except NotRecorded:
            raise
        except Exception as error:
            if self._replaying and self._before is None:
                if self._of_rows and isinstance(error, IndexError):
                    error.add_note('A network that gives its rows other places wants rows="all", or jvp="stopgrad".')
                raise
            said = re.split("Set TORCHDYNAMO_VERBOSE|For more details", str(error))[0]
            raise NotRecorded(" ".join(said.split())[:300]) from error


def _whole(fn: Any, primals: Any, tangents: Any) -> tuple[Tensor, ...]:
    return stopgrad_jvp(fn, primals, tangents)


def _with_first_rows(fn: Any, primals: Any, tangents: Any, some: Any, along: Any) -> tuple[Tensor, ...]:
    """Its arguments are known to :mod:`.first_rows` by name."""
    return *stopgrad_jvp(fn, primals, tangents), *stopgrad_jvp(fn, some, along)


def _first(tensors: tuple[Tensor | None, ...], moving: int) -> tuple[Tensor | None, ...]:
    return tuple(None if x is None else x.narrow(0, 0, moving) for x in tensors)


# By network, and by whether its first rows move alone.
_RECORDINGS: WeakKeyDictionary[Any, dict[bool, _Recording]] = WeakKeyDictionary()


class UntracedWarning(UserWarning):
    """A network could not be recorded and runs in the dispatch form: right, and slower."""


def traced_jvp(
    fn: TensorFunction, primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...], /
) -> tuple[Tensor, Tensor]:
    """As :func:`stopgrad_jvp`, recorded once and replayed.

    Args:
        fn: A function of ``primals`` that returns one tensor.
        primals: Where to differentiate.
        tangents: Direction, each of its primal's shape and dtype, or ``None`` for zero.

    Returns:
        ``u``, by the kernels of eager code (but see above of attention), and ``du_dt``.

    Raises:
        MeanFlowError: As :func:`stopgrad_jvp`.

    """
    if not _can_record():
        return stopgrad_jvp(fn, primals, tangents)
    return _traced(fn, primals, tangents, None)


def traced_jvp_of_rows(
    fn: TensorFunction, primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...], moving: int, /
) -> tuple[Tensor, Tensor]:
    """As :func:`stopgrad_jvp_of_rows`, recorded once and replayed.

    Args:
        fn: A function of ``primals`` that returns one tensor, of nothing else that has rows.
        primals: Where to differentiate, ``(B, ...)`` each.
        tangents: Direction; its rows from ``moving`` on count as zero.
        moving: Rows that move, ``0 < moving < B``. A single one is not recorded.

    Returns:
        ``u`` and ``du_dt``.

    Raises:
        MeanFlowError: As :func:`stopgrad_jvp`.

    """
    if moving < 2 or not _can_record():
        return stopgrad_jvp_of_rows(fn, primals, tangents, moving)
    return _traced(fn, primals, tangents, moving)


def _traced(
    fn: TensorFunction, primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...], moving: int | None
) -> tuple[Tensor, Tensor]:
    _, at, along = moving_part(fn, primals, tangents)
    require_plain(at, along)
    owner, of_rows = network_of(fn), moving is not None
    recordings = _RECORDINGS.setdefault(owner, {})
    if of_rows not in recordings:
        recordings[of_rows] = _Recording(owner, of_rows=of_rows)
    recording = recordings[of_rows]
    if not at or recording.refused:
        return recording.dispatched(fn, primals, tangents, moving or 0)
    try:
        return recording(fn, primals, tangents, moving or 0)
    except NotRecorded as error:
        reason = str(error)
    # An error of the network's own is raised here, in the network's words.
    result = recording.dispatched(fn, primals, tangents, moving or 0)
    if recording.later:
        return result
    recording.refused = reason
    rows, remedy = ("where some rows move ", ', and rows="all" records it with all') if of_rows else ("", "")
    warnings.warn(
        f"the network ({_name(owner)}) cannot be traced, and runs {rows}in the dispatch form of the stop-gradient JVP, "
        f'which is as right and slower. jvp="stopgrad" takes that form without this warning{remedy}. '
        f"Dynamo said: {reason}",
        UntracedWarning,
        stacklevel=3,
    )
    return result


def why_untraced(net: Any) -> str:
    """Why a network that was called runs in the dispatch form; empty where it was recorded, or never called."""
    recordings = _RECORDINGS.get(net, {})
    return next((recording.refused for recording in recordings.values() if recording.refused), "")


def network_of(fn: Any, depth: int = _DEPTH) -> Any:
    """The first module that a function closes over; else what stands for the function from one call to the next."""
    module = _module_in(fn, depth)
    if module is not None:
        return module
    return fn.__code__ if isinstance(fn, FunctionType) else type(fn)


def _module_in(fn: Any, depth: int) -> nn.Module | None:
    if isinstance(fn, nn.Module) or not depth:
        return fn if isinstance(fn, nn.Module) else None
    if isinstance(fn, FunctionType):
        inside = [_contents(cell) for cell in fn.__closure__ or ()]
    elif isinstance(fn, MethodType):
        inside = [fn.__self__]
    elif isinstance(fn, partial):
        inside = [fn.func, *fn.args, *fn.keywords.values()]
    else:
        inside = list(vars(fn).values()) if callable(fn) and hasattr(fn, "__dict__") else []
    found = (_module_in(part, depth - 1) for part in inside if callable(part))
    return next((module for module in found if module is not None), None)


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return None


def _writes_parameters(graph: fx.Graph, inputs: list[Any]) -> bool:
    """Whether the graph writes into a parameter, which a rehearsal could not put back."""
    given = [node for node in graph.nodes if node.op == "placeholder"]
    parameters = {node for node, x in zip(given, inputs, strict=False) if isinstance(x, nn.Parameter)}
    return any(writes(node) in parameters for node in graph.nodes if node.op.startswith("call"))


def _apart(x: Tensor, given: tuple[Tensor | None, ...]) -> Tensor:
    """A result that shares no memory with what was given."""
    key = x.untyped_storage()._cdata
    return x.clone() if any(y is not None and y.untyped_storage()._cdata == key for y in given) else x


def _can_record() -> bool:
    """Whether Dynamo may look at this call: it is none of its own, and no mode is on that would miss a replay."""
    return not (
        torch.compiler.is_compiling()
        or recorded()
        or torch.is_inference_mode_enabled()
        or is_in_torch_dispatch_mode(include_infra_modes=False)
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _distributed(owner: Any) -> bool:
    modules = owner.modules() if isinstance(owner, nn.Module) else ()
    return any(base.__name__ in _DISTRIBUTED for module in modules for base in type(module).__mro__)


def _name(owner: Any) -> str:
    return type(owner).__name__ if isinstance(owner, nn.Module) else getattr(owner, "co_name", repr(owner))
