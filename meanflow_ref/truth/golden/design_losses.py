"""The loss targets of oracle 1: small perceptrons of short binary weights, and every option of the loss in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from random import Random

from meanflow_ref.truth.golden.data import PATHS, LossCase, NetworkData, fits
from meanflow_ref.truth.golden.flags import LOSS_FLAGS

# File -> networks by name: dimension, hidden widths, classes (the last of which is "no class").
FILES: dict[str, dict[str, tuple[int, tuple[int, ...], int]]] = {
    "losses": {"net-1": (1, (6,), 0), "net-2": (2, (7, 6), 0), "net-3": (3, (8,), 0), "net-5": (5, (6,), 0)},
    "losses-guided": {"net-1c": (1, (6,), 3), "net-2c": (2, (7, 5), 4), "net-3c": (3, (8,), 3)},
}
CASES = 66
# Power p and constant c of the adaptive weight.
WEIGHTS = ((1.0, 2.0**-10), (0.0, 1.0), (0.5, 1e-3), (1.0, 1e-3), (0.75, 0.01))
# omega and kappa: plain guidance, both, kappa alone, less than none.
SCALES = ((2.0, 0.0), (1.5, 0.25), (1.0, 0.5), (0.5, 0.0), (3.0, -0.5))


def network(rng: Random, dim: int, hidden: tuple[int, ...], classes: int) -> NetworkData:
    """Weights that are multiples of 1/64 below 3/4 in size."""
    widths = (dim + 2 + classes, *hidden, dim)

    def row(size: int) -> tuple[float, ...]:
        return tuple(rng.randrange(-47, 48) / 64 for _ in range(size))

    layers = tuple((tuple(row(n) for _ in range(m)), row(m)) for n, m in pairwise(widths))
    return NetworkData(layers, classes)


def networks(file: str) -> dict[str, NetworkData]:
    """The networks of one file."""
    return {name: network(Random(name), *shape) for name, shape in FILES[file].items()}


def loss_cases(file: str) -> Iterator[LossCase]:
    """The cases of one file, without ids and outputs: options in turn, with periods that share no factor."""
    nets, rng = networks(file), Random(file)
    for i in range(CASES):
        name = list(nets)[i % len(nets)]
        net, short = nets[name], (i // 4) % 2 == 0
        r, t = _times(rng, i, short)
        power, eps = WEIGHTS[i % len(WEIGHTS)]
        label, guidance = None, None
        if net.classes:
            null = net.classes - 1
            label = null if i % 7 == 6 else i % null
            guidance = (*SCALES[(i // 2) % len(SCALES)], null)
        case = LossCase(
            "", name, net, ("meanflow", "improved")[(i // 3) % 2], PATHS[(i // 2) % 3],
            _vector(rng, net.dim, short), _vector(rng, net.dim, short), r, t, label, guidance, power, eps,
            ("sum", "mean")[(i // 5) % 2], (), "",
        )  # fmt: skip
        flags = tuple(_flags(case))
        yield replace(case, flags=flags, note=_note(case, flags))


def _vector(rng: Random, size: int, short: bool) -> tuple[float, ...]:
    """Numbers of size about 1, multiples of 1/32 where they are to be short."""
    values = [sum(rng.random() for _ in range(12)) - 6 for _ in range(size)]
    # Adding zero turns -0.0 into 0.0.
    return tuple((round(x * 32) / 32 if short else round(x, 4)) + 0.0 for x in values)


def _times(rng: Random, i: int, short: bool) -> tuple[float, float]:
    """Of eleven cases, one has r = t, one a short interval, one is (0, 1)."""
    t = rng.randrange(40, 129) / 128 if short else round(0.3 + 0.7 * rng.random(), 4)
    if i % 11 == 3:
        return t, t
    if i % 11 == 7:
        return t - (2.0**-12 if short else 1e-6), t
    if i % 11 == 10:
        return 0.0, 1.0
    return (rng.randrange(0, int(t * 128) - 8) / 128 if short else round((t - 0.1) * rng.random(), 4)), t


def _flags(case: LossCase) -> Iterator[str]:
    """What the case is, in one flag for its interval and others for its options."""
    h = case.t - case.r
    yield "LIMIT" if h == 0 else "SHORT" if h <= 1e-3 else "ORDINARY"
    dropped = case.guidance is not None and case.label == case.guidance[2]
    conditions = {
        "WEIGHTED": case.weight_power > 0,
        "STOP_GRADIENT": h > 1e-3,
        "MEAN_NORM": case.norm == "mean" and case.network.dim > 1,
        "IMPROVED": case.objective == "improved",
        "GUIDED": case.guidance is not None and not dropped,
        "NULL_LABEL": dropped,
        "OTHER_PATH": case.path != "linear",
        "BFLOAT16_INPUTS": all(fits(x, "bfloat16") for x in case.inputs()),
        "FLOAT32_INPUTS": all(fits(x, "float32") for x in case.inputs()),
    }
    yield from (flag for flag, holds in conditions.items() if holds)


def _note(case: LossCase, flags: tuple[str, ...]) -> str:
    """What the case catches: its interval's mistake, and that of its rarest option."""
    rarest = next((flag for flag in ("NULL_LABEL", "GUIDED", "IMPROVED", "MEAN_NORM", "WEIGHTED") if flag in flags), "")
    also = f"; {LOSS_FLAGS[rarest].catches}" if rarest else ""
    return f"{case.name}, t - r = {case.t - case.r:.3g}. Catches {LOSS_FLAGS[flags[0]].catches}{also}."
