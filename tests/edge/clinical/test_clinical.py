"""The Brock model, the suggested Lung-RADS category, and what ``clinical.json`` says for both.

The Brock model is held against two independent statements of it.
The paper's table 2 centres age, size and count. Table 2 of European Radiology 29:5367-5377, 2019
(doi 10.1007/s00330-019-06168-x) has the same model without centring, with the intercept 0.2761.
Public calculators use more digits than the paper prints. No worked example was found in print.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edge.clinical.brock import BrockInputs, brock_of, notes_of, probability
from edge.clinical.lung_rads import NOT_CONSIDERED, LungRads, nodule_category, suggest
from edge.clinical.sidecar import Clinical, clinical_of
from edge.escalation.client import NoSecondReader
from edge.findings import Finding
from edge.job import Job
from edge.pipeline import read_and_report
from imaging.location import Location
from imaging.volume import Limitation, LimitationKind, StudyHeader
from tests.edge.builders import pipeline_of
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
    unknown = "age, sex, family history of lung cancer, emphysema, upper lobe, spiculation, type"
    assert ", ".join(found.unknown) == unknown


def test_a_patient_unlike_those_of_the_paper_gets_a_note_and_a_child_nothing() -> None:
    assert notes_of(StudyHeader(age="085Y"), Clinical(smoking="never"))[2:] == (
        "the model was made from people of 50 to 75 years",
        "the model was made from people who smoke or have smoked",
    )
    assert len(notes_of(WOMAN, KNOWN)) == 2  # of diameter and zone
    assert brock_of(FINDING, WHERE, 1, StudyHeader(age="011Y"), Clinical()) is None


BASELINE = Clinical(prior_chest_ct=False)


def nodule(diameter_mm: float, texture: str = "solid") -> Finding:
    return replace(FINDING, diameter_mm=diameter_mm, verdict=replace(VERDICT, texture=texture))


@pytest.mark.parametrize(
    ("texture", "diameter_mm", "least", "most"),
    [
        ("solid", 5.94, "2", "2"), ("solid", 5.96, "3", "3"),  # 6.0 to one decimal
        ("solid", 7.9, "3", "3"), ("solid", 8.0, "4A", "4A"),
        ("solid", 14.9, "4A", "4A"), ("solid", 15.0, "4B", "4B"),
        ("part-solid", 5.9, "2", "2"), ("part-solid", 6.0, "3", "4A"),
        ("part-solid", 7.9, "3", "4A"), ("part-solid", 8.0, "3", "4B"),
        ("ground glass", 29.9, "2", "2"), ("ground glass", 30.0, "3", "3"),
        ("", 5.9, "2", "2"), ("", 7.0, "2", "4A"), ("", 12.0, "2", "4B"), ("", 30.0, "3", "4B"),
    ],
)  # fmt: skip
def test_size_and_type_give_the_category_or_its_range(
    texture: str, diameter_mm: float, least: str, most: str
) -> None:
    found = nodule_category(1, nodule(diameter_mm, texture))
    assert (found.least, found.most) == (least, most)
    assert (found.missing == ()) is (least == most)


def suggested(
    *findings: Finding, limits: Sequence[Limitation] = (), known: Clinical = BASELINE
) -> LungRads:
    """The suggestion for findings that are numbered from 1."""
    return suggest([*enumerate(findings, 1)], limits, known, was_read=True)


def test_the_most_suspicious_finding_decides() -> None:
    found = suggested(nodule(5.0), nodule(9.0), nodule(12.0, "ground glass"))
    assert (found.category, found.text) == ("4A", "category 4A")
    assert [one.number for one in found.inputs] == [1, 2, 3]
    assert found.reasons == ("Finding 2: solid, 9.0 mm, category 4A.", NOT_CONSIDERED)


def test_an_unknown_solid_component_leaves_no_category_unless_another_finding_is_worse() -> None:
    found = suggested(nodule(9.0, "part-solid"))
    assert (found.category, found.text) == (None, "no category")
    assert found.reasons[:2] == (
        "Missing: diameter of the solid component of finding 1.",
        "Finding 1: part-solid, 9.0 mm, no category.",
    )
    worse = suggested(nodule(9.0, "part-solid"), nodule(16.0))
    assert worse.category == "4B"
    assert not any("Missing" in reason for reason in worse.reasons)


def test_without_the_cloud_the_reasons_begin_with_what_is_missing() -> None:
    """One sentence for all findings that lack the same; no range of categories stands in words."""
    unread = replace(nodule(12.0), verdict=None)
    found = suggested(unread, nodule(9.0, "part-solid"), unread)
    assert found.text == "no category"
    assert found.reasons[0] == (
        "Missing: type and diameter of the solid component of findings 1, 3; "
        "diameter of the solid component of finding 2."
    )
    assert " to 4B" not in " ".join(found.reasons)


CUT = "The scan ends inside the lungs."


@pytest.mark.parametrize("kind", [LimitationKind.COVERAGE, LimitationKind.DIFFUSE])
def test_lungs_that_cannot_be_assessed_are_category_0_with_the_reason(kind: LimitationKind) -> None:
    found = suggested(nodule(9.0), limits=[Limitation(kind, CUT)])
    assert found.category == "0"
    assert CUT in found.reasons
    assert found.inputs[0].least == "4A"


def test_without_a_finding_it_is_category_1_whatever_the_limitations_of_the_patient() -> None:
    limitation = Limitation(LimitationKind.PATIENT, "The patient's age is not stated.")
    assert suggested().category == suggested(limits=[limitation]).category == "1"


def test_with_a_prior_there_is_no_category_and_an_unknown_one_is_said() -> None:
    prior = suggested(nodule(9.0), known=Clinical(prior_chest_ct=True))
    assert (prior.category, prior.text) == (None, "no category")
    assert any("taken for a baseline" in one for one in suggested(known=Clinical()).reasons)


def test_nothing_advises_what_to_do() -> None:
    words = " ".join(suggested(nodule(16.0, ""), known=Clinical()).reasons).lower()
    assert not any(one in words for one in ("follow", "biopsy", "months", "recommend", "pet"))


FULL = {"smoking": "former", "family_history_of_lung_cancer": True, "emphysema": False,
        "spiculation": None, "prior_chest_ct": False}  # fmt: skip


def put(folder: Path, text: str) -> Path:
    (folder / "clinical.json").write_text(text)
    return folder


def test_every_field_is_read_and_may_be_missing(tmp_path: Path) -> None:
    assert clinical_of(tmp_path) == Clinical()
    assert clinical_of(tmp_path / "file.nii") == Clinical()
    assert clinical_of(put(tmp_path, json.dumps(FULL))) == Clinical(
        "former", True, False, None, False, "clinical.json"
    )
    assert clinical_of(put(tmp_path, "{}")) == Clinical(source="clinical.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no JSON", "is no JSON, expected a JSON object"),
        ("[]", "is no JSON object"),
        ("[" * 50_000, "is no JSON"),
        ('{"emphysem": true}', "emphysem: there is no such field; did you mean emphysema?"),
        ('{"emphysema": "yes"}', 'emphysema = "yes": expected true or false'),
        ('{"emphysema": 1}', "emphysema = 1: expected true or false"),
        ('{"smoking": "heavily"}', 'smoking = "heavily": expected one of "never"'),
        ('{"smoking": ["never"]}', "smoking = "),
        (" " * 70_000, "more than 65536 bytes"),
    ],
)
def test_a_bad_file_is_refused_by_its_field(text: str, said: str, tmp_path: Path) -> None:
    found = clinical_of(put(tmp_path, text))
    assert said in found.problem
    assert found == Clinical(source="clinical.json", problem=found.problem)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "clinical.json").symlink_to(put(tmp_path, "{}") / "clinical.json")
    assert "is a link" in clinical_of(tmp_path / "study").problem


def test_a_study_with_a_bad_file_is_read_and_its_report_says_why(tmp_path: Path) -> None:
    study, out = tmp_path / "study", tmp_path / "out"
    study.mkdir()
    put(study, '{"emphysema": "yes"}')
    read_and_report(pipeline_of(NoSecondReader()), Job(study, out))
    written = json.loads((out / "report.json").read_text())
    assert written["status"] == "final"
    assert written["clinical"]["problem"] == 'emphysema = "yes": expected true or false'
    assert "emphysema" in written["brock"]["unknown"]
    assert "clinical.json was not used" in (out / "report.html").read_text()
