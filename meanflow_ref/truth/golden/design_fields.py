"""The fields of oracle 1: short binary fractions, so that any language and most precisions hold them exactly."""

from __future__ import annotations

from dataclasses import dataclass

from meanflow_ref.truth.golden.data import FieldData, GuidedData, MixtureData


@dataclass(frozen=True)
class Subject:
    """A field, and where at t = 1 the boundary between two of its modes runs.

    Attributes:
        data: The field.
        split: A point of that boundary and a direction across it; None where modes are not apart.
        note: What is special about it.

    """

    data: FieldData
    split: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    note: str = ""


def _line(weights: list[float], means: list[float], stds: list[float]) -> MixtureData:
    return MixtureData(tuple(weights), tuple((m,) for m in means), tuple((s,) for s in stds))


def _space(weights: list[float], means: list[list[float]], stds: list[list[float]]) -> MixtureData:
    full = (std * len(means[0]) if len(std) == 1 else std for std in stds)
    return MixtureData(tuple(weights), tuple(map(tuple, means)), tuple(map(tuple, full)))


_AT_ZERO = ((0.0,), (1.0,))
_HALVES = [0.5, 0.5]

LINE: dict[str, Subject] = {
    "normal": Subject(_line([1], [0.5], [0.75]), note="one normal law: closed by a square root"),
    "standard": Subject(_line([1], [0], [1]), note="data and noise have one law"),
    "spike": Subject(_line([1], [-1], [2.0**-7]), note="nearly a point"),
    "broad": Subject(_line([1], [2], [5]), note="data broader than the noise"),
    "pair": Subject(_line(_HALVES, [-1, 1], [0.25, 0.25]), _AT_ZERO),
    "pair-narrow": Subject(_line(_HALVES, [-2, 2], [13 / 256, 13 / 256]), _AT_ZERO),
    "pair-needles": Subject(_line(_HALVES, [-2, 2], [2.0**-7, 2.0**-7]), _AT_ZERO),
    # At t = 1 the boundaries are the normal quantiles of the cumulative weights, 1/2 and 13/16.
    "triple": Subject(_line([0.5, 0.3125, 0.1875], [-1.5, 0.375, 2], [0.3125, 0.25, 0.1875]), _AT_ZERO),
    "triple-right": Subject(_line([0.5, 0.3125, 0.1875], [-1, 0.5, 3], [0.125, 0.25, 0.125]), ((0.887146,), (1.0,))),
    "rare": Subject(_line([1 - 2.0**-20, 2.0**-20], [0, 6], [1, 0.5]), note="a mode of weight 2^-20"),
    "comb": Subject(_line([0.125, 0.25, 0.25, 0.25, 0.125], [-2, -1, 0, 1, 2], [0.1875, 0.125, 0.25, 0.125, 0.1875])),
    "scales": Subject(
        _line([0.5, 0.375, 0.125], [0, 0, 0], [0.125, 1, 4]), note="one mean, three widths: a heavy-tailed law"
    ),
    "shifted": Subject(_line([0.625, 0.375], [10, 11.5], [0.25, 0.5]), note="all data far from the noise"),
    "merged": Subject(_line([0.75, 0.25], [-0.25, 0.375], [0.5, 0.625]), note="two components, one hump"),
    "far-apart": Subject(_line(_HALVES, [-30, 30], [1, 1]), _AT_ZERO, "modes sixty deviations apart"),
}

PLANE: dict[str, Subject] = {
    "plane-normal": Subject(_space([1], [[0.5, -1]], [[0.25, 2]]), note="one normal law of unequal axes"),
    "plane-triple": Subject(
        _space([0.5, 0.3125, 0.1875], [[-1, 0.5], [1.25, 0.375], [0.125, -1.125]], [[0.3125], [0.5], [0.375]])
    ),
    "plane-pair": Subject(_space(_HALVES, [[-1.5, -0.5], [1.5, 0.5]], [[0.25], [0.25]]), ((0.0, 0.0), (1.0, 0.3125))),
    "plane-narrow": Subject(_space(_HALVES, [[-1, 1], [1, -1]], [[0.0625], [0.0625]]), ((0.25, 0.25), (1.0, -1.0))),
    "plane-axes": Subject(
        _space([0.625, 0.375], [[-0.75, 0], [1, 0.5]], [[0.125, 0.75], [0.5, 0.1875]]),
        note="widths that differ by coordinate and by component",
    ),
    "plane-square": Subject(
        _space([0.25] * 4, [[-1, -1], [-1, 1], [1, -1], [1, 1]], [[0.25], [0.25], [0.25], [0.25]]),
        ((0.0, 0.625), (1.0, 0.0)),
        "a product of two pairs: u is that of the pair in each coordinate",
    ),
}

SPACE: dict[str, Subject] = {
    "space-quad": Subject(
        _space(
            [0.375, 0.25, 0.25, 0.125],
            [[1, 0, 0.5], [-1, 0.75, 0], [0, -1.25, -0.5], [0.25, 0.5, 1.5]],
            [[0.375], [0.5], [0.3125], [0.25]],
        )
    ),
    "space-pair": Subject(
        _space(_HALVES, [[-1, 0.5, 0.25], [1, -0.5, -0.25]], [[0.25], [0.25]]), ((0.0, 0.0, 0.0), (1.0, -0.5, 0.0))
    ),
    "space-axes": Subject(
        _space([0.75, 0.25], [[0.5, 0, -1], [-0.5, 1, 1]], [[0.25, 0.5, 1], [0.75, 0.1875, 0.375]]),
        note="widths that differ by coordinate and by component",
    ),
}


def _corner(k: int) -> list[float]:
    """One of four points of the cube in eight dimensions, shifted so that nothing is symmetric."""
    return [(1.0 if (k >> (i % 2)) & 1 else -1.0) * (1 if i < 4 else 0.5) + i / 32 for i in range(8)]


EIGHT: dict[str, Subject] = {
    "eight-quad": Subject(_space([0.375, 0.25, 0.25, 0.125], [_corner(k) for k in range(4)], [[0.5]] * 4)),
    "eight-pair": Subject(
        _space(_HALVES, [[0.5] * 8, [-0.5] * 8], [[0.375], [0.375]]), ((0.0,) * 8, (1.0,) + (0.0,) * 7)
    ),
}


def _guided(classes: list[MixtureData], priors: list[float], label: int, omega: float, kappa: float) -> GuidedData:
    return GuidedData(tuple(classes), tuple(priors), label, omega, kappa)


_LEFT, _RIGHT = _line([1], [-1], [0.375]), _line([0.75, 0.25], [1, 2.5], [0.25, 0.375])
_NEAR = _space([0.625, 0.375], [[-1, 0.5], [1.25, 0.375]], [[0.3125], [0.5]])
_FAR = _space([1], [[0.125, -1.125]], [[0.375]])
_DEEP, _HIGH = _space([1], [[-1, 0.5, 0]], [[0.375]]), _space(_HALVES, [[1, 0, 0.5], [0, 1, -0.5]], [[0.25], [0.5]])

GUIDED: dict[str, Subject] = {
    "guided-line": Subject(_guided([_LEFT, _RIGHT], [0.75, 0.25], 1, 2.0, 0.0), note="omega' = 2"),
    "guided-line-kappa": Subject(_guided([_LEFT, _RIGHT], [0.5, 0.5], 0, 1.0, 0.5), note="omega' = 2 by kappa alone"),
    "guided-plane": Subject(_guided([_NEAR, _FAR], [0.625, 0.375], 0, 1.5, 0.25), note="omega' = 2"),
    "guided-plane-strong": Subject(_guided([_NEAR, _FAR], [0.25, 0.75], 1, 4.0, 0.0), note="omega' = 4"),
    "guided-plane-weak": Subject(_guided([_NEAR, _FAR], [0.5, 0.5], 0, 0.5, 0.0), note="omega' = 1/2, less than none"),
    "guided-space": Subject(_guided([_DEEP, _HIGH], [0.375, 0.625], 1, 1.25, 0.375), note="omega' = 2"),
}
