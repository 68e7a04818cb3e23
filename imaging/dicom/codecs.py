"""Check and decode compressed frames.

Every frame is checked before a decoder sees it: decoders fill what is missing with grey, and
trust the size that a codestream states, even if it asks for gigabytes. The decoder of JPEG Lossless
ends the whole process when the tables are damaged; so JPEG headers are checked segment by segment
(ISO/IEC 10918-1, annexes B, C and H; ISO/IEC 14495-1, annex C for JPEG-LS; ISO/IEC 15444-1,
annex A for JPEG 2000). A frame ends at its end marker. Some archives write a pad byte, or more,
after it: that is no part of the image, and is cut off.

JPEG-LS, in which many archives keep CT, is decoded by CharLS 2 in imagecodecs, all else by GDCM in
SimpleITK. Both release Python's lock. GDCM reads only files, and parses the whole header of each.
So every frame gets a file of its own, in memory, with nothing but the pixel attributes: quicker,
and independent of the rest of the header.
"""

import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    JPEG2000,
    UID,
    CTImageStorage,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from imaging.dicom.layout import Layout
from imaging.errors import is_out_of_memory
from imaging.files import named_in_memory

_START, _END = b"\xff\xd8", b"\xff\xd9"
_LOSSLESS, _JPEG_LS = 0xC3, 0xF7  # SOF3 and SOF55, the frame headers of the two
_TABLES, _SCAN, _RESTART_INTERVAL = 0xC4, 0xDA, 0xDD
# APPn, comments, parameters of JPEG-LS, tables of quantisation, which some encoders write anyway
_HARMLESS = {*range(0xE0, 0xF0), 0xFE, 0xF8, 0xDB}
# the next marker in the data that is no restart; fill bytes may come before it. After a byte FF
# JPEG stuffs a byte 00, JPEG-LS a bit 0.
_NEXT_MARKER = {
    _LOSSLESS: re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]"),
    _JPEG_LS: re.compile(rb"\xff+[\x80-\xcf\xd8-\xfe]"),
}
_START_JPEG2000, _DATA_JPEG2000 = b"\xff\x4f\xff\x51", b"\xff\x93"
_NEXT_MARKER_JPEG2000 = re.compile(rb"\xff[\x90\xd9]")  # the next tile-part, or the end
_ITEM, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)

_JPEG_LS_SYNTAXES = {JPEGLSLossless, JPEGLSNearLossless}
SYNTAXES = frozenset(
    {JPEGLossless, JPEGLosslessSV1, JPEG2000Lossless, JPEG2000, RLELossless, *_JPEG_LS_SYNTAXES}
)
"""The supported transfer syntaxes of compressed CT."""


def decode(frame: bytes, layout: Layout, transfer_syntax: str) -> npt.NDArray[Any]:
    """Decode the stored values of one frame, ``(rows, columns)``, int16 or uint16.

    Raises:
        ValueError: the frame is damaged; the message says how.
    """
    whole = checked(frame, layout.rows, layout.columns, rle=transfer_syntax == RLELossless)
    values = _read_jpeg_ls(whole, layout) if transfer_syntax in _JPEG_LS_SYNTAXES else None
    if values is None:
        values = _read_image(_file_head(layout, transfer_syntax) + _encapsulated(whole))
    if values.shape != (size := (layout.rows, layout.columns)):
        raise ValueError(f"decodes to rows, columns {values.shape}, expected {size}")
    return values


def checked(frame: bytes, rows: int, columns: int, *, rle: bool = False) -> bytes:
    """Return the frame up to its end marker.

    Raises:
        ValueError: it is truncated or damaged, or it is not one image of ``rows`` x ``columns``
            pixels of one component; the message says why.
    """
    if rle:
        _check_rle(frame)
        return frame
    is_2000 = frame.startswith(_START_JPEG2000)
    *size, end = _jpeg2000_size(frame) if is_2000 else jpeg_size(frame)
    if size != [rows, columns, 1]:
        raise ValueError(f"has rows, columns, components {size}, expected {[rows, columns, 1]}")
    if frame.startswith((_START, _START_JPEG2000), end):
        raise ValueError("holds more than one image")
    return frame[:end]


def _check_rle(frame: bytes) -> None:
    """Require two segments, one per byte of the 16-bit values (DICOM PS3.5, annex G)."""
    n, first, second = (int.from_bytes(frame[i : i + 4], "little") for i in (0, 4, 8))
    if n != 2 or first != 64 or not first < second < len(frame):
        raise ValueError(f"the RLE header is damaged ({n} segments at {first}, {second})")


def _jpeg2000_size(frame: bytes) -> tuple[int, int, int, int]:
    """Read rows, columns and components from the SIZ segment, and find the end of the frame."""
    if len(frame) < 42:
        raise ValueError("the JPEG 2000 header is truncated")
    right, bottom, left, top = (int.from_bytes(frame[i : i + 4], "big") for i in range(8, 24, 4))
    components, at = int.from_bytes(frame[40:42], "big"), len(_START)
    # the end marker: from segment to segment, and over the data of each tile-part
    while at < len(frame) - 1:
        marker, length = frame[at : at + 2], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker == _END:
            return bottom - top, right - left, components, at + len(_END)
        if marker == _DATA_JPEG2000:
            after = _NEXT_MARKER_JPEG2000.search(frame, at)
            at = after.start() if after else len(frame)
        elif marker[0] == 0xFF and length >= 2:
            at += 2 + length
        else:
            raise ValueError(f"the JPEG 2000 header is damaged ({frame[at : at + 4].hex()})")
    raise ValueError(_truncated(frame))


def _truncated(frame: bytes) -> str:
    return f"the compressed frame is truncated: no end marker in its {len(frame)} bytes"


def jpeg_size(frame: bytes) -> tuple[int, int, int, int]:
    """Read rows, columns and components of a frame, and find its end, behind the end marker.

    Raises:
        ValueError: the frame is truncated or damaged; the message says where.
    """
    *segments, (last, scan, data_at) = _segments(frame)
    headers = [(m, s) for m, s, _ in segments if m in (_LOSSLESS, _JPEG_LS)]
    if len(headers) != 1 or last != _SCAN:
        raise ValueError(f"has {len(headers)} JPEG frame headers instead of 1")
    marker, header = headers[0]
    if len(header) != 9 or header[5] != 1 or header[7] != 0x11 or not 2 <= header[0] <= 16:
        raise ValueError(f"the JPEG frame header is damaged ({header.hex()})")
    if marker == _LOSSLESS:
        tables = {t for m, s, _ in segments if m == _TABLES for t in _huffman_tables(s)}
        _check_scan(scan, header, tables)
    after = _NEXT_MARKER[marker].search(frame, data_at)
    if after is None:
        raise ValueError(_truncated(frame))
    if not after.group().endswith(_END):
        raise ValueError(f"unexpected marker {after.group()[-2:].hex()} inside the JPEG data")
    rows, columns = (int.from_bytes(header[i : i + 2], "big") for i in (1, 3))
    return rows, columns, header[5], after.end()


def _segments(frame: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield marker, content and end of every segment up to the scan header, the last one."""
    if not frame.startswith(_START):
        raise ValueError(f"is neither JPEG nor JPEG 2000 (starts with {frame[:4].hex()})")
    at, marker = len(_START), 0
    known = {_LOSSLESS, _JPEG_LS, _TABLES, _SCAN, _RESTART_INTERVAL} | _HARMLESS
    while marker != _SCAN:
        while frame[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        if len(frame) < at + 4:
            raise ValueError(_truncated(frame))
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        end = at + 2 + length
        if frame[at] != 0xFF or marker not in known or length < 2:
            raise ValueError(f"the JPEG header is damaged ({frame[at : at + 4].hex()})")
        yield marker, frame[at + 4 : end], end
        at = end


def _huffman_tables(segment: bytes) -> set[int]:
    """Return the numbers of the tables that one segment defines, each checked as a prefix code."""
    tables, at = set(), 0
    while at < len(segment):
        counts = segment[at + 1 : at + 17]
        values = segment[at + 17 : at + 17 + sum(counts)]
        space = sum(n << (16 - length) for length, n in enumerate(counts, start=1))
        sound = len(counts) == 16 and 0 < sum(counts) == len(values) and space <= 1 << 16
        if not sound or segment[at] > 3 or max(values) > 16:
            raise ValueError("a Huffman table is damaged")
        tables.add(segment[at])
        at += 17 + len(values)
    return tables


def _check_scan(scan: bytes, header: bytes, tables: set[int]) -> None:
    """Require the frame's one component, with a table, a predictor and a shift."""
    is_of_frame = len(scan) == 6 and scan[0] == 1 and scan[1] == header[6]
    sound = is_of_frame and scan[2] >> 4 in tables and 1 <= scan[3] <= 7 and scan[4] == 0
    if not sound or scan[5] >= header[0]:
        raise ValueError(f"the JPEG scan header is damaged ({scan.hex()})")


def _read_jpeg_ls(frame: bytes, layout: Layout) -> npt.NDArray[Any] | None:
    """Decode a frame with CharLS; None if its values have less than 9 bits."""
    try:
        values = imagecodecs.jpegls_decode(frame)
    except imagecodecs.JpeglsError:
        raise ValueError("the compressed frame cannot be decoded") from None
    if values.dtype != np.uint16:
        return None
    return np.asarray(values.view(np.int16) if layout.signed else values)


def _read_image(content: bytes) -> npt.NDArray[Any]:
    """Decode a DICOM file of one frame with GDCM."""
    import SimpleITK as sitk  # here, since the reading process alone needs it

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    with named_in_memory(content) as name:
        reader.SetFileName(name)
        try:
            return np.asarray(sitk.GetArrayFromImage(reader.Execute())[0])
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise MemoryError from None
            raise ValueError("the compressed frame cannot be decoded") from None


@lru_cache(maxsize=16)
def _file_head(layout: Layout, transfer_syntax: str) -> bytes:
    """Build a DICOM file up to its pixel data, without rescaling and without the patient."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, UID("1.2.3")
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = layout.rows, layout.columns
    data.BitsAllocated, data.BitsStored = 16, layout.bits_stored
    data.HighBit, data.PixelRepresentation = layout.high_bit, int(layout.signed)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    stream = BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _encapsulated(frame: bytes) -> bytes:
    """Build the pixel data element with the frame as its one fragment (DICOM PS3.5, annex A.4)."""
    even = frame + b"\x00" * (len(frame) % 2)
    start = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    table, end = struct.pack("<HHI", *_ITEM, 0), struct.pack("<HHI", *_SEQUENCE_END, 0)
    return start + table + struct.pack("<HHI", *_ITEM, len(even)) + even + end
