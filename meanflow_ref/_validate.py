"""Checks of input at the library's front doors. Each raises one clear error; none changes what it checks."""

from __future__ import annotations

import torch
from torch import Tensor

from meanflow_ref.errors import DtypeError, NetworkError, NonFiniteError, ShapeError, TimeError


def require_state(z: object, name: str = "z") -> Tensor:
    """Return ``z`` if it is a floating-point tensor with at least one dimension."""
    if not isinstance(z, Tensor):
        raise DtypeError(
            f"`{name}` is {type(z).__name__}.", "a floating-point torch.Tensor", f"torch.as_tensor({name})"
        )
    if not z.is_floating_point():
        raise DtypeError(f"`{name}` has dtype {z.dtype}.", "a floating-point dtype", f"{name}.to(torch.float32)")
    if z.dim() == 0:
        raise ShapeError(f"`{name}` has no dimension.", "(batch, *event)", f"{name}.reshape(1, 1)")
    return z


def require_same_kind(a: Tensor, b: Tensor, name_a: str, name_b: str) -> None:
    """Raise unless ``a`` and ``b`` share dtype and device."""
    if a.dtype != b.dtype or a.device != b.device:
        raise DtypeError(
            f"`{name_a}` is {a.dtype} on {a.device}, `{name_b}` is {b.dtype} on {b.device}.",
            "one dtype and one device",
            f"{name_b}.to({str(a.device)!r}, {a.dtype})",
        )


def require_finite(x: Tensor, name: str) -> None:
    """Raise if ``x`` has a NaN or infinite entry."""
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).sum())
        raise NonFiniteError(f"`{name}` has {bad} NaN or infinite entries of {x.numel()}.", "finite values", "")


def require_time_tensor(t: object, name: str) -> Tensor:
    """Return ``t`` if it is a floating-point tensor."""
    if not isinstance(t, Tensor):
        raise TimeError(
            f"time `{name}` is {type(t).__name__}.",
            "a floating-point torch.Tensor",
            f"torch.full((batch,), {t!r})",
        )
    if not t.is_floating_point():
        raise TimeError(
            f"time `{name}` has dtype {t.dtype}; an integer time has no derivative.",
            "a floating-point dtype",
            f"{name}.to(z.dtype), with times in [0, 1]",
        )
    return t


def require_times(r: Tensor, t: Tensor) -> None:
    """Raise unless ``0 <= r <= t <= 1`` holds elementwise, without NaN."""
    for name, x in (("r", r), ("t", t)):
        if bool(torch.isnan(x).any()):
            raise TimeError(f"time `{name}` has NaN.", "0 <= r <= t <= 1", "look at how the times are drawn")
        if bool(((x < 0) | (x > 1)).any()):
            raise TimeError(
                f"time `{name}` ranges over [{float(x.min()):g}, {float(x.max()):g}].",
                "times in [0, 1], where t = 1 is noise",
                "rescale the times; other conventions go through meanflow_ref.convention.Convention",
            )
    if bool((r > t).any()):
        raise TimeError(
            f"r > t in {int((r > t).sum())} of {(r > t).numel()} rows.",
            "r <= t",
            "sort the pair: r, t = torch.minimum(a, b), torch.maximum(a, b)",
        )


def as_times(t: object, z: Tensor, name: str, event_dims: int = 1) -> Tensor:
    """Return ``t``, a Python number or a tensor that broadcasts to ``z``'s batch, as a tensor of that batch shape."""
    batch = z.shape[: z.dim() - event_dims]
    if isinstance(t, int | float) and not isinstance(t, bool):
        return torch.full(batch, float(t), dtype=z.dtype, device=z.device)
    tensor = require_time_tensor(t, name)
    require_same_kind(z, tensor, "z", name)
    try:
        return tensor.broadcast_to(batch)
    except RuntimeError:
        raise ShapeError(
            f"time `{name}` has shape {tuple(tensor.shape)}, z has shape {tuple(z.shape)}.",
            f"one time per state: shape {tuple(batch)}",
            f"{name}.reshape({', '.join(map(str, batch))})" if tensor.numel() == batch.numel() else "",
        ) from None


def require_output(u: object, z: Tensor | None = None) -> Tensor:
    """Return ``u`` if it is one floating-point tensor, of ``z``'s shape where a ``z`` is given.

    A lower precision than float32 ``z``'s is accepted, since networks run autocast inside; than float64 ``z``'s not.
    """
    # Under torch.compile the stop-gradient JVP sends pairs of value and tangent through the network.
    pair, u = u, getattr(u, "_paired_value", u)
    if not isinstance(u, Tensor):
        several = isinstance(u, tuple | list)
        parts = f" ({', '.join(type(item).__name__ for item in u)})" if isinstance(u, tuple | list) else ""
        raise NetworkError(
            f"the network returned {type(u).__name__}{parts}.",
            "one tensor, the average velocity u",
            'say which output is u: Convention(returns="u, v")' if several else "",
        )
    if not u.is_floating_point():
        raise NetworkError(f"the network returned {u.dtype}.", "a floating-point tensor", "")
    if z is not None and u.shape != z.shape:
        raise NetworkError(f"the network returned shape {tuple(u.shape)}.", f"the state's shape {tuple(z.shape)}", "")
    if z is not None and z.dtype == torch.float64 and u.dtype != torch.float64:
        raise NetworkError(f"the network returned {u.dtype} for a float64 state.", "float64", "net.double()")
    return pair  # type: ignore[return-value]
