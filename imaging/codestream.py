"""Checks of a compressed frame before a decoder sees it: what it is, how large, whether whole.

Decoders fill what is missing with grey, and trust the size that the codestream states; a
damaged one could ask for gigabytes.
"""

from __future__ import annotations

_START_JPEG, _START_JPEG2000, _END = b"\xff\xd8", b"\xff\x4f\xff\x51", b"\xff\xd9"
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF0-15, and SOF55: JPEG-LS
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_RLE_HEADER_BYTES = 64


def check(frame: bytes, rows: int, columns: int, *, rle: bool = False) -> None:
    """Nothing, if the frame is whole and of ``rows`` x ``columns`` pixels of one component.

    Raises:
        ValueError: it is not; the message says why.
    """
    if rle:
        _check_rle(frame)
        return
    if not frame.rstrip(b"\x00").endswith(_END):
        raise ValueError(f"the compressed picture breaks off after {len(frame)} bytes")
    size = _size(frame)
    if size != (rows, columns, 1):
        raise ValueError(f"holds rows, columns, components {size}, not {(rows, columns, 1)}")


def _size(frame: bytes) -> tuple[int, int, int]:
    """Rows, columns and components that the codestream states."""
    if frame.startswith(_START_JPEG2000):
        return _jpeg2000_size(frame)
    if frame.startswith(_START_JPEG):
        return _jpeg_size(frame)
    raise ValueError(f"is neither JPEG nor JPEG 2000 (starts with {frame[:4].hex()})")


def _jpeg2000_size(frame: bytes) -> tuple[int, int, int]:
    """Of the SIZ segment (ISO/IEC 15444-1, A.5.1)."""
    if len(frame) < 42:
        raise ValueError("the JPEG 2000 header breaks off")
    right, bottom, left, top = (int.from_bytes(frame[i : i + 4], "big") for i in range(8, 24, 4))
    return bottom - top, right - left, int.from_bytes(frame[40:42], "big")


def _jpeg_size(frame: bytes) -> tuple[int, int, int]:
    """Of the frame header, the first SOF segment (ISO/IEC 10918-1, B.2.2)."""
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker in _FRAME_HEADERS:
            rows, columns = (int.from_bytes(frame[i : i + 2], "big") for i in (at + 5, at + 7))
            return rows, columns, frame[at + 9]
        fill = marker == 0xFF
        length = int.from_bytes(frame[at + 2 : at + 4], "big")
        at += 1 if fill else 2 if marker in _ALONE else 2 + length
    raise ValueError("the JPEG frame header is missing")


def _check_rle(frame: bytes) -> None:
    """Two segments, one a byte of the 16-bit values (DICOM PS3.5, annex G)."""
    segments = int.from_bytes(frame[:4], "little")
    offsets = [int.from_bytes(frame[i : i + 4], "little") for i in (4, 8)]
    if segments != 2 or offsets[0] != _RLE_HEADER_BYTES or not 64 < offsets[1] < len(frame):
        raise ValueError(f"the RLE header is damaged ({segments} segments at {offsets})")
