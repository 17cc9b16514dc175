"""Certified truth: enclosures of the average velocity that are proved, in ball arithmetic (python-flint)."""

from __future__ import annotations

from meanflow_ref.truth.certified.balls import Enclosure, working_precision
from meanflow_ref.truth.certified.certify import certified_truth
from meanflow_ref.truth.certified.convert import exact_field
from meanflow_ref.truth.certified.fields import Combination, Mixture, merge
from meanflow_ref.truth.certified.loss import CertifiedLoss, GuidanceScales, certified_loss
from meanflow_ref.truth.certified.network import TanhNetwork
from meanflow_ref.truth.certified.result import CertifiedTruth

__all__ = [
    "CertifiedLoss",
    "CertifiedTruth",
    "Combination",
    "Enclosure",
    "GuidanceScales",
    "Mixture",
    "TanhNetwork",
    "certified_loss",
    "certified_truth",
    "exact_field",
    "merge",
    "working_precision",
]
