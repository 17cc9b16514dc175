"""Golden vectors for those who do not read our JSON: the same files, and float64 arrays in one npz a group.

An npz needs numpy alone. Field cases of one dimension, and loss cases of one network, are stacked along a first axis;
text is stored as strings, so that nothing is pickled.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meanflow_ref.errors import ParameterError
from meanflow_ref.files import write_atomic
from meanflow_ref.truth.golden.archive import HERE, MANIFEST, Oracle, texts
from meanflow_ref.truth.golden.data import (
    FieldCase,
    FieldData,
    GuidedData,
    LossCase,
    MixtureData,
    NetworkData,
    Output,
    nested,
)

Arrays = dict[str, NDArray[Any]]


def export(oracle: Oracle, folder: Path) -> list[Path]:
    """Write the oracle's JSON files and its arrays under ``folder``; returns the paths.

    Raises:
        ParameterError: ``folder`` is a file.

    """
    if folder.exists() and not folder.is_dir():
        raise ParameterError(f"{folder} is a file.", "a folder, which is made if need be", "")
    contents: dict[str, bytes] = {}
    for number in range(1, oracle.number + 1):
        contents[f"oracle-{number}/{MANIFEST}"] = (HERE / f"oracle-{number}" / MANIFEST).read_bytes()
        contents.update((f"oracle-{number}/{name}", text.encode()) for name, text in texts(number).items())
    for name, arrays in _groups(oracle):
        contents[f"npz/{name}.npz"] = _npz(arrays)
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    return [folder / name for name in contents]


def _groups(oracle: Oracle) -> Iterator[tuple[str, Arrays]]:
    """Arrays of the cases that have one shape."""
    for field, fields in _grouped(oracle.fields, lambda case: case.name):
        yield f"field-{field}", field_arrays(fields)
    for net, losses in _grouped(oracle.losses, lambda case: case.name):
        yield f"loss-{net}", loss_arrays(losses)


def _grouped(cases: Sequence[Any], key: Any) -> Iterator[tuple[str, list[Any]]]:
    for name, group in groupby(sorted(cases, key=key), key):
        yield name, sorted(group, key=lambda case: case.id)


def field_arrays(cases: Sequence[FieldCase]) -> Arrays:
    """The cases of one field: inputs and outputs stacked, parameters once."""
    common: Arrays = {
        "id": np.array([case.id for case in cases]),
        "path": np.array([case.path for case in cases]),
        "flags": np.array([" ".join(case.flags) for case in cases]),
        "z": np.array([case.z for case in cases]),
        "r": np.array([case.r for case in cases]),
        "t": np.array([case.t for case in cases]),
        "amplification": np.array([case.amplification for case in cases]),
    }
    return {**common, **_parameters(cases[0].field), **_outputs(cases)}


def loss_arrays(cases: Sequence[LossCase]) -> Arrays:
    """The cases of one network. No label is -1; no guidance is omega = 1, kappa = 0 with ``guided`` false."""
    guidance = [case.guidance or (1.0, 0.0, -1) for case in cases]
    common: Arrays = {
        "id": np.array([case.id for case in cases]),
        "path": np.array([case.path for case in cases]),
        "objective": np.array([case.objective for case in cases]),
        "norm": np.array([case.norm for case in cases]),
        "flags": np.array([" ".join(case.flags) for case in cases]),
        "x": np.array([case.x for case in cases]),
        "eps": np.array([case.eps for case in cases]),
        "r": np.array([case.r for case in cases]),
        "t": np.array([case.t for case in cases]),
        "label": np.array([-1 if case.label is None else case.label for case in cases]),
        "guided": np.array([case.guidance is not None for case in cases]),
        "omega": np.array([omega for omega, _, _ in guidance]),
        "kappa": np.array([kappa for _, kappa, _ in guidance]),
        "null_label": np.array([null for _, _, null in guidance]),
        "weight_power": np.array([case.weight_power for case in cases]),
        "weight_eps": np.array([case.weight_eps for case in cases]),
    }
    return {**common, **_layers(cases[0].network), **_outputs(cases)}


def _parameters(data: FieldData, prefix: str = "") -> Arrays:
    if isinstance(data, MixtureData):
        parts = {"weights": data.weights, "means": data.means, "stds": data.stds}
        return {f"{prefix}{name}": np.array(value, dtype=np.float64) for name, value in parts.items()}
    assert isinstance(data, GuidedData)
    found = {"priors": np.array(data.priors), "guided_label": np.array(data.label)}
    found |= {"omega": np.array(data.omega), "kappa": np.array(data.kappa)}
    for n, one in enumerate(data.classes):
        found |= _parameters(one, f"class_{n}_")
    return found


def _layers(data: NetworkData) -> Arrays:
    pairs = enumerate(data.layers)
    return {f"{name}_{n}": np.array(value) for n, layer in pairs for name, value in zip("Wb", layer, strict=True)}


def _outputs(cases: Sequence[FieldCase] | Sequence[LossCase]) -> Arrays:
    """Each output as ``out_<name>``: the float64 nearest to the true values, stacked."""
    found: Arrays = {}
    for name, first in cases[0].outputs.items():
        if name == "gradient":
            assert isinstance(first, tuple)
            for n in range(len(first)):
                for m, letter in enumerate("Wb"):
                    layers = [_part(_part(case.outputs[name], n), m) for case in cases]
                    found[f"out_gradient_{letter}_{n}"] = np.array([nested(layer) for layer in layers])
        else:
            found[f"out_{name}"] = np.array([nested(case.outputs[name]) for case in cases])
    return found


def _part(value: Output, n: int) -> Output:
    assert isinstance(value, tuple)
    return value[n]


def _npz(arrays: Arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
