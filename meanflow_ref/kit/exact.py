"""The exact average velocity of a field, dressed as the network that somebody's sampler calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meanflow_ref.convention import Convention
from meanflow_ref.errors import MeanFlowError, NetworkError, ShapeError
from meanflow_ref.fields.base import AbstractField
from meanflow_ref.fields.gaussian import Gaussian
from meanflow_ref.fields.linear import LinearFlow
from meanflow_ref.fields.mixture import GaussianMixture
from meanflow_ref.kit.calling import user_line


@dataclass(frozen=True)
class NetCall:
    """One call of the network, in the paper's letters and in float64.

    ``z`` and the outputs are ``(B, *event)``, the times ``(B,)``. ``outputs`` are in the paper's direction, by name.
    """

    z: Tensor
    r: Tensor
    t: Tensor
    outputs: dict[str, Tensor]
    where: str
    dtype: torch.dtype


@dataclass(frozen=True)
class OnEvents:
    """A field of dimension d on events of another shape: of one coordinate if d = 1, else of the flattened event."""

    field: AbstractField

    def _rows(self, z: Tensor) -> Tensor:
        return z.reshape(-1, 1) if self.field.dim == 1 else z.flatten(1)

    def _times(self, time: Tensor, z: Tensor) -> Tensor:
        per_row = z[0].numel() if self.field.dim == 1 else 1
        return time.repeat_interleave(per_row)

    def average_velocity(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """u, of ``z``'s shape."""
        u = self.field.average_velocity(self._rows(z), self._times(r, z), self._times(t, z))
        return u.reshape(z.shape)

    def flow_map(self, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """State at r of the trajectory through z at t."""
        end = self.field.flow_map(self._rows(z), self._times(t, z), self._times(r, z))
        return end.reshape(z.shape)


def oracle_fields(dim: int, autonomous: bool) -> dict[str, OnEvents]:
    """Two fields that a wrong sampler cannot both satisfy; autonomous ones for a network that is given h alone."""
    generator = torch.Generator().manual_seed(20250513)
    normal = torch.randn(dim, dim, dtype=torch.float64, generator=generator)
    if autonomous:
        one = torch.tensor([[0.8]], dtype=torch.float64)
        return {"spiral": OnEvents(LinearFlow(0.6 * normal / dim**0.5)), "growth": OnEvents(LinearFlow(one))}
    axes: Tensor = torch.linalg.qr(normal).Q
    covariance = axes @ torch.diag(torch.linspace(0.05, 2.5, dim, dtype=torch.float64)) @ axes.T
    mean = torch.linspace(-1.0, 1.5, dim, dtype=torch.float64)
    weights, means, stds = torch.tensor([[0.5, 0.3, 0.2], [-1.5, 0.4, 2.0], [0.3, 0.5, 0.4]], dtype=torch.float64)
    return {
        "Gaussian": OnEvents(Gaussian(mean, (covariance + covariance.T) / 2)),
        "mixture": OnEvents(GaussianMixture(weights, means, stds)),
    }


class ExactNetwork(nn.Module):
    """The exact u behind somebody's convention; it keeps every call."""

    is_probe = True

    def __init__(self, field: OnEvents, convention: Convention, attributes: Mapping[str, Any]) -> None:
        super().__init__()
        self.field, self.convention = field, convention
        self.calls: list[NetCall] = []
        # For `next(model.parameters())`, by which code finds dtype and device.
        self.anchor = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.num_classes = 10
        for name, value in attributes.items():
            setattr(self, name, value)

    @property
    def module(self) -> ExactNetwork:
        """Itself, for code that unwraps a wrapper."""
        return self

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return self.anchor.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.anchor.dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Whatever the convention says the network returns."""
        z, r, t = self._read(args, kwargs)
        wide = z.detach().double().clone()  # their arithmetic may be in place
        sign = -1.0 if self.convention.time == "data_at_one" else 1.0
        with torch.no_grad():
            outputs = {"u": self.field.average_velocity(wide, r, t)}
            if "v" in self.convention.outputs:
                outputs["v"] = self.field.average_velocity(wide, t, t)
        self.calls.append(NetCall(wide, r, t, outputs, user_line(), z.dtype))
        theirs = tuple(
            None if name == "_" else (sign * outputs[name]).to(z.dtype) + 0 * z for name in self.convention.outputs
        )
        return theirs if self.convention.returns_tuple else theirs[0]

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        spec = self.convention.call
        try:
            values = spec.read(args, kwargs)
        except (MeanFlowError, TypeError, ValueError) as error:
            raise NetworkError(
                f"the network was called with {_shapes(args, kwargs)}, which is not ({self.convention.arguments}).",
                f"a call that fits: {error}",
                f'say how your network is called, e.g. call="{_nearest(args)}"',
            ) from None
        z = values["z"]
        if not isinstance(z, Tensor) or not z.is_floating_point() or z.dim() < 2:
            raise NetworkError(
                f"the network was given {_shapes(args, kwargs)}; z stands at the place that call="
                f'"{self.convention.arguments}" says.',
                "a state (batch, *event)",
                "",
            )
        times = {name: _row_times(values[name], z, name) for name in ("r", "t", "h", "-h") if name in values}
        if "-h" in times:
            times["h"] = -times["-h"]
        if not {"r", "t"} & set(times):
            # Autonomous fields ask only for t - r: put the data end at 0 in the paper's direction.
            times["t"] = times["h"] if self.convention.time == "noise_at_one" else torch.zeros_like(times["h"])
        t = times["t"] if "t" in times else times["r"] + times["h"]
        r = times["r"] if "r" in times else t - times["h"]
        reverse = self.convention.time == "data_at_one"
        return z, (1 - r if reverse else r), (1 - t if reverse else t)


def _row_times(time: Any, z: Tensor, name: str) -> Tensor:
    """A time as float64 ``(B,)``, from a number or a tensor of one entry or one a row."""
    tensor = torch.as_tensor(time).detach().to(torch.float64)
    if tensor.numel() == 1:
        return tensor.reshape(1).expand(z.shape[0])
    if tensor.numel() != z.shape[0]:
        raise ShapeError(
            f"time `{name}` has shape {tuple(tensor.shape)} for a state of shape {tuple(z.shape)}.",
            "a number, or one time a row",
            "",
        )
    return tensor.reshape(-1)


def _shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    def one(value: Any) -> str:
        if isinstance(value, Tensor):
            return f"tensor{tuple(value.shape)}"
        if isinstance(value, tuple | list):
            return f"({', '.join(map(one, value))})"
        return type(value).__name__

    return ", ".join([one(value) for value in args] + [f"{name}={one(value)}" for name, value in kwargs.items()])


def _nearest(args: tuple[Any, ...]) -> str:
    """A call that would fit the positional arguments seen."""
    if len(args) == 2:
        return "z, (t, h)" if isinstance(args[1], tuple | list) else "z, h"
    return "z, r, t, y" if len(args) > 3 else "z, r, t"
