"""What is kept beside a report for DICOM objects, and that it goes with the report alone."""

from pathlib import Path

import numpy as np
import pytest

from edge.report.evidence import (
    OBJECTS,
    OUTLINES,
    SOURCE,
    beside,
    evidence_files,
    outlines_file,
    read_outlines,
)
from edge.report.pictures import clear_pictures
from imaging.preprocess import preprocess
from imaging.read import read_study
from tests.edge.dicom_out.studies import finding, write_reported, write_study


def test_outlines_keep_their_voxels_and_their_place(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, "oblique"))
    box = preprocess(study.volume)
    with_outline = finding(box, (0.4, 0.5, 0.2), 0.9, True)
    without = finding(box, (0.4, 0.5, 0.8), 0.8, False)
    outlines = read_outlines(outlines_file([(4, with_outline), (5, without)], box.geometry))
    assert [*outlines] == [4]
    assert with_outline.outline is not None
    assert outlines[4].mask.sum() == with_outline.outline.mask.sum()
    centre = outlines[4].geometry.to_world(np.argwhere(outlines[4].mask).mean(0))
    np.testing.assert_allclose(centre, with_outline.centre_mm, atol=1e-6)


def test_files_of_a_report_go_with_it_and_no_others(tmp_path: Path) -> None:
    """A folder of somebody's own images may be named alike."""
    out = tmp_path / "report"
    write_reported(write_study(tmp_path / "study"), out)
    made = out / OBJECTS / "v1"
    made.mkdir(parents=True)
    for name in ("sr.dcm", "capture-01.dcm", "skipped.json"):
        (made / name).touch()
    beside_it = out / OBJECTS / "v2"
    beside_it.mkdir()
    (beside_it / "sr.dcm").touch()
    foreign = [out / OBJECTS / "v1" / "00001.dcm", out / OBJECTS / "mine" / "sr.dcm"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert len(beside(out)) == 6
    clear_pictures(out)
    assert beside(out) == []
    assert not beside_it.exists()
    assert evidence_files(out) == {SOURCE: b"", OUTLINES: b""}
    assert all(path.exists() for path in foreign)
    assert not (out / SOURCE).exists()


@pytest.mark.parametrize("data", [b"PK", b"x" * 100])
def test_damaged_outlines_are_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=OUTLINES):
        read_outlines(data)
