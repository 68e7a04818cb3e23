"""The storage layout of one image, and the conversion of its stored values to HU."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from imaging.dicom.header import Instance
from imaging.errors import NotCt, UnreadableFile
from imaging.slices import SliceMeasures
from imaging.volume import HuArray

MAX_SIDE = 4096
"""Rows or columns: eight times the usual 512; beyond it the header is damaged."""
AIR_HU, MAX_HU = -1024, 32767
_TISSUE_HU = (-950.0, 1500.0)
"""HU of the body; a padding value in this range is accepted only where it fills a corner."""


@dataclass(frozen=True)
class Layout:
    """Matrix size, bits and sign of the stored values; ``padding`` is an inclusive range."""

    rows: int
    columns: int
    bits_stored: int
    high_bit: int
    signed: bool
    padding: tuple[int, int] | None = None


Rescale = tuple[float, float]
"""Slope and intercept: HU = slope * stored value + intercept (DICOM PS3.3, C.11.1)."""


def layout_of(image: Instance) -> Layout:
    """Read the layout from the header.

    Raises:
        UnreadableFile: an attribute is missing or contradicts the others.
        NotCt: the image is not CT: it has colours, or not 16 bits per pixel.
    """
    samples = image.integer("SamplesPerPixel")
    if samples not in (None, 1):
        reason = f"is a colour image (SamplesPerPixel {samples}, expected 1): send the CT series"
        raise NotCt(reason, image.file)
    meaning = image.text("PhotometricInterpretation")
    if meaning not in ("", "MONOCHROME1", "MONOCHROME2"):
        reason = f"PhotometricInterpretation is {meaning[:40]}, expected MONOCHROME2"
        raise NotCt(f"{reason}: send the CT series", image.file)
    bits = _required(image, "BitsAllocated")
    if bits != 16:
        raise NotCt(f"BitsAllocated is {bits}, expected 16: send the CT series", image.file)
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
    """Read slope and intercept of one image.

    Raises:
        NotCt: they are missing or zero, so that the values are not HU.
    """
    slope, intercept = image.number("RescaleSlope"), image.number("RescaleIntercept")
    if slope is None or intercept is None:
        name = "RescaleSlope" if slope is None else "RescaleIntercept"
        raise NotCt(f"{name} is missing, the values are not HU: export the CT series", image.file)
    if slope <= 0:
        reason = f"RescaleSlope is {slope:g}, expected a positive number: export the CT series"
        raise NotCt(reason, image.file)
    return slope, intercept


def _side(image: Instance, keyword: str) -> int:
    side = _required(image, keyword)
    if not 1 <= side <= MAX_SIDE:
        reason = f"{keyword} is {side}, expected 1 to {MAX_SIDE}: send the file again"
        raise UnreadableFile(reason, image.file)
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
    # convert to the sign of the pixels: scanners write 63536 where they mean -2000
    wrapped = [end & 0xFFFF for end in (value, value if limit is None else limit)]
    ends = [end - 0x10000 if signed and end >= 0x8000 else end for end in wrapped]
    return min(ends), max(ends)


def write_hu(stored: npt.NDArray[Any], layout: Layout, rescale: Rescale, out: HuArray) -> None:
    """Write the HU of one slice into ``out``, ``(rows, columns)`` int16, which may hold ``stored``.

    Values below -1024 (-2000 and -3024 outside the field of view) and padding become air.
    """
    padded = _padded(stored, layout, rescale)
    if padded is None and _written_in_place(stored, layout, rescale, out):
        return
    if layout.bits_stored < 16:
        # remove the bits above and below the stored ones, and extend the sign
        above, below = 15 - layout.high_bit, 16 - layout.bits_stored
        stored = np.right_shift(np.left_shift(stored, above), below)
    np.clip(_rescaled(stored, rescale), AIR_HU, MAX_HU, out=out, casting="unsafe")
    if padded is not None:
        out[padded] = AIR_HU


def _written_in_place(
    stored: npt.NDArray[Any], layout: Layout, rescale: Rescale, out: HuArray
) -> bool:
    """Write the HU of usual values without a copy, if they fit in int16.

    These are unsigned ones of less than 16 bits, and signed ones of 16.
    """
    slope, intercept = rescale
    if slope != 1 or not intercept.is_integer() or layout.high_bit != layout.bits_stored - 1:
        return False
    if layout.signed and layout.bits_stored == 16 and -32768 <= intercept <= 0:
        np.maximum(stored, np.int16(AIR_HU - intercept), out=out)
        np.add(out, np.int16(intercept), out=out)
        return True
    most = 2**layout.bits_stored - 1
    fits = -32768 <= intercept <= 32767 - most and stored.dtype == np.uint16
    if layout.signed or layout.bits_stored == 16 or not fits:
        return False
    if cv2.minMaxLoc(stored)[1] > most:  # other bits are set
        stored = np.bitwise_and(stored, np.uint16(most), out=out.view(np.uint16))
    np.add(stored.view(np.int16), np.int16(intercept), out=out)
    if intercept < AIR_HU:
        np.maximum(out, np.int16(AIR_HU), out=out)
    return True


def require_hu(measures: Sequence[SliceMeasures], file: Path) -> None:
    """Refuse a volume whose values cannot be HU of a body in air.

    Raises:
        NotCt: it holds no air or no tissue, as images of 0 to 255 and raw values do.
    """
    low, high = min(one.low for one in measures), max(one.high for one in measures)
    if low > -200 or high < 0:  # no air, or no tissue
        reason = f"values from {low} to {high} are not HU of a body in air: export the CT series"
        raise NotCt(reason, file)


def _rescaled(stored: npt.NDArray[Any], rescale: Rescale) -> npt.NDArray[Any]:
    slope, intercept = rescale
    if slope == 1 and intercept.is_integer() and abs(intercept) < 2**30:
        return np.asarray(np.add(stored, int(intercept), dtype=np.int32))
    with np.errstate(over="ignore"):  # values out of range are clipped later
        return np.asarray(np.rint(stored * slope + intercept))


def _padded(
    stored: npt.NDArray[Any], layout: Layout, rescale: Rescale
) -> npt.NDArray[np.bool_] | None:
    """Find the padded pixels; None if there are none.

    Some files state a padding value, often 0, that is tissue in their scale. It is accepted if it
    is not tissue, or if it fills a corner of the slice, as padding does.
    """
    if layout.padding is None:
        return None
    (low, high), (slope, intercept) = layout.padding, rescale
    if layout.bits_stored == 16 and high * slope + intercept <= AIR_HU:
        return None  # it becomes air as it is
    padded = np.asarray((stored >= low) & (stored <= high))
    ends_hu = (v * slope + intercept for v in layout.padding)
    is_tissue = any(_TISSUE_HU[0] < v < _TISSUE_HU[1] for v in ends_hu)
    in_corner = padded[:: len(padded) - 1 or 1, :: padded.shape[1] - 1 or 1].any()
    return padded if in_corner or not is_tissue else None
