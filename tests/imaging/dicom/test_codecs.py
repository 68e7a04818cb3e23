"""Damaged codestreams are refused before a decoder sees them; sound ones are read to their end."""

import numpy as np
import pytest

from imaging.dicom import codecs
from imaging.dicom.layout import Layout
from tests.imaging.small_ct import SmallCt, encoded

_SOF = bytes.fromhex("ffc3000b 10 0010 0020 01 01 11 00")
_DHT = bytes.fromhex("ffc40015 00 01010000000000000000000000000000 0003")
_SOS = bytes.fromhex("ffda0008 01 01 00 01 00 00")
_DATA = bytes.fromhex("12ff0034ffd05678")
SOUND = b"\xff\xd8" + _SOF + _DHT + _SOS + _DATA + b"\xff\xd9"


SYNTAXES = {"JPEG Lossless": "4.70", "JPEG-LS": "4.80", "JPEG 2000": "4.90", "RLE": "5"}
LAYOUT = Layout(32, 32, 16, 15, True)


def _frame(name: str) -> bytes:
    """The fourth image of the small CT, without padding behind its end marker."""
    return encoded(SmallCt().images()[3], SYNTAXES[name]).rstrip(b"\0")


def _decoded(frame: bytes, name: str) -> np.ndarray:
    return codecs.decode(frame, LAYOUT, f"1.2.840.10008.1.2.{SYNTAXES[name]}") - 1024


@pytest.mark.parametrize("tail", [b"\0", b"\xff", b"\n\0", b"\xff\xd9", b"GE" * 300], ids=bytes.hex)
@pytest.mark.parametrize("name", SYNTAXES)
def test_bytes_after_the_end_marker_are_no_part_of_the_image(name: str, tail: bytes) -> None:
    """Archives pad frames with one byte or more: every decoder reads them, and so do we."""
    np.testing.assert_array_equal(_decoded(_frame(name) + tail, name), SmallCt().hu()[3])


@pytest.mark.parametrize("pad", [b"\xff", b"\xff\xff", b"\0", b"\0\xff"], ids=bytes.hex)
@pytest.mark.parametrize("name", ["JPEG Lossless", "JPEG-LS"])
def test_bytes_before_the_end_marker_are_no_part_of_the_image(name: str, pad: bytes) -> None:
    frame = _frame(name)
    padded = frame[:-2] + pad + frame[-2:]
    np.testing.assert_array_equal(_decoded(padded, name), SmallCt().hu()[3])


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xdb\0\x43\0" + bytes(range(1, 65)),
        b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0",
        b"\xff\xfe\0\6text",
        b"\xff\xdd\0\4\0\0",
    ],
    ids=["quantisation", "JFIF", "comment", "restart interval"],
)
def test_segments_that_change_no_lossless_image(segment: bytes) -> None:
    frame = _frame("JPEG Lossless")
    frame = frame[:2] + segment + frame[2:]
    np.testing.assert_array_equal(_decoded(frame, "JPEG Lossless"), SmallCt().hu()[3])


@pytest.mark.parametrize("tail", [b"", b"\0", b"\xff", b"GE" * 300], ids=bytes.hex)
@pytest.mark.parametrize("share", [0.99, 0.5, 0.05])
@pytest.mark.parametrize("name", [n for n in SYNTAXES if n != "RLE"])
def test_a_frame_without_end_marker_is_truncated(name: str, share: float, tail: bytes) -> None:
    """What follows the place where a frame was cut cannot hide the cut."""
    frame = _frame(name)
    with pytest.raises(ValueError, match=r"truncated|damaged|unexpected marker"):
        _decoded(frame[: int(share * (len(frame) - 2))] + tail, name)


@pytest.mark.parametrize("name", [n for n in SYNTAXES if n != "RLE"])
def test_two_images_in_one_frame_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="holds more than one image"):
        codecs.checked(_frame(name) * 2, 32, 32)


@pytest.mark.parametrize("marker", [_SOF, _SOS, b"\xff\xd9"], ids=["header", "scan", "end"])
def test_fill_bytes_before_a_marker_are_legal(marker: bytes) -> None:
    """ISO/IEC 10918-1, B.1.1.2: any marker may be preceded by bytes FF."""
    filled = SOUND.replace(marker, b"\xff\xff" + marker)
    assert codecs.checked(filled, 16, 32) == filled


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (b"\xff\xd8", b"\x00\x00", "neither JPEG"),
        (_SOF, b"", "0 JPEG frame headers"),
        (_SOF, _SOF * 2, "2 JPEG frame headers"),
        (bytes.fromhex("000b10"), bytes.fromhex("000b7f"), "frame header is damaged"),
        (bytes.fromhex("0001010000"), bytes.fromhex("0005010000"), "Huffman table"),
        (bytes.fromhex("000003ffda"), bytes.fromhex("0000ffffda"), "Huffman table"),
        (_DHT, b"", "scan header"),
        (_SOS, _SOS[:-3] + b"\x09\x00\x00", "scan header"),
        (_DATA, b"\x12\xff\xc4\x34", "unexpected marker ffc4"),
        (_SOS, _SOS[:2] + b"\xff\xff", "header is damaged"),
    ],
)
def test_unsound_streams(old: bytes, new: bytes, text: str) -> None:
    assert old in SOUND
    with pytest.raises(ValueError, match=text):
        codecs.jpeg_size(SOUND.replace(old, new))


@pytest.mark.parametrize(
    ("frame", "rle", "text"),
    [
        (SOUND[:-2], False, "is truncated"),
        (SOUND.replace(b"\x00\x10\x00\x20", b"\xff\xff\xff\xff"), False, "65535"),
        (b"\xff\x4f\xff\x51\x00\xff\xd9", False, "JPEG 2000 header is truncated"),
        (b"\x03\x00\x00\x00" + bytes(80), True, "RLE header"),
        (b"", True, "RLE header"),
    ],
)
def test_frames_that_do_not_fit(frame: bytes, rle: bool, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        codecs.checked(frame, 16, 32, rle=rle)
