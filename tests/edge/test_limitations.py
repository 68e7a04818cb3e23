"""What of a study lies outside the models' calibration, and what its report then says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.escalation.client import NoSecondReader
from edge.findings import Finding, crowds
from edge.guarantee import Guarantee, Terms
from edge.limitations import limitations_of
from edge.pipeline import Pipeline
from imaging.phantom.phantom import PhantomSpec
from imaging.preprocess import ChestMeasures, preprocess
from imaging.volume import Geometry, HuArray, Limitation, LimitationKind, Study, StudyHeader, Volume
from tests.conftest import Draw
from tests.edge.builders import TERMS, box, pipeline_of, report_of, study_at
from tests.edge.report.reports import FINDING
from tests.imaging.volumes import with_patches

ADULT = StudyHeader(age="060Y", kernel="STANDARD", contrast="IV")
SPEC = PhantomSpec(seed=2, spacing_mm=(2.5, 1.5, 1.5), nodule_count=0)


@pytest.fixture(scope="module")
def chest(drawn: Draw) -> Volume:
    return drawn(SPEC).volume


def study_of(chest: Volume, hu: HuArray) -> Study:
    return Study(Volume(np.ascontiguousarray(hu), chest.geometry), Path("study"), ADULT)


def limitations(study: Study) -> tuple[Limitation, ...]:
    return limitations_of(study, preprocess(study.volume), ())


def pipeline_for(study: Study) -> Pipeline:
    """The real pipeline and its real preprocessing, with a guarantee to lose."""
    pipeline = pipeline_of(NoSecondReader(), scores=())
    provenance = replace(pipeline.provenance, guarantee=Guarantee(TERMS, "", permanent=False))
    return replace(pipeline, provenance=provenance, read=lambda _path: study, preprocess=preprocess)


def test_a_scan_that_ends_inside_the_lungs_says_so_and_guarantees_nothing(
    chest: Volume, tmp_path: Path
) -> None:
    report = report_of(pipeline_for(study_of(chest, chest.hu[60:])), tmp_path)
    (one,) = report.limitations
    assert one.kind is LimitationKind.COVERAGE
    assert one.text.startswith("The scan ends inside the lungs at the base (")
    assert not report.guarantee.given
    assert report.guarantee.permanent
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["coverage"]["complete"] is False
    assert written["coverage"]["cut"] == ["base"]
    assert written["coverage"]["cut_area_cm2"][0] > 100
    assert one.text in (tmp_path / "report.html").read_text()


def test_coverage_is_not_complete_where_one_lung_is_outside_the_field_of_view(
    chest: Volume, tmp_path: Path
) -> None:
    """Its edge runs through the mediastinum and cuts no lung, so `cut` is empty."""
    half = study_of(chest, chest.hu[:, :, chest.shape[2] // 2 :])
    (one,) = report_of(pipeline_for(half), tmp_path).limitations
    assert one.kind is LimitationKind.COVERAGE
    assert one.text.startswith("The one side of the chest holds only a part of the air of the oth")
    written = json.loads((tmp_path / "report.json").read_text())
    assert (written["coverage"]["complete"], written["coverage"]["cut"]) == (False, [])


def test_a_small_field_of_view_is_named_with_its_side_and_a_whole_chest_has_no_limitation(
    chest: Volume,
) -> None:
    (one,) = limitations(study_of(chest, chest.hu[:, :, : int(0.66 * chest.shape[2])]))
    assert one.kind is LimitationKind.COVERAGE
    assert one.text.startswith("The field of view cuts the lungs at the left (")
    assert limitations(study_of(chest, chest.hu)) == ()


def told(*, slice_mm: float = 2.5, terms: Terms = TERMS, **header: str) -> list[tuple[str, str]]:
    """The kinds and texts for a study with this header, adult and known from calibration."""
    volume = Volume(np.zeros((2, 2, 2), np.int16), Geometry((slice_mm, 1.0, 1.0)))
    study = Study(volume, Path("study"), replace(ADULT, **header))
    return [(one.kind.value, one.text) for one in limitations_of(study, box(), (), terms)]


def test_an_adult_scanned_as_in_calibration_has_no_limitation() -> None:
    assert told() == []
    assert told(age="018Y", kernel="bone", contrast="", slice_mm=2.52) == []


@pytest.mark.parametrize(
    ("age", "said"),
    [("017Y", " is 17 years old"), ("006Y", " is 6 years old"), ("018M", " is 18 months old"),
     ("003W", " is 1 months old"), ("900D", " is 2 years old"),
     *((unknown, "'s age is not stated") for unknown in ("", "Y", "adult", "45", "0450Y"))],
)  # fmt: skip
def test_a_child_is_outside_what_the_models_know(age: str, said: str) -> None:
    text = f"The patient{said}; the models know adults from 18 years only."
    assert told(age=age) == [("patient", text)]


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ({"kernel": "B70f"}, "The reconstruction kernel B70f is not known from calibration"),
        ({"kernel": ""}, "The reconstruction kernel is not stated"),
        ({"series_description": "Thorax CTPA 1.0"}, "The series is named CTPA: calibration"),
        ({"terms": replace(TERMS, contrast=False)}, "Contrast medium was given"),
        ({"slice_mm": 5.0}, "Slices are 5 mm apart, in calibration at most 2.5 mm."),
    ],
)
def test_what_calibration_never_saw_is_told(header: dict[str, Any], text: str) -> None:
    ((kind, found),) = told(**header)
    assert kind == "acquisition"
    assert found.startswith(text)


def test_a_child_gets_no_guarantee_whatever_the_second_reader_says(tmp_path: Path) -> None:
    child = replace(study_at(tmp_path), header=replace(ADULT, age="006Y"))
    report = report_of(replace(pipeline_for(child), preprocess=lambda *_: box()), tmp_path)
    assert (report.guarantee.given, report.guarantee.permanent) == (False, True)
    assert "The patient is 6 years old" in report.limitations[0].text
    assert "The patient is 6 years old" in (tmp_path / "report.html").read_text()


def finding(diameter_mm: float, x: float = 0.0) -> Finding:
    return replace(FINDING, centre_mm=(x, 0.0, 0.0), diameter_mm=diameter_mm)


def pattern(*findings: Finding, opaque: float = 0.01) -> list[str]:
    study = replace(study_at(Path("study")), header=ADULT)
    measured = replace(box(), measure=lambda: ChestMeasures(opaque_share=opaque))
    found = limitations_of(study, measured, findings, TERMS)
    assert all(one.kind is LimitationKind.DIFFUSE for one in found)
    return [one.text for one in found]


def test_many_nodules_are_no_diffuse_disease() -> None:
    """One patient that we have has 14 findings, metastases of up to 25 mm."""
    assert pattern(finding(25.0), *(finding(8.0, x=40.0 * i) for i in range(1, 14))) == []
    assert pattern(finding(36.0), finding(12.0, x=50.0)) == []
    assert pattern(*(finding(25.0, x=60.0 * i) for i in range(6)), opaque=0.008) == []


@pytest.mark.parametrize(
    ("findings", "opaque", "sign"),
    [
        ((), 0.12, "12.0% of the lungs are ground glass or consolidation"),
        (tuple(finding(22.0, x=60.0 * i) for i in range(4)), 0.012,
         "1.2% of the lungs are ground glass or consolidation"),
        ((finding(34.0), finding(31.0, x=90.0)), 0.0, "2 findings are larger than 30 mm"),
        ((finding(83.0),), 0.0, "a finding measures 83 mm"),
        (tuple(finding(7.0, x=20.0 * i) for i in range(44)), 0.0, "there are 44 findings"),
    ],
)  # fmt: skip
def test_diffuse_disease_is_outside_what_the_models_know(
    findings: tuple[Finding, ...], opaque: float, sign: str
) -> None:
    outside = "The pattern lies outside what the models know"
    assert pattern(*findings, opaque=opaque) == [f"{outside}: {sign}. They know single nodules."]


def test_findings_in_one_consolidation_are_grouped() -> None:
    row = [finding(10.0, x=x) for x in (0.0, 15.0, 34.0, 100.0, 300.0, 318.0)]
    assert crowds(row) == ((0, 1, 2), (4, 5))
    assert crowds(row[3:4]) == crowds([]) == ()


def test_the_report_of_a_pneumonia_groups_findings_and_guarantees_nothing(
    chest: Volume, tmp_path: Path
) -> None:
    """Three candidates of the screener are a millimetre apart."""
    hu = with_patches(chest.hu, SPEC.spacing_mm, count=10, radius_mm=25.0, hu_of_patch=-600.0)
    pipeline = replace(
        pipeline_for(study_of(chest, hu)),
        reader=pipeline_of(NoSecondReader(), scores=(0.95, 0.94, 0.93)).reader,
    )
    report = report_of(pipeline, tmp_path)
    kinds = [one.kind for one in report.limitations]
    assert LimitationKind.DIFFUSE in kinds
    assert not report.guarantee.given
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["groups"] == [{"count": 3, "findings": [1, 2, 3]}]
    assert "Findings 1, 2, 3 lie in one consolidation" in (tmp_path / "report.html").read_text()
