"""What the headers of a folder tell before it is read."""

import gc
import os
import warnings
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.fileset import FileSet

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
        [f"Only 12 of {announced} announced images arrived."] if missing else []
    )


@pytest.mark.parametrize(
    ("keyword", "announced", "missing"),
    [
        ("ImagesInAcquisition", 12, 3),
        ("NumberOfSeriesRelatedInstances", 9, 0),
        ("NumberOfStudyRelatedInstances", 25, 10),
    ],
)
def test_the_images_of_another_series_are_not_those_that_are_missing(
    keyword: str, announced: int, missing: int, tmp_path: Path
) -> None:
    SmallCt(count=6, series="2").write(tmp_path / "a")
    ct = SmallCt(count=9, attributes={keyword: announced})
    ct.write(tmp_path / "b", ct.images()[:4])
    ct.write(tmp_path / "c", ct.images()[4:])
    assert missing_images(tmp_path) == missing


def test_a_second_acquisition_of_the_series_counts_its_own_images(tmp_path: Path) -> None:
    ct = SmallCt(count=12, attributes={"ImagesInAcquisition": 6})
    images = ct.images()
    for image in images:
        image.AcquisitionNumber = 1 if image.InstanceNumber <= 6 else 2
    ct.write(tmp_path / "whole", images)
    assert read_study(tmp_path / "whole").limitations == ()
    ct.write(tmp_path / "part", images[:9])
    (one,) = read_study(tmp_path / "part").limitations
    assert one.text == "Only 9 of 12 announced images arrived."


def test_an_acquisition_that_fills_a_gap_of_another_is_of_the_same_volume(tmp_path: Path) -> None:
    ct = SmallCt(count=30)
    images = ct.images()
    for image in images:
        image.AcquisitionNumber = 2 if 10 <= image.InstanceNumber < 20 else 1
    ct.write(tmp_path, images)
    study = read_study(tmp_path)
    assert (len(study.volume.hu), study.limitations) == (30, ())


def _write_disc(folder: Path) -> list[Path]:
    """Two series with their DICOMDIR; return the files of the first."""
    disc = FileSet()
    for ct in (SmallCt(), SmallCt(2, series="2")):
        for image in ct.images():
            image.StudyDate, image.StudyTime, image.StudyID = "20240101", "1000", "1"
            image.SeriesNumber, image.AccessionNumber = int(ct.series), ""
            disc.add(image)
    disc.write(folder)
    series = [i for i in disc if i.SeriesInstanceUID == "1.2.826.0.1.1"]
    files = [Path(i.path) for i in sorted(series, key=lambda i: i.InstanceNumber)]
    with warnings.catch_warnings():  # pydicom leaves the end of its temporary folder to chance
        warnings.simplefilter("ignore", ResourceWarning)
        del disc, series
        gc.collect()
    return files


@pytest.mark.parametrize("missing", [0, 2])
@pytest.mark.parametrize("given", ["", "DICOMDIR"])
def test_fewer_images_than_the_directory_of_a_disc_lists_limit_the_study(
    given: str, missing: int, tmp_path: Path
) -> None:
    """A copy that ends early leaves no gap between slices, but the disc's directory tells."""
    for file in _write_disc(tmp_path / "disc")[12 - missing :]:
        file.unlink()
    study = read_study(tmp_path / "disc" / given)
    assert study.volume.shape[0] == 12 - missing
    text = "Only 10 of 12 images that the DICOMDIR lists arrived."
    assert [x.text for x in study.limitations] == ([text] if missing else [])
    assert all(x.kind is LimitationKind.COVERAGE for x in study.limitations)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_a_damaged_directory_tells_nothing(share: float, tmp_path: Path) -> None:
    _write_disc(tmp_path)
    content = (tmp_path / "DICOMDIR").read_bytes()
    (tmp_path / "DICOMDIR").write_bytes(content[: int(share * len(content))])
    assert read_study(tmp_path).limitations == ()


def test_a_directory_whose_records_form_a_ring_ends(tmp_path: Path) -> None:
    _write_disc(tmp_path)
    directory = dcmread(tmp_path / "DICOMDIR")
    for record in directory.DirectoryRecordSequence:
        record.OffsetOfTheNextDirectoryRecord = record.seq_item_tell
    directory.save_as(tmp_path / "DICOMDIR")
    assert read_study(tmp_path).volume.shape[0] == 12
