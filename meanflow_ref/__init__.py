"""meanflow_ref: exact truth, a reference loss and proofs for MeanFlow (one-step generation by average velocity).

Names load on first use, so that ``import meanflow_ref`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meanflow_ref.convention import Convention
    from meanflow_ref.fields.compose import Product
    from meanflow_ref.fields.gaussian import Gaussian
    from meanflow_ref.fields.guided import ClassConditional, Guided
    from meanflow_ref.fields.mixture import GaussianMixture
    from meanflow_ref.fields.points import PointMasses
    from meanflow_ref.fields.shell import Shell
    from meanflow_ref.fields.uniform import UniformBoxes
    from meanflow_ref.kit.distributed.check import check_distributed
    from meanflow_ref.kit.guidance.check import check_guidance
    from meanflow_ref.kit.loss.check import check_loss
    from meanflow_ref.kit.network.check import check_network
    from meanflow_ref.kit.plugin import meanflow_checks
    from meanflow_ref.kit.sampler import check_sampler
    from meanflow_ref.kit.times import check_times
    from meanflow_ref.objectives.guidance import Guidance
    from meanflow_ref.objectives.meanflow import meanflow_loss
    from meanflow_ref.objectives.times import LogitNormalPair, UniformPair
    from meanflow_ref.paths import LinearPath, TrigonometricPath, VariancePreservingPath
    from meanflow_ref.sampling import sample
    from meanflow_ref.truth import average_velocity

__version__ = "0.1.0"

# Public name -> the module that defines it.
_PUBLIC = {
    "ClassConditional": "fields.guided",
    "Convention": "convention",
    "Gaussian": "fields.gaussian",
    "GaussianMixture": "fields.mixture",
    "Guidance": "objectives.guidance",
    "Guided": "fields.guided",
    "LinearPath": "paths",
    "LogitNormalPair": "objectives.times",
    "PointMasses": "fields.points",
    "Product": "fields.compose",
    "Shell": "fields.shell",
    "TrigonometricPath": "paths",
    "UniformBoxes": "fields.uniform",
    "UniformPair": "objectives.times",
    "VariancePreservingPath": "paths",
    "average_velocity": "truth",
    "check_distributed": "kit.distributed.check",
    "check_guidance": "kit.guidance.check",
    "check_loss": "kit.loss.check",
    "check_network": "kit.network.check",
    "check_sampler": "kit.sampler",
    "check_times": "kit.times",
    "meanflow_checks": "kit.plugin",
    "meanflow_loss": "objectives.meanflow",
    "sample": "sampling",
}

__all__ = [
    "ClassConditional",
    "Convention",
    "Gaussian",
    "GaussianMixture",
    "Guidance",
    "Guided",
    "LinearPath",
    "LogitNormalPair",
    "PointMasses",
    "Product",
    "Shell",
    "TrigonometricPath",
    "UniformBoxes",
    "UniformPair",
    "VariancePreservingPath",
    "__version__",
    "average_velocity",
    "check_distributed",
    "check_guidance",
    "check_loss",
    "check_network",
    "check_sampler",
    "check_times",
    "meanflow_checks",
    "meanflow_loss",
    "sample",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    from difflib import get_close_matches

    near = get_close_matches(name, _PUBLIC, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
