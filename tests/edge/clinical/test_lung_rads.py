"""The suggested Lung-RADS category: thresholds, unknown inputs, and what cannot be assessed."""

from dataclasses import replace

import pytest

from edge.clinical.lung_rads import NOT_CONSIDERED, nodule_category, suggest
from edge.clinical.sidecar import Clinical
from edge.findings import Finding
from imaging.volume import Limitation, LimitationKind
from tests.edge.report.reports import FINDING, VERDICT

BASELINE = Clinical(prior_chest_ct=False)


def nodule(diameter_mm: float, texture: str = "solid") -> Finding:
    return replace(FINDING, diameter_mm=diameter_mm, verdict=replace(VERDICT, texture=texture))


@pytest.mark.parametrize(
    ("texture", "diameter_mm", "least", "most"),
    [
        ("solid", 5.94, "2", "2"),
        ("solid", 5.96, "3", "3"),  # 6.0 to one decimal
        ("solid", 7.9, "3", "3"),
        ("solid", 8.0, "4A", "4A"),
        ("solid", 14.9, "4A", "4A"),
        ("solid", 15.0, "4B", "4B"),
        ("part-solid", 5.9, "2", "2"),
        ("part-solid", 6.0, "3", "4A"),
        ("part-solid", 7.9, "3", "4A"),
        ("part-solid", 8.0, "3", "4B"),
        ("ground glass", 29.9, "2", "2"),
        ("ground glass", 30.0, "3", "3"),
        ("", 5.9, "2", "2"),
        ("", 7.0, "2", "4A"),
        ("", 12.0, "2", "4B"),
        ("", 30.0, "3", "4B"),
    ],
)
def test_size_and_type_give_the_category_or_its_range(
    texture: str, diameter_mm: float, least: str, most: str
) -> None:
    found = nodule_category(1, nodule(diameter_mm, texture))
    assert (found.least, found.most) == (least, most)
    assert (found.missing == ()) is (least == most)


def test_the_most_suspicious_finding_decides() -> None:
    found = suggest(
        [(1, nodule(5.0)), (2, nodule(9.0)), (3, nodule(12.0, "ground glass"))],
        (),
        BASELINE,
        was_read=True,
    )
    assert (found.category, found.text) == ("4A", "category 4A")
    assert [one.number for one in found.inputs] == [1, 2, 3]
    assert found.reasons == ("Finding 2: solid, 9.0 mm, category 4A.", NOT_CONSIDERED)


def test_an_unknown_solid_component_leaves_no_category_unless_another_finding_is_worse() -> None:
    part_solid = (1, nodule(9.0, "part-solid"))
    found = suggest([part_solid], (), BASELINE, was_read=True)
    assert (found.category, found.text) == (None, "no category")
    assert found.reasons[:2] == (
        "Missing: diameter of the solid component of finding 1.",
        "Finding 1: part-solid, 9.0 mm, no category.",
    )
    worse = suggest([part_solid, (2, nodule(16.0))], (), BASELINE, was_read=True)
    assert worse.category == "4B"
    assert not any("Missing" in reason for reason in worse.reasons)


def test_without_the_cloud_the_reasons_begin_with_what_is_missing() -> None:
    """One sentence for all findings that lack the same; no range of categories stands in words."""
    unread = [(n, replace(nodule(12.0), verdict=None)) for n in (1, 3)]
    found = suggest([*unread, (2, nodule(9.0, "part-solid"))], (), BASELINE, was_read=True)
    assert found.text == "no category"
    assert found.reasons[0] == (
        "Missing: type and diameter of the solid component of findings 1, 3; "
        "diameter of the solid component of finding 2."
    )
    assert " to 4B" not in " ".join(found.reasons)


def test_without_a_finding_it_is_category_1() -> None:
    assert suggest([], (), BASELINE, was_read=True).category == "1"


@pytest.mark.parametrize("kind", [LimitationKind.COVERAGE, LimitationKind.DIFFUSE])
def test_lungs_that_cannot_be_assessed_are_category_0_with_the_reason(kind: LimitationKind) -> None:
    limitation = Limitation(kind, "The scan ends inside the lungs.")
    found = suggest([(1, nodule(9.0))], (limitation,), BASELINE, was_read=True)
    assert found.category == "0"
    assert limitation.text in found.reasons
    assert found.inputs[0].least == "4A"


def test_a_limitation_of_the_patient_does_not_matter() -> None:
    limitation = Limitation(LimitationKind.PATIENT, "The patient's age is not stated.")
    assert suggest([], (limitation,), BASELINE, was_read=True).category == "1"


def test_with_a_prior_there_is_no_category_and_an_unknown_one_is_said() -> None:
    prior = suggest([(1, nodule(9.0))], (), Clinical(prior_chest_ct=True), was_read=True)
    assert (prior.category, prior.text) == (None, "no category")
    unknown = suggest([], (), Clinical(), was_read=True)
    assert any("taken for a baseline" in reason for reason in unknown.reasons)


def test_nothing_advises_what_to_do() -> None:
    found = suggest([(1, nodule(16.0, ""))], (), Clinical(), was_read=True)
    words = " ".join(found.reasons).lower()
    assert not any(one in words for one in ("follow", "biopsy", "months", "recommend", "pet"))
