"""Whether a JPEG Lossless or JPEG-LS codestream is sound, segment by segment.

The decoder of JPEG Lossless ends the whole process, not only the picture, when the tables are
damaged; so nothing reaches it whose header is not exactly as it has to be
(ISO/IEC 10918-1, annexes B, C and H; ISO/IEC 14495-1, annex C for JPEG-LS).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_START, _END = b"\xff\xd8", b"\xff\xd9"
_LOSSLESS, _JPEG_LS = 0xC3, 0xF7  # SOF3 and SOF55, the frame headers of the two
_TABLES, _SCAN, _RESTART_INTERVAL = 0xC4, 0xDA, 0xDD
_HARMLESS = {*range(0xE0, 0xF0), 0xFE, 0xF8}  # APPn, comments, the parameters of JPEG-LS
_STRAY_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # neither a stuffed byte nor a restart


def checked_size(frame: bytes) -> tuple[int, int, int]:
    """Rows, columns and components of a sound frame, which ends with its end marker.

    Raises:
        ValueError: the frame is not sound; the message says where.
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
        if stray := _STRAY_MARKER.search(frame, data_at, len(frame) - len(_END)):
            raise ValueError(f"a marker {stray.group().hex()} in the midst of JPEG data")
    return int.from_bytes(header[1:3], "big"), int.from_bytes(header[3:5], "big"), header[5]


def _segments(frame: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Marker, content and end of every segment up to the scan header, the last one."""
    if not frame.startswith(_START):
        raise ValueError(f"is neither JPEG nor JPEG 2000 (starts with {frame[:4].hex()})")
    at, marker = len(_START), 0
    known = {_LOSSLESS, _JPEG_LS, _TABLES, _SCAN, _RESTART_INTERVAL} | _HARMLESS
    while marker != _SCAN:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        end = at + 2 + length
        if frame[at] != 0xFF or marker not in known or length < 2 or end > len(frame) - len(_END):
            raise ValueError(f"the JPEG header is damaged ({frame[at : at + 4].hex()})")
        yield marker, frame[at + 4 : end], end
        at = end


def _huffman_tables(segment: bytes) -> set[int]:
    """The numbers of the tables that one segment defines, each proven to be a prefix code."""
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
    """One component, the one of the frame header, with a table, a predictor and a shift."""
    if len(scan) != 6 or scan[0] != 1 or scan[1] != header[6] or scan[2] >> 4 not in tables:
        raise ValueError(f"the JPEG scan header is damaged ({scan.hex()})")
    if not 1 <= scan[3] <= 7 or scan[4] != 0 or scan[5] >= header[0]:
        raise ValueError(f"the JPEG scan header is damaged ({scan.hex()})")
