"""Find the elements of a usual DICOM file: the way of most files, four times as fast as pydicom.

A usual file has a preamble, and little endian byte order up to its pixel data. Of any other, and of
one in which anything is odd, nothing is said here: pydicom reads it, and the error says what is
wrong (DICOM PS3.5, chapter 7; PS3.10, chapter 7).
"""

import os
import re
import struct
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cache, lru_cache
from io import BufferedReader
from typing import cast

from pydicom import Dataset
from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import (
    DataElement,
    RawDataElement,
    convert_raw_data_element,
    empty_value_for_VR,
)
from pydicom.tag import BaseTag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

_HEAD_BYTES = 1 << 14
"""Most headers end before it. The whole file is read only where one does not."""
_EXPLICIT = (ExplicitVRLittleEndian, RLELossless)
_JPEG = "1.2.840.10008.1.2.4."
"""How the transfer syntaxes of the JPEG family begin, and those of video."""
_PIXEL_DATA, _CHARSET, _TRANSFER_SYNTAX = 0x7FE00010, 0x00080005, 0x00020010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_SHORT = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
)  # with two bytes of length
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_MAX_DEPTH = 8
_SHORT_VALUE = 128
"""Longest value in bytes that is converted here: the images of a series share most of them."""


Element = DataElement | RawDataElement


@dataclass(frozen=True)
class Pixels:
    """Where the value of the pixel data lies in a file.

    ``length`` is None for encapsulated frames, which end where a delimiter says so.
    """

    offset: int
    length: int | None


@dataclass(frozen=True, eq=False)
class Header:
    """The wanted elements of a file, undecoded, its transfer syntax and its pixel data.

    ``values`` are those of ``data``, by tag, each with its value representation.
    """

    data: Dataset
    values: Mapping[int, tuple[str, bytes]]
    transfer_syntax: str
    pixels: Pixels


class _Odd(Exception):
    """The file is not a usual one."""


def scan(stream: BufferedReader, wanted: Set[int]) -> Header | None:
    """Return the ``wanted`` top-level elements of a file that is open; None if it is not usual.

    A sequence that is wanted, if the file has it, makes it unusual.
    """
    file_bytes = os.fstat(stream.fileno()).st_size
    head = stream.read(_HEAD_BYTES)
    try:
        try:
            return _header(head, wanted, file_bytes)
        except (_Odd, struct.error, IndexError):
            if len(head) < _HEAD_BYTES:
                return None
        return _header(head + stream.read(), wanted, file_bytes)
    except (_Odd, struct.error, IndexError):
        return None


def _header(content: bytes, wanted: Set[int], file_bytes: int) -> Header:
    if content[128:132] != b"DICM":
        raise _Odd
    at, syntax = 132, ""
    while content[at : at + 2] == b"\x02\x00":
        tag, _, value_at, length = _explicit(content, at)
        at = value_at + length
        if tag == _TRANSFER_SYNTAX:
            syntax = content[value_at:at].decode("ascii", "replace").rstrip("\0 ")
    implicit = syntax == ImplicitVRLittleEndian
    if not (implicit or syntax in _EXPLICIT or syntax.startswith(_JPEG)):
        raise _Odd
    element = _implicit if implicit else _explicit
    found, values, last = dict[BaseTag, Element](), dict[int, tuple[str, bytes]](), 0
    while True:
        tag, vr, value_at, length = element(content, at)
        if not last < tag <= _PIXEL_DATA:
            raise _Odd
        if tag == _PIXEL_DATA:
            break
        last = tag
        if length == _UNDEFINED:
            if tag in wanted or vr not in (b"SQ", None):
                raise _Odd
            at = _after_sequence(content, value_at, implicit=implicit)
            continue
        at = value_at + length
        if tag in wanted or tag == _CHARSET:
            if vr == b"SQ" or at > len(content):
                raise _Odd
            name, kind = BaseTag(tag), vr.decode() if vr else None
            value = content[value_at:at]
            values[tag] = (kind or _usual(tag), value)
            stored = value or cast(bytes | None, empty_value_for_VR(kind, raw=True))
            found[name] = RawDataElement(name, kind, length, stored, value_at, implicit, True)
    encapsulated = length == _UNDEFINED
    cut_off = not encapsulated and value_at + length > file_bytes
    if cut_off or encapsulated == (implicit or syntax == ExplicitVRLittleEndian):
        raise _Odd
    data = Dataset(found)
    charset = found.get(BaseTag(_CHARSET))
    data.set_original_encoding(
        implicit, True, _encodings(cast(bytes | None, charset and charset.value))
    )
    whole = None if encapsulated else length
    return Header(data, values, syntax, Pixels(value_at, whole))


@lru_cache(maxsize=16)
def _encodings(charset: bytes | None) -> str | list[str]:
    """Return Python's names of the encodings that an attribute (0008,0005) names.

    Raises:
        _Odd: it names none that can be looked up.
    """
    if charset is None:
        return default_encoding
    raw = RawDataElement(BaseTag(_CHARSET), "CS", len(charset), charset, 0, False, True)
    try:
        return convert_encodings(convert_raw_data_element(raw).value)
    except Exception as error:  # pydicom promises no set of exceptions for damaged values
        raise _Odd from error


def _explicit(content: bytes, at: int) -> tuple[int, bytes | None, int, int]:
    """Return tag, value representation, and place and length of the value of one element."""
    group, element, vr, length = struct.unpack_from("<HH2sH", content, at)
    if vr in _SHORT:
        return group << 16 | element, vr, at + 8, length
    if vr in _LONG:
        return group << 16 | element, vr, at + 12, struct.unpack_from("<L", content, at + 8)[0]
    raise _Odd


def _implicit(content: bytes, at: int) -> tuple[int, bytes | None, int, int]:
    if content[at + 4 : at + 6].isupper():
        raise _Odd  # it has a value representation
    return _item(content, at)


def _item(content: bytes, at: int) -> tuple[int, bytes | None, int, int]:
    group, element, length = struct.unpack_from("<HHL", content, at)
    return group << 16 | element, None, at + 8, length


def _after_sequence(content: bytes, at: int, *, implicit: bool, depth: int = 0) -> int:
    """Return where a sequence of undefined length ends."""
    if depth > _MAX_DEPTH:
        raise _Odd
    while True:
        tag, _, at, length = _item(content, at)
        if tag == _SEQUENCE_END:
            return at
        if tag != _ITEM:
            raise _Odd
        if length != _UNDEFINED:
            at += length
            continue
        while True:
            tag, _, value_at, length = _item(content, at)
            if tag == _ITEM_END:
                at = value_at
                break
            element = _implicit if implicit else _explicit
            tag, vr, value_at, length = element(content, at)
            if length != _UNDEFINED:
                at = value_at + length
            elif vr in (b"SQ", None):
                at = _after_sequence(content, value_at, implicit=implicit, depth=depth + 1)
            else:
                raise _Odd


def one_frame(content: bytes) -> bytes:
    """Return the frame whose fragments are all those of encapsulated pixel data.

    Raises:
        ValueError: they do not follow one another up to the delimiter.
    """
    fragments, at = list[bytes](), 0
    try:
        while True:
            tag, _, value_at, length = _item(content, at)
            if tag == _SEQUENCE_END:
                return b"".join(fragments[1:])  # the first is the table of offsets
            at = value_at + length
            if tag != _ITEM or at > len(content):
                raise ValueError("damaged fragments")
            fragments.append(content[value_at:at])
    except struct.error:
        raise ValueError("cut off") from None


def plain_texts(kind: str, value: bytes) -> tuple[str, ...] | None:
    """Return the values of an undecoded element as pydicom would, stripped; None if it is not sure.

    It is sure of short texts and numbers in ASCII whose form is that of the standard.
    """
    if not value:
        return ()
    return _texts(kind, value) if len(value) <= _SHORT_VALUE else None


@lru_cache(maxsize=1024)
def _texts(kind: str, value: bytes) -> tuple[str, ...] | None:
    if kind == "US" and len(value) == 2:
        return (str(int.from_bytes(value, "little")),)
    if kind not in _PLAIN or not _PRINTABLE(value):
        return None
    text = value.decode("ascii").strip(" \0")
    values = tuple(part.strip() for part in text.split("\\")) if text else ()
    sound = _PLAIN[kind]
    return values if sound is None or all(not v or sound(v) for v in values) else None


@cache
def _usual(tag: int) -> str:
    return dictionary_VR(tag)


_PRINTABLE = re.compile(rb"[\x20-\x7e]*\0?").fullmatch
_PLAIN = {
    **dict.fromkeys(("AE", "AS", "CS", "DA", "LO", "SH", "TM", "UI")),
    "DS": re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?").fullmatch,
    "IS": re.compile(r"[+-]?\d{1,9}").fullmatch,
}
"""Value representations whose text is the value, with what a value must be."""
