"""Sound series in every form that hospitals send; the damaged ones are in test_refusals.

What still counts as an even stack: rounding is forgiven, holes and tilts are not.
"""

import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEGLossless

from imaging.errors import IncompleteSeries, IrregularGeometry
from imaging.read import read_study
from tests.imaging.small_ct import SmallCt, encoded, set_frames

Change = Callable[[int, Dataset], object]
"""Changes the image of that index."""


def test_order_names_and_folders_do_not_matter(tmp_path: Path) -> None:
    ct = SmallCt()
    for index, file in enumerate(ct.write(tmp_path)):
        place = tmp_path / f"DIR{index % 3}" / "IMAGES"
        place.mkdir(parents=True, exist_ok=True)
        suffix = ("dcm", "DCM", "77")[index % 3]
        file.rename(place / f"{(index * 7) % 12:02}-{index}.5.{suffix}")
    study = read_study(tmp_path)
    np.testing.assert_array_equal(study.volume.hu, ct.hu())
    assert study.volume.geometry.spacing_mm == (2.5, 2.0, 2.0)
    assert study.volume.geometry.origin_mm == (-30.0, -30.0, -30.0)
    assert study.source == tmp_path


def test_the_header_is_that_of_the_files(tmp_path: Path) -> None:
    SmallCt(attributes={"ConvolutionKernel": "B31f", "StudyDate": "20240102"}).write(tmp_path)
    study = read_study(tmp_path)
    assert (study.header.patient_id, study.header.patient_name) == ("P1", "Test^Chest")
    assert (study.header.kernel, study.header.study_date) == ("B31f", "20240102")
    assert study.header.transfer_syntax == "Explicit VR Little Endian"
    assert study.volume.series_uid == "1.2.826.0.1.1"


@pytest.mark.parametrize(
    ("first_mm", "others_mm", "stated_mm", "gaps"),
    [(3, 7.5, 7.5, ""), (2.5, 0.6, 2.5, "1.9"), (0.6, 2.5, 2.5, ""), ("", 0.6, 0.6, "1.9")],
)
def test_no_single_slice_hides_how_thick_the_others_are(
    first_mm: object, others_mm: float, stated_mm: float, gaps: str, tmp_path: Path
) -> None:
    """The largest thickness is stated; gaps lie where two neighbours are thin."""
    ct = SmallCt(attributes={"SliceThickness": others_mm})
    images = ct.images()
    images[0].SliceThickness = first_mm
    ct.write(tmp_path, images)
    study = read_study(tmp_path)
    assert study.header.slice_thickness_mm == stated_mm
    text = f"Slices of 0.6 mm every 2.5 mm leave gaps of {gaps} mm, expected at most 1.5 mm."
    assert [one.text for one in study.limitations] == ([text] if gaps else [])


def test_the_header_states_what_its_first_image_leaves_empty(tmp_path: Path) -> None:
    stated = {"PatientAge": "045Y", "PatientSex": "F", "ContrastBolusAgent": "Iohexol"}
    ct = SmallCt(attributes={**stated, "BodyPartExamined": "ABDOMEN"})
    images = ct.images()
    for keyword in ct.attributes:
        setattr(images[0], keyword, "")
    ct.write(tmp_path, images)
    study = read_study(tmp_path)
    header = study.header
    assert (header.age, header.sex, header.contrast) == tuple(stated.values())
    assert study.limitations[0].text.startswith("BodyPartExamined is ABDOMEN")


@pytest.mark.filterwarnings("ignore:Invalid value for VR AS")
@pytest.mark.parametrize(
    ("age", "born", "expected"),
    [
        ("", "19500101", "070Y"),
        ("45", "19500101", "070Y"),
        ("000Y", "19500101", "070Y"),
        ("000Y", "20200101", "000Y"),
        ("000Y", "", "000Y"),
        ("018M", "19500101", "018M"),
    ],
)
def test_an_unusable_age_gives_way_to_the_date_of_birth(
    age: str, born: str, expected: str, tmp_path: Path
) -> None:
    """The date of birth itself is in no header field, and so in no report."""
    dates = {"PatientBirthDate": born, "StudyDate": "20200601"}
    SmallCt(attributes={"PatientAge": age, **dates}).write(tmp_path)
    header = read_study(tmp_path).header
    assert header.age == expected
    assert not born or born not in str(header)


def test_each_slice_names_its_image(tmp_path: Path) -> None:
    """A name that is damaged, missing or longer than DICOM allows refuses no study."""
    ct = SmallCt(attributes={"FrameOfReferenceUID": "1.2.3.4"})
    images = ct.images()
    del images[3].InstanceNumber
    files = ct.write(tmp_path, images)
    _replace(files[4], b"\x20\x00\x13\x00IS", b"x ")
    _replace(files[5], b"\x20\x00\x13\x00IS", b"999999999999")
    _replace(files[6], b"\x08\x00\x18\x00UI", b"1." * 40)
    study = read_study(tmp_path)
    assert [image.number for image in study.images] == [1, 2, 3, None, None, None, *range(7, 13)]
    uids = [image.SOPInstanceUID for image in images]
    uids[6] = ""
    assert [image.sop_instance_uid for image in study.images] == uids
    assert {image.frame for image in study.images} == {None}
    assert study.frame_of_reference_uid == "1.2.3.4"


def test_different_images_of_one_uid_are_a_limitation(tmp_path: Path) -> None:
    ct = SmallCt()
    images = ct.images()
    images[3].SOPInstanceUID = images[7].SOPInstanceUID
    ct.write(tmp_path, images)
    (one,) = read_study(tmp_path).limitations
    assert one.text.startswith("Different images have one SOPInstanceUID: 003.dcm, 007.dcm.")


def test_a_number_that_several_images_have_names_none(tmp_path: Path) -> None:
    ct = SmallCt()
    images = ct.images()
    images[3].InstanceNumber = 8
    ct.write(tmp_path, images)
    numbers = [image.number for image in read_study(tmp_path).images]
    assert numbers == [1, 2, 3, None, 5, 6, 7, None, 9, 10, 11, 12]


def _replace(file: Path, element: bytes, value: bytes) -> None:
    """Replace the value of an element, given by tag and VR."""
    data = file.read_bytes()
    at = data.index(element) + len(element)
    end = at + 2 + int.from_bytes(data[at : at + 2], "little")
    file.write_bytes(data[:at] + len(value).to_bytes(2, "little") + value + data[end:])


@pytest.mark.parametrize("whole", [False, True], ids=["one slice", "the whole series"])
def test_exact_copies_are_read_once_and_named(whole: bool, tmp_path: Path) -> None:
    ct = SmallCt()
    files = ct.write(tmp_path)
    copied = files if whole else files[5:6]
    for file in copied:
        shutil.copyfile(file, tmp_path / f"c{file.name}")
    study = read_study(tmp_path)
    np.testing.assert_array_equal(study.volume.hu, ct.hu())
    names = "c000.dcm, c001.dcm, c002.dcm and 9 more" if whole else "c005.dcm"
    assert study.other_series == (f"copies of other images, ignored: {names}",)
    np.testing.assert_array_equal(read_study(tmp_path / "c005.dcm").volume.hu, ct.hu())


def _raw(keyword: str, vr: str, value: bytes) -> Change:
    tag = Tag(keyword)
    element = RawDataElement(tag, vr, len(value), value, 0, False, True)
    return lambda _, image: image.__setitem__(tag, element)


def _set(keyword: str, value: object, at: int | None = None) -> Change:
    """Set an attribute of all images, or of one."""
    return lambda index, image: setattr(image, keyword, value) if at in (None, index) else None


def _tissue_as_padding(_index: int, image: Dataset) -> None:
    """A padding value of 40 HU in a file whose 0 is water leaves the tissue alone."""
    hu = np.frombuffer(image.PixelData, "<i2") - 1024
    image.RescaleIntercept, image.PixelData = 0, hu.astype("<i2").tobytes()
    image.add_new("PixelPaddingValue", "SS", 40)


def _unsigned(_index: int, image: Dataset, above: int = 0) -> None:
    """Unsigned 12 bits; those above, where old scanners kept overlays, are not of the value."""
    values = np.frombuffer(image.PixelData, "<i2").astype("<u2") | above
    image.PixelRepresentation, image.BitsStored, image.HighBit = 0, 12, 11
    image.PixelData = values.tobytes()


def _compressed(syntax: str, *before: Change) -> Change:
    def change(index: int, image: Dataset) -> None:
        for one in before:
            one(index, image)
        image.compress(f"1.2.840.10008.1.2.{syntax}", generate_instance_uid=False)

    return change


def _in_fragments(syntax: str, table: bool) -> Change:
    def change(_index: int, image: Dataset) -> None:
        frame = encoded(image, syntax) + b"\xff" * 3
        set_frames(image, syntax, [frame], fragments_per_frame=3, has_bot=table)

    return change


def _implicit(_index: int, image: Dataset) -> None:
    image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    image.add_new("PixelPaddingValue", "US", 63536)


def _big_endian(_index: int, image: Dataset) -> None:
    image.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    image.add_new("PixelPaddingValue", "US", 63536)
    image.PixelData = np.frombuffer(image.PixelData, "<i2").byteswap().tobytes()


CODECS = {"JPEG-LS": "4.80", "JPEG 2000": "4.90", "RLE": "5"}
FORMS: dict[str, Change] = {
    "all slices of one number": _set("InstanceNumber", 3),
    "a stated tilt that positions do not show": _set("GantryDetectorTilt", 5),
    "the first without PatientID": _set("PatientID", "", 0),
    "one without PatientID": _set("PatientID", "", 5),
    "slopes padded with spaces": _raw("RescaleSlope", "DS", b"  1.0 "),
    "spacings padded with spaces": _raw("PixelSpacing", "DS", b" 2.0 \\ +2E0"),
    "a damaged thickness": _raw("SliceThickness", "DS", b"2,5 "),
    "a damaged number": _raw("SeriesNumber", "IS", b"A1"),
    "a padding value that is tissue": _tissue_as_padding,
    "unsigned 12 bits with rubbish above": partial(_unsigned, above=0x3000),
    "implicit VR": _implicit,
    "big endian": _big_endian,
    **{name: _compressed(syntax) for name, syntax in CODECS.items()},
    **{f"{name}, unsigned": _compressed(syntax, _unsigned) for name, syntax in CODECS.items()},
    **{
        f"{syntax} in fragments{' with a table' if table else ''}": _in_fragments(syntax, table)
        for syntax in ("4.70", "4.80", "4.90")
        for table in (True, False)
    },
}


@pytest.mark.filterwarnings("ignore:Invalid value for VR IS")  # as pydicom writes it
@pytest.mark.parametrize("form", FORMS)
def test_a_sound_series_is_read_in_every_form(form: str, tmp_path: Path) -> None:
    ct = SmallCt()
    images = ct.images()
    for index, image in enumerate(images):
        FORMS[form](index, image)
    ct.write(tmp_path, images)
    study = read_study(tmp_path)
    np.testing.assert_array_equal(study.volume.hu, ct.hu())
    assert study.volume.geometry.spacing_mm == (2.5, 2.0, 2.0)
    assert study.header.patient_id == "P1"


@pytest.mark.parametrize("tail", [bytes(512), b"\n", b"\xff" * 64, b"\xde\xad\xbe\xef" * 8])
@pytest.mark.parametrize("syntax", ["", "4.80"], ids=["uncompressed", "JPEG-LS"])
def test_bytes_after_the_pixel_data_are_not_read(syntax: str, tail: bytes, tmp_path: Path) -> None:
    """Tapes and networks filled the last block of a file."""
    ct = SmallCt()
    images = ct.images()
    for image in images:
        if syntax:
            set_frames(image, syntax, [encoded(image, syntax)])
    for file in ct.write(tmp_path, images):
        file.write_bytes(file.read_bytes() + tail)
    np.testing.assert_array_equal(read_study(tmp_path).volume.hu, ct.hu())


@pytest.mark.parametrize(
    ("stored", "padding"),
    [(-2000, None), (-2000, 63536), (-2000, -2000), (2500, 2500), (1090, 1090)],
)
def test_padding_becomes_air(stored: int, padding: int | None, tmp_path: Path) -> None:
    ct = SmallCt()
    images = ct.images()
    for image in images:
        values = np.frombuffer(image.PixelData, "<i2").reshape(32, 32).copy()
        values[:3, :3] = stored
        image.PixelData = values.tobytes()
        if padding is not None:
            image.add_new("PixelPaddingValue", "US" if padding >= 0 else "SS", padding)
    ct.write(tmp_path, images)
    hu = read_study(tmp_path).volume.hu
    assert (hu[:, :3, :3] == -1024).all()
    np.testing.assert_array_equal(hu[:, 3:], ct.hu()[:, 3:])


def test_without_preamble(tmp_path: Path) -> None:
    ct = SmallCt()
    for index, image in enumerate(ct.images()):
        del image.file_meta
        image.save_as(tmp_path / f"IM{index}", implicit_vr=True, little_endian=True)
    np.testing.assert_array_equal(read_study(tmp_path).volume.hu, ct.hu())


@pytest.mark.parametrize(
    ("syntax", "options", "off_hu"),
    [
        ("1.2.840.10008.1.2.4.81", {"jls_error": 2}, 2),
        ("1.2.840.10008.1.2.4.91", {"j2k_cr": [2]}, 40),
    ],
    ids=["JPEG-LS", "JPEG 2000"],
)
def test_lossy_codecs(syntax: str, options: dict[str, Any], off_hu: int, tmp_path: Path) -> None:
    ct = SmallCt()
    images = ct.images()
    for image in images:
        image.compress(syntax, generate_instance_uid=False, **options)
    ct.write(tmp_path, images)
    assert np.abs(read_study(tmp_path).volume.hu.astype(int) - ct.hu()).max() <= off_hu


@pytest.mark.skipif(not shutil.which("dcmcjpeg"), reason="needs dcmcjpeg of DCMTK to encode")
def test_jpeg_lossless_of_any_predictor(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ct = SmallCt()
    for file in ct.write(tmp_path):
        subprocess.run(["dcmcjpeg", "+el", file, file], check=True)
    capfd.readouterr()
    assert dcmread(tmp_path / "000.dcm").file_meta.TransferSyntaxUID == JPEGLossless
    np.testing.assert_array_equal(read_study(tmp_path).volume.hu, ct.hu())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("orientation", "flips", "first"),
    [((-1, 0, 0, 0, -1, 0), (1, 2), (31, 31)), ((1, 0, 0, 0, -1, 0), (1,), (31, 0))],
    ids=["prone", "downward normal"],
)
def test_a_series_with_other_axes_is_turned_to_the_patient_s(
    orientation: tuple[int, ...], flips: tuple[int, ...], first: tuple[int, int], tmp_path: Path
) -> None:
    ct = SmallCt(orientation=orientation)
    ct.write(tmp_path)
    volume = read_study(tmp_path).volume
    np.testing.assert_array_equal(volume.hu, np.flip(ct.hu(), flips))
    np.testing.assert_allclose(volume.geometry.direction, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(volume.geometry.to_world([3, *first]), [-30, -30, -22.5])


def test_oblique_stack(tmp_path: Path) -> None:
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    SmallCt(orientation=(1, 0, 0, 0, c, s), step_mm=(0, -2.5 * s, 2.5 * c)).write(tmp_path)
    geometry = read_study(tmp_path).volume.geometry
    assert geometry.spacing_mm == pytest.approx((2.5, 2, 2), abs=1e-3)
    expected = np.array([-30, -30, -30]) + 10 * np.array([0, -2.5 * s, 2.5 * c])
    expected = expected + 2 * 5 * np.array([1, 0, 0]) + 2 * 7 * np.array([0, c, s])
    np.testing.assert_allclose(geometry.to_world([10, 7, 5]), expected, atol=1e-3)


def _moved(ct: SmallCt, z_mm: Callable[[int, float], float]) -> list[Dataset]:
    """The images with other positions along z, each by its index and its old position."""
    images = ct.images()
    for index, image in enumerate(images):
        z = z_mm(index, float(image.ImagePositionPatient[2]))
        image.ImagePositionPatient = [-30, -30, round(z, 3)]
    return images


@pytest.mark.parametrize(("count", "spacing_mm"), [(12, 2.5), (40, 1.0), (48, 0.625)])
def test_positions_that_jitter_by_an_eighth_of_a_millimetre_are_read(
    count: int, spacing_mm: float, tmp_path: Path
) -> None:
    ct = SmallCt(count, spacing_mm)
    off_mm = np.random.default_rng(0).uniform(-0.12, 0.12, count)
    images = _moved(ct, lambda i, z: z + off_mm[i])
    ct.write(tmp_path, images)
    volume = read_study(tmp_path).volume
    assert volume.geometry.spacing_mm[0] == pytest.approx(spacing_mm, abs=0.02)
    np.testing.assert_array_equal(volume.hu, ct.hu())
    found = volume.geometry.to_world([[z, 0, 0] for z in range(count)])[:, 2]
    true = [float(image.ImagePositionPatient[2]) for image in images]
    assert np.abs(found - true).max() < 0.2


@pytest.mark.parametrize("jitter_mm", [0.0, 0.12])
@pytest.mark.parametrize("spacing_mm", [0.5, 1.0, 2.5])
def test_no_missing_slice_hides_behind_jitter(
    spacing_mm: float, jitter_mm: float, tmp_path: Path
) -> None:
    """Wherever a slice is missing, its neighbours are half a step or more off every grid."""
    count = round(40 / spacing_mm)
    for missing in (1, 2, count // 2, count - 2):
        ct = SmallCt(count, spacing_mm)
        off_mm = np.random.default_rng(missing).uniform(-jitter_mm, jitter_mm, count)
        images = _moved(ct, lambda i, z, off_mm=off_mm: z + off_mm[i])
        del images[missing]
        ct.write(tmp_path / str(missing), images)
        with pytest.raises((IncompleteSeries, IrregularGeometry)):
            read_study(tmp_path / str(missing))


def test_drift_is_not_rounding(tmp_path: Path) -> None:
    """Spacing that changes by 0.05 mm half-way adds up to an uneven stack."""
    ct = SmallCt(40, 1.25)
    ct.write(tmp_path, _moved(ct, lambda i, z: z + 0.05 * max(i - 20, 0)))
    with pytest.raises(IrregularGeometry, match="spacing is not uniform"):
        read_study(tmp_path)


@pytest.mark.parametrize(("shift", "refused"), [(0.02, False), (0.1, True)])
def test_tilt_is_measured_over_the_stack(shift: float, refused: bool, tmp_path: Path) -> None:
    SmallCt(step_mm=(0.0, shift, 2.5)).write(tmp_path)
    if refused:
        with pytest.raises(IrregularGeometry, match=r"gantry tilt or shifted slices: 0\.6 mm"):
            read_study(tmp_path)
    else:
        assert read_study(tmp_path).volume.shape[0] == 12
