"""Plain data of fields: exact numbers, and a clear refusal of what cannot be certified."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from meanflow_ref.errors import CertificationError, MeanFlowError, ParameterError, ShapeError
from meanflow_ref.fields import ClassConditional, Gaussian, GaussianMixture, Guided, PointMasses
from meanflow_ref.paths import LINEAR, CallablePath
from meanflow_ref.truth.certified import Combination, Mixture, certified_truth, exact_field, merge
from meanflow_ref.truth.certified.schedules import schedule_of


def floats(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_weights_of_any_sum_mean_their_shares() -> None:
    assert Mixture([5, 3, 2], [0, 1, 2], [1, 1, 1]).weights == (Fraction(1, 2), Fraction(3, 10), Fraction(1, 5))
    weights = Mixture([0.5, 0.3, 0.2], [0, 1, 2], [1, 1, 1]).weights
    assert sum(weights) == 1
    # The float64 of 0.3 and 0.2 are not 3/10 and 1/5.
    assert weights != (Fraction(1, 2), Fraction(3, 10), Fraction(1, 5))
    assert weights[1] / weights[2] == Fraction(0.3) / Fraction(0.2)


def test_deviations_are_squared_without_rounding() -> None:
    mixture = Mixture([1], [[0.0, 0.0]], [0.1])
    assert mixture.variances == ((Fraction(0.1) ** 2,) * 2,)
    assert mixture.dim == 2


def test_the_library_s_mixture_arrives_whole() -> None:
    stds = torch.tensor([[0.3, 0.4], [0.5, 0.6]], dtype=torch.float64)
    field = GaussianMixture(floats(0.25, 0.75), torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64), stds)
    found = exact_field(field)
    assert found == Mixture([1, 3], [[1, 2], [3, 4]], [[0.3, 0.4], [0.5, 0.6]])


def test_float32_parameters_and_zero_weights() -> None:
    field = GaussianMixture(torch.tensor([1.0, 0.0]), torch.tensor([0.1, 5.0]), torch.tensor([0.2, 0.3]))
    narrow = float(torch.tensor(0.1))
    assert exact_field(field) == Mixture([1], [narrow], [float(torch.tensor(0.2))])


def test_a_diagonal_gaussian_keeps_its_variances() -> None:
    found = exact_field(Gaussian(floats(1.0, -2.0), torch.diag(floats(0.3, 2.0))))
    assert found == Mixture.from_variances([1], [[1, -2]], [[0.3, 2]])


def test_guided_scale_is_rational() -> None:
    one = GaussianMixture(floats(1.0), floats(-1.0), floats(0.5))
    two = GaussianMixture(floats(1.0), floats(1.5), floats(0.25))
    classes = ClassConditional((one, two), floats(0.25, 0.75))
    found = exact_field(Guided(classes, 1, 1.5, 0.4))
    scale = Fraction(1.5) / (1 - Fraction(0.4))
    both = Mixture([1, 3], [-1, 1.5], [0.5, 0.25])
    assert isinstance(found, Combination)
    assert found.terms == ((scale, Mixture([1], [1.5], [0.25])), (1 - scale, both))
    assert merge([1, 3], [Mixture([1], [-1], [0.5]), Mixture([1], [1.5], [0.25])]) == both


def refused(field: object, hypothesis: str) -> None:
    with pytest.raises(CertificationError, match=hypothesis):
        exact_field(field)  # type: ignore[arg-type]


def test_what_cannot_be_certified_names_the_hypothesis() -> None:
    refused(PointMasses(floats(0.0, 1.0)[:, None], floats(0.5, 0.5)), "finitely many exponentials")
    tilted = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    refused(Gaussian(floats(0.0, 0.0), tilted), "diagonal covariances")
    with pytest.raises(CertificationError, match="every weight is positive"):
        Mixture([1, 0], [0, 1], [1, 1])
    with pytest.raises(CertificationError, match="every deviation is positive"):
        Mixture([1, 1], [0, 1], [1, 0])
    with pytest.raises(CertificationError, match="every deviation is positive"):
        Mixture([1, 1], [0, 1], [1, -1])
    with pytest.raises(CertificationError, match="a sum of exactly 1"):
        Combination([(2, Mixture([1], [0], [1])), (-0.5, Mixture([1], [1], [1]))])
    drawn = CallablePath(lambda t: 1 - t, lambda t: t)
    with pytest.raises(CertificationError, match="alpha and sigma are formulas"):
        schedule_of(drawn)


def test_bad_input_gives_one_clear_error() -> None:
    with pytest.raises(ShapeError, match="2 weights, 3 means"):
        Mixture([1, 1], [0, 1, 2], [1, 1])
    with pytest.raises(ShapeError, match="deviations of sizes"):
        Mixture([1], [[0, 1, 2]], [[1, 1]])
    with pytest.raises(ParameterError, match="finite numbers"):
        Mixture([1], [float("nan")], [1])
    with pytest.raises(ParameterError, match="kappa < 1"):
        Combination.guided(Mixture([1], [0], [1]), Mixture([1], [1], [1]), 2.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0], 0.5, 0.2), "0 <= r <= t <= 1"),
        (([0.0], -0.1, 0.2), "0 <= r <= t <= 1"),
        (([0.0], 0.0, 1.5), "0 <= r <= t <= 1"),
        (([0.0, 1.0], 0.0, 1.0), "has dimension 1"),
        (([float("inf")], 0.0, 1.0), "finite"),
        (([0.0], 0.0, float("nan")), "finite"),
    ],
)
def test_the_front_door_checks_its_arguments(arguments: tuple[list[float], float, float], message: str) -> None:
    with pytest.raises(MeanFlowError, match=message):
        certified_truth(Mixture([1], [0], [1]), *arguments)


def test_the_front_door_refuses_what_does_not_fit() -> None:
    guided = Combination.guided(Mixture([1], [0], [1]), Mixture([1], [1], [1]), 2.0)
    with pytest.raises(CertificationError, match="one mixture in one dimension"):
        certified_truth(guided, 0.0, 0.0, 1.0, method="quantile")
    field = GaussianMixture(floats(1.0), floats(1.0), floats(0.5))
    with pytest.raises(ParameterError, match="the field's path"):
        certified_truth(field, 0.0, 0.0, 1.0, path=CallablePath(lambda t: 1 - t, lambda t: t))
    with pytest.raises(ParameterError, match="a Mixture or a Combination"):
        certified_truth("mixture", 0.0, 0.0, 1.0)  # type: ignore[arg-type]
    assert certified_truth(field, 0.5, 0.0, 1.0, path=LINEAR).u[0].digits >= 36
