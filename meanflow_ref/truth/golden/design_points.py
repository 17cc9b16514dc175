"""Where the fields of oracle 1 are evaluated: seeded draws by region, the hard regions on purpose.

Only additions, products, quotients and roundings enter, which IEEE 754 fixes: every machine draws the same states.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random

from meanflow_ref.truth.golden import design_fields
from meanflow_ref.truth.golden.data import PATHS, FieldCase, FieldData, GuidedData, fits
from meanflow_ref.truth.golden.design_fields import Subject
from meanflow_ref.truth.golden.flags import FIELD_FLAGS

NARROW = 0.0625
# Properties of a field, the rarest first: the note tells of the first that a case has.
TELLING = ("GUIDED", "NARROW_MODES", "OTHER_PATH", "UNEQUAL_WIDTHS", "UNEQUAL_WEIGHTS")


@dataclass(frozen=True)
class Drawn:
    """A state with its times."""

    z: tuple[float, ...]
    r: float
    t: float


def _normal(rng: Random) -> float:
    """Nearly normal: the sum of twelve uniform numbers."""
    return sum(rng.random() for _ in range(12)) - 6


def _short(x: float) -> float:
    """The bfloat16 below ``x`` in size."""
    value: float = struct.unpack(">f", struct.pack(">f", x)[:2] + b"\0\0")[0]
    return value


def _tidy(rng: Random, z: list[float], short: bool) -> tuple[float, ...]:
    """``z`` as bfloat16 numbers, or with four decimals."""
    # Adding zero turns -0.0 into 0.0.
    return tuple((_short(x) if short else round(x, 4)) + 0.0 for x in z)


def _state(rng: Random, data: FieldData, t: float) -> list[float]:
    """A state from the field's law at about time t on the linear path."""
    mixture = data.classes[data.label] if isinstance(data, GuidedData) else data
    k, point = 0, rng.random()
    while k + 1 < len(mixture.weights) and point > mixture.weights[k]:
        point, k = point - mixture.weights[k], k + 1
    rows = zip(mixture.means[k], mixture.stds[k], strict=True)
    return [(1 - t) * (mean + std * _normal(rng)) + t * _normal(rng) for mean, std in rows]


def _pair(rng: Random, low: float, high: float, short: bool) -> tuple[float, float]:
    """Two times in order, multiples of 1/128 where they are to be short."""
    while True:
        times = sorted(low + (high - low) * rng.random() for _ in range(2))
        r, t = (round(x * 128) / 128 if short else round(x, 4) for x in times)
        if t - r >= 1 / 32:
            return r, t


def _ordinary(rng: Random, subject: Subject, short: bool) -> Drawn:
    r, t = _pair(rng, 0.05, 0.95, short)
    return Drawn(_tidy(rng, _state(rng, subject.data, t), short), r, t)


def _one_step(rng: Random, subject: Subject, short: bool) -> Drawn:
    return Drawn(_tidy(rng, [_normal(rng) for _ in range(subject.data.dim)], short), 0.0, 1.0)


def _limit(rng: Random, subject: Subject, short: bool) -> Drawn:
    t = rng.choice([1.0, 0.5, 0.25, 0.125]) if short else round(rng.random(), 4)
    return Drawn(_tidy(rng, _state(rng, subject.data, t), short), t, t)


def _brief(rng: Random, subject: Subject, short: bool) -> Drawn:
    t = rng.choice([1.0, 0.75, 0.5, 0.25]) if short else round(0.05 + 0.9 * rng.random(), 4)
    h = 2.0 ** -rng.randrange(10, 41) if short else 10.0 ** -rng.randrange(3, 13)
    return Drawn(_tidy(rng, _state(rng, subject.data, t), short), t - h, t)


def _near_data(rng: Random, subject: Subject, short: bool) -> Drawn:
    t = 2.0 ** -rng.randrange(5, 15) if short else round(0.05 * rng.random(), 5) + 1e-5
    r = rng.choice([0.0, t / 4, t / 2])
    return Drawn(_tidy(rng, _state(rng, subject.data, t), short), r, t)


def _near_noise(rng: Random, subject: Subject, short: bool) -> Drawn:
    t = 1.0 if short else round(0.99 + 0.01 * rng.random(), 5)
    r = rng.choice([123 / 128, 125 / 128, 127 / 128]) if short else round(0.951 + 0.038 * rng.random(), 5)
    return Drawn(_tidy(rng, _state(rng, subject.data, t), short), r, t)


def _far_tail(rng: Random, subject: Subject, short: bool) -> Drawn:
    r, t = _pair(rng, 0.1, 1.0, short)
    axis, sign, scale = rng.randrange(subject.data.dim), rng.choice([-1, 1]), rng.choice([12, 40, 150])
    # In several dimensions a trajectory is followed, and not from everywhere.
    far = sign * (scale if subject.data.dim == 1 else min(scale, 80)) * (1 - rng.random() / 3)
    z = _state(rng, subject.data, t)
    z[axis] += far * max(t, (1 - t) * _widest(subject.data))
    return Drawn(_tidy(rng, z, short), r, t)


def _separatrix(rng: Random, subject: Subject, short: bool) -> Drawn:
    assert subject.split is not None
    point, direction = subject.split
    # The nearer, the larger J; through how many dimensions matters little.
    off = rng.choice([-1, 1]) * (2.0 ** -rng.randrange(10, 31) if short else round(1e-3 * rng.random(), 9))
    r = rng.choice([0.0, 0.0, 1 / 16, 1 / 8])
    return Drawn(tuple(p + off * x for p, x in zip(point, direction, strict=True)), r, 1.0)


def _widest(data: FieldData) -> float:
    mixtures = data.classes if isinstance(data, GuidedData) else (data,)
    return max(std for mixture in mixtures for row in mixture.stds for std in row)


REGIONS: dict[str, Callable[[Random, Subject, bool], Drawn]] = {
    "ORDINARY": _ordinary,
    "ONE_STEP": _one_step,
    "LIMIT": _limit,
    "SHORT": _brief,
    "NEAR_DATA": _near_data,
    "NEAR_NOISE": _near_noise,
    "FAR_TAIL": _far_tail,
    "SEPARATRIX": _separatrix,
}

# File -> its fields, and the number of cases in each region, in the order of REGIONS.
FILES: dict[str, tuple[Mapping[str, Subject], tuple[int, ...]]] = {
    "fields-1d": (design_fields.LINE, (160, 85, 60, 85, 65, 45, 75, 65)),
    "fields-2d": (design_fields.PLANE, (50, 30, 16, 24, 20, 14, 22, 24)),
    "fields-3d": (design_fields.SPACE, (26, 14, 8, 12, 10, 6, 12, 12)),
    "fields-8d": (design_fields.EIGHT, (3, 2, 1, 2, 1, 1, 1, 1)),
    "fields-guided": (design_fields.GUIDED, (24, 14, 8, 8, 8, 5, 5, 0)),
}


def field_cases(file: str) -> Iterator[FieldCase]:
    """The cases of one file, without ids and outputs: fields in turn, paths in turn, every other one in bfloat16."""
    subjects, counts = FILES[file]
    for (region, draw), count in zip(REGIONS.items(), counts, strict=True):
        rng = Random(f"{file} {region}")
        seen: set[tuple[str, str, Drawn]] = set()
        able = [name for name, subject in subjects.items() if region != "SEPARATRIX" or subject.split]
        for i in range(count):
            name, path = able[i % len(able)], PATHS[(i // len(able) + i) % len(PATHS)]
            subject = subjects[name]
            drawn = draw(rng, subject, (i // len(able)) % 2 == 0)
            while (name, path, drawn) in seen:
                drawn = draw(rng, subject, (i // len(able)) % 2 == 0)
            seen.add((name, path, drawn))
            case = FieldCase("", name, subject.data, path, drawn.z, drawn.r, drawn.t, (), "")
            flags = (region, *_properties(case))
            yield FieldCase(
                "", name, subject.data, path, drawn.z, drawn.r, drawn.t, flags, _note(case, region, subject, flags)
            )


def _properties(case: FieldCase) -> Iterator[str]:
    """Flags that follow from the field, the path and the inputs."""
    data = case.field
    mixtures = data.classes if isinstance(data, GuidedData) else (data,)
    priors = data.priors if isinstance(data, GuidedData) else (1.0,)
    if len({p * weight for p, mixture in zip(priors, mixtures, strict=True) for weight in mixture.weights}) > 1:
        yield "UNEQUAL_WEIGHTS"
    widths = {row for mixture in mixtures for row in mixture.stds}
    if len(widths) > 1:
        yield "UNEQUAL_WIDTHS"
    if min(std for row in widths for std in row) <= NARROW:
        yield "NARROW_MODES"
    if case.path != "linear":
        yield "OTHER_PATH"
    if isinstance(data, GuidedData):
        yield "GUIDED"
    for dtype in ("bfloat16", "float32"):
        if all(fits(x, dtype) for x in case.inputs()):
            yield f"{dtype.upper()}_INPUTS"


def _note(case: FieldCase, region: str, subject: Subject, flags: tuple[str, ...]) -> str:
    """What the case catches, in its own numbers: its region's mistake, and that of its rarest property."""
    h = case.t - case.r
    where = {
        "ORDINARY": f"t - r = {h:.3g}",
        "ONE_STEP": "one step from noise to data",
        "LIMIT": f"r = t = {case.t:.5g}",
        "SHORT": f"t - r = {h:.1e}",
        "NEAR_DATA": f"t = {case.t:.2e}, r = {case.r:.2e}",
        "NEAR_NOISE": f"r = {case.r:.4g}, t = {case.t:.5g}",
        "FAR_TAIL": f"|z| = {max(map(abs, case.z)):.3g} at t = {case.t:.3g}",
        "SEPARATRIX": f"z = ({', '.join(f'{x:.3g}' for x in case.z[:3])}{', ...' if len(case.z) > 3 else ''})",
    }[region]
    special = f" ({subject.note})" if subject.note else ""
    also = next((f"; {FIELD_FLAGS[flag].catches}" for flag in TELLING if flag in flags), "")
    return f"{case.name}{special}, {where}. Catches {FIELD_FLAGS[region].catches}{also}."
