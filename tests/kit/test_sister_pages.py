"""The pages of the sister checks are whole, and their effects are what the command measures."""

from __future__ import annotations

import json

import pytest

from meanflow_ref.kit.catalogue import distributed, guidance, network, sampler, times
from meanflow_ref.kit.catalogue.page import Page
from meanflow_ref.kit.catalogue.sister_effects import FILE
from meanflow_ref.kit.finding import finding, pages
from meanflow_ref.kit.sister_effects import measures

PARTS = (sampler, times, guidance, network, distributed)
PAGES = [page for part in PARTS for page in part.PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_whole(page: Page) -> None:
    for text in (page.title, page.symptom, page.cause, page.remedy, page.effect):
        assert text
    assert page.name == page.name.upper()
    assert pages()[page.name] is page
    made = finding(page.name, "seen", "wanted")
    assert (made.cause, made.remedy, made.effect, made.severity) == (
        page.cause, page.remedy, page.effect, page.severity,
    )  # fmt: skip


def test_every_effect_has_a_measurement_and_nothing_else_is_stored() -> None:
    assert set(json.loads(FILE.read_text())) == set(measures()) == {page.name for page in PAGES}


@pytest.mark.parametrize("name", ["WRONG_END", "STEP_SIZE", "WRONG_HEAD", "MASKS_CORRELATED", "NO_GRAD_IN_FORWARD"])
def test_cheap_effects_are_measured_again(name: str) -> None:
    assert measures()[name]() == json.loads(FILE.read_text())[name]


@pytest.mark.slow
def test_a_trained_effect_is_measured_again() -> None:
    """Training repeats on one machine; elsewhere rounding differs, so that the text must agree up to its numbers."""
    name = "NEVER_R_NEQ_T"
    again, stored = measures()[name](), json.loads(FILE.read_text())[name]
    numbers = [float(text.split(" ends at ")[1].split(";")[0]) for text in (again, stored)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.2)
