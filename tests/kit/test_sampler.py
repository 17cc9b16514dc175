"""The sampler check: every mutant named, no correct neighbour flagged, bad input told apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from meanflow_ref.errors import DtypeError, MeanFlowError, NetworkError, NonFiniteError, ParameterError, ShapeError
from meanflow_ref.kit.catalogue import sampler as part
from meanflow_ref.kit.exact import oracle_fields
from meanflow_ref.kit.mutants.case import Case
from meanflow_ref.kit.mutants.samplers import CORRECT, MUTANTS
from meanflow_ref.kit.sampler import check_sampler
from meanflow_ref.sampling import sample


@pytest.mark.parametrize("case", MUTANTS, ids=lambda case: case.title)
def test_a_wrong_sampler_is_named(case: Case) -> None:
    report = check_sampler(case.target, **case.options)
    assert report.verdict == "wrong"
    assert [one.name for one in report.diagnoses] == [case.name]
    assert not report.ok


@pytest.mark.parametrize("case", CORRECT, ids=lambda case: case.title)
def test_a_right_sampler_is_not_flagged(case: Case) -> None:
    report = check_sampler(case.target, **case.options)
    assert report.ok, report.diagnoses
    assert report.diagnoses == ()


def test_every_name_of_the_part_has_a_mutant() -> None:
    assert {page.name for page in part.PAGES} <= {case.name for case in MUTANTS}
    assert len(MUTANTS) >= 8


@pytest.mark.parametrize("case", [case for case in CORRECT if not case.options], ids=lambda case: case.title)
def test_other_seeds_agree(case: Case) -> None:
    assert all(check_sampler(case.target, seed=seed).ok for seed in range(1, 6))


def test_the_diagnosis_points_at_the_call() -> None:
    def mine(net: Any, noise: Tensor, steps: int) -> Tensor:
        zero, one = torch.zeros(len(noise)), torch.ones(len(noise))
        u = net(noise, zero, one)  # the blamed line
        data: Tensor = noise + u
        return data

    (found,) = check_sampler(mine, steps=(1,)).diagnoses
    file, line = found.where.rsplit(":", 1)
    assert file.endswith("test_sampler.py")
    with open(__file__) as text:
        assert "the blamed line" in text.readlines()[int(line) - 1]
    assert found.remedy
    assert found.cause


def test_the_margin_is_wide() -> None:
    report = check_sampler(sample)
    assert max(report.measured["errors"].values()) < 1e-9


def test_the_oracle_networks_are_flows() -> None:
    """Their flow map is z - (t - r) u, and undoes itself: the check's own truth, held against the identity."""
    z = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    r, t = torch.full((5,), 0.2, dtype=torch.float64), torch.full((5,), 0.9, dtype=torch.float64)
    for autonomous in (False, True):
        for field in oracle_fields(4, autonomous).values():
            end = field.flow_map(z, t, r)
            torch.testing.assert_close(end, z - 0.7 * field.average_velocity(z, r, t))
            torch.testing.assert_close(field.flow_map(end, r, t), z)


def test_a_rescaled_output_that_differs_between_runs_is_no_excuse() -> None:
    def divided(net: Any, noise: Tensor, steps: int) -> Tensor:
        return sample(net, noise, steps) / steps

    report = check_sampler(divided)
    assert report.verdict == "wrong"


def never(net: Any, noise: Tensor, steps: int) -> Tensor:
    return noise


def broken(net: Any, noise: Tensor, steps: int) -> Tensor:
    raise RuntimeError("no checkpoint")


def asks(net: Any, noise: Tensor, steps: int) -> Tensor:
    return sample(net, noise, net.default_steps)


def nans(net: Any, noise: Tensor, steps: int) -> Tensor:
    return sample(net, noise, steps) * float("nan")


def wrong_shape(net: Any, noise: Tensor, steps: int) -> Tensor:
    return sample(net, noise, steps)[:2]


def pixels(net: Any, noise: Tensor, steps: int) -> Tensor:
    return (255 * sample(net, noise, steps)).to(torch.uint8)


def two_arguments(net: Any, noise: Tensor) -> Tensor:
    return sample(net, noise)


@pytest.mark.parametrize(
    ("target", "options", "error", "text"),
    [
        (never, {}, NetworkError, "never called"),
        (broken, {}, ParameterError, "no checkpoint"),
        (asks, {}, NetworkError, "default_steps"),
        (nans, {}, NonFiniteError, "NaN"),
        (wrong_shape, {}, ShapeError, r"\(2, 4\)"),
        (pixels, {}, DtypeError, "uint8"),
        (two_arguments, {}, ParameterError, "sample\\(model, noise, steps\\)"),
        (sample, {"call": "z, (t, h)"}, NetworkError, "tensor\\(6,\\)"),
        (sample, {"call": "z, t"}, MeanFlowError, "both r and t"),
        (sample, {"steps": ()}, ParameterError, "steps"),
        (sample, {"steps": (0,)}, ParameterError, "positive"),
        (sample, {"shape": ()}, ParameterError, "shape"),
        (sample, {"dtype": torch.int64}, ParameterError, "dtype"),
        ("no function", {}, ParameterError, "str"),
    ],
)
def test_bad_input_is_one_clear_error(target: Any, options: dict[str, Any], error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        check_sampler(target, **options)


def test_an_attribute_can_be_supplied() -> None:
    assert check_sampler(asks, steps=(2,), attributes={"default_steps": 2}).ok


def test_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check_sampler(CORRECT[-1].target)
    assert torch.equal(before, torch.get_rng_state())
