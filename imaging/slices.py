"""Measure the slices of a volume one by one: the range of their HU, and means in cells.

It is done as soon as a slice is decoded: then it is in the processor's cache, and what is left for
the last slice of a study is little.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

FINE_MM, COARSE_MM = 4.0, 8.0
"""Side of the cells in which lungs are found, and in which slices are compared."""

Plane = npt.NDArray[np.int16]
PixelMm = tuple[float, float]

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class SliceMeasures:
    """What is measured of one slice.

    Attributes:
        low, high: its lowest and its highest HU.
        fine, coarse: int16 ``(y, x)``, the means in cells of about `FINE_MM` and `COARSE_MM`.
        flat: bool ``(y, x)``, the cells of ``fine`` in whose rows all pixels are equal.
    """

    low: int
    high: int
    fine: Plane
    coarse: Plane
    flat: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, plane: Plane, pixel_mm: PixelMm) -> "SliceMeasures":
        """Measure one slice ``(y, x)`` of HU with pixels of ``pixel_mm``, ``(y, x)``."""
        plane = np.ascontiguousarray(plane)
        low, high, _, _ = cv2.minMaxLoc(plane)
        fine, coarse = (_cells(plane.shape, pixel_mm, side) for side in (FINE_MM, COARSE_MM))
        cells = _resized(_halved(plane, fine), fine)
        flat = _flat(plane, pixel_mm, fine)
        return cls(int(low), int(high), cells, _resized(cells, coarse), flat)


def of_each(make: Callable[[Plane], T], planes: Iterable[Plane]) -> list[T]:
    """Return what ``make`` makes of each slice, on two cores: OpenCV releases Python's lock."""
    every = list(planes)
    halves = every[: len(every) // 2], every[len(every) // 2 :]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda half: [make(plane) for plane in half], halves)
    return first + second


def measures_of(hu: npt.NDArray[np.int16], pixel_mm: PixelMm) -> tuple[SliceMeasures, ...]:
    """Measure all slices of a volume ``(z, y, x)``."""
    return tuple(of_each(lambda plane: SliceMeasures.of(plane, pixel_mm), hu))


def fine_means(plane: Plane, pixel_mm: PixelMm) -> Plane:
    """Return ``fine`` of `SliceMeasures` alone."""
    size = _cells(plane.shape, pixel_mm, FINE_MM)
    return _resized(_halved(np.ascontiguousarray(plane), size), size)


def _cells(shape: tuple[int, ...], pixel_mm: PixelMm, side: float) -> tuple[int, int]:
    """Return how many cells a slice has, ``(x, y)``."""
    y, x = (max(1, round(n * mm / side)) for n, mm in zip(shape, pixel_mm, strict=True))
    return x, y


def _flat(plane: Plane, pixel_mm: PixelMm, size_xy: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Tell in which cells all pixels of three rows are equal; more rows would take more time."""
    step, width = (max(1, round(FINE_MM / mm)) for mm in (3 * pixel_mm[0], pixel_mm[1]))
    rows = plane[::step]
    if min(rows.shape) < 2:
        return np.zeros(size_xy[::-1], bool)
    beside = cv2.compare(rows[1:, 1:], rows[1:, :-1], cv2.CMP_EQ)
    above = cv2.compare(rows[1:, 1:], rows[:-1, 1:], cv2.CMP_EQ)
    runs = cv2.erode(cv2.bitwise_and(beside, above), np.ones((2, max(1, width - 1)), np.uint8))
    return np.asarray(cv2.resize(runs, size_xy, interpolation=cv2.INTER_NEAREST)) > 0


def _halved(plane: Plane, size_xy: tuple[int, int]) -> Plane:
    """Halve a slice that has two pixels or more for each cell: OpenCV does that fast."""
    height, width = plane.shape
    if width < 2 * size_xy[0] or height < 2 * size_xy[1]:
        return plane
    return _resized(plane, (width // 2, height // 2))


def _resized(plane: Plane, size_xy: tuple[int, int]) -> Plane:
    return np.asarray(cv2.resize(plane, size_xy, interpolation=cv2.INTER_AREA), dtype=np.int16)
