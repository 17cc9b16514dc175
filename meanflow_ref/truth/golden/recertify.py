"""Golden cases certified again, live: the frozen decimals must come out character by character."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from meanflow_ref.truth.golden.archive import Oracle
from meanflow_ref.truth.golden.data import Case, FieldCase
from meanflow_ref.truth.golden.produce import outputs_of


def differences(case: Case) -> list[str]:
    """Names of the outputs whose frozen numbers do not come out again."""
    fresh = outputs_of(case)
    names = dict.fromkeys([*fresh, *case.outputs])
    return [name for name in names if fresh.get(name) != case.outputs.get(name)]


def sample(cases: Sequence[Case], share: float, seed: int) -> list[Case]:
    """A seeded share of the cases, rounded up, in their order."""
    count = -(-len(cases) * round(share * 1000) // 1000)
    chosen = sorted(Random(seed).sample(range(len(cases)), count))
    return [cases[i] for i in chosen]


def cheap(oracle: Oracle, each: int, seed: int) -> Iterator[Case]:
    """A few cases that take some milliseconds: one-dimensional mixtures and small networks."""
    quick = [case for case in oracle.fields if oracle.files[case.id] == "fields-1d.json"]
    small = [case for case in oracle.losses if len(case.x) <= 2]
    yield from Random(seed).sample(quick, each)
    yield from Random(seed).sample(small, each)


def is_slow(case: Case) -> bool:
    """Whether certifying the case takes seconds."""
    return isinstance(case, FieldCase) and len(case.z) > 3
