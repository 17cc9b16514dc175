"""Plain data of the library's own fields."""

from __future__ import annotations

import torch
from torch import Tensor

from meanflow_ref.errors import CertificationError
from meanflow_ref.fields import AbstractField, ClassConditional, Gaussian, GaussianMixture, Guided
from meanflow_ref.truth.certified.fields import Combination, Mixture, merge


def exact_field(field: AbstractField) -> Mixture | Combination:
    """The plain data of one of the library's fields; its parameters are taken to be exact.

    Args:
        field: A :class:`~meanflow_ref.fields.GaussianMixture`, a :class:`~meanflow_ref.fields.Gaussian` whose
            covariance is diagonal, classes of such, or a guided field over them. The path is ``field.path``, apart.

    Raises:
        CertificationError: Another field, or parameters outside what can be certified; the message names the
            hypothesis.

    """
    if isinstance(field, GaussianMixture):
        kept = field.weights > 0
        return Mixture(_numbers(field.weights[kept]), _numbers(field.means[kept]), _numbers(field.stds[kept]))
    if isinstance(field, Gaussian):
        return _gaussian(field)
    if isinstance(field, ClassConditional):
        return _merged(field)
    if isinstance(field, Guided):
        label = _mixture(field.classes.conditional(field.label))
        return Combination.guided(label, _merged(field.classes), field.omega, field.kappa)
    raise CertificationError(
        f"{type(field).__name__} is not a normal mixture with diagonal covariances.",
        "the hypothesis that v is made of finitely many exponentials of quadratics: a GaussianMixture, a diagonal "
        "Gaussian, classes of them, or a guided field over these",
        "meanflow_ref.average_velocity has a float64 answer with an error estimate",
    )


def _mixture(field: AbstractField) -> Mixture:
    """The plain data of a field that must be one mixture."""
    found = exact_field(field)
    if isinstance(found, Mixture):
        return found
    raise CertificationError(f"a class is a {type(field).__name__}.", "classes that are data fields")


def _merged(field: ClassConditional) -> Mixture:
    """The law of all classes together."""
    kept = [(prior, one) for prior, one in zip(_numbers(field.priors), field.classes, strict=True) if prior > 0]
    return merge([prior for prior, _ in kept], [_mixture(one) for _, one in kept])


def _gaussian(field: Gaussian) -> Mixture:
    """A normal law with a diagonal covariance."""
    variances = torch.diagonal(field.covariance)
    if not torch.equal(torch.diag(variances), field.covariance):
        raise CertificationError(
            "the covariance of a Gaussian is not diagonal.",
            "the hypothesis of diagonal covariances",
            "turn it into its axes; a turned field has turned trajectories",
        )
    return Mixture.from_variances([1], [_numbers(field.mean)], [_numbers(variances)])


def _numbers(values: Tensor) -> list[float]:
    """A tensor as nested lists of floats; float32 and float64 are exact."""
    numbers: list[float] = values.detach().double().cpu().tolist()
    return numbers
