"""What of a study lies outside the models' calibration, and what its report then says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.escalation.client import NoSecondReader
from edge.guarantee import Guarantee
from edge.limitations import limitations_of
from edge.pipeline import Pipeline
from imaging.phantom.phantom import PhantomSpec, make_phantom
from imaging.preprocess import preprocess
from imaging.volume import HuArray, Limitation, LimitationKind, Study, Volume
from tests.edge.builders import TERMS, pipeline_of, report_of

SPEC = PhantomSpec(seed=2, spacing_mm=(2.5, 1.5, 1.5), nodule_count=0)


@pytest.fixture(scope="module")
def chest() -> Volume:
    return make_phantom(SPEC).volume


def study_of(chest: Volume, hu: HuArray) -> Study:
    return Study(Volume(np.ascontiguousarray(hu), chest.geometry), Path("study"))


def limitations(study: Study) -> tuple[Limitation, ...]:
    return limitations_of(study, preprocess(study.volume))


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
    assert one.text.startswith("the scan ends inside the lungs at the base (")
    assert not report.guarantee.given
    assert report.guarantee.permanent
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["coverage"]["complete"] is False
    assert written["coverage"]["cut"] == ["base"]
    assert written["coverage"]["cut_area_cm2"][0] > 100
    assert one.text in (tmp_path / "report.html").read_text()


def test_a_small_field_of_view_is_named_with_its_side(chest: Volume) -> None:
    (one,) = limitations(study_of(chest, chest.hu[:, :, : int(0.66 * chest.shape[2])]))
    assert one.kind is LimitationKind.COVERAGE
    assert one.text.startswith("the field of view cuts the lungs at the left (")


def test_a_whole_chest_has_no_limitation_of_coverage(chest: Volume) -> None:
    assert limitations(study_of(chest, chest.hu)) == ()
