"""Sound series in every form that hospitals send; the damaged ones are in test_refusals."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate, generate_frames
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from imaging.errors import IrregularGeometry, UnreadableFile
from imaging.read import read_study
from tests.imaging.small_ct import SmallCt, encoded, set_frames


def test_order_and_names_do_not_matter(tmp_path: Path) -> None:
    ct = SmallCt()
    for index, file in enumerate(ct.write(tmp_path)):
        file.rename(tmp_path / f"{(index * 7) % 12:02}-{index}.5.{'dcm' if index % 2 else '77'}")
    volume = read_study(tmp_path).volume
    np.testing.assert_array_equal(volume.hu, ct.hu())
    assert volume.geometry.spacing_mm == (2.5, 2.0, 2.0)
    assert volume.geometry.origin_mm == (-30.0, -30.0, -30.0)


def test_header_and_bystanders(tmp_path: Path) -> None:
    SmallCt(attributes={"ConvolutionKernel": "B31f", "StudyDate": "20240102"}).write(tmp_path)
    (tmp_path / "annotation.xml").write_text("<x/>")
    (tmp_path / "README").write_text("Grüße")
    (tmp_path / ".done").touch()
    (tmp_path / "DICOMDIR").write_bytes(b"anything")
    study = read_study(tmp_path)
    assert (study.header.patient_id, study.header.patient_name) == ("P1", "Test^Chest")
    assert (study.header.kernel, study.header.study_date) == ("B31f", "20240102")
    assert study.header.transfer_syntax == "Explicit VR Little Endian"
    assert study.volume.series_uid == "1.2.826.0.1.1"
    assert study.other_series == ("not DICOM, ignored: README, annotation.xml",)


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
    numbers = [image.number for image in study.images]
    assert numbers == [1, 2, 3, None, None, None, *range(7, 13)]
    uids = [image.SOPInstanceUID for image in images]
    uids[6] = ""
    assert [image.sop_instance_uid for image in study.images] == uids
    assert {image.frame for image in study.images} == {None}
    assert study.frame_of_reference_uid == "1.2.3.4"


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
    assert study.other_series == (f"exact copies of other files, ignored: {names}",)
    np.testing.assert_array_equal(read_study(tmp_path / "c005.dcm").volume.hu, ct.hu())


@pytest.mark.parametrize("empty", [0, 5])
def test_an_empty_patient_id_is_that_of_its_study(empty: int, tmp_path: Path) -> None:
    ct = SmallCt()
    images = ct.images()
    images[empty].PatientID = ""
    ct.write(tmp_path, images)
    study = read_study(tmp_path)
    assert study.header.patient_id == "P1"
    np.testing.assert_array_equal(study.volume.hu, ct.hu())


def test_numbers_of_slices_do_not_count_but_their_positions(tmp_path: Path) -> None:
    ct = SmallCt(attributes={"InstanceNumber": 3})
    ct.write(tmp_path)
    np.testing.assert_array_equal(read_study(tmp_path).volume.hu, ct.hu())


def test_numbers_padded_with_spaces(tmp_path: Path) -> None:
    ct = SmallCt()
    images = ct.images()
    for image in images:
        for keyword, text in (("RescaleSlope", b"  1.0 "), ("PixelSpacing", b" 2.0 \\ +2E0")):
            tag = Tag(keyword)
            image[tag] = RawDataElement(tag, "DS", len(text), text, 0, False, True)
    ct.write(tmp_path, images)
    volume = read_study(tmp_path).volume
    assert volume.geometry.spacing_mm == (2.5, 2.0, 2.0)
    np.testing.assert_array_equal(volume.hu, ct.hu())


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


@pytest.mark.filterwarnings("ignore:Invalid value for VR IS")  # as pydicom writes it
@pytest.mark.parametrize(
    ("keyword", "vr", "value"), [("SliceThickness", "DS", b"2,5 "), ("SeriesNumber", "IS", b"A1")]
)
def test_a_damaged_number_on_which_no_image_depends(
    keyword: str, vr: str, value: bytes, tmp_path: Path
) -> None:
    ct = SmallCt()
    images = ct.images()
    for image in images:
        image[Tag(keyword)] = RawDataElement(Tag(keyword), vr, len(value), value, 0, False, True)
    ct.write(tmp_path, images)
    np.testing.assert_array_equal(read_study(tmp_path).volume.hu, ct.hu())


@pytest.mark.parametrize("attribute", ["RescaleSlope", "RescaleIntercept"])
def test_rescale_that_differs_from_slice_to_slice_is_refused(
    tmp_path: Path, attribute: str
) -> None:
    """A series of CT is converted to HU in one way: another one is of another series."""
    ct = SmallCt()
    images = ct.images()
    setattr(images[5], attribute, 2)
    ct.write(tmp_path, images)
    with pytest.raises(IrregularGeometry, match=r"005\.dcm: rescale .* but 000\.dcm of the same"):
        read_study(tmp_path)


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


def test_padding_value_that_is_tissue_is_not_believed(tmp_path: Path) -> None:
    """A padding value of 0 in a file whose 0 is water leaves the water alone."""
    ct = SmallCt()
    images = ct.images()
    for image, hu in zip(images, ct.hu(), strict=True):
        image.RescaleIntercept, image.PixelData = 0, hu.astype("<i2").tobytes()
        image.add_new("PixelPaddingValue", "SS", 40)
    ct.write(tmp_path, images)
    np.testing.assert_array_equal(read_study(tmp_path).volume.hu, ct.hu())


def test_unsigned_twelve_bits_with_rubbish_above(tmp_path: Path) -> None:
    """Bits above the stored ones, where old scanners kept overlays, are not part of the value."""
    ct = SmallCt()
    images = ct.images()
    for image, hu in zip(images, ct.hu(), strict=True):
        image.PixelRepresentation, image.BitsStored, image.HighBit = 0, 12, 11
        image.PixelData = ((hu + 1024).astype("<u2") | 0x3000).tobytes()
    ct.write(tmp_path, images)
    np.testing.assert_array_equal(read_study(tmp_path).volume.hu, ct.hu())


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_uncompressed_encodings(syntax: str, tmp_path: Path) -> None:
    ct = SmallCt()
    images = ct.images()
    big = syntax == ExplicitVRBigEndian
    for image in images:
        image.file_meta.TransferSyntaxUID = syntax
        image.add_new("PixelPaddingValue", "US", 63536)
        if big:
            image.PixelData = np.frombuffer(image.PixelData, "<i2").byteswap().tobytes()
    tmp_path.joinpath("x").mkdir()
    for index, image in enumerate(images):
        image.save_as(tmp_path / f"x/{index}.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_study(tmp_path).volume.hu, ct.hu())


def test_without_preamble(tmp_path: Path) -> None:
    ct = SmallCt()
    for index, image in enumerate(ct.images()):
        del image.file_meta
        image.save_as(tmp_path / f"IM{index}", implicit_vr=True, little_endian=True)
    np.testing.assert_array_equal(read_study(tmp_path).volume.hu, ct.hu())


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned 12 bits"])
@pytest.mark.parametrize("syntax", ["4.80", "4.90", "5"], ids=["JPEG-LS", "JPEG 2000", "RLE"])
def test_lossless_codecs(syntax: str, signed: bool, tmp_path: Path) -> None:
    ct = SmallCt()
    images = [_unsigned(i) if not signed else i for i in ct.images()]
    for image in images:
        image.compress(f"1.2.840.10008.1.2.{syntax}", generate_instance_uid=False)
    ct.write(tmp_path, images)
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
    hu = read_study(tmp_path).volume.hu
    assert np.abs(hu.astype(int) - ct.hu()).max() <= off_hu


@pytest.mark.skipif(not shutil.which("dcmcjpeg"), reason="needs dcmcjpeg of DCMTK to encode")
@pytest.mark.parametrize("process", ["+el", "+e1"], ids=[".57", ".70"])
def test_jpeg_lossless(process: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ct = SmallCt()
    for file in ct.write(tmp_path):
        subprocess.run(["dcmcjpeg", process, file, file], check=True)
    capfd.readouterr()
    assert dcmread(tmp_path / "000.dcm").file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(read_study(tmp_path).volume.hu, ct.hu())
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not shutil.which("dcmcjpeg"), reason="needs dcmcjpeg of DCMTK to encode")
def test_damaged_jpeg_lossless(tmp_path: Path) -> None:
    """Where the decoder only complains and fills in grey, the study is refused by its file."""
    files = SmallCt().write(tmp_path)
    for file in files:
        subprocess.run(["dcmcjpeg", "+e1", file, file], check=True)
    image = dcmread(files[5])
    frame = next(generate_frames(image.PixelData, number_of_frames=1))
    image.PixelData = encapsulate([frame[: len(frame) // 2] + b"\xff\xd9"])
    image.save_as(files[5])
    with pytest.raises(UnreadableFile, match=r"005.dcm: pixel data: Corrupt JPEG data"):
        read_study(tmp_path)


@pytest.mark.parametrize("syntax", ["4.70", "4.80", "4.90"])
@pytest.mark.parametrize("table", [True, False], ids=["offset table", "no offset table"])
def test_a_frame_in_several_fragments(table: bool, syntax: str, tmp_path: Path) -> None:
    ct = SmallCt()
    images = ct.images()
    for image in images:
        frame = encoded(image, syntax) + b"\xff" * 3
        layout = {"fragments_per_frame": 3, "has_bot": table}
        set_frames(image, syntax, [frame], **layout)
    ct.write(tmp_path, images)
    np.testing.assert_array_equal(read_study(tmp_path).volume.hu, ct.hu())


def test_a_study_whose_frames_are_padded_after_their_end(tmp_path: Path) -> None:
    """Whole hospital series are archived so; in one of these, the slices differ in their pads."""
    ct = SmallCt()
    images = ct.images()
    for index, image in enumerate(images):
        set_frames(image, "4.70", [encoded(image, "4.70") + b"\xff\x00\x0a" * index])
    ct.write(tmp_path, images)
    np.testing.assert_array_equal(read_study(tmp_path).volume.hu, ct.hu())


def test_prone_and_feet_first(tmp_path: Path) -> None:
    ct = SmallCt(orientation=(-1, 0, 0, 0, -1, 0))
    ct.write(tmp_path)
    volume = read_study(tmp_path).volume
    np.testing.assert_array_equal(volume.hu, ct.hu()[:, ::-1, ::-1])
    np.testing.assert_allclose(volume.geometry.direction, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(volume.geometry.to_world([0, 31, 31]), [-30, -30, -30])


def test_downward_normal(tmp_path: Path) -> None:
    ct = SmallCt(orientation=(1, 0, 0, 0, -1, 0))
    ct.write(tmp_path)
    volume = read_study(tmp_path).volume
    np.testing.assert_array_equal(volume.hu, ct.hu()[:, ::-1])
    np.testing.assert_allclose(volume.geometry.to_world([3, 31, 0]), [-30, -30, -22.5])


def test_oblique_stack(tmp_path: Path) -> None:
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    ct = SmallCt(orientation=(1, 0, 0, 0, c, s), step_mm=(0, -2.5 * s, 2.5 * c))
    ct.write(tmp_path)
    geometry = read_study(tmp_path).volume.geometry
    assert geometry.spacing_mm == pytest.approx((2.5, 2, 2), abs=1e-3)
    expected = np.array([-30, -30, -30]) + 10 * np.array([0, -2.5 * s, 2.5 * c])
    expected = expected + 2 * 5 * np.array([1, 0, 0]) + 2 * 7 * np.array([0, c, s])
    np.testing.assert_allclose(geometry.to_world([10, 7, 5]), expected, atol=1e-3)


def _unsigned(image: Dataset) -> Dataset:
    values = np.frombuffer(image.PixelData, "<i2").astype("<u2")
    image.PixelRepresentation, image.BitsStored, image.HighBit = 0, 12, 11
    image.PixelData = values.tobytes()
    return image
