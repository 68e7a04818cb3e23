"""Usual files are read without pydicom, and say the same; all others are left to it."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from imaging.dicom import header, study
from imaging.dicom.header import HEADER_KEYWORDS, Instance, read_instance
from imaging.dicom.series import Series, group
from imaging.errors import UnreadableFile
from imaging.read import read_study
from tests.imaging.small_ct import SmallCt, encoded, set_frames


def _set(**attributes: object) -> Callable[[Dataset], None]:
    return lambda image: [setattr(image, k, v) for k, v in attributes.items()] and None


def _sequences(undefined: bool) -> Callable[[Dataset], None]:
    """A sequence in an item of another, with attributes that are wanted at the top level only."""

    def change(image: Dataset) -> None:
        inner, outer = Dataset(), Dataset()
        inner.PatientID, inner.SliceThickness = "of another", 9
        inner.is_undefined_length_sequence_item = outer.is_undefined_length_sequence_item = (
            undefined
        )
        outer.ReferencedImageSequence = Sequence([inner, inner])
        image.ReferencedStudySequence = Sequence([outer, Dataset()])
        for data, name in ((outer, "ReferencedImageSequence"), (image, "ReferencedStudySequence")):
            data[name].is_undefined_length = undefined

    return change


def _private(image: Dataset, size: int = 40_000) -> None:
    block = image.private_block(0x0009, "SCANNER", create=True)
    block.add_new(1, "OB", bytes(size))


def _implicit(image: Dataset) -> None:
    image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    image.add_new("PixelPaddingValue", "US", 63536)


USUAL: dict[str, Callable[[Dataset], None]] = {
    "explicit": _set(),
    "implicit": _implicit,
    "JPEG-LS": lambda image: set_frames(image, "4.80", [encoded(image, "4.80")]),
    "sequences": _sequences(undefined=False),
    "sequences of undefined length": _sequences(undefined=True),
    "implicit sequences of undefined length": lambda image: [
        one(image) for one in (_implicit, _sequences(undefined=True))
    ] and None,
    "a long private header": _private,
    "Latin": _set(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg", StationName="Süd"),
    "several values": _set(ConvolutionKernel=["B30f", "2"], ImageType=["DERIVED", "", "AXIAL"]),
    "empty values": _set(SliceThickness=None, PatientID="", ImageType="", PatientAge=None),
}  # fmt: skip


def _written(folder: Path, change: Callable[[Dataset], None]) -> Path:
    image = SmallCt().images()[3]
    change(image)
    return SmallCt().write(folder, [image])[0]


@pytest.mark.parametrize("form", USUAL)
def test_a_usual_header_says_what_pydicom_says(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _written(tmp_path, USUAL[form])
    with monkeypatch.context() as context:
        context.setattr(header, "read_partial", None)
        scanned = read_instance(file)
    monkeypatch.setattr(header, "scan", lambda *_: None)
    parsed = read_instance(file)
    assert scanned.transfer_syntax == parsed.transfer_syntax
    for keyword in HEADER_KEYWORDS:
        assert scanned.texts(keyword) == parsed.texts(keyword), keyword
    assert scanned.data.keys() == parsed.data.keys()
    assert scanned.data.to_json() == parsed.data.to_json()


def _rewritten(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(change(file.read_bytes())) and None


def _resaved(syntax: str) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        image = SmallCt().images()[3]
        image.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            image.PixelData = np.frombuffer(image.PixelData, "<i2").byteswap().tobytes()
        image.save_as(file, enforce_file_format=True)

    return change


UNUSUAL: dict[str, Callable[[Path], None]] = {
    "big endian": _resaved(ExplicitVRBigEndian),
    "deflated": _resaved(DeflatedExplicitVRLittleEndian),
    "without a preamble": _rewritten(lambda data: data[data.index(b"\x08\x00\x08\x00") :]),
    "cut off in the header": _rewritten(lambda data: data[:600]),
    "cut off in the pixels": _rewritten(lambda data: data[:-100]),
    "in disorder": _rewritten(
        lambda data: data.replace(b"\x28\x00\x10\x00US", b"\x08\x00\x10\x00US")
    ),
    "an unknown value representation": _rewritten(
        lambda data: data.replace(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00XX")
    ),
    "a length beyond the file": _rewritten(
        lambda data: data.replace(b"\x10\x00\x20\x00LO\x02\x00", b"\x10\x00\x20\x00LO\xff\xff")
    ),
}


@pytest.mark.filterwarnings("ignore")  # pydicom's, which the reader does not show
@pytest.mark.parametrize("form", UNUSUAL)
def test_an_unusual_file_is_left_to_pydicom(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _written(tmp_path, USUAL["explicit"])
    UNUSUAL[form](file)

    def said() -> list[object]:
        try:
            image = read_instance(file)
            return [image.transfer_syntax, *(image.text(keyword) for keyword in HEADER_KEYWORDS)]
        except UnreadableFile as error:
            return [str(error)]

    found = said()
    monkeypatch.setattr(header, "scan", lambda *_: None)
    assert found == said()


@pytest.mark.parametrize("syntax", ["", "4.80"], ids=["uncompressed", "JPEG-LS"])
def test_pydicom_parses_no_usual_file(
    syntax: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = SmallCt().images()
    for image in images if syntax else ():
        set_frames(image, syntax, [encoded(image, syntax)])
    SmallCt().write(tmp_path, images)
    monkeypatch.setattr(header, "read_partial", None)
    np.testing.assert_array_equal(read_study(tmp_path).volume.hu, SmallCt().hu())


@pytest.mark.parametrize("change", ["replaced", "removed", "changed and back"])
def test_a_study_is_not_read_from_a_file_that_changes_meanwhile(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers of one patient and pixels of another would make a sound volume."""
    SmallCt().write(tmp_path)
    changed = tmp_path / "005.dcm"

    def grouped(images: list[Instance]) -> list[Series]:  # when all headers are read
        content, status = changed.read_bytes(), changed.stat()
        changed.unlink()
        if change != "removed":
            changed.write_bytes(content if "back" in change else content[:-2] + b"zz")
            os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
        return group(images)

    monkeypatch.setattr(study, "group", grouped)
    with pytest.raises(OSError, match="was changed while the study was read") as error:
        read_study(tmp_path)
    assert (error.value.errno, error.value.filename) == (errno.ESTALE, str(changed))
