"""Arguments of a wrong type are refused when a field is built, each with its own message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import meanflow_ref as mf
from meanflow_ref.errors import MeanFlowError
from meanflow_ref.fields import Uniform

ONE = torch.ones(1, dtype=torch.float64)
LINE = mf.GaussianMixture(ONE, ONE, ONE)
CLASSES = mf.ClassConditional((LINE, LINE), torch.tensor([0.5, 0.5], dtype=torch.float64))

BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "mixture on a name": (lambda: mf.GaussianMixture(ONE, ONE, ONE, path="linear"), "path='linear'"),  # type: ignore[arg-type]
    "Gaussian on a name": (lambda: mf.Gaussian(ONE, ONE[:, None], path="linear"), "path='linear'"),  # type: ignore[arg-type]
    "points on a name": (lambda: mf.PointMasses(ONE[:, None], ONE, path="linear"), "path='linear'"),  # type: ignore[arg-type]
    "box on a name": (lambda: Uniform(-ONE, ONE, path="linear"), "path='linear'"),  # type: ignore[arg-type]
    "shell on a name": (lambda: mf.Shell(1.0, 3, path="linear"), "path='linear'"),  # type: ignore[arg-type]
    "half a dimension": (lambda: mf.Shell(1.0, 2.5), "`dimension` is 2.5"),  # type: ignore[arg-type]
    "a number as factor": (lambda: mf.Product((LINE, 3)), r"`factors\[1\]` is int"),  # type: ignore[arg-type]
    "a number as class": (lambda: mf.ClassConditional((3,), ONE), r"`classes\[0\]` is int"),  # type: ignore[arg-type]
    "a mixture as classes": (lambda: mf.Guided(LINE, 0, 1.0), "`classes` is GaussianMixture"),  # type: ignore[arg-type]
    "text as weights": (lambda: mf.GaussianMixture("a", ONE, ONE), "`weights` is str"),  # type: ignore[arg-type]
    "nothing as weights": (lambda: mf.GaussianMixture(None, ONE, ONE), "`weights` is NoneType"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", BAD)
def test_an_argument_of_a_wrong_type_has_its_own_error(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(MeanFlowError, match=message) as caught:
        make()
    assert "Wanted: " in str(caught.value)


def test_the_truth_names_the_shape_that_it_was_given() -> None:
    with pytest.raises(MeanFlowError, match=r"`z` has shape \(2, 3\); GaussianMixture has dimension 1"):
        mf.average_velocity(LINE, torch.zeros(2, 3, dtype=torch.float64), 0.1, 0.2)
    with pytest.raises(MeanFlowError, match=r"z\.to\('cpu', torch\.float64\)"):
        mf.average_velocity(LINE, torch.zeros(2, 1), 0.1, 0.2)
    with pytest.raises(MeanFlowError, match="tol='a'"):
        mf.average_velocity(LINE, torch.zeros(2, 1), 0.1, 0.2, tol="a")  # type: ignore[arg-type]
