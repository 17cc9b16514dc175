"""How a loss calls its network, read off one call when the user does not say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from meanflow_ref.convention.grammar import CallSpec, Token
from meanflow_ref.errors import MeanFlowError, NetworkError, ParameterError
from meanflow_ref.kit.calling import require_device, seeded
from meanflow_ref.kit.loss.path import alpha_of, recognise
from meanflow_ref.kit.loss.probe import NUM_CLASSES, describe_arguments, plain, tangent_of
from meanflow_ref.kit.loss.run import EVENTS, ROWS, Target, _double, call_loss, wants_labels

_DURATIONS = {"h", "dt", "delta", "duration", "interval", "delta_t", "d", "gap", "step"}
_STARTS = {"r", "s", "start", "t_start", "t_next", "s_time", "r_time"}


class Recorder(nn.Module):
    """A network that keeps the arguments of its calls and returns something trainable."""

    is_probe = True

    def __init__(self, outputs: int, attributes: Mapping[str, Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.outputs, self.num_classes = outputs, NUM_CLASSES
        self.seen: list[tuple[list[tuple[str, Any]], list[Tensor | None], str]] = []
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    @property
    def module(self) -> Recorder:
        """Itself."""
        return self

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Double precision."""
        return torch.float64

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Record, and return the state times a parameter that is 0."""
        flat = [("", value) for value in args] + list(kwargs.items())
        values = [(name, _plain(value)) for name, value in flat]
        tangents = [tangent_of(v) if isinstance(v, Tensor) else None for _, v in flat]
        self.seen.append((values, tangents, describe_arguments(args, kwargs)))
        state = next(v for _, v in flat if isinstance(v, Tensor) and v.dim() > 1 and v.is_floating_point())
        require_device(state)
        # Everything enters, so that a loss may differentiate by any of its arguments.
        others = [v for _, value in flat for v in (value if isinstance(value, tuple | list) else (value,))]
        rest = sum(v.sum() * 0 for v in others if isinstance(v, Tensor) and v.is_floating_point())
        u = (state + rest) * self.weight.to(state.dtype)
        return u if self.outputs == 1 else (u,) * self.outputs


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_plain(item) for item in value)
    return plain(value) if isinstance(value, Tensor) else value


def observe(target: Target, outputs: int, kind: int = 0) -> Recorder:
    """Run the loss once on a recorder."""
    recorder = Recorder(outputs, target.attributes)
    x, labels = target.data(kind)
    with seeded(target.seed * 7919), _double(target.dtype):
        call_loss(target.loss, recorder, (x, labels) if target.labels else (x,))  # type: ignore[arg-type]
    if not recorder.seen:
        raise NetworkError(
            "the loss never calls the network that it is given.", "a loss(model, x) that trains `model`",
            "pass a function that takes the network as its first argument",
        )  # fmt: skip
    for values, _, _ in recorder.seen:
        values[:] = [(name, _columns(value, target.event)) for name, value in values]
    return recorder


def _columns(value: Any, event: tuple[int, ...]) -> Any:
    """A tensor of two times a row as the pair that it is."""
    pair = isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 2 and value.shape[1] == 2
    return value.unbind(1) if pair and tuple(value.shape[1:]) != event else value


def fit_data(
    loss: Callable[..., Any], shape: tuple[int, ...] | None, labels: bool | None, dtype: torch.dtype,
    attributes: Mapping[str, Any], seed: int, outputs: int | None,
) -> tuple[Target, int, Recorder]:  # fmt: skip
    """A shape of data, with or without labels, and a number of outputs with which the loss runs."""
    empty = CallSpec((), ())
    shapes = (shape,) if shape else EVENTS
    label_choices = (labels,) if labels is not None else ((True, False) if wants_labels(loss) else (False, True))
    first: MeanFlowError | None = None
    for number in (outputs,) if outputs else (1, 2):
        for event in shapes:
            for labelled in label_choices:
                target = Target(loss, empty, ("u",), False, event, labelled, dtype, attributes, seed)
                try:
                    return target, number, observe(target, number)
                except NetworkError:
                    raise
                except MeanFlowError as error:
                    first = first or error
                except StopIteration:
                    continue
    assert first is not None
    hint = "give the shape of one datum: shape=(3, 32, 32)" if shape is None else ""
    raise ParameterError(first.seen, first.wanted, first.remedy or hint) from first


def guess_call(target: Target, outputs: int, recorder: Recorder) -> tuple[CallSpec, str]:
    """The specification of a call, and its text.

    Raises:
        ParameterError: If it cannot be told; it says what was seen.

    """
    values, tangents, shown = max(recorder.seen, key=lambda one: _spread(one[0]))
    which = _index(recorder, shown, values)
    other = observe(target, outputs, kind=1).seen[which][0]
    state = next(i for i, (_, v) in enumerate(values) if _is_state(v, target.event))
    z_1, z_2 = values[state][1], other[state][1]
    (x_1, _), (x_2, _) = target.data(0), target.data(1)
    copies = len(z_1) // ROWS if len(z_1) % ROWS == 0 and len(z_1) else 1
    alpha, _, _ = alpha_of(
        (z_2 - z_1).flatten(1).double(),
        x_1.repeat(copies, *[1] * (x_1.dim() - 1)),
        x_2.repeat(copies, *[1] * (x_1.dim() - 1)),
    )
    letters = _letters(values, tangents, state, alpha, len(z_1))
    spec, text = _spec(values, letters)
    if not {"t", "h", "r"} & set(spec.letters):
        raise ParameterError(
            f"the loss calls its network with {shown}; which argument is the time t cannot be told.", "",
            'say it: call="z, r, t" (z state, t its time, r the other end, h = t - r, y label)',
        )  # fmt: skip
    return spec, text


def _index(recorder: Recorder, shown: str, values: Any) -> int:
    return next(i for i, one in enumerate(recorder.seen) if one[0] is values and one[2] == shown)


def _spread(values: list[tuple[str, Any]]) -> float:
    """How much the times of a call differ from one another: the call that says most about which is which."""
    times = [
        v.double().flatten()
        for _, v in _flat(values)
        if isinstance(v, Tensor) and v.is_floating_point() and v.dim() < 2
    ]
    times += [
        v.double().flatten() for _, v in _flat(values) if isinstance(v, Tensor) and v.dim() >= 2 and v.numel() == len(v)
    ]
    if len(times) < 2 or times[0].shape != times[1].shape:
        return 0.0
    return float((times[0] - times[1]).abs().mean())


def _flat(values: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [(name, item) for name, v in values for item in (v if isinstance(v, tuple) else (v,))]


def _is_state(value: Any, event: tuple[int, ...]) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and tuple(value.shape[1:]) == event


def _letters(
    values: list[tuple[str, Any]], tangents: list[Tensor | None], state: int, alpha: Tensor, rows: int
) -> dict[int, str]:
    """A letter for each flattened argument."""
    flat = _flat(values)
    position = 0
    for i, (_, v) in enumerate(values):
        if i == state:
            break
        position += len(v) if isinstance(v, tuple) else 1
    letters = {position: "z"}
    times = {
        i: v.double().reshape(-1).expand(rows)
        for i, (_, v) in enumerate(flat)
        if i != position and isinstance(v, Tensor) and v.is_floating_point() and v.numel() in {1, rows}
    }
    for i, (_, v) in enumerate(flat):
        if isinstance(v, Tensor) and not v.is_floating_point() and v.numel() == rows and v.dtype != torch.bool:
            letters[i] = "y"
    fits = {i: recognise(alpha, {"t": t}, 1e-3) for i, t in times.items()}
    own = [i for i, fit in fits.items() if fit is not None]
    if len(own) > 1:
        # Times that coincide on every row (r = t) or two that fit: the first is as good as the other.
        own = sorted(own, key=lambda i: (flat[i][0] in _STARTS, fits[i].misfit if fits[i] else 1.0))  # type: ignore[union-attr]
    if own:
        letters[own[0]] = "t"
    rest = [i for i in times if i not in letters]
    if len(rest) > 1:
        raise ParameterError(
            f"the network is given {len(times)} times or scales; which of them is r cannot be told.",
            "",
            'say it: call="..."',
        )
    for i in rest:
        letters[i] = _other(flat[i][0], times[i], times[own[0]] if own else None, tangents, i)
    return letters


def _other(name: str, value: Tensor, t: Tensor | None, tangents: list[Tensor | None], index: int) -> str:
    """``r``, ``h`` or ``-h``."""
    if t is None or name.lower() in _DURATIONS:
        return "-h" if float(value.median()) < 0 else "h"
    if name.lower() in _STARTS:
        return "r"
    if float(value.max()) <= 1e-9 and float(value.min()) < 0:
        return "-h"
    # A finite difference's calls are a step away from r = t.
    same, zero = (float((value - other).abs().lt(0.03).double().mean()) for other in (t, torch.zeros_like(t)))
    tangent = tangents[index] if index < len(tangents) else None
    # Zero in every row is r = 0 as well as h = 0; a tangent tells them apart.
    if abs(same - zero) > 0.1 and (zero < 0.99 or tangent is None):
        return "r" if same > zero else "h"
    if tangent is not None:
        return "h" if float(tangent.abs().median()) > 0.5 else "r"
    if bool((value > t).any()):
        return "r"
    raise ParameterError(
        "whether the network is given r or h = t - r cannot be told from its calls.", "",
        'say it, in your network\'s order: call="z, r, t", call="z, t, r" or call="z, t, h"',
    )  # fmt: skip


def _spec(values: list[tuple[str, Any]], letters: Mapping[int, str]) -> tuple[CallSpec, str]:
    position = 0
    positional: list[Token] = []
    keyword: list[tuple[str, Token]] = []
    words = []
    for name, value in values:
        size = len(value) if isinstance(value, tuple) else 1
        inside = [letters.get(position + i) for i in range(size)]
        position += size
        if any(letter is None for letter in inside):
            if name:
                continue
            raise ParameterError(
                "the network has positional arguments that are neither state, time nor label.", "", 'say it: call="..."'
            )
        token: Token = tuple(str(letter) for letter in inside) if isinstance(value, tuple) else str(inside[0])
        shown = f"({', '.join(token)})" if isinstance(token, tuple) else token  # type: ignore[arg-type]
        words.append(f"{name}={shown}" if name else shown)
        if name:
            keyword.append((name, token))
        else:
            positional.append(token)
    return CallSpec(tuple(positional), tuple(keyword)), ", ".join(words)


def with_spec(target: Target, spec: CallSpec, outputs: tuple[str, ...], is_tuple: bool) -> Target:
    """The target with its call."""
    return replace(target, spec=spec, outputs=outputs, returns_tuple=is_tuple)
