"""What the headers of a folder tell before it is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imaging.dicom.arrival import arrived, look, missing_images
from imaging.read import read_study
from imaging.volume import LimitationKind
from tests.imaging.small_ct import SmallCt


def test_series_and_images_of_a_folder_are_told(tmp_path: Path) -> None:
    SmallCt(count=3).write(tmp_path / "a")
    SmallCt(count=2, series="7").write(tmp_path / "b")
    (tmp_path / "notes.txt").write_text("no image")
    found = list(arrived(tmp_path))
    assert [image.series_uid for image in found] == ["1.2.826.0.1.1"] * 3 + ["1.2.826.0.1.7"] * 2
    assert len({image.image_uid for image in found}) == 5
    assert list(arrived(tmp_path / "notes.txt")) == []


def test_damage_links_and_pipes_tell_nothing_and_hang_nothing(tmp_path: Path) -> None:
    (file, *_) = SmallCt(count=1).write(tmp_path / "a")
    (tmp_path / "short.dcm").write_bytes(file.read_bytes()[:200])
    (tmp_path / "link.dcm").symlink_to(file)
    os.mkfifo(tmp_path / "pipe.dcm")
    for name in ("short.dcm", "link.dcm", "pipe.dcm", "none.dcm"):
        assert look(tmp_path / name) is None


@pytest.mark.parametrize(
    ("keyword", "announced", "missing"),
    [
        ("ImagesInAcquisition", 20, 8),
        ("NumberOfSeriesRelatedInstances", 13, 1),
        ("NumberOfStudyRelatedInstances", 15, 3),
        ("ImagesInAcquisition", 12, 0),
        ("ImagesInAcquisition", 0, 0),
    ],
)
def test_fewer_images_than_announced_are_missing_and_limit_the_study(
    keyword: str, announced: int, missing: int, tmp_path: Path
) -> None:
    SmallCt(count=12, attributes={keyword: announced}).write(tmp_path)
    assert missing_images(tmp_path) == missing
    limitations = read_study(tmp_path).limitations
    assert [one.kind for one in limitations] == [LimitationKind.COVERAGE] * bool(missing)
    assert [one.text for one in limitations] == (
        [f"12 of {announced} announced images arrived"] if missing else []
    )


def test_a_second_acquisition_of_the_series_counts_its_own_images(tmp_path: Path) -> None:
    ct = SmallCt(count=12, attributes={"ImagesInAcquisition": 6})
    images = ct.images()
    for image in images:
        image.AcquisitionNumber = 1 if image.InstanceNumber <= 6 else 2
    ct.write(tmp_path / "whole", images)
    assert read_study(tmp_path / "whole").limitations == ()
    ct.write(tmp_path / "part", images[:9])
    (one,) = read_study(tmp_path / "part").limitations
    assert one.text == "9 of 12 announced images arrived"
