"""The question that a tape answers: a network and two batches of data, to be loaded in any framework."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from meanflow_ref.errors import ParameterError
from meanflow_ref.files import require_writable, write_atomic
from meanflow_ref.kit.tape.network import PARAMETERS, TanhNetwork
from meanflow_ref.kit.tape.reading import VERSION


def question(dim: int = 6, batch: int = 64, seed: int = 0) -> dict[str, Any]:
    """Format version, network and data: arrays of the tape that the recorder copies.

    Args:
        dim: Dimension of a state, at least 2: in one dimension a transposed Jacobian cannot be seen.
        batch: Rows of data.
        seed: Of all numbers.

    Raises:
        ParameterError: If a size is out of range.

    """
    if dim < 2 or batch < 8:
        raise ParameterError(f"dim={dim}, batch={batch}.", "dim at least 2 and batch at least 8", "")
    network = TanhNetwork.random(dim, seed=seed)
    g = np.random.default_rng(seed + 1)
    data = {"x": g.normal(size=(batch, dim)), "x_other": g.normal(size=(batch, dim))}
    return {"tape": np.int64(VERSION), **{name: getattr(network, name) for name in PARAMETERS}, **data}


def write_question(path: Path, dim: int, batch: int, seed: int) -> None:
    """Write the question as an npz file, whole or not at all."""
    require_writable(path)
    buffer = io.BytesIO()
    np.savez(buffer, **question(dim, batch, seed))
    write_atomic(path, buffer.getvalue())
