"""From a case to its certified outputs, on several processes, with what is done kept in a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from meanflow_ref.errors import CertificationError
from meanflow_ref.files import write_atomic
from meanflow_ref.truth.certified import (
    Combination,
    Enclosure,
    GuidanceScales,
    Mixture,
    TanhNetwork,
    certified_loss,
    certified_truth,
    merge,
)
from meanflow_ref.truth.golden.data import Case, FieldCase, FieldData, MixtureData, Output
from meanflow_ref.truth.golden.document import output_from_json, output_to_json
from meanflow_ref.truth.golden.number import published
from meanflow_ref.truth.golden.rebuild import path_of

# Published digits: 1-D mixtures, other fields, losses. A published number certifies one digit less, or all of them.
LINE_DIGITS, FIELD_DIGITS, LOSS_DIGITS = 38, 32, 32
# Digits beyond those, at each attempt: an attempt fails where a ball straddles the border between two decimals.
SPARE_DIGITS = (4, 12, 30)
FIELD_OUTPUTS = ("v", "u", "du_dt", "dr_u", "end", "v_end", "log_det_jacobian", "dz_u", "jacobian")
LOSS_OUTPUTS = (
    *("z", "v", "tangent", "u", "du_dt", "target"),
    *("squared_error", "weight", "loss", "dloss_du", "gradient"),
)


def ball_field(data: FieldData) -> Mixture | Combination:
    """The field as exact data of the certified room."""
    if isinstance(data, MixtureData):
        return Mixture(data.weights, data.means, data.stds)
    classes = [Mixture(one.weights, one.means, one.stds) for one in data.classes]
    return Combination.guided(classes[data.label], merge(data.priors, classes), data.omega, data.kappa)


def outputs_of(case: Case) -> dict[str, Output]:
    """The certified outputs of a case.

    Raises:
        CertificationError: A hypothesis fails (the message names it), or some ball straddles two decimals however
            narrow.

    """
    evaluate, names, digits = (
        (_field, FIELD_OUTPUTS, LINE_DIGITS if isinstance(case.field, MixtureData) and len(case.z) == 1 else 0)
        if isinstance(case, FieldCase)
        else (_loss, LOSS_OUTPUTS, LOSS_DIGITS)
    )
    digits = digits or FIELD_DIGITS
    for spare in SPARE_DIGITS:
        truth = evaluate(case, digits + spare)
        try:
            return {name: _published(getattr(truth, name), digits) for name in names}
        except _StraddlesError:
            continue
    raise CertificationError(
        f"an output of {case.name} at r = {case.r}, t = {case.t} lies on the border between two decimals.",
        f"a true value that is not within 1e-{digits + SPARE_DIGITS[-1]} of it",
    )


class _StraddlesError(Exception):
    """A ball's ends round to different decimals."""


def _published(value: Any, digits: int) -> Output:
    """Numbers of balls, in the same nesting."""
    if not isinstance(value, Enclosure):
        return tuple(_published(part, digits) for part in value)
    number = published(value, digits)
    if number is None:
        raise _StraddlesError
    return number


def _field(case: Any, digits: int) -> Any:
    z = case.z if len(case.z) > 1 else case.z[0]
    field, path = ball_field(case.field), path_of(case.path)
    return certified_truth(field, z, case.r, case.t, path=path, digits=digits, jacobian=True)


def _loss(case: Any, digits: int) -> Any:
    return certified_loss(
        TanhNetwork(case.network.layers, case.network.classes),
        case.x,
        case.eps,
        case.r,
        case.t,
        path=path_of(case.path),
        objective=case.objective,
        label=case.label,
        guidance=None if case.guidance is None else GuidanceScales(*case.guidance),
        weight_power=case.weight_power,
        weight_eps=case.weight_eps,
        norm=case.norm,
        digits=digits,
    )


def produce(
    cases: Sequence[Case], jobs: int = 1, cache: Path | None = None, report: Callable[[int], None] | None = None
) -> list[Case]:
    """The cases with their outputs, in order.

    Args:
        cases: Cases without outputs.
        jobs: Worker processes.
        cache: Folder of finished cases, so that an interrupted run goes on where it was.
        report: Called with the number of finished cases.

    """
    finished: list[Case] = []
    for outputs in _all_outputs(cases, jobs, cache):
        finished.append(replace(cases[len(finished)], outputs=outputs))
        if report is not None:
            report(len(finished))
    return finished


def _all_outputs(cases: Sequence[Case], jobs: int, cache: Path | None) -> Iterable[dict[str, Output]]:
    work = [(case, cache) for case in cases]
    if jobs == 1:
        yield from map(_cached, work)
        return
    # Spawned, since torch's threads do not survive a fork.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_cached, work, chunksize=1)


def _cached(work: tuple[Case, Path | None]) -> dict[str, Output]:
    """The outputs of a case, from the folder or into it."""
    case, cache = work
    if cache is None:
        return outputs_of(case)
    key = hashlib.sha256(repr(replace(case, id="", flags=(), note="", outputs={})).encode()).hexdigest()
    path = cache / f"{key}.json"
    if path.exists():
        stored: dict[str, Any] = json.loads(path.read_text())
        return {name: output_from_json(entry, name) for name, entry in stored.items()}
    outputs = outputs_of(case)
    write_atomic(path, json.dumps({name: output_to_json(value) for name, value in outputs.items()}))
    return outputs
