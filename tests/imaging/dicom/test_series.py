"""Which of the series of a folder is read, and what is said of the others.

Enhanced CT: all slices in one file, with functional groups instead of headers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import UID

from imaging.dicom.writer import write_series
from imaging.errors import IncompleteSeries, NoLung, NotCt, UnreadableFile
from imaging.preprocess import preprocess
from imaging.read import read_study
from imaging.volume import Geometry, Volume
from tests.imaging.small_ct import SmallCt, encoded, set_frames


def test_thinnest_that_covers_the_lungs(tmp_path: Path) -> None:
    """Of thick, thin and thin but short, the thin whole chest is read and the rest is named."""
    SmallCt(50, 5.0, series="5", description="thick").write(tmp_path / "a")
    SmallCt(210, 1.0, series="6", description="thin").write(tmp_path / "b")
    SmallCt(60, 0.5, series="7", description="slab").write(tmp_path / "c")
    study = read_study(tmp_path)
    assert study.volume.description == "thin"
    assert study.volume.shape == (210, 32, 32)
    assert study.other_series == (
        "'thick' (CT, 50 images): 5 mm slices over 250 mm, another series was preferred",
        "'slab' (CT, 60 images): 0.5 mm slices over 30 mm, another series was preferred",
    )


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer, not slices"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "mip, not slices"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "another series was preferred"),
        ({"Modality": "SR"}, "modality SR is not CT"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "not a CT image"),
        ({"BodyPartExamined": "HEAD"}, "another series was preferred"),
        ({"StudyDate": "19990101"}, "another series was preferred"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
    ],
)
def test_passed_over(attributes: dict[str, object], reason: str, tmp_path: Path) -> None:
    """Thinner series that are no slices, or not of this chest, give way with their reason."""
    dated = {"StudyDate": "20240101"}
    SmallCt(series="2", attributes=dated).write(tmp_path / "good")
    thin = SmallCt(30, 1.0, series="3", description="thin", attributes=dated | attributes)
    thin.write(tmp_path / "thin")
    study = read_study(tmp_path)
    assert study.volume.description == "chest"
    assert len(study.other_series) == 1
    assert reason in study.other_series[0]


def test_incomplete_series_gives_way_to_a_whole_one(tmp_path: Path) -> None:
    SmallCt(series="2").write(tmp_path / "thick")
    thin = SmallCt(30, 1.0, series="3", description="thin")
    thin.write(tmp_path / "thin")[9].unlink()
    study = read_study(tmp_path)
    assert study.volume.geometry.spacing_mm[0] == 2.5
    assert "slices: 1 missing between 008.dcm" in study.other_series[0]


def test_file_names_its_series(tmp_path: Path) -> None:
    files = SmallCt(series="2").write(tmp_path / "a")
    for file in SmallCt(30, 1.0, series="3").write(tmp_path / "b"):
        file.rename(tmp_path / "a" / f"thin{file.name}")
    study = read_study(files[3])
    assert study.volume.shape[0] == 12
    assert study.other_series == ("'chest' (CT, 30 images): not requested",)


def test_no_ct_names_what_was_found(tmp_path: Path) -> None:
    SmallCt(series="2", description="T1", attributes={"Modality": "MR"}).write(tmp_path / "a")
    SmallCt(1, series="3", description="dose", attributes={"Modality": "SR"}).write(tmp_path / "b")
    with pytest.raises(NotCt, match=r"'T1' \(MR, 12 images\).*'dose' \(SR, 1 image\)"):
        read_study(tmp_path)


def torso(slices: int, spacing_mm: float, lungs: bool, description: str) -> Volume:
    """A body of water in air, 320 mm wide, with or without two lungs in its middle."""
    y, x = np.mgrid[:108, :108] * 3.0 - 160
    z = (np.arange(slices)[:, None, None] - slices / 2) * spacing_mm
    hu = np.where((x / 150) ** 2 + (y / 110) ** 2 < 1, 20, -1000) + np.zeros_like(z)
    for side in (-75, 75):
        air = ((x - side) / 55) ** 2 + (y / 75) ** 2 + (z / 110) ** 2 < 1
        hu[air & lungs] = -850
    return Volume(hu.astype(np.int16), Geometry((spacing_mm, 3.0, 3.0)), description=description)


def test_a_series_without_lung_gives_way_to_one_with(tmp_path: Path) -> None:
    chest = torso(50, 5.0, True, "thick")
    write_series(chest, tmp_path / "a", seed=1)
    write_series(torso(160, 1.5, False, "thin"), tmp_path / "b", seed=2)
    study = read_study(tmp_path)
    np.testing.assert_array_equal(study.volume.hu, chest.hu)
    assert study.other_series == ("'thin' (CT, 160 images): no lung in it",)
    assert min(preprocess(study.volume).voxels.shape) > 100


def test_where_no_series_has_lung_the_preferred_one_is_refused(tmp_path: Path) -> None:
    """Nothing is hidden: the thinnest is read, and preprocessing says that it has no lung."""
    write_series(torso(50, 5.0, False, "thick"), tmp_path / "a", seed=1)
    write_series(torso(160, 1.5, False, "thin"), tmp_path / "b", seed=2)
    study = read_study(tmp_path)
    assert study.volume.description == "thin"
    assert "another series was preferred" in study.other_series[0]
    with pytest.raises(NoLung):
        preprocess(study.volume)


def _item(**attributes: object) -> Sequence:
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return Sequence([item])


def _enhanced(ct: Any, compressed: bool = False) -> Dataset:
    images = ct.images()
    content = [image.PixelData for image in images]
    if compressed:
        for image in images:
            image.compress("1.2.840.10008.1.2.4.80", generate_instance_uid=False)
        content = [next(generate_frames(i.PixelData, number_of_frames=1)) for i in images]
    data: Dataset = images[0]
    shared = Dataset()
    shared.PixelMeasuresSequence = _item(PixelSpacing=[2, 2], SliceThickness=2.5)
    shared.PlaneOrientationSequence = _item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.PixelValueTransformationSequence = _item(RescaleSlope=1, RescaleIntercept=-1024)
    frames = []
    for image in images:
        frames.append(Dataset())
        position = list(image.ImagePositionPatient)
        frames[-1].PlanePositionSequence = _item(ImagePositionPatient=position)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2.1")
    data.NumberOfFrames = len(frames)
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    data.PerFrameFunctionalGroupsSequence = Sequence(frames[::-1])
    data.PixelData = encapsulate(content[::-1]) if compressed else b"".join(content[::-1])
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(data, keyword)
    del data.RescaleSlope, data.RescaleIntercept
    return data


@pytest.mark.parametrize("compressed", [False, True], ids=["uncompressed", "JPEG-LS"])
def test_frames_become_slices(compressed: bool, tmp_path: Path) -> None:
    """The frames are stacked by their own positions, here written head first."""
    ct = SmallCt()
    ct.write(tmp_path, [_enhanced(ct, compressed)])
    study = read_study(tmp_path)
    np.testing.assert_array_equal(study.volume.hu, ct.hu())
    assert study.volume.geometry.spacing_mm == (2.5, 2.0, 2.0)
    frames = [(image.number, image.frame) for image in study.images]
    assert frames == [(1, 12 - k) for k in range(12)]


@pytest.mark.parametrize("syntax", ["4.70", "4.80", "4.90", "5"])
@pytest.mark.parametrize("table", ["none", "basic", "extended"])
def test_every_table_of_frame_offsets(table: str, syntax: str, tmp_path: Path) -> None:
    """Frames are told apart by an offset table, or by their fragments where there is none."""
    ct = SmallCt()
    data = _enhanced(ct)
    frames = [encoded(image, syntax) for image in ct.images()[::-1]]
    in_one = table == "extended" or syntax == "5"  # where the standard allows one fragment only
    parts = 1 if in_one else 3
    if not in_one:
        frames = [frame + b"\xff\x0a" for frame in frames]
    set_frames(data, syntax, frames, fragments_per_frame=parts, has_bot=table == "basic")
    if table == "extended":
        _, data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    ct.write(tmp_path, [data])
    np.testing.assert_array_equal(read_study(tmp_path).volume.hu, ct.hu())


def test_missing_frame(tmp_path: Path) -> None:
    ct = SmallCt()
    data = _enhanced(ct)
    data.PerFrameFunctionalGroupsSequence[5].PlanePositionSequence[0].ImagePositionPatient = [
        *(-30, -30),
        -32.5,
    ]
    ct.write(tmp_path, [data])
    with pytest.raises(IncompleteSeries, match=r"between 000\.dcm frame 6"):
        read_study(tmp_path)


def test_fewer_groups_than_frames(tmp_path: Path) -> None:
    """Frames of which the groups do not speak make the file unreadable."""
    ct = SmallCt()
    data = _enhanced(ct)
    data.NumberOfFrames = 13
    ct.write(tmp_path, [data])
    with pytest.raises(UnreadableFile, match="12 groups for 13 frames"):
        read_study(tmp_path)
