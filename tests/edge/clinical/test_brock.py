"""The Brock model against two independent statements of it, and its inputs from a report.

The paper's table 2 centres age, size and count. Table 2 of European Radiology 29:5367-5377, 2019
(doi 10.1007/s00330-019-06168-x) has the same model without centring, with the intercept 0.2761.
Public calculators use more digits than the paper prints. No worked example was found in print.
"""

import math
from dataclasses import replace

import pytest

from edge.clinical.brock import BrockInputs, brock_of, notes_of, probability
from edge.clinical.sidecar import Clinical
from imaging.location import Location
from imaging.volume import StudyHeader
from tests.edge.report.reports import FINDING, VERDICT

CASES = [
    BrockInputs(),
    BrockInputs(62.0, True, True, True, 10.0, "part-solid", True, 1, True),
    BrockInputs(70.0, False, False, True, 20.0, "solid", True, 1, True),
    BrockInputs(55.0, True, False, False, 8.0, "ground glass", False, 3, False),
]
MORE_DIGITS = [0.0014396, 0.3985077, 0.5301870, 0.0190784]
"""Of the cases, with the coefficients of public calculators: -6.78917, 0.0286687, 0.6010727,
0.296109, 0.2953112, -5.385484, 0.3769578, -0.1276173, 0.6581383, 0.7729335, -0.0824156."""
WHERE = Location(3, 10, side="left", zone="upper")
WOMAN = StudyHeader(age="070Y", sex="F")
KNOWN = Clinical(
    smoking="former", family_history_of_lung_cancer=True, emphysema=False, spiculation=True
)


def uncentred(one: BrockInputs) -> float:
    texture = {"solid": 0.0, "part-solid": 0.377, "ground glass": -0.1276}[one.texture]
    x = 0.2761 + 0.0287 * one.age_years + 0.6011 * one.female + 0.2961 * one.family_history
    x += 0.2953 * one.emphysema - 5.3854 * (one.diameter_mm / 10) ** -0.5 + texture
    x += 0.6581 * one.upper + 0.7729 * one.spiculation - 0.0824 * one.count
    return math.exp(x) / (1 + math.exp(x))


@pytest.mark.parametrize(("inputs", "expected"), list(zip(CASES, MORE_DIGITS, strict=True)))
def test_the_model_agrees_with_independent_statements_of_it(
    inputs: BrockInputs, expected: float
) -> None:
    assert probability(inputs) == pytest.approx(expected, abs=1e-4)
    assert probability(inputs) == pytest.approx(uncentred(inputs), abs=2e-5)


@pytest.mark.parametrize("wrong", [{"diameter_mm": 0.0}, {"texture": "solidly"}])
def test_what_is_no_nodule_has_no_probability(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no Brock model"):
        probability(replace(CASES[0], **wrong))


def test_all_inputs_are_known_from_header_sidecar_and_finding() -> None:
    finding = replace(FINDING, verdict=replace(VERDICT, texture="part-solid"))
    found = brock_of(finding, WHERE, 2, WOMAN, KNOWN)
    assert found is not None
    expected = BrockInputs(70.0, True, True, False, 12.3, "part-solid", True, 2, True)
    assert (found.inputs, found.unknown) == (expected, ())
    assert found.probability == probability(expected)


def test_unknown_inputs_are_named_and_have_the_reference_values() -> None:
    found = brock_of(FINDING, None, 1, StudyHeader(), Clinical())
    assert found is not None
    assert found.inputs == BrockInputs(diameter_mm=12.3)
    assert found.unknown == (
        "age",
        "sex",
        "family history of lung cancer",
        "emphysema",
        "upper lobe",
        "spiculation",
        "type",
    )


def test_a_patient_unlike_those_of_the_paper_gets_a_note_and_a_child_nothing() -> None:
    assert notes_of(StudyHeader(age="085Y"), Clinical(smoking="never"))[2:] == (
        "the model was made from people of 50 to 75 years",
        "the model was made from people who smoke or have smoked",
    )
    assert len(notes_of(WOMAN, KNOWN)) == 2  # of diameter and zone
    assert brock_of(FINDING, WHERE, 1, StudyHeader(age="011Y"), Clinical()) is None
