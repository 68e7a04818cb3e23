"""Checks of a compressed frame before a decoder sees it: what it is, how large, whether whole.

Decoders fill what is missing with grey, and trust the size that a codestream states though it
ask for gigabytes.
"""

from __future__ import annotations

from imaging import jpeg

_START_JPEG2000, _END = b"\xff\x4f\xff\x51", b"\xff\xd9"
_RLE_HEADER_BYTES = 64


def check(frame: bytes, rows: int, columns: int, *, rle: bool = False) -> None:
    """Nothing, if the frame is whole and of ``rows`` x ``columns`` pixels of one component.

    Raises:
        ValueError: it is not; the message says why.
    """
    if rle:
        _check_rle(frame)
        return
    whole = frame.rstrip(b"\x00")
    if not whole.endswith(_END):
        raise ValueError(f"the compressed picture breaks off after {len(frame)} bytes")
    is_2000 = whole.startswith(_START_JPEG2000)
    size = _jpeg2000_size(whole) if is_2000 else jpeg.checked_size(whole)
    if size != (rows, columns, 1):
        raise ValueError(f"holds rows, columns, components {size}, not {(rows, columns, 1)}")


def _jpeg2000_size(frame: bytes) -> tuple[int, int, int]:
    """Of the SIZ segment (ISO/IEC 15444-1, A.5.1)."""
    if len(frame) < 42:
        raise ValueError("the JPEG 2000 header breaks off")
    right, bottom, left, top = (int.from_bytes(frame[i : i + 4], "big") for i in range(8, 24, 4))
    return bottom - top, right - left, int.from_bytes(frame[40:42], "big")


def _check_rle(frame: bytes) -> None:
    """Two segments, one a byte of the 16-bit values (DICOM PS3.5, annex G)."""
    segments = int.from_bytes(frame[:4], "little")
    first, second = (int.from_bytes(frame[i : i + 4], "little") for i in (4, 8))
    if segments != 2 or first != _RLE_HEADER_BYTES or not first < second < len(frame):
        raise ValueError(f"the RLE header is damaged ({segments} segments at {first}, {second})")
