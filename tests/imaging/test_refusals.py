"""Bad studies of every kind that arrives, each with the refusal that a person can act on.

Most of it is two tables, of images and of files, a row for each way to be bad; volume files are in
`test_refused_volumes.py`.
"""

import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _pytest.mark import ParameterSet
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.encaps import generate_frames
from pydicom.tag import Tag
from pydicom.uid import UID

from imaging.errors import IncompleteSeries, IrregularGeometry, NotCt, StudyError, UnreadableFile
from imaging.read import read_study
from tests.imaging.small_ct import SmallCt, encoded, set_frames

Damage = Callable[[list[Dataset]], Any]


def rows(table: dict[type[StudyError], dict[str, tuple[Any, str]]]) -> list[ParameterSet]:
    """The rows of a table, which is sorted by error: what is done, the error, and its text."""
    return [
        pytest.param(damage, error, text, id=name)
        for error, named in table.items()
        for name, (damage, text) in named.items()
    ]


def _all(**attributes: object) -> Damage:
    """Set an attribute in every image, or delete it where the value is None."""

    def damage(images: list[Dataset]) -> None:
        for image in images:
            _one(image, **attributes)

    return damage


def _one(image: Dataset, **attributes: object) -> None:
    for keyword, value in attributes.items():
        if value is None:
            delattr(image, keyword)
        else:
            setattr(image, keyword, value)


def _fifth(**attributes: object) -> Damage:
    return lambda images: _one(images[5], **attributes)


def _move(index: int, by_mm: tuple[float, float, float]) -> Damage:
    def damage(images: list[Dataset]) -> None:
        old = images[index].ImagePositionPatient
        images[index].ImagePositionPatient = [a + b for a, b in zip(old, by_mm, strict=True)]

    return damage


def _each(**attributes: Callable[[int], object]) -> Damage:
    """Set attributes of every image by functions of its index."""

    def damage(images: list[Dataset]) -> None:
        for index, image in enumerate(images):
            _one(image, **{keyword: value(index) for keyword, value in attributes.items()})

    return damage


_spread = _each(ImagePositionPatient=lambda i: [0, 0, round(2.5 * i * (1 + 0.02 * i), 3)])
_shear = _each(ImagePositionPatient=lambda i: [0, 0.3 * i, 2.5 * i])
_far = _each(ImagePositionPatient=lambda i: [0, 0, 12 * i], SliceThickness=lambda _: 12)
_coronal = _each(
    ImagePositionPatient=lambda i: [0, 2.5 * i, 0],
    ImageOrientationPatient=lambda _: [1, 0, 0, 0, 0, -1],
)
_tilt = _all(ImageOrientationPatient=[1, 0, 0, 0, 0.9659, -0.2588], GantryDetectorTilt=15)
_colour = _all(SamplesPerPixel=3, PhotometricInterpretation="RGB", PixelData=bytes(32 * 32 * 3 * 2))


def _every_third(images: list[Dataset]) -> None:
    """High-resolution CT as it used to be: thin slices with much between them."""
    images[:] = images[::3]
    _all(SliceThickness=1)(images)


def _double(**attributes: object) -> Damage:
    """Add a copy of the fourth image that differs from it: one of the two is wrong."""

    def damage(images: list[Dataset]) -> None:
        images.append(deepcopy(images[4]))
        _one(images[-1], **attributes)

    return damage


def _raw(keyword: str, vr: str, value: bytes) -> Damage:
    """Write the value's bytes as they are, which pydicom would not do."""

    def damage(images: list[Dataset]) -> None:
        tag = Tag(keyword)
        images[5][tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)

    return damage


def _grey_bytes(images: list[Dataset]) -> None:
    """What an export of a picture looks like: 0 to 255, no offset."""
    for image in images:
        image.RescaleIntercept = 0
        image.PixelData = (np.arange(32 * 32) % 256).astype("<i2").tobytes()


def _other_syntax(images: list[Dataset]) -> None:
    for image in images:
        image.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.201")
        image.PixelData = b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\x04\0\0\0\0\0\0\0"
        image["PixelData"].is_undefined_length = True


def _lossy_syntax(images: list[Dataset]) -> None:
    for image in images:
        set_frames(image, "4.51", [b"\xff\xd8\xff\xd9"])


def _wrong_stream(images: list[Dataset]) -> None:
    """JPEG-LS of half the picture in one image."""
    for image in images:
        image.compress("1.2.840.10008.1.2.4.80", generate_instance_uid=False)
    images[5].PixelData = images[5].PixelData[: len(images[5].PixelData) // 2]
    images[5]["PixelData"].is_undefined_length = True


def _grey_frame(images: list[Dataset]) -> None:
    """JPEG Lossless whose decoder only complains of the lost half, and fills it with grey."""
    for image in images:
        encoded(image, "4.70")
    frame = next(generate_frames(images[5].PixelData, number_of_frames=1))
    set_frames(images[5], "4.70", [frame[: len(frame) // 2] + b"\xff\xd9"])


IMAGES: dict[type[StudyError], dict[str, tuple[Damage, str]]] = {
    IncompleteSeries: {
        "a slice is missing": (lambda i: i.pop(5), "1 missing between 004.dcm"),
        "three slices are missing": (lambda i: i.__delitem__(slice(4, 7)), "3 miss"),
        "a slice is there with other pixels": (
            _double(PixelData=bytes(2048)),
            "012.dcm: duplicate slice",
        ),
        "too few slices": (lambda i: i.__delitem__(slice(7, None)), "17.5 mm"),
        "a single slice": (lambda i: i.__delitem__(slice(1, None)), "000.dcm"),
        "gaps between slices": (_every_third, "1 mm every 7.50 mm"),
    },
    IrregularGeometry: {
        "spacing grows": (_spread, "spacing is not uniform"),
        "one slice is off the grid": (_move(5, (0, 0, 0.4)), "005.dcm"),
        "one slice is moved sideways": (_move(5, (4, 0, 0)), "005.dcm"),
        "tilted orientation": (_tilt, "gantry tilt"),
        "sheared positions": (_shear, "gantry tilt"),
        "mixed matrix": (_fifth(Rows=16), "005.dcm: matrix 16 x 32"),
        "mixed pixel spacing": (_fifth(PixelSpacing=[1, 1]), "005.dcm: pixels"),
        "mixed orientation": (
            _fifth(ImageOrientationPatient=[0, 1, 0, -1, 0, 0]),
            "005.dcm: orientation",
        ),
        "a localizer that is not called so": (
            lambda i: _one(i[0], ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
            "000.dcm: orientation [0.0, 1.0, 0.0, 0.0, 0.0, -1.0], but 001.dcm",
        ),
        "mixed slopes": (_fifth(RescaleSlope=2), "005.dcm: rescale slope and intercept (2"),
        "mixed intercepts": (_fifth(RescaleIntercept=2), "but 000.dcm of the same"),
        "coronal": (_coronal, "not axial"),
        "slices far apart": (_far, "slice spacing 12"),
        "no position": (_fifth(ImagePositionPatient=None), "005.dcm: ImagePos"),
        "no orientation": (_all(ImageOrientationPatient=None), "ImageOrient"),
        "no pixel spacing": (_all(PixelSpacing=None), "PixelSpacing is missing"),
        "zero pixel spacing": (_all(PixelSpacing=[0, 2]), "PixelSpacing 0 x 2"),
        "negative spacing": (_all(PixelSpacing=[-1, 1]), "PixelSpacing -1 x 1"),
        "huge pixels": (_all(PixelSpacing=[20, 20]), "20 x 20 mm"),
        "no directions": (
            _all(ImageOrientationPatient=[0, 0, 0, 0, 0, 0]),
            "expected two perpendicular unit vectors",
        ),
        "frames without places": (_all(NumberOfFrames=3), "3 frames without"),
    },
    UnreadableFile: {
        "no rows": (_fifth(Rows=None), "005.dcm: Rows is missing"),
        "zero columns": (_all(Columns=0), "Columns is 0"),
        "no bits": (_all(BitsStored=None), "BitsStored is missing"),
        "impossible bits": (_all(BitsStored=14, HighBit=11), "BitsStored 14"),
        "a slope of NaN": (
            _raw("RescaleSlope", "DS", b"NaN "),
            "005.dcm: RescaleSlope is [nan], not finite",
        ),
        "an infinite intercept": (
            _raw("RescaleIntercept", "DS", b"inf "),
            "005.dcm: RescaleIntercept is [inf], not finite",
        ),
        # 1,250 may be either of two numbers
        "a decimal comma": (
            _raw("PixelSpacing", "DS", b"2,0\\2,0 "),
            r"005.dcm: PixelSpacing is '2,0\\2,0', not a number",
        ),
        "two slopes": (_fifth(RescaleSlope=[1, 2]), "RescaleSlope has 2 values"),
        "short pixel data": (
            _fifth(PixelData=bytes(1000)),
            "005.dcm: pixel data: truncated, 1000 of",
        ),
        "no pixel data": (_fifth(PixelData=None), "005.dcm: pixel data: missing or cut off"),
        "an unknown transfer syntax": (_other_syntax, "1.2.840.10008.1.2.4.201"),
        "lossy JPEG": (_lossy_syntax, "JPEG Extended (Process 2 and 4) (1.2.840"),
        "a broken codestream": (_wrong_stream, "005.dcm: pixel data"),
        "half a frame": (_grey_frame, "005.dcm: pixel data: Corrupt JPEG data"),
    },
    NotCt: {
        "eight bits": (_all(BitsAllocated=8, BitsStored=8, HighBit=7), "BitsAllocated is 8"),
        "no slope": (_all(RescaleSlope=None), "RescaleSlope is missing"),
        "zero slope": (_fifth(RescaleSlope=0), "005.dcm: RescaleSlope is 0"),
        "no intercept": (_all(RescaleIntercept=None), "RescaleIntercept is missing"),
        "a palette": (
            _all(PhotometricInterpretation="PALETTE COLOR"),
            "PhotometricInterpretation is PALETTE COLOR",
        ),
        "colour": (_colour, "SamplesPerPixel 3"),
        "MR": (_all(Modality="MR"), "modality MR is not CT"),
        "no modality": (_all(Modality=None), "modality not given"),
        "one MR image in a CT series": (_fifth(Modality="MR"), "005.dcm: modality MR"),
        "radiograph": (
            _all(SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1"),
            "not a CT image (SOP class 1.2.840.10008.5.1.4.1.1.1.1)",
        ),
        "projection only": (_all(ImageType=["DERIVED", "SECONDARY", "MIP"]), "mip"),
        "another quantity": (_all(RescaleType="MGML"), "values are MGML"),
        "two patients": (_fifth(PatientID="P2"), "CT of 2 patients"),
        "an image of another study without PatientID": (
            _fifth(PatientID="", StudyInstanceUID="1.2.3"),
            "005.dcm: PatientID is empty, and its study is not that of 0",
        ),
        "two names without PatientID": (
            lambda i: (_all(PatientID="")(i), _fifth(PatientName="Other")(i)),
            "CT of 2 patients",
        ),
        "0 to 255": (_grey_bytes, "values from 0 to 255"),
        "only air": (_all(PixelData=bytes(2048)), "from -1024 to -1024"),
    },
}


@pytest.mark.parametrize(("damage", "error", "text"), rows(IMAGES))
def test_bad_images(damage: Damage, error: type[StudyError], text: str, tmp_path: Path) -> None:
    ct = SmallCt()
    images = ct.images()
    damage(images)
    ct.write(tmp_path, images)
    with pytest.raises(error, match=re.escape(text)):
        read_study(tmp_path)


def _cut(share: float) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        file = folder / "005.dcm"
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])

    return damage


def _write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _in(pattern: str, lost: int, content: bytes, others: str = "") -> Callable[[Path], object]:
    """Name all slices by a pattern, and give one of them other content."""

    def damage(folder: Path) -> None:
        for index, file in enumerate(sorted(folder.iterdir())):
            name = pattern if index == lost or not others else others
            file.rename(folder / name.format(index))
        (folder / pattern.format(lost)).write_bytes(content)

    return damage


def _overwrite(at: int, content: bytes) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        old = (folder / "005.dcm").read_bytes()
        (folder / "005.dcm").write_bytes(old[:at] + content + old[at + len(content) :])

    return damage


def _only(*names: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        for file in folder.iterdir():
            file.unlink()
        for name in names:
            (folder / name).write_text("<xml/>")

    return damage


FILES: dict[type[StudyError], dict[str, tuple[Callable[[Path], object], str]]] = {
    UnreadableFile: {
        "cut in the pixels": (_cut(0.9), "005.dcm: pixel data: truncated"),
        "cut in the preamble": (_cut(0.02), "005.dcm: is not DICOM"),
        "an empty file": (_write("005.dcm", b""), "005.dcm: is empty"),
        "an empty file named like images": (_in("IM{}", 5, b""), "IM5: is empty"),
        "noise named like images": (_in("I.{}", 5, b"\x9c" * 900), "I.5: is not DICOM"),
        "an empty file named by UID": (_in("1.2.84.{}", 5, b""), "1.2.84.5: is empty"),
        "noise of their suffix": (_in("{}.img", 5, b"\x9c" * 900), "5.img: is not"),
        "a transfer": (_write("012.dcm.part", b"\x9c" * 900), "has not finished"),
        "a transfer that began": (_write("012.dcm.filepart", b""), "has not finished"),
        "a transfer at its end": (
            lambda f: (f / "011.dcm").rename(f / "011.dcm.tmp"),
            "011.dcm.tmp: is a transfer that has not finished",
        ),
        "a transfer without suffix": (_in("{}.part", 5, b"x", "{}"), "5.part: is a tr"),
        "text named .dcm": (_write("x.dcm", b"hello"), "x.dcm: is not DICOM"),
        "nothing but the preamble": (_write("x.dcm", bytes(128) + b"DICM"), "x.dcm"),
        "damaged magic": (_overwrite(128, b"DIXM"), "005.dcm: is not DICOM"),
        "an empty folder": (_only(), "it is empty"),
        "a DICOMDIR alone": (_only("DICOMDIR"), "only a DICOMDIR, whose images lie"),
        "an archive": (_only("a.zip"), "but an archive, a.zip: unpack it"),
        "no DICOM": (_only("a.xml", "b.csv"), "2 other files such as a.xml"),
    },
    StudyError: {
        "cut in the header": (_cut(0.3), "005.dcm: "),
        "noise in the header": (_overwrite(300, b"\xff" * 200), "005.dcm: "),
    },
}


@pytest.mark.parametrize(("damage", "error", "text"), rows(FILES))
def test_bad_files(
    damage: Callable[[Path], object], error: type[StudyError], text: str, tmp_path: Path
) -> None:
    """A damaged file among good ones is never dropped in silence: the study is refused."""
    SmallCt().write(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=re.escape(text)):
        read_study(tmp_path)
