"""Measure whether a volume looks like an adult's chest in HU, at the scale that its file states.

A wrong spacing, a wrong conversion to HU, lungs without air, a phantom and a bowel lie outside the
expected ranges. The ranges in brackets are those of the 15 whole scans that we have. All is
measured on the cells of the lung search.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from math import inf

import cv2
import numpy as np
import numpy.typing as npt

from imaging.lungs import Lungs
from imaging.morphology import hull
from imaging.volume import FloatArray, HuArray, Triple, UInt8Array

Range = tuple[float, float]

HEIGHT_MM: Range = (150, 420)
"""[212 to 299] From the tips of the lungs to the lowest air in the recesses."""
WIDTH_MM: Range = (180, 420)
"""[239 to 336]"""
DEPTH_MM: Range = (115, 290)
"""[160 to 204]"""
WIDTH_PER_DEPTH: Range = (0.95, 2.2)
"""[1.3 to 1.7] A barrel chest is near 1.1, a flat one near 2."""
HEIGHT_PER_WIDTH: Range = (0.6, 1.6)
"""[0.75 to 1.2]"""
VOLUME_L: Range = (1.5, 11)
"""[3.5 to 6.0]"""
END_CM2: Range = (0, 60)
"""[6 to 13] Section of the lungs in their lowest and their highest 4 mm: lungs taper."""
AERATED_PERCENT: Range = (25, 100)
"""[38 to 63] Of the rib cage, in the upper 200 mm of the lungs."""
BEHIND_MM: Range = (-inf, 24)
"""[4 to 16] From lung to the back of the rib cage, in a quarter of all places at most. Fluid that
fills half of both lungs makes it 32."""
RIB_PERCENT: Range = (50, 100)
"""[100] Slices with bone beside the lung, on the side where they are fewer."""
AIR_HU: Range = (-inf, -950)
"""[-1017 to -997] The most frequent value around the patient."""
FAT_HU, MUSCLE_HU = (-140, -60), (10, 120)
"""[-105 to -95, or 45] The most frequent value of soft tissue is that of fat or of muscle. Fluid is
near 20."""
LUNG_HU: Range = (-935, -600)
"""[-879 to -779] The median of the lungs."""
AROUND_HU, TISSUE_HU, INSIDE_HU = (-1022, -702), (-400, 500), (-1024, -324)
"""Where each of the three is looked for; -1023 and less is padding."""
_LOWEST_HU, _BIN_HU = -1024, 10
_AIRWAY_HU, _BONE_HU = -930, 200
_MIN_SECTION_CELLS = 30
_UPPER_MM, _WALL_MM = 200.0, 24.0
_MIN_CELLS = 250
"""In the highest bin of a histogram: about 30 ml. With less of it nothing is said."""


class Subject(Enum):
    """What a volume is compared in with an adult's chest."""

    SIZE = "size"
    RIBS = "ribs"
    HU = "HU"


@dataclass(frozen=True)
class Implausible:
    """A quantity outside its expected range; ``text`` names it, its value and the range."""

    subject: Subject
    text: str


def implausible(lungs: Lungs, spacing_mm: Triple) -> tuple[Implausible, ...]:
    """Return what no adult's whole chest shows."""
    cell_mm = np.asarray(lungs.shape) * spacing_mm / lungs.air.shape
    lung = lungs.air & (lungs.hu > _AIRWAY_HU).astype(np.uint8)
    if 2 * np.count_nonzero(lung) < np.count_nonzero(lungs.air):
        lung = lungs.air  # much emphysema, or values that are too low
    sections = [lung.sum(axis=axes, dtype=np.int64) for axes in ((1, 2), (0, 2), (0, 1))]
    box = tuple(_extent(section) for section in sections)
    ends = (sections[0][box[0].start], sections[0][box[0].stop - 1])
    end_cm2 = float(max(ends) * cell_mm[1] * cell_mm[2]) / 100
    return (
        *_of_size(lungs, box, cell_mm, end_cm2),
        *_of_bones(lung, lungs, box, cell_mm),
        *_of_hu(lungs, lung, box[0]),
    )


def _extent(section: npt.NDArray[np.int64]) -> slice:
    """Return from where to where the sections along an axis are more than rims of airways."""
    large = np.flatnonzero(section >= min(_MIN_SECTION_CELLS, section.max()))
    return slice(int(large[0]), int(large[-1]) + 1)


def _of_size(
    lungs: Lungs, box: tuple[slice, ...], cell_mm: FloatArray, end_cm2: float
) -> Iterator[Implausible]:
    height, depth, width = (
        (side.stop - side.start) * float(mm) for side, mm in zip(box, cell_mm, strict=True)
    )
    volume_l = np.count_nonzero(lungs.air) * float(cell_mm.prod()) / 1e6
    for name, value, expected, unit in (
        ("height", height, HEIGHT_MM, "mm"),
        ("width", width, WIDTH_MM, "mm"),
        ("depth", depth, DEPTH_MM, "mm"),
        ("width / depth", width / depth, WIDTH_PER_DEPTH, ""),
        ("height / width", height / width, HEIGHT_PER_WIDTH, ""),
        ("volume", volume_l, VOLUME_L, "l"),
        ("section at an end", end_cm2, END_CM2, "cm²"),
    ):
        yield from _outside(Subject.SIZE, name, value, expected, unit)


def _of_bones(
    lung: UInt8Array, lungs: Lungs, box: tuple[slice, ...], cell_mm: FloatArray
) -> Iterator[Implausible]:
    """Look for ribs beside the lungs, and compare the lungs with the hull of the ribs."""
    # with the chest wall, and without arms
    y, x = (
        slice(max(0, side.start - wall), side.stop + wall)
        for side, wall in zip(box[1:], np.rint(_WALL_MM / cell_mm[1:]).astype(int), strict=True)
    )
    bones = (lungs.hu[box[0], y, x] > _BONE_HU).astype(np.uint8)
    third = bones.shape[2] // 3
    sides = bones[:, :, :third], bones[:, :, -third:]
    ribs = 100 * min(float(side.any(axis=(1, 2)).mean()) for side in sides)
    yield from _outside(Subject.RIBS, "slices with bone beside the lung", ribs, RIB_PERCENT, "%")
    cage = np.stack([hull(plane) for plane in bones])
    yield from _of_rib_cage(cage, lung[box[0], y, x], cell_mm)


def _of_rib_cage(cage: UInt8Array, lung: UInt8Array, cell_mm: FloatArray) -> Iterator[Implausible]:
    """Measure how much of the hull of the ribs is lung, and what lies behind the lungs."""
    upper = round(_UPPER_MM / float(cell_mm[0]))
    share = 100 * int(lung[-upper:].sum()) / max(int(cage[-upper:].sum()), 1)
    name = "aerated part of the rib cage"
    yield from _outside(Subject.SIZE, name, min(share, 100.0), AERATED_PERCENT, "%")
    # from the last cell of lung in each column of a slice to the back of the rib cage
    ends = [mask[:, ::-1].argmax(axis=1) for mask in (lung, cage)]
    behind = (ends[0] - ends[1])[lung.any(axis=1) & cage.any(axis=1)] * float(cell_mm[1])
    if behind.size:
        thickness = float(np.percentile(behind, 25))
        yield from _outside(Subject.SIZE, "tissue behind the lungs", thickness, BEHIND_MM, "mm")


def _of_hu(lungs: Lungs, lung: UInt8Array, slices: slice) -> Iterator[Implausible]:
    half = slice(None, None, 2)  # every second slice is enough
    air = _counts(lungs.hu[half], AROUND_HU, 1 - lungs.air[half])
    if air.max() >= _MIN_CELLS:
        most = _most_frequent(air, AROUND_HU)
        yield from _outside(Subject.HU, "air around the patient", most, AIR_HU, "HU")
    tissue = _counts(lungs.hu[slices][half], TISSUE_HU)
    most = _most_frequent(tissue, TISSUE_HU)
    if tissue.max() >= _MIN_CELLS and not FAT_HU[0] <= most <= FAT_HU[1]:
        yield from _outside(Subject.HU, "soft tissue without fat", most, MUSCLE_HU, "HU")
    inside = np.cumsum(_counts(lungs.hu[half], INSIDE_HU, lung[half]))
    median = INSIDE_HU[0] + (np.searchsorted(inside, inside[-1] / 2) + 0.5) * _BIN_HU
    yield from _outside(Subject.HU, "lung", float(median), LUNG_HU, "HU")


def _counts(hu: HuArray, limits: tuple[int, int], mask: UInt8Array | None = None) -> FloatArray:
    """Count the cells of a mask in bins of 10 HU between two limits."""
    plane = (hu.reshape(1, -1) - np.int16(_LOWEST_HU)).view(np.uint16)
    where = None if mask is None else mask.reshape(1, -1)
    low, high = (limit - _LOWEST_HU for limit in limits)
    counts = cv2.calcHist([plane], [0], where, [(high - low) // _BIN_HU], [low, high])
    return np.asarray(counts[:, 0], dtype=np.float64)


def _most_frequent(counts: FloatArray, limits: tuple[int, int]) -> float:
    smooth = np.convolve(counts, [1, 2, 3, 2, 1], mode="same")
    return limits[0] + (float(smooth.argmax()) + 0.5) * _BIN_HU


def _outside(
    subject: Subject, name: str, value: float, expected: Range, unit: str
) -> Iterator[Implausible]:
    """Name a quantity that lies outside its range."""
    low, high = expected
    if not low <= value <= high:
        limits = f"{low:g} to {high:g}" if np.isfinite(low) else f"at most {high:g}"
        shown = f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}"
        yield Implausible(subject, f"{name} {shown} {unit}".rstrip() + f" (expected {limits})")
