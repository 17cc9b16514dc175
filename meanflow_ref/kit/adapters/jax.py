"""The loss check for JAX, under ``jit`` and ``grad``.

The probe is the tape's network (:mod:`meanflow_ref.kit.tape.network`) with an additive zero a row, whose gradient is
dL/du. An identity with a ``custom_jvp`` rule stands before it: its callbacks see the arguments of every call and the
tangents that the loss differentiates along. The recording is judged as a tape is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from meanflow_ref.convention import Convention
from meanflow_ref.errors import MissingExtraError, NetworkError, ParameterError
from meanflow_ref.kit.calling import blame, describe, require_callable, user_line
from meanflow_ref.kit.diagnosis import Report
from meanflow_ref.kit.tape.asking import question
from meanflow_ref.kit.tape.judge import judge
from meanflow_ref.kit.tape.network import PARAMETERS
from meanflow_ref.kit.tape.reading import tape_of

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    raise MissingExtraError("jax", "jax", "the JAX adapter") from error


def check_loss(
    loss: Callable[..., Any],
    call: str = "z, r, t",
    *,
    returns: str = "u",
    shape: Sequence[int] = (6,),
    batch: int = 64,
    jit: bool = True,
    seed: int = 0,
) -> Report:
    """Check a JAX loss.

    Args:
        loss: ``loss(net, x, key)`` returns a scalar (or a tuple that starts with it), where ``net`` is called as
            ``call`` says and ``x`` is ``(batch, *shape)``. All randomness comes from ``key``.
        call: How the loss calls the network, as in :class:`meanflow_ref.convention.Convention`.
        returns: What the network returns, ``"u"``, ``"u, v"``, ...
        shape: Shape of one event; at least two numbers.
        batch: Rows, at least 8.
        jit: Whether the gradient is taken of the jitted loss.
        seed: Of network, data and key.

    Returns:
        A report of kind ``"loss"``.

    Raises:
        ParameterError: If the loss raised, or returned no scalar.
        NetworkError: If the network is called in another way than ``call`` says, on single samples, or never.

    """
    require_callable(loss, "the loss", "loss(net, x, key)")
    convention = Convention(call, returns=returns)
    with _float64():
        asked = question(int(np.prod(shape)), batch, seed)
        recorder = _Recorder(convention, tuple(shape))
        theta = {name: jnp.asarray(asked[name]) for name in PARAMETERS}
        batches = [jnp.asarray(asked[name]) for name in ("x", "x_other")]
        with blame("the loss, called as loss(net, x, key),"):
            first, other = _run(loss, recorder, theta, batches, jit=jit, key=jax.random.key(seed))
    arrays = {**asked, **_joined(first, other, asked), "framework": f"jax {jax.__version__}"}
    return judge(tape_of(arrays), describe(loss), recorder.where)


@dataclass
class _Recorder:
    """Stands in the network's place and keeps each call's values, by the number of the call."""

    convention: Convention
    shape: tuple[int, ...]
    where: str = ""
    calls: int = 0
    sizes: list[int] = field(default_factory=list)
    values: dict[int, dict[str, Any]] = field(default_factory=dict)

    def network(self, theta: dict[str, Any], rows: list[Any] | None) -> Callable[..., Any]:
        """The probe with parameters ``theta`` and additive zeros; with None it only learns the batch sizes."""
        self.calls, self.sizes = 0, []

        def net(*args: Any, **kwargs: Any) -> Any:
            number, self.calls = self.calls, self.calls + 1
            self.where = self.where or user_line()
            z, r, t = self._read(args, kwargs)
            self.sizes.append(z.shape[0])
            z, r, t = _tap(partial(self._keep, number), z, r, t)
            beta = 0.0 if rows is None else rows[number]
            u = (_forward(theta, z, r, t) + beta).reshape(z.shape[0], *self.shape)
            values = {"u": u, "v": _forward(theta, z, t, t).reshape(u.shape), "_": None}
            outputs = tuple(values[name] for name in self.convention.outputs)
            return outputs if self.convention.returns_tuple else outputs[0]

        return net

    def _keep(self, number: int, kind: str, *arrays: Any) -> None:
        names = ("z", "r", "t") if kind == "call" else ("dz", "dr", "dt")
        self.values.setdefault(number, {}).update(zip(names, map(np.asarray, arrays), strict=True))

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
        values = self.convention.call.read(args, kwargs)
        z = jnp.asarray(values["z"])
        if z.ndim != len(self.shape) + 1 or z.shape[1:] != self.shape:
            raise NetworkError(
                f"the network was called with a state of shape {z.shape}.",
                f"(rows, {', '.join(map(str, self.shape))}), a batch at once",
                "take the vmap out of the loss, or put it inside the network",
            )
        times = {
            name: jnp.broadcast_to(jnp.asarray(values[name]).reshape(-1), z.shape[:1])
            for name in ("r", "t", "h", "-h")
            if name in values
        }
        if "-h" in times:
            times["h"] = -times["-h"]
        if not {"r", "t"} & set(times):
            raise NetworkError(f'call="{self.convention.arguments}" gives h alone.', "r or t beside it", "")
        t = times["t"] if "t" in times else times["r"] + times["h"]
        return z.reshape(len(z), -1), times.get("r", t - times["h"] if "h" in times else t), t


def _float64() -> AbstractContextManager[Any]:
    """Context in which jax has float64; its name moved."""
    place: Any = jax if hasattr(jax, "enable_x64") else import_module("jax.experimental")
    context: AbstractContextManager[Any] = place.enable_x64(True)
    return context


def _forward(theta: dict[str, Any], z: Any, r: Any, t: Any) -> Any:
    inputs = jnp.concatenate([z, r[:, None], t[:, None]], 1)
    return jnp.tanh(inputs @ theta["W1"].T + theta["b1"]) @ theta["W2"].T + theta["b2"]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _tap(keep: Callable[..., None], z: Any, r: Any, t: Any) -> tuple[Any, Any, Any]:
    """The identity; tells ``keep`` what passes."""
    jax.debug.callback(partial(keep, "call"), z, r, t)
    return z, r, t


@_tap.defjvp
def _tap_rule(keep: Callable[..., None], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    jax.debug.callback(partial(keep, "tangent"), *tangents)
    return _tap(keep, *primals), tangents


def _scalar(output: Any) -> Any:
    value: Any = output[0] if isinstance(output, tuple | list) else output
    if isinstance(value, dict):
        value = value.get("loss")
    if not hasattr(value, "ndim") or value.ndim:
        seen = type(value).__name__ if not hasattr(value, "ndim") else f"an array of shape {value.shape}"
        raise ParameterError(f"the loss returned {seen}.", "a scalar, or a tuple that starts with it", "take .mean()")
    return value


def _run(
    loss: Callable[..., Any], recorder: _Recorder, theta: dict[str, Any], batches: Sequence[Any], *, jit: bool, key: Any
) -> list[dict[str, Any]]:
    """The loss on each batch with its gradients: the calls' values and g, and the gradient of the parameters."""

    def value(p: dict[str, Any], zeros: list[Any] | None, x: Any) -> Any:
        return _scalar(loss(recorder.network(p, zeros), x, key))

    data = [x.reshape(len(x), *recorder.shape) for x in batches]
    # A dry run learns how many calls there are and of how many rows: each has additive zeros of its own.
    jax.eval_shape(lambda p, x: value(p, None, x), theta, data[0])
    if not recorder.sizes:
        raise NetworkError("the loss never called the network.", "loss(net, x, key)", "")
    rows = [jnp.zeros((size, data[0][0].size)) for size in recorder.sizes]
    gradient = jax.grad(jax.jit(value) if jit else value, argnums=(0, 1))
    runs = []
    for x in data:
        recorder.values = {}
        parameters, g = gradient(theta, rows, x)
        jax.effects_barrier()  # type: ignore[no-untyped-call]
        runs.append({"calls": recorder.values, "g": [np.asarray(one) for one in g], "parameters": parameters})
    return runs


def _joined(first: dict[str, Any], other: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """The calls that carry gradient, end to end; each row's data found as those that moved it between the runs."""
    carrying = [k for k, g in enumerate(first["g"]) if np.abs(g).max() > 0] or [0]
    arrays: dict[str, Any] = {
        name: np.concatenate([first["calls"][k][name] for k in carrying]) for name in ("z", "r", "t")
    }
    arrays["z_other"] = np.concatenate([other["calls"][k]["z"] for k in carrying])
    arrays["g"] = np.concatenate([first["g"][k] for k in carrying])
    if all("dz" in first["calls"][k] for k in carrying):
        arrays |= {name: np.concatenate([first["calls"][k][name] for k in carrying]) for name in ("dz", "dr", "dt")}
    moved, data = arrays["z_other"] - arrays["z"], asked["x_other"] - asked["x"]
    unit = data / np.linalg.norm(data, axis=1, keepdims=True)
    arrays["row"] = np.abs(moved @ unit.T).argmax(1)
    return arrays | {f"grad_{name}": np.asarray(first["parameters"][name]) for name in PARAMETERS}
