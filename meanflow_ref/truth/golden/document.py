"""A file of cases as JSON: inputs as float64 in hexadecimal, outputs as published numbers; one line a vector.

The form is that of ``schema.json`` beside the oracles, which a test enforces. Reading is strict: whatever is missing,
of another type or of another schema is one :class:`VectorError` that names its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from meanflow_ref.errors import VectorError
from meanflow_ref.truth.golden.data import (
    Case,
    FieldCase,
    FieldData,
    GuidedData,
    LossCase,
    MixtureData,
    NetworkData,
    Output,
    Rows,
)
from meanflow_ref.truth.golden.flags import FIELD_FLAGS, LOSS_FLAGS
from meanflow_ref.truth.golden.number import Number

# Kind of file -> the schema that this version writes and reads.
SCHEMAS = {"fields": "meanflow-ref/golden-fields/1", "losses": "meanflow-ref/golden-losses/1"}

CONVENTIONS = {
    "numbers": (
        "Inputs are float64 in hexadecimal and exact. Of an output, the true value lies in [mid - rad, mid + rad]; mid "
        "is the true value correctly rounded to the digits shown (a 0 to the place of rad), f64 the float64 nearest to "
        "mid, and rounded says whether f64 is proved to be the float64 nearest to the true value."
    ),
    "time": "0 <= r <= t <= 1; t = 0 is data, t = 1 is noise; z_t = alpha x + sigma eps.",
    "paths": (
        "linear: alpha = 1 - t, sigma = t. trigonometric: alpha = cos(pi t/2), sigma = sin(pi t/2). "
        "variance-preserving: log alpha = -t^2 (20 - beta)/4 - t beta/2, alpha^2 + sigma^2 = 1, beta the float64 0.1."
    ),
    "field": (
        "A mixture's components are normal with diagonal covariance, of the standard deviations given. A guided field "
        "is omega' v(.|label) + (1 - omega') v with omega' = omega/(1 - kappa), and v the velocity of all classes "
        "together, in the proportions of priors."
    ),
    "field outputs": (
        "v(z, t); u(z, r, t) = (z - end)/(t - r), v at r = t; du_dt along (v, 0, 1); dr_u; end, the state at r of the "
        "trajectory through z at t; v_end there; jacobian[i][j] = d end_i/d z_j and its log-determinant; "
        "dz_u[i][j] = d u_i/d z_j."
    ),
    "network": "h = [z; r; t; onehot(label)]; h = tanh(W h + b) for each layer but the last; u = W h + b.",
    "loss outputs": (
        "z and v = alpha' x + sigma' eps, guided where guidance is given and the label is not null_label: omega v + "
        "kappa u(z,t,t,label) + (1 - omega - kappa) u(z,t,t,null_label). tangent: v (meanflow) or u(z,t,t,label) "
        "(improved). du_dt along (tangent, 0, 1). target = v - (t - r) du_dt. squared_error: |u - target|^2, over d if "
        "norm is mean. weight = (squared_error + weight_eps)^-weight_power. loss = weight squared_error. dloss_du and "
        "gradient (a pair for W and b of each layer): target and weight are constants."
    ),
}


def kind_of(case: Case) -> str:
    """``"fields"`` or ``"losses"``."""
    return "fields" if isinstance(case, FieldCase) else "losses"


# ---------------------------------------------------------------- writing


def text_of(cases: Sequence[Case], oracle: int) -> str:
    """The file of cases of one kind."""
    kind = kind_of(cases[0])
    used = {flag for case in cases for flag in case.flags}
    table = FIELD_FLAGS if kind == "fields" else LOSS_FLAGS
    document: dict[str, Any] = {
        "schema": SCHEMAS[kind],
        "oracle": oracle,
        "conventions": CONVENTIONS,
        "flags": {name: vars(flag) for name, flag in table.items() if name in used},
    }
    if kind == "fields":
        document["fields"] = {case.name: _field_to_json(case.field) for case in cases if isinstance(case, FieldCase)}
    else:
        document["networks"] = {
            case.name: _network_to_json(case.network) for case in cases if isinstance(case, LossCase)
        }
    document["cases"] = [_case_to_json(case) for case in cases]
    return "".join(_pretty(document, 0)) + "\n"


def output_to_json(value: Output) -> Any:
    """A number, or nested lists of numbers."""
    return value.to_json() if isinstance(value, Number) else [output_to_json(part) for part in value]


def _case_to_json(case: Case) -> dict[str, Any]:
    outputs = {name: output_to_json(value) for name, value in case.outputs.items()}
    last = {"flags": list(case.flags), "note": case.note, "outputs": outputs}
    if isinstance(case, FieldCase):
        place = {"z": _hex(case.z), "r": case.r.hex(), "t": case.t.hex()}
        return {"id": case.id, "field": case.name, "path": case.path, **place, **last}
    guidance = None
    if case.guidance is not None:
        omega, kappa, null = case.guidance
        guidance = {"omega": omega.hex(), "kappa": kappa.hex(), "null_label": null}
    return {
        "id": case.id,
        "network": case.name,
        "objective": case.objective,
        "path": case.path,
        "x": _hex(case.x),
        "eps": _hex(case.eps),
        "r": case.r.hex(),
        "t": case.t.hex(),
        "label": case.label,
        "guidance": guidance,
        "weight_power": case.weight_power.hex(),
        "weight_eps": case.weight_eps.hex(),
        "norm": case.norm,
        **last,
    }


def _field_to_json(data: FieldData) -> dict[str, Any]:
    if isinstance(data, MixtureData):
        parts = {name: [_hex(row) for row in rows] for name, rows in (("means", data.means), ("stds", data.stds))}
        return {"kind": "mixture", "dim": data.dim, "weights": _hex(data.weights), **parts}
    return {
        "kind": "guided",
        "dim": data.dim,
        "classes": [_field_to_json(one) for one in data.classes],
        "priors": _hex(data.priors),
        "label": data.label,
        "omega": data.omega.hex(),
        "kappa": data.kappa.hex(),
    }


def _network_to_json(data: NetworkData) -> dict[str, Any]:
    layers = [{"W": [_hex(row) for row in weight], "b": _hex(bias)} for weight, bias in data.layers]
    return {"dim": data.dim, "classes": data.classes, "layers": layers}


def _hex(values: Sequence[float]) -> list[str]:
    # An integer literal of the design has no hex.
    return [float(value).hex() for value in values]


def _pretty(value: Any, depth: int) -> Iterator[str]:
    """JSON with one line for each object without containers inside, and each list of plain values."""
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if not any(isinstance(part, dict | list) and part for part in parts) or _is_number(value):
        yield json.dumps(value)
        return
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    yield opening
    entries = value.items() if isinstance(value, dict) else ((None, part) for part in parts)
    for n, (key, part) in enumerate(entries):
        yield (",\n" if n else "\n") + " " * (depth + 1) + (f"{json.dumps(key)}: " if key is not None else "")
        yield from _pretty(part, depth + 1)
    yield "\n" + " " * depth + closing


def _is_number(value: Any) -> bool:
    return isinstance(value, dict) and "mid" in value


# ---------------------------------------------------------------- reading


def cases_of(text: str, where: str) -> list[Case]:
    """The cases of a file's text.

    Raises:
        VectorError: If the text is not such a file.

    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise VectorError(
            f"{where} is not JSON at line {error.lineno}: {error.msg}.", "a whole file", "restore the file"
        ) from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema not in SCHEMAS.values():
        raise VectorError(
            f"{where} has the schema {schema!r}.",
            " or ".join(SCHEMAS.values()),
            "update meanflow-ref to read newer files",
        )
    read = _Reader(where)
    try:
        if schema == SCHEMAS["fields"]:
            fields = {name: read.field(entry, name) for name, entry in document["fields"].items()}
            return [read.field_case(entry, fields) for entry in document["cases"]]
        networks = {name: read.network(entry, name) for name, entry in document["networks"].items()}
        return [read.loss_case(entry, networks) for entry in document["cases"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, VectorError):
            raise
        raise VectorError(
            f"{where}, {read.place}: {type(error).__name__} {error}.",
            f"a file of the schema {schema}",
            "restore the file",
        ) from error


def output_from_json(entry: Any, where: str) -> Output:
    """Numbers in their nesting."""
    if isinstance(entry, list):
        return tuple(output_from_json(part, where) for part in entry)
    return Number.from_json(entry, where)


class _Reader:
    """Reads the parts of a document and remembers where it is."""

    def __init__(self, where: str) -> None:
        self.where, self.place = where, "the head"

    def field(self, entry: Mapping[str, Any], name: str) -> FieldData:
        self.place = f"field {name}"
        if entry["kind"] == "mixture":
            return MixtureData(_vector(entry["weights"]), _matrix(entry["means"]), _matrix(entry["stds"]))
        if entry["kind"] != "guided":
            raise VectorError(f"{self.where}, {self.place}: kind {entry['kind']!r}.", "mixture or guided")
        classes = [self.field(one, name) for one in entry["classes"]]
        mixtures = tuple(one for one in classes if isinstance(one, MixtureData))
        scales = float.fromhex(entry["omega"]), float.fromhex(entry["kappa"])
        return GuidedData(mixtures, _vector(entry["priors"]), int(entry["label"]), *scales)

    def network(self, entry: Mapping[str, Any], name: str) -> NetworkData:
        self.place = f"network {name}"
        layers = tuple((_matrix(layer["W"]), _vector(layer["b"])) for layer in entry["layers"])
        return NetworkData(layers, int(entry["classes"]))

    def outputs(self, entry: Mapping[str, Any]) -> dict[str, Output]:
        return {
            name: output_from_json(value, f"{self.where}, {self.place}, {name}")
            for name, value in entry["outputs"].items()
        }

    def field_case(self, entry: Mapping[str, Any], fields: Mapping[str, FieldData]) -> FieldCase:
        self.place = f"case {entry.get('id')}"
        return FieldCase(
            id=entry["id"],
            name=entry["field"],
            field=fields[entry["field"]],
            path=entry["path"],
            z=_vector(entry["z"]),
            r=float.fromhex(entry["r"]),
            t=float.fromhex(entry["t"]),
            flags=tuple(entry["flags"]),
            note=entry["note"],
            outputs=self.outputs(entry),
        )

    def loss_case(self, entry: Mapping[str, Any], networks: Mapping[str, NetworkData]) -> LossCase:
        self.place = f"case {entry.get('id')}"
        guidance = entry["guidance"]
        return LossCase(
            id=entry["id"],
            name=entry["network"],
            network=networks[entry["network"]],
            objective=entry["objective"],
            path=entry["path"],
            x=_vector(entry["x"]),
            eps=_vector(entry["eps"]),
            r=float.fromhex(entry["r"]),
            t=float.fromhex(entry["t"]),
            label=entry["label"],
            guidance=None
            if guidance is None
            else (float.fromhex(guidance["omega"]), float.fromhex(guidance["kappa"]), int(guidance["null_label"])),
            weight_power=float.fromhex(entry["weight_power"]),
            weight_eps=float.fromhex(entry["weight_eps"]),
            norm=entry["norm"],
            flags=tuple(entry["flags"]),
            note=entry["note"],
            outputs=self.outputs(entry),
        )


def _vector(entries: Sequence[str]) -> tuple[float, ...]:
    return tuple(float.fromhex(entry) for entry in entries)


def _matrix(entries: Sequence[Sequence[str]]) -> Rows:
    return tuple(_vector(row) for row in entries)
