"""Figures that the MeanFlow paper reports, quoted so that claims about them can be checked. Not measured here.

All are FID-50K. Source: arXiv:2505.13447, Tables 1, 2, 3 and 5.
"""

from __future__ import annotations

# Affiliations printed under the title.
AFFILIATIONS = frozenset({"Carnegie Mellon University", "Massachusetts Institute of Technology"})

# Table 1, ImageNet 256, B/4, one evaluation. The default row of each is 61.06; no guidance but in the last.
RATIO = {0.0: 328.91, 0.25: 61.06, 0.5: 63.14, 1.0: 67.32}  # share of rows with r != t
TANGENT = {(1, 0, 1): 61.06, (1, 0, 0): 268.06, (1, 1, 0): 329.22, (1, 1, 1): 137.96}  # (v, dr, dt)
EMBEDDING = {"t, r": 61.75, "t, t-r": 61.06, "t, r, t-r": 63.98, "t-r": 63.13}
TIME_LAW = {"uniform": 65.90, "(-0.2, 1)": 63.83, "(-0.2, 1.2)": 64.72, "(-0.4, 1)": 61.06, "(-0.4, 1.2)": 61.79}
WEIGHT_POWER = {0.0: 79.75, 0.5: 63.98, 1.0: 61.06, 1.5: 66.57, 2.0: 69.19}
OMEGA = {1.0: 61.06, 1.5: 33.33, 2.0: 20.15, 3.0: 15.53, 5.0: 20.75}  # kappa = 0

# Table 5, at the effective scale 2.
KAPPA = {0.0: 20.15, 0.5: 19.15, 0.8: 19.10, 0.9: 18.63, 0.95: 19.17}

# Table 2, ImageNet 256.
ONE_STEP = {"iCT-XL/2": 34.24, "Shortcut-XL/2": 10.60, "MeanFlow-XL/2": 3.43}
MANY_STEPS = {"DiT-XL/2": 2.27, "SiT-XL/2": 2.06}  # 250 evaluations, guided

# Table 3, CIFAR-10, one evaluation. The first three are consistency models trained without a teacher.
CIFAR = {"iCT": 2.83, "ECT": 3.60, "sCT": 2.97, "IMM": 3.20, "MeanFlow": 2.92}


def spread(table: dict[float, float] | dict[str, float] | dict[tuple[int, int, int], float]) -> float:
    """Worst FID of a table less its best."""
    return max(table.values()) - min(table.values())
