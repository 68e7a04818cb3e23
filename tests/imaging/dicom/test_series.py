"""Which of the series of a folder is read, and what is said of the others.

Enhanced CT: all slices in one file, with functional groups instead of headers.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import UID

import imaging.dicom.pixels
from imaging.dicom.header import read_instance
from imaging.dicom.series import group
from imaging.dicom.stack import Slice
from imaging.dicom.study import summary_of
from imaging.dicom.writer import write_series
from imaging.errors import IncompleteSeries, NoLung, NotCt, SeriesNotFound, UnreadableFile
from imaging.preprocess import preprocess
from imaging.read import read_study
from imaging.volume import Geometry, Volume
from tests.imaging.small_ct import SmallCt, encoded, set_frames


def test_thinnest_that_covers_the_lungs(tmp_path: Path) -> None:
    SmallCt(42, 5.0, series="5", description="thick").write(tmp_path / "a")
    SmallCt(210, 1.0, series="6", description="thin").write(tmp_path / "b")
    SmallCt(60, 0.5, series="7", description="slab").write(tmp_path / "c")
    study = read_study(tmp_path)
    assert study.volume.description == "thin"
    assert study.volume.shape == (210, 32, 32)
    preferred = "another series was preferred"
    assert study.other_series == (
        "'slab' (CT, 60 images): 0.031 l of lung over 30 mm, slices of 0.5 mm,"
        f" {preferred}: it shows 0.21 l of lung over 210 mm",
        "'thick' (CT, 42 images): 0.2 l of lung over 210 mm, slices of 5 mm,"
        f" {preferred}: its slices are thinner",
    )


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer, not slices"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "mip, not slices"),
        ({"ImageType": ["DERIVED", "SECONDARY", "CSA MIP"]}, "mip, not slices"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "preferred: it is an original"),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL MPR"]}, "preferred: it is an original"),
        ({"Modality": "SR"}, "modality SR is not CT"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "not a CT image"),
        ({"StudyDate": "19990101"}, "another series was preferred: it is newer"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
    ],
)
def test_passed_over(attributes: dict[str, object], reason: str, tmp_path: Path) -> None:
    dated = {"StudyDate": "20240101"}
    SmallCt(series="2", attributes=dated).write(tmp_path / "good")
    thin = SmallCt(30, 1.0, series="3", description="thin", attributes=dated | attributes)
    thin.write(tmp_path / "thin")
    study = read_study(tmp_path)
    assert study.volume.description == "chest"
    assert len(study.other_series) == 1
    assert reason in study.other_series[0]


@pytest.mark.parametrize("at", [0, 5, 12])
def test_a_localizer_inside_the_series_is_left_out(at: int, tmp_path: Path) -> None:
    ct = SmallCt(12)
    images = ct.images()
    scout = SmallCt(1).images()[0]
    scout.ImageType, scout.SOPInstanceUID = ["ORIGINAL", "PRIMARY", "LOCALIZER"], "1.2.3"
    scout.ImageOrientationPatient, scout.Rows = [0, 1, 0, 0, 0, -1], 16
    images.insert(at, scout)
    ct.write(tmp_path, images)
    study = read_study(tmp_path)
    np.testing.assert_array_equal(study.volume.hu, ct.hu())
    assert study.other_series == ("'chest' (CT, 1 image): localizer, not slices",)


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


def torso(
    slices: int,
    spacing_mm: float,
    lungs: bool,
    description: str = "",
    *,
    lung_mm: float = 110,
    width_mm: float = 320,
) -> Volume:
    """A body of water in air, with two lungs from -110 to 110 mm, or with gas in its bowel.

    ``lung_mm`` is half the lungs' height; ``width_mm`` is the field of view, from the right.
    """
    y, x = np.mgrid[:108, : round(width_mm / 3)] * 3.0 - 160
    z = -slices * spacing_mm / 2 + (np.arange(slices)[:, None, None]) * spacing_mm
    hu = np.where((x / 150) ** 2 + (y / 110) ** 2 < 1, 20, -1000) + np.zeros_like(z)
    for side in (-75, 75):
        air = ((x - side) / 55) ** 2 + (y / 75) ** 2 + (z / lung_mm) ** 2 < 1
        hu[air & lungs] = -850
        gas = (x - side) ** 2 + (y + 30) ** 2 < 25**2
        hu[gas & (not lungs) & (z < 60)] = -1000
    return Volume(hu.astype(np.int16), Geometry((spacing_mm, 3.0, 3.0)), description=description)


def write_study(folder: Path, series: dict[str, tuple[Volume, dict[str, object]]]) -> None:
    """Write each series with its attributes; their names are their descriptions."""
    for number, (name, (volume, attributes)) in enumerate(series.items(), start=1):
        for file in write_series(volume, folder / name, seed=number):
            image = dcmread(file)
            image.SeriesDescription, image.SeriesNumber = name, number
            for keyword, value in attributes.items():
                setattr(image, keyword, value)
            image.save_as(file)


@pytest.mark.parametrize("part", ["", "ABDOMEN", "CHEST"])
def test_a_series_without_lung_gives_way_to_one_with(part: str, tmp_path: Path) -> None:
    """An abdomen with gas in its bowel is not read, whatever it is called."""
    chest = torso(120, 2.0, True), {"BodyPartExamined": "CHEST"}
    abdomen = torso(125, 1.6, False), {"BodyPartExamined": part}
    write_study(tmp_path, {"routine": abdomen, "thorax": chest})
    study = read_study(tmp_path)
    assert study.volume.description == "thorax"
    assert study.other_series == (
        "'routine' (CT, 125 images): no lung in it, slices of 1.6 mm, another series was preferred:"
        " it shows 3.9 l of lung over 216 mm",
    )
    assert min(preprocess(study.volume).voxels.shape) > 100


PRIOR, TODAY, CHEST = {"StudyDate": "20230101"}, {"StudyDate": "20240101"}, "BodyPartExamined"


@pytest.mark.parametrize(
    ("other", "read", "says"),
    [
        *(
            ((torso(48, 5.0, True), {CHEST: "CHEST"}), (torso(120, 2.0, True), {CHEST: part}), "")
            for part in ("ABDOMEN", "SPINE", "HEAD", "")
        ),
        (
            (torso(120, 2.0, True, width_mm=170), {}),
            (torso(96, 2.5, True), {}),
            r"^'other' \(CT, 120 images\): 1\.9 l of lung",
        ),
        ((torso(200, 1.25, True, lung_mm=85), TODAY), (torso(100, 2.5, True), TODAY), ""),
        (
            (torso(120, 2.0, True), PRIOR),
            (torso(48, 5.0, True, lung_mm=90), TODAY),
            "another series was preferred: it is newer$",
        ),
    ],
    ids=["abdomen", "spine", "head", "no part", "one lung", "expiration", "a prior"],
)
def test_the_series_that_shows_more_lung_of_today_is_read(
    other: tuple[Volume, dict[str, object]],
    read: tuple[Volume, dict[str, object]],
    says: str,
    tmp_path: Path,
) -> None:
    """Whatever the header calls it, and however thin the slices of the other one are.

    Of two examinations the newest is read: a breath less deep is no reason to read a prior.
    """
    write_study(tmp_path, {"other": other, "read": read})
    study = read_study(tmp_path)
    assert study.volume.description == "read"
    assert re.search(says, study.other_series[0])


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ({"a": {"ProtocolName": "HIP"}, "b": {"ProtocolName": "SHIP"}}, "b"),
        ({"a": {"ProtocolName": "Leg"}, "b": {"ProtocolName": "Legacy Spinelli"}}, "b"),
        ({"a": {"ProtocolName": "caput"}, "b": {"ProtocolName": "routine CHEST"}}, "b"),
        ({"a": {"ProtocolName": "head"}, "b": {"ProtocolName": "CAP with contrast"}}, "b"),
        ({"a": {"ProtocolName": "HEAD_1.0"}, "b": {"ProtocolName": "CHEST_1.0_B30f"}}, "b"),
        ({"a": {"ProtocolName": "SHIP"}, "b": {"ProtocolName": "Legacy"}}, "a"),
        ({"a": {"ConvolutionKernel": "B70f"}, "b": {"ConvolutionKernel": "B31f"}}, "b"),
        ({"a": {"ConvolutionKernel": "BONE"}, "b": {"ConvolutionKernel": "STANDARD"}}, "b"),
        ({"a": {"ConvolutionKernel": ["Br64d", "3"]}, "b": {"ConvolutionKernel": "Br40d"}}, "b"),
        ({"a": {"ConvolutionKernel": "FC51"}, "b": {"ConvolutionKernel": "FC08"}}, "b"),
        ({"lung 1.0": {}, "standard 1.0": {}}, "standard 1.0"),
        ({"a": {"ConvolutionKernel": "SOFT"}, "b": {"ConvolutionKernel": "STANDARD"}}, "a"),
    ],
)
def test_names_break_ties_by_whole_words(
    names: dict[str, dict[str, object]], chosen: str, tmp_path: Path
) -> None:
    """Of two reconstructions that show the same, names decide, else the first is read."""
    write_study(tmp_path, {one: (torso(60, 4.0, True), names[one]) for one in names})
    assert read_study(tmp_path).volume.description == chosen


def test_a_damaged_series_gives_way_to_a_whole_one(tmp_path: Path) -> None:
    """In whichever slice the damage lies, also in one that the ranking does not decode."""
    write_study(
        tmp_path, {"thick": (torso(48, 5.0, True), {}), "thin": (torso(120, 2.0, True), {})}
    )
    for slice_number in ("00041", "00042"):
        file = tmp_path / f"thin/{slice_number}.dcm"
        whole = file.read_bytes()
        file.write_bytes(whole[:-1000])
        study = read_study(tmp_path)
        assert study.volume.description == "thick"
        assert f"{slice_number}.dcm: pixel data: truncated" in study.other_series[0]
        file.write_bytes(whole)


def test_ranking_decodes_few_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(
        tmp_path, {"thin": (torso(150, 1.6, True), {}), "thick": (torso(120, 2.0, True), {})}
    )
    decoded: list[str] = []
    frames = imaging.dicom.pixels.stored_frames

    def counted(slices: list[Slice], *arguments: Any) -> Any:
        decoded.append(slices[0].file.parent.name)
        return frames(slices, *arguments)

    monkeypatch.setattr(imaging.dicom.pixels, "stored_frames", counted)
    assert read_study(tmp_path).volume.description == "thin"
    assert (decoded.count("thin"), decoded.count("thick")) == (30 + 150, 30)


@pytest.fixture(scope="module")
def three_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Series 1, 2 and 3, of which the pixels choose the third."""
    folder = tmp_path_factory.mktemp("three")
    for number, (name, spacing_mm) in enumerate(
        {"Lung 2.5 B60f": 2.5, "Thorax 3.0 B31f": 3.0, "Thorax 2.0 B31f": 2.0}.items(), start=1
    ):
        attributes = {"SeriesNumber": number}
        ct = SmallCt(round(48 / spacing_mm), spacing_mm, str(number), name, attributes=attributes)
        ct.write(folder / str(number))
    return folder


@pytest.mark.parametrize(
    ("request_", "number"),
    [
        ("", 3),
        ("1", 1),
        ("02", 2),
        ("1.2.826.0.1.2", 2),
        ("thorax 3.0 b31f", 2),
        ("LUNG*", 1),
        ("Thorax ?.0*", 3),
    ],
)
def test_a_series_is_chosen_by_uid_number_or_description(
    request_: str, number: int, three_series: Path
) -> None:
    """If several are meant, their pixels decide; the others are named as not requested."""
    study = read_study(three_series, request_)
    assert study.volume.series_uid == f"1.2.826.0.1.{number}"
    assert len(study.other_series) == 2
    asked = request_ not in ("", "Thorax ?.0*")
    assert all(line.endswith(": not requested") for line in study.other_series) == asked


@pytest.mark.parametrize("request_", ["4", "1.2.826.0.1", "Thorax", "B60f", "*bone*"])
def test_a_series_that_is_not_there_is_refused_with_what_is(
    request_: str, three_series: Path
) -> None:
    with pytest.raises(SeriesNotFound) as caught:
        read_study(three_series, request_)
    assert f"no series has the UID, the number or the description {request_!r}" in str(caught.value)
    assert "'Lung 2.5 B60f' (CT, 19 images), number 1, UID 1.2.826.0.1.1; " in caught.value.reason


def test_a_requested_series_that_makes_no_volume_is_refused_and_not_replaced(
    tmp_path: Path,
) -> None:
    SmallCt(series="1", attributes={"SeriesNumber": 1}).write(tmp_path / "a")
    thin = SmallCt(30, 1.0, series="2", attributes={"SeriesNumber": 2})
    thin.write(tmp_path / "b")[9].unlink()
    study = read_study(tmp_path)
    assert study.volume.series_uid == "1.2.826.0.1.1"
    assert "slices: 1 missing between 008.dcm" in study.other_series[0]
    with pytest.raises(IncompleteSeries, match="1 missing between"):
        read_study(tmp_path, "2")


def test_where_no_series_has_lung_the_preferred_one_is_refused(tmp_path: Path) -> None:
    """Nothing is hidden: the thinnest is read, and preprocessing says that it has no lung."""
    write_series(torso(50, 5.0, False, "thick"), tmp_path / "a", seed=1)
    write_series(torso(160, 1.5, False, "thin"), tmp_path / "b", seed=2)
    study = read_study(tmp_path)
    assert study.volume.description == "thin"
    assert "another series was preferred: its slices are thinner" in study.other_series[0]
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


def test_kernel_and_contrast_of_enhanced_ct_are_known(tmp_path: Path) -> None:
    """The kernel stands in the functional groups, the contrast agent in a sequence."""
    data = _enhanced(SmallCt())
    shared = data.SharedFunctionalGroupsSequence[0]
    shared.CTReconstructionSequence = _item(ConvolutionKernel="STANDARD")
    own = data.PerFrameFunctionalGroupsSequence[3]
    own.CTReconstructionSequence = _item(ConvolutionKernel="BONE")
    data.ContrastBolusAgentSequence = _item(CodeMeaning="Iohexol")
    (file,) = SmallCt().write(tmp_path, [data])
    study = read_study(tmp_path)
    assert (study.header.kernel, study.header.contrast) == ("STANDARD", "Iohexol")
    (limitation,) = study.limitations
    assert limitation.text.endswith("within the series: STANDARD (000.dcm) and BONE (000.dcm).")
    assert summary_of(group([read_instance(file)])[0]).kernels == ("STANDARD",)


def test_enhanced_ct_of_another_quantity_is_refused(tmp_path: Path) -> None:
    """A map of effective atomic numbers may have values that could be HU."""
    data = _enhanced(SmallCt())
    for part in (data.SharedFunctionalGroupsSequence[0], *data.PerFrameFunctionalGroupsSequence):
        for item in part.get("PixelValueTransformationSequence", []):
            item.RescaleType = "Z_EFF"
    SmallCt().write(tmp_path, [data])
    with pytest.raises(NotCt, match="values are Z_EFF, not HU"):
        read_study(tmp_path)


@pytest.mark.parametrize("syntax", ["4.70", "4.80", "4.90", "5"])
@pytest.mark.parametrize("table", ["none", "basic", "extended"])
def test_every_table_of_frame_offsets(table: str, syntax: str, tmp_path: Path) -> None:
    """An offset table separates the frames, or their fragments do where there is none."""
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


def test_a_missing_frame_and_fewer_groups_than_frames_are_refused(tmp_path: Path) -> None:
    data = _enhanced(SmallCt())
    frame = data.PerFrameFunctionalGroupsSequence[5]
    frame.PlanePositionSequence[0].ImagePositionPatient = [-30, -30, -32.5]
    SmallCt().write(tmp_path, [data])
    with pytest.raises(IncompleteSeries, match=r"between 000\.dcm frame 6"):
        read_study(tmp_path)
    data.NumberOfFrames = 13
    SmallCt().write(tmp_path, [data])
    with pytest.raises(UnreadableFile, match="12 groups for 13 frames"):
        read_study(tmp_path)


def _again(image: Dataset, number: int, shift: int = 0, **attributes: object) -> Dataset:
    """Give an image its own UID; ``shift`` changes its pixels."""
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.826.0.8.{number}")
    image.PixelData = (np.frombuffer(image.PixelData, "<i2") + np.int16(shift)).tobytes()
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    return image


@pytest.mark.parametrize("kind", ["derived", "other UIDs", "frames"])
@pytest.mark.parametrize("is_first", [True, False])
def test_equal_pixels_at_one_place_are_one_image(tmp_path: Path, kind: str, is_first: bool) -> None:
    """Whatever its name: the original is kept, else the one in the upper folder."""
    ct = SmallCt(12)
    images = [_enhanced(ct)] if kind == "frames" else ct.images()
    own = {"ImageType": ["DERIVED", "SECONDARY", "AXIAL"]} if kind == "derived" else {}
    given = [_enhanced(ct)] if kind == "frames" else ct.images()
    ct.write(tmp_path / "b", images)
    copies = [_again(image, number, **own) for number, image in enumerate(given)]
    upper = kind == "derived" and is_first
    ct.write(tmp_path / "a" if upper else tmp_path / ("a" if is_first else "c") / "later", copies)
    study = read_study(tmp_path)
    np.testing.assert_array_equal(study.volume.hu, ct.hu())
    assert not [one for one in study.images if one.sop_instance_uid.startswith("1.2.826.0.8")]
    assert study.limitations == read_study(tmp_path / "b").limitations
    (said,) = study.other_series
    assert said.startswith("copies of other images, ignored: 000.dcm")


@pytest.mark.parametrize("is_first", [True, False])
def test_the_first_of_two_acquisitions_at_one_place_is_read_and_a_limitation_says_so(
    tmp_path: Path, is_first: bool
) -> None:
    """Whichever comes first by name."""
    ct, images = SmallCt(12), SmallCt(12, attributes={"AcquisitionNumber": 2}).images()
    others = [_again(one, n, 1, AcquisitionNumber=10) for n, one in enumerate(SmallCt(12).images())]
    ct.write(tmp_path / "b", images)
    ct.write(tmp_path / ("a" if is_first else "c"), others)
    study = read_study(tmp_path)
    np.testing.assert_array_equal(study.volume.hu, ct.hu())
    (limitation,) = study.limitations
    assert limitation.text == (
        "The series has several acquisitions of the same places (2, 10): acquisition 2 was read."
    )
