"""Damaged codestreams are refused before a decoder sees them."""

from __future__ import annotations

import pytest

from imaging.dicom import codecs

_SOF = bytes.fromhex("ffc3000b 10 0010 0020 01 01 11 00")
_DHT = bytes.fromhex("ffc40015 00 01010000000000000000000000000000 0003")
_SOS = bytes.fromhex("ffda0008 01 01 00 01 00 00")
_DATA = bytes.fromhex("12ff0034ffd05678")
SOUND = b"\xff\xd8" + _SOF + _DHT + _SOS + _DATA + b"\xff\xd9"


def test_sound_stream_states_its_size() -> None:
    assert codecs.jpeg_size(SOUND) == (16, 32, 1)
    codecs.check(SOUND, 16, 32)


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
        codecs.check(frame, 16, 32, rle=rle)
