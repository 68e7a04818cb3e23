"""Header values that no scanner writes: a study, or an error that names the file, and no long text.

Each way of reading is tried: the study at once, ahead of its end, and a look at its first bytes.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from imaging.dicom.ahead import ReadAhead
from imaging.dicom.arrival import look, missing_images
from imaging.dicom.study import peek, refused_study
from imaging.errors import StudyError
from imaging.read import read_study
from imaging.volume import Study
from tests.imaging.dicom.test_series import _enhanced
from tests.imaging.small_ct import SmallCt

CHARSETS = (b"ISO\0IR 100", bytes(10), b"ISO_IR 999", b"\\" * 10, b"\xff" * 10, b"A" * 60000)
DIGITS = (b"9" * 4096, b"9" * 5000, b"-" + b"9" * 5000, b"0." + b"1" * 5000)
NUMBERS = (b"nan", b"inf", b"1e308", b"-1e308", b"1e999", b"-33000", b"-33792", b"65536", *DIGITS)
TEXTS = (b"A" * 60000, b"\\" * 3000, *DIGITS)
MAX_TEXT = 1400  # a reason with its path

ODD = [
    *((keyword, vr, value) for keyword in ("RescaleIntercept", "RescaleSlope", "SliceThickness",
      "ImagePositionPatient", "PixelSpacing") for vr in ("DS", "OB") for value in NUMBERS),
    *((keyword, vr, value) for keyword in ("InstanceNumber", "SeriesNumber", "AcquisitionNumber",
      "NumberOfFrames", "ImagesInAcquisition", "NumberOfSeriesRelatedInstances")
      for vr in ("DS", "OB") for value in NUMBERS),
    *((keyword, vr, value) for keyword in ("PatientID", "PatientAge", "StudyDate", "ImageType",
      "ConvolutionKernel", "SeriesDescription", "BodyPartExamined", "SOPInstanceUID")
      for vr in ("LO", "OB") for value in TEXTS),
]  # fmt: skip


def texts_of(study: Study) -> Iterator[str]:
    yield from map(str, vars(study.header).values())
    yield from (*study.other_series, *(one.text for one in study.limitations))
    yield from (study.volume.series_uid, study.volume.description)


def require_answers(folder: Path) -> None:
    """Each way of reading ends in a study or an error of it, and no text is long."""
    ahead = ReadAhead(1 << 24)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, when the value is converted
        for file in ahead.new_in(folder):
            ahead.take_in(file)
            seen, found = peek(file), look(file)
            assert len(str((seen and seen.number, found and found.announced))) < 40
        missing_images(folder)
        refused_study(folder)
        for known in (None, ahead):
            try:
                study = read_study(folder, ahead=known)
            except StudyError as error:
                refused = error
            else:
                assert max(map(len, texts_of(study))) <= MAX_TEXT
                assert study.headers is not None
                study.headers()
                continue
            assert refused.file.is_relative_to(folder)
            assert len(str(refused)) <= MAX_TEXT


@pytest.mark.long
@pytest.mark.parametrize("odd", [0, 1])
def test_an_odd_value_is_read_or_named(tmp_path: Path, odd: int) -> None:
    """In one image of a series, or in each."""
    for number, (keyword, vr, value) in enumerate(ODD[odd::2]):
        images = SmallCt(8).images()
        for image in images[:: 1 + 6 * (number // 2 % 2)]:
            put(image, keyword, vr, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            SmallCt().write(folder := tmp_path / str(number), images)
        require_answers(folder)


def put(image: Dataset, keyword: str, vr: str, value: bytes) -> None:
    tag, even = Tag(keyword), value + b" " * (len(value) % 2)
    image[tag] = RawDataElement(tag, vr, len(even), even, 0, False, True)


@pytest.mark.parametrize("charset", CHARSETS)
def test_an_odd_character_set_is_read_or_named(tmp_path: Path, charset: bytes) -> None:
    for file in SmallCt(8).write(tmp_path / "a"):
        image_type = b"\x08\0\x08\0CS"
        own = b"\x08\0\x05\0CS" + len(charset).to_bytes(2, "little") + charset
        file.write_bytes(file.read_bytes().replace(image_type, own + image_type, 1))
    require_answers(tmp_path / "a")


@pytest.mark.parametrize("intercept", [-32768, -32769, -33000, -33791, -33792, -40000, 1e308, -1e9])
@pytest.mark.parametrize("is_enhanced", [False, True])
def test_an_odd_intercept_is_converted_or_named(
    tmp_path: Path, intercept: float, is_enhanced: bool
) -> None:
    ct = SmallCt(8)
    images = [_enhanced(ct)] if is_enhanced else ct.images()
    for image in images:
        place = image
        if is_enhanced:
            place = image.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0]
        place.RescaleIntercept = f"{intercept:g}"
    ct.write(tmp_path / "a", images)
    require_answers(tmp_path / "a")
    if -33792 < intercept < 0:  # signed values of 16 bits that become HU
        shift = int(-1024 - intercept)
        for one in images:
            values = np.frombuffer(one.PixelData, "<i2").astype(np.int64) + shift
            one.PixelData = np.clip(values, -32768, 32767).astype("<i2").tobytes()
        ct.write(tmp_path / "b", images)
        expected = np.clip(ct.hu(), None, 32767 + int(intercept))
        if expected.max() >= 0:  # else no value is left for tissue, and it is refused
            np.testing.assert_array_equal(read_study(tmp_path / "b").volume.hu, expected)
