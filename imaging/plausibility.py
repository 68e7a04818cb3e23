"""Measure whether a volume looks like an adult's chest in HU, at the scale that its file states.

A wrong spacing, a wrong conversion to HU, lungs without air, a phantom and a bowel lie outside the
expected ranges. All is measured on the cells of the lung search.
"""

from math import inf

import cv2
import numpy as np
import numpy.typing as npt

from imaging.lungs import Lungs
from imaging.morphology import hull
from imaging.volume import FloatArray, HuArray, Triple, UInt8Array

SIZE, RIBS, HU = "size", "ribs", "HU"
"""What a volume is compared in with an adult's chest."""

# beside each range that of the 15 whole scans that we have
EXPECTED: dict[str, tuple[str, float, float, str]] = {
    "height": (SIZE, 150, 420, "mm"),  # 212 to 299
    "width": (SIZE, 180, 420, "mm"),  # 239 to 336
    "depth": (SIZE, 115, 290, "mm"),  # 160 to 204
    "width / depth": (SIZE, 0.95, 2.2, ""),  # 1.35 to 1.65; a barrel chest has 1.1
    "height / width": (SIZE, 0.6, 1.6, ""),  # 0.75 to 1.19
    "volume": (SIZE, 1.5, 11, "l"),  # 3.5 to 6.0
    # the larger of both ends, 25 to 54: lungs taper
    "section 12 mm from an end": (SIZE, 0, 90, "cm²"),
    "section of the middle third": (SIZE, 50, 900, "cm²"),  # the smallest, 156 to 294
    # in the upper 200 mm, 38 to 63
    "aerated part of the rib cage": (SIZE, 25, 100, "%"),
    # its lower quartile, 4 to 16; fluid that fills half of both lungs makes it 32
    "tissue behind the lungs": (SIZE, -inf, 24, "mm"),
    # on the side where they are fewer, 100
    "slices with bone beside the lung": (RIBS, 50, 100, "%"),
    "air around the patient": (HU, -inf, -950, "HU"),  # most frequent, -1017 to -997
    "soft tissue without fat": (HU, 10, 120, "HU"),  # most frequent, 45; fluid has 20
    "lung": (HU, -935, -600, "HU"),  # median, -879 to -779
}
_FAT_HU = -140, -60
"""The most frequent value of soft tissue may be that of fat, -105 to -95."""
_AIRWAY_HU, _BONE_HU, _BIN_HU = -930, 200, 10
_UPPER_MM, _WALL_MM = 200.0, 24.0
_MIN_SECTION_CELLS, _MIN_CELLS = 30, 250
"""Less in a section are rims of airways; less in each bin of a histogram say nothing."""


def implausible(lungs: Lungs, spacing_mm: Triple) -> tuple[tuple[str, str], ...]:
    """Return what no adult's whole chest shows: the subject, and name, value and range."""
    odd = []
    for name, value in _measured(lungs, spacing_mm).items():
        subject, low, high, unit = EXPECTED[name]
        if not low <= value <= high:
            shown = f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}"
            text = f"{name} {shown} {unit}".rstrip() + f" (expected {low:g} to {high:g})"
            odd.append((subject, text.replace("-inf to", "at most")))
    return tuple(odd)


def _measured(lungs: Lungs, spacing_mm: Triple) -> dict[str, float]:
    """Return the quantities of `EXPECTED` that can be measured."""
    cell_mm = np.asarray(lungs.shape) * spacing_mm / lungs.air.shape
    lung = lungs.air & (lungs.hu > _AIRWAY_HU).astype(np.uint8)
    if 2 * np.count_nonzero(lung) < np.count_nonzero(lungs.air):
        lung = lungs.air  # much emphysema, or values that are too low
    sections = [lung.sum(axis=axes, dtype=np.int64) for axes in ((1, 2), (0, 2), (0, 1))]
    box = [_extent(section) for section in sections]
    height, depth, width = (
        (side.stop - side.start) * float(mm) for side, mm in zip(box, cell_mm, strict=True)
    )
    slices, cell_cm2 = sections[0][box[0]], float(cell_mm[1] * cell_mm[2]) / 100
    end = max(slices[[2, -3]]) if height > 6 * cell_mm[0] else 0
    # with the chest wall, and without arms
    walls = np.rint(_WALL_MM / cell_mm).astype(int)
    y, x = (slice(max(0, s.start - w), s.stop + w) for s, w in zip(box[1:], walls[1:], strict=True))
    bones = (lungs.hu[box[0], y, x] > _BONE_HU).astype(np.uint8)
    return {
        "height": height,
        "width": width,
        "depth": depth,
        "width / depth": width / depth,
        "height / width": height / width,
        "volume": np.count_nonzero(lungs.air) * float(cell_mm.prod()) / 1e6,
        "section 12 mm from an end": end * cell_cm2,
        "section of the middle third": np.array_split(slices, 3)[1].min(initial=9999) * cell_cm2,
        **_of_ribs(bones, lung[box[0], y, x], cell_mm),
        **_of_hu(lungs, lung, box[0]),
    }


def _extent(section: npt.NDArray[np.int64]) -> slice:
    large = np.flatnonzero(section >= min(_MIN_SECTION_CELLS, section.max()))
    return slice(int(large[0]), int(large[-1]) + 1)


def _of_ribs(bones: UInt8Array, lung: UInt8Array, cell_mm: FloatArray) -> dict[str, float]:
    """Look for ribs on both sides, and compare the lungs with the hull of the bones."""
    third = bones.shape[2] // 3
    sides = bones[:, :, :third], bones[:, :, -third:]
    # the hull of the ribs of a slice holds the lungs: what of it is not air tells of disease, or of
    # a scale that is wrong
    cage = np.stack([hull(plane) for plane in bones])
    upper = round(_UPPER_MM / float(cell_mm[0]))
    aerated = float(lung[-upper:].sum()) / max(float(cage[-upper:].sum()), 1.0)
    # from the last cell of lung in each column of a slice to the back of the rib cage
    ends = [mask[:, ::-1].argmax(axis=1) for mask in (lung, cage)]
    behind = (ends[0] - ends[1])[lung.any(axis=1) & cage.any(axis=1)] * float(cell_mm[1])
    ribs = min(float(side.any(axis=(1, 2)).mean()) for side in sides)
    return {
        "aerated part of the rib cage": min(100 * aerated, 100.0),
        "tissue behind the lungs": float(np.percentile(behind, 25) if behind.size else 0.0),
        "slices with bone beside the lung": 100 * ribs,
    }


def _of_hu(lungs: Lungs, lung: UInt8Array, slices: slice) -> dict[str, float]:
    half = slice(None, None, 2)  # every second slice is enough
    found = {}
    # -1023 HU and less is padding
    air = _histogram(lungs.hu[half], (-1022, -702), 1 - lungs.air[half])
    if air.max() >= _MIN_CELLS:
        found["air around the patient"] = -1022 + _most_frequent(air)
    tissue = _histogram(lungs.hu[slices][half], (-400, 500))
    most = -400 + _most_frequent(tissue)
    if tissue.max() >= _MIN_CELLS and not _FAT_HU[0] <= most <= _FAT_HU[1]:
        found["soft tissue without fat"] = most
    inside = np.cumsum(_histogram(lungs.hu[half], (-1024, -324), lung[half]))
    return {**found, "lung": -1024 + _BIN_HU * float(np.searchsorted(inside, inside[-1] / 2) + 0.5)}


def _histogram(
    hu: HuArray, limits: tuple[int, int], mask: UInt8Array | None = None
) -> npt.NDArray[np.float32]:
    """Count the cells of a mask in bins of 10 HU."""
    # calcHist takes unsigned values only; HU is at least -1024
    plane = (hu.reshape(1, -1) + np.int16(1024)).view(np.uint16)
    where = None if mask is None else mask.reshape(1, -1)
    low, high = (limit + 1024 for limit in limits)
    counts = cv2.calcHist([plane], [0], where, [(high - low) // _BIN_HU], [low, high])
    return np.asarray(counts[:, 0], dtype=np.float32)


def _most_frequent(counts: npt.NDArray[np.float32]) -> float:
    """Return the middle of the fullest bin, from the lower limit."""
    return _BIN_HU * (float(np.convolve(counts, [1, 2, 3, 2, 1], mode="same").argmax()) + 0.5)
