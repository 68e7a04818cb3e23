"""Keep the headers of the images that were read, without pixels, for DICOM objects made later.

A segmentation or a structured report names each image that it is of, and repeats patient and
study. The files may be gone by then, so the headers are kept as DICOM JSON (PS3.18, annex F).
"""

import gzip
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from io import BytesIO
from typing import Any

from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.tag import BaseTag, Tag

from imaging.dicom.header import FUNCTIONAL_GROUPS, SOURCE_KEYWORDS, Instance, load
from imaging.errors import UnreadableFile, is_machine_fault

FORMAT = "overread.source/1"
MAX_VALUE = 4096
"""Longest value in bytes that is kept: no text of patient or study is as long."""
MAX_ORDER = 4 * MAX_VALUE
"""Most bytes of the order's sequences, and characters of their JSON."""
MAX_HEADERS = 6 << 20
"""Largest compressed headers in bytes: those of 20,000 slices take half of it."""
REQUEST_KEYWORDS = (
    *("AccessionNumber", "IssuerOfAccessionNumberSequence", "ReferencedStudySequence"),
    *("RequestedProcedureID", "RequestedProcedureDescription", "RequestedProcedureCodeSequence"),
    *("PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest"),
)
ORDER_KEYWORDS = (
    *("RequestAttributesSequence", "ReferencedRequestSequence", "ProcedureCodeSequence"),
    *REQUEST_KEYWORDS,
)
"""What names the order, of the first image: sequences of every image would make reading slow."""
_MACROS = ("PixelMeasuresSequence", "PlanePositionSequence", "PlaneOrientationSequence")
_TAGS = tuple(Tag(keyword) for keyword in SOURCE_KEYWORDS)
_CHARSET = Tag("SpecificCharacterSet")


def source_headers(images: Sequence[Instance], *, of_order: bool = True) -> bytes:
    """Return the headers of these images as compressed JSON; empty where there are too many.

    ``of_order``: what names the order is among them, for which a file is read again.
    ``shared`` are the attributes of the first image; each of ``images`` has what differs in it.
    What is damaged, private or long is left out. Text is UTF-8, whatever it was in the files.
    """
    with disable_value_validation():
        first = images[0].data
        # before the first image's elements are decoded: undecoded ones are compared in a fifth
        own = [_to_json(image.data, _differing(image.data, first)) for image in images]
        shared = _to_json(first, _TAGS)
        for keyword in FUNCTIONAL_GROUPS:
            if keyword in first:
                items = [_macros(item) for item in first[keyword].value]
                shared[Tag(keyword).json_key] = {"vr": "SQ", "Value": items}
        shared |= _order(images[0]) if of_order else {}
    values = {"format": FORMAT, "shared": shared, "images": own}
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    data = gzip.compress(text.encode("utf-8", "replace"), 4, mtime=0)
    return data if len(data) <= MAX_HEADERS else b""


def _order(image: Instance) -> dict[str, Any]:
    """Return what names the order; nothing where it cannot be read, or is long."""
    with suppress(UnreadableFile):
        values = _to_json(load(image.file, ORDER_KEYWORDS), map(Tag, ORDER_KEYWORDS), MAX_ORDER)
        if len(json.dumps(values)) <= MAX_ORDER:
            return values
    return {}


def _differing(data: Dataset, first: Dataset) -> Iterable[BaseTag]:
    """Return the tags whose undecoded values differ from those of the first image."""
    if data is first:
        return ()
    if _raw(data, _CHARSET) != _raw(first, _CHARSET):
        return _TAGS  # equal bytes may be other letters
    return [tag for tag in _TAGS if tag in data and not _is_same(data, first, tag)]


def _is_same(data: Dataset, first: Dataset, tag: BaseTag) -> bool:
    """Compare two elements, undecoded as far as neither was needed yet."""
    if tag not in first:
        return False
    one, other = data.get_item(tag), first.get_item(tag)
    if type(one) is type(other):
        return bool(one.value == other.value)
    try:
        return bool(data[tag].value == first[tag].value)
    except Exception as error:  # a damaged value fails in pydicom with any exception
        if is_machine_fault(error):
            raise
        return False


def _raw(data: Dataset, tag: BaseTag) -> object:
    element = data.get_item(tag) if tag in data else None
    return element.value if isinstance(element, RawDataElement | DataElement) else None


def _to_json(data: Dataset, tags: Iterable[BaseTag], most: int = MAX_VALUE) -> dict[str, Any]:
    """Return the elements that can be converted, by tag; private ones are left out.

    ``most`` is the longest value in bytes. A sequence in it may have a quarter, so none is deep.
    """
    values: dict[str, Any] = {}
    for tag in tags:
        if tag not in data or tag == _CHARSET or tag.is_private or not most:
            continue
        value = _raw(data, tag)
        if isinstance(value, bytes) and len(value) > most:
            continue
        try:
            if data[tag].VR == "SQ":
                items = [_to_json(item, item.keys(), most // 4) for item in data[tag].value]
                converted = {"vr": "SQ", "Value": items}
            else:
                converted = data[tag].to_json_dict(None, MAX_VALUE)
            json.dumps(converted, allow_nan=False)
        # A damaged value fails in pydicom with any exception.
        except Exception as error:
            if is_machine_fault(error):
                raise
            continue
        values[tag.json_key] = converted
    return values


def _macros(group: Dataset) -> dict[str, Any]:
    """Return of a functional group the geometry of its frames alone."""
    values: dict[str, Any] = {}
    for keyword in _MACROS:
        if items := group.get(keyword):
            inner = _to_json(items[0], [element.tag for element in items[0]])
            values[Tag(keyword).json_key] = {"vr": "SQ", "Value": [inner]}
    return values


def _from_json(values: dict[str, Any]) -> Dataset:
    with disable_value_validation():
        return Dataset.from_json(values)


def read_source_headers(data: bytes, longest: int = 512 << 20) -> list[Dataset]:
    """Return one data set an image from what `source_headers` made.

    Raises:
        ValueError: it is damaged, or longer than ``longest`` bytes.
    """
    try:
        with gzip.GzipFile(fileobj=BytesIO(data)) as file:
            text = file.read(longest + 1)
        if len(text) > longest:
            raise ValueError(f"headers of more than {longest >> 20} MB")
        stored = json.loads(text)
        if stored["format"] != FORMAT:
            raise ValueError(f"unknown format {stored['format']!r}, expected {FORMAT}")
        shared = _from_json(stored["shared"])
        images = []
        for own in stored["images"]:
            image = Dataset()
            image.update(shared)
            image.update(_from_json(own))
            images.append(image)
    except (OSError, EOFError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"damaged headers: {type(error).__name__}") from None
    return images
