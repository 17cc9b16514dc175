"""What a stop-gradient step may cost: bounds on counts, which tests hold, and aims for times, which tables show.

Counts are the same on every run and machine, so that a test may hold them (``tests/bench/test_bounds.py``). Each bound
on kernels and memory is what was measured when it was written, and 2 % more: lower it when the engine gets better.
Times are not, and are nowhere asserted.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bound:
    """Most that a stop-gradient step may cost over the flow-matching step, all rows with r != t.

    Attributes:
        flops: Floating-point operations; the limit is 4/3.
        kernels: Operations that compute.
        peak: Largest memory alive at once; the limit is 1.
        kept: Memory alive when u and du/dt are there; the limit is 1.

    """

    flops: float
    kernels: float
    peak: float
    kept: float


# Method -> scenario -> bound.
BOUNDS: dict[str, dict[str, Bound]] = {
    "stopgrad": {
        "mlp": Bound(flops=1.36, kernels=1.59, peak=1.26, kept=1.05),
        "dit": Bound(flops=1.36, kernels=1.50, peak=1.05, kept=1.03),
        "unet": Bound(flops=1.36, kernels=1.49, peak=1.21, kept=1.03),
        "tiny": Bound(flops=1.36, kernels=1.62, peak=1.28, kept=1.03),
    },
    "stopgrad_traced": {
        "mlp": Bound(flops=1.36, kernels=1.58, peak=1.10, kept=1.05),
        "dit": Bound(flops=1.36, kernels=1.55, peak=1.03, kept=1.03),
        "unet": Bound(flops=1.36, kernels=1.48, peak=1.07, kept=1.03),
        "tiny": Bound(flops=1.36, kernels=1.60, peak=1.11, kept=1.03),
    },
}


@dataclass(frozen=True)
class Aim:
    """Time and peak memory over the flow-matching step that an engine should reach; None where none is set."""

    time: float
    peak: float | None = None

    def __str__(self) -> str:
        return f"{self.time:.2f}" + ("" if self.peak is None else f", {self.peak:.2f}")


# (method, share of rows with r != t) -> scenario -> aim on two CPU cores, one thread.
_EAGER = {"mlp": Aim(1.40, 1.08), "dit": Aim(1.46, 1.08), "unet": Aim(1.40, 1.20), "tiny": Aim(1.80)}
_EAGER_ROWS = {"mlp": Aim(1.15), "dit": Aim(1.22), "unet": Aim(1.22)}
_AIMS: dict[tuple[str, float], dict[str, Aim]] = {
    ("stopgrad", 1.0): _EAGER,
    ("stopgrad_traced", 1.0): _EAGER,
    ("stopgrad_rows", 0.25): _EAGER_ROWS,
    ("stopgrad_traced_rows", 0.25): {name: Aim(1.12) for name in ("mlp", "dit", "unet")},
    ("stopgrad_compiled", 1.0): {name: Aim(1.30, 1.05) for name in ("mlp", "dit", "unet")},
}


def aim_of(scenario: str, method: str, share: float) -> Aim | None:
    """The aim of a row, if one is set."""
    return _AIMS.get((method, share), {}).get(scenario)
