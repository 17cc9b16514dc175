"""Reading a tape: every array where it should be, with one clear error where it is not."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from meanflow_ref.errors import NonFiniteError, ParameterError, ShapeError
from meanflow_ref.kit.tape.network import PARAMETERS, Array, TanhNetwork

VERSION = 1
REQUIRED = ("tape", *PARAMETERS, "x", "x_other", "z", "r", "t", "g", "z_other")
OPTIONAL = ("row", "dz", "dr", "dt", *(f"grad_{name}" for name in PARAMETERS), "loss", "framework")


@dataclass(frozen=True)
class Tape:
    """A recording, in float64; N calls' rows, of which each belongs to a row of the data.

    Attributes:
        network: The probe that was in the network's place.
        x: Data of each recorded row, ``(N, D)``.
        x_other: The same for the other run.
        z: States that the network was called at, ``(N, D)``; ``z_other`` in the other run.
        r: Times, ``(N,)``.
        t: Times, ``(N,)``.
        g: Gradient of the loss to u, ``(N, D)``.
        tangents: What was differentiated along, where recorded.
        gradients: Gradient of the loss to the network's parameters, where recorded.
        batch: Rows of the data, B.
        precise: Whether everything was recorded in float64.
        framework: Of the recorder, for the report.

    """

    network: TanhNetwork
    x: Array
    x_other: Array
    z: Array
    z_other: Array
    r: Array
    t: Array
    g: Array
    tangents: Mapping[str, Array]
    gradients: Mapping[str, Array]
    batch: int
    precise: bool
    framework: str


def read_tape(path: Path) -> Tape:
    """The tape in an npz file.

    Raises:
        ParameterError: If the file is no npz file or lacks an array.
        ShapeError: If the shapes do not fit together.
        NonFiniteError: If an array has NaN or infinite entries.

    """
    if not path.is_file():
        raise ParameterError(f"no file {path}.", "an npz file", "docs/tape.md says how to record one")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ParameterError(f"{path} cannot be read: {error}", "an npz file, as numpy.savez writes it", "") from error
    return tape_of(arrays)


def tape_of(arrays: Mapping[str, Any]) -> Tape:
    """The tape made of named arrays; as :func:`read_tape`."""
    _require_names(arrays)
    values = {name: np.asarray(value) for name, value in arrays.items() if name != "framework"}
    recorded = [values[name] for name in ("z", "r", "t", "g")]
    precise = all(value.dtype == np.float64 for value in recorded)
    wide = {name: value.astype(np.float64) for name, value in values.items() if name != "row"}
    for name, value in wide.items():
        if not np.isfinite(value).all():
            bad = int((~np.isfinite(value)).sum())
            raise NonFiniteError(f"`{name}` has {bad} NaN or infinite entries of {value.size}.", "finite values", "")
    network = _network(wide)
    x, x_other = (_flat(wide[name]) for name in ("x", "x_other"))
    row = values["row"].reshape(-1) if "row" in values else np.arange(len(x))
    n, dim = len(row), network.b2.shape[0]
    states = {name: _flat(wide[name]) for name in ("z", "z_other", "g")}
    times = {name: wide[name].reshape(-1) for name in ("r", "t")}
    shapes: dict[str, tuple[Array, tuple[int, ...]]] = {"x": (x, (len(x), dim)), "x_other": (x_other, (len(x), dim))}
    shapes |= {name: (value, (n, dim)) for name, value in states.items()}
    shapes |= {name: (value, (n,)) for name, value in times.items()}
    for name, (value, wanted) in shapes.items():
        if value.shape != wanted:
            hint = "" if "row" in values else "with calls on part of the batch, record `row`: each call's rows of x"
            raise ShapeError(f"`{name}` has shape {value.shape}.", f"{wanted}", hint)
    if row.size and not (np.issubdtype(row.dtype, np.integer) and row.min() >= 0 and row.max() < len(x)):
        raise ShapeError("`row` does not number rows of x.", f"integers in [0, {len(x)})", "")
    return Tape(
        network,
        x[row],
        x_other[row],
        states["z"],
        states["z_other"],
        times["r"],
        times["t"],
        states["g"],
        {name: wide[name].reshape(n, -1) for name in ("dz", "dr", "dt") if name in wide},
        {name: wide[f"grad_{name}"] for name in PARAMETERS if f"grad_{name}" in wide},
        len(x),
        precise,
        str(arrays.get("framework", "")),
    )


def _require_names(arrays: Mapping[str, Any]) -> None:
    missing = [name for name in REQUIRED if name not in arrays]
    unknown = [name for name in arrays if name not in (*REQUIRED, *OPTIONAL)]
    if missing or unknown:
        seen = f"the tape lacks {', '.join(missing)}" if missing else f"the tape has {', '.join(unknown)}"
        raise ParameterError(
            f"{seen}.",
            f"{', '.join(REQUIRED)}; optional {', '.join(OPTIONAL)}",
            "docs/tape.md describes each; `meanflow-ref tape init FILE` writes those up to x_other",
        )
    if int(np.asarray(arrays["tape"])) != VERSION:
        raise ParameterError(f"tape = {arrays['tape']}.", f"version {VERSION}", "upgrade meanflow-ref")


def _network(wide: Mapping[str, Array]) -> TanhNetwork:
    network = TanhNetwork(*(wide[name] for name in PARAMETERS))
    hidden, dim = len(network.b1), len(np.atleast_1d(network.b2))
    wanted = {"W1": (hidden, dim + 2), "b1": (hidden,), "W2": (dim, hidden), "b2": (dim,)}
    for name, shape in wanted.items():
        if wide[name].shape != shape:
            raise ShapeError(f"`{name}` has shape {wide[name].shape}.", f"{shape}", "store it as `tape init` gave it")
    return network


def _flat(x: Array) -> Array:
    return x.reshape(len(x), -1) if x.ndim else x.reshape(1, 1)
