"""Golden vectors: frozen values of average velocities and loss targets, each certified to 30 digits and more.

Reading them needs the standard library alone; certifying them again needs ``meanflow-ref[truth]``.
"""

from __future__ import annotations

from meanflow_ref.truth.golden.archive import ORACLES, Oracle, latest, load
from meanflow_ref.truth.golden.data import Case, FieldCase, GuidedData, LossCase, MixtureData, NetworkData, flat
from meanflow_ref.truth.golden.number import Number

__all__ = [
    "ORACLES",
    "Case",
    "FieldCase",
    "GuidedData",
    "LossCase",
    "MixtureData",
    "NetworkData",
    "Number",
    "Oracle",
    "flat",
    "latest",
    "load",
]
