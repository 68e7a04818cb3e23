"""How the values of one image are stored in its file, and what they mean in HU."""

from __future__ import annotations

from dataclasses import dataclass

from imaging.errors import NotCt, UnreadableFile
from imaging.instance import Instance

MAX_SIDE = 4096
"""Rows or columns: eight times the usual 512; beyond it the header is damaged."""


@dataclass(frozen=True)
class Layout:
    """Matrix size, bits and sign of the stored values; ``padding`` is an inclusive range."""

    rows: int
    columns: int
    bits_stored: int
    high_bit: int
    signed: bool
    padding: tuple[int, int] | None = None

    @property
    def frame_bytes(self) -> int:
        """Size of one frame where it is not compressed."""
        return self.rows * self.columns * 2


@dataclass(frozen=True)
class Rescale:
    """HU = slope * stored value + intercept (DICOM PS3.3, C.11.1)."""

    slope: float
    intercept: float


def layout_of(image: Instance) -> Layout:
    """The layout that the header states.

    Raises:
        UnreadableFile: an attribute is missing or contradicts the others.
        NotCt: the values are of a kind that no CT image has: colour, or other than 16 bits.
    """
    _require_grey(image)
    rows, columns = (_side(image, keyword) for keyword in ("Rows", "Columns"))
    stored = _required(image, "BitsStored")
    high = image.integer("HighBit")
    high = stored - 1 if high is None else high
    if not 1 <= stored <= high + 1 <= 16:
        reason = f"BitsStored {stored} and HighBit {high} contradict each other"
        raise UnreadableFile(f"{reason}: send the file again", image.file)
    signed = bool(_required(image, "PixelRepresentation") & 1)
    return Layout(rows, columns, stored, high, signed, _padding(image, signed))


def rescale_of(image: Instance) -> Rescale:
    """Slope and intercept of one image; they may differ from slice to slice.

    Raises:
        NotCt: they are missing or zero, so that the values are not HU.
    """
    slope, intercept = image.number("RescaleSlope"), image.number("RescaleIntercept")
    if slope is None or intercept is None:
        name = "RescaleSlope" if slope is None else "RescaleIntercept"
        raise NotCt(f"{name} is missing, the values are not HU: export the CT series", image.file)
    if slope <= 0:
        raise NotCt(f"RescaleSlope is {slope:g}, the values are not HU: export again", image.file)
    return Rescale(slope, intercept)


def _require_grey(image: Instance) -> None:
    samples = image.integer("SamplesPerPixel")
    if samples not in (None, 1):
        raise NotCt(f"a colour image (SamplesPerPixel {samples}): send the CT series", image.file)
    bits = _required(image, "BitsAllocated")
    if bits != 16:
        raise NotCt(f"BitsAllocated is {bits}, CT has 16: send the CT series", image.file)


def _side(image: Instance, keyword: str) -> int:
    side = _required(image, keyword)
    if not 1 <= side <= MAX_SIDE:
        raise UnreadableFile(f"{keyword} is {side}, not 1 to {MAX_SIDE}: send again", image.file)
    return side


def _required(image: Instance, keyword: str) -> int:
    value = image.integer(keyword)
    if value is None:
        raise UnreadableFile(f"{keyword} is missing: send the file again", image.file)
    return value


def _padding(image: Instance, signed: bool) -> tuple[int, int] | None:
    value, limit = image.integer("PixelPaddingValue"), image.integer("PixelPaddingRangeLimit")
    if value is None:
        return None
    ends = [_as_stored(v, signed) for v in (value, value if limit is None else limit)]
    return min(ends), max(ends)


def _as_stored(value: int, signed: bool) -> int:
    """The value in the sign of the pixels: scanners write 63536 where they mean -2000."""
    wrapped = value & 0xFFFF
    return wrapped - 0x10000 if signed and wrapped >= 0x8000 else wrapped
