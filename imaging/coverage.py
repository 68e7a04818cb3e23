"""Tell where a volume ends inside the lungs: at its first or last slice, or at its field of view.

A whole scan begins below the costophrenic recesses and ends above the tips of the lungs, and its
field of view holds both. What lies beyond a cut was not scanned, and nothing is found there.
"""

from dataclasses import dataclass

import numpy as np

from imaging.lungs import CELL_MM, Lungs
from imaging.morphology import dilate, opened
from imaging.volume import UInt8Array

_MIN_CUT_CM2 = 3.0
"""A cut of less lung than this is ignored. Cut at any height, seven whole scans lose less than
5 ml of lung beyond it; rims of the airways in the neck make up to 1 cm2."""
_MIN_AIR_CM2 = 12.0
"""Air that counts as lung however empty it is, as in emphysema; a throat has 8 cm2 at most."""
_AIRWAY_HU = -930
"""Below it the air may be that of trachea and throat."""
_PADDING_HU = -1023
"""A cell whose mean is at or below it in every slice lies outside a round field of view."""
_CELL_CM2 = CELL_MM**2 / 100


@dataclass(frozen=True)
class Cut:
    """A side at which the volume ends inside the lungs, with the area of lung at its end.

    ``side`` is apex, base, right, left, front or back, of the patient.
    """

    side: str
    area_cm2: float


@dataclass(frozen=True)
class Coverage:
    """How much of the lungs is in the volume: from where to where, and what is cut."""

    lung_height_mm: float
    cuts: tuple[Cut, ...] = ()


def coverage_of(lungs: Lungs, slice_mm: float) -> Coverage:
    """Return which ends of the volume cut lung; its slices are ``slice_mm`` apart."""
    # without rims of one cell, in which the air of an airway mixes with its wall
    lung = opened(lungs.air & (lungs.hu > _AIRWAY_HU).astype(np.uint8), 1)
    slices = np.flatnonzero(lung.any(axis=(1, 2)))
    cell_mm = lungs.shape[0] * slice_mm / lung.shape[0]
    height_mm = float(slices[-1] - slices[0] + 1) * cell_mm if slices.size else 0.0
    # constant slices at an end hold padding, or lost their pixel data
    shown = np.flatnonzero(np.ptp(lungs.hu, axis=(1, 2)))
    ends = {"apex": shown[-1], "base": shown[0]} if shown.size else {}
    areas = {side: _end_cm2(lung[z], lungs.air[z]) for side, z in ends.items()}
    areas |= _lateral_cm2(lung, lungs)
    cuts = (Cut(side, round(cm2, 1)) for side, cm2 in areas.items() if cm2 >= _MIN_CUT_CM2)
    return Coverage(round(height_mm, 1), tuple(cuts))


def _end_cm2(lung: UInt8Array, air: UInt8Array) -> float:
    """Return the area of lung in a slice ``(y, x)`` at an end of the volume."""
    empty = float(air.sum()) * _CELL_CM2
    return empty if empty >= _MIN_AIR_CM2 else float(lung.sum()) * _CELL_CM2


def _lateral_cm2(lung: UInt8Array, lungs: Lungs) -> dict[str, float]:
    """Return the area of lung that touches each side of the field of view, square or round."""
    _, rows, columns = lung.shape
    outside = (lungs.hu <= _PADDING_HU).all(axis=0).astype(np.uint8)
    # one cell within the square's edge and within the round field of view
    edge = dilate(np.pad(outside, 1, constant_values=1)[None], 1)[0, 1:-1, 1:-1]
    _, y, x = np.nonzero(lung & edge)
    # each place belongs to the side that is nearest to its direction from the middle
    right = 1 - 2 * (x + 0.5) / columns
    front = 1 - 2 * (y + 0.5) / rows
    lateral = np.abs(right) >= np.abs(front)
    sides = {
        "right": lateral & (right > 0),
        "left": lateral & (right <= 0),
        "front": ~lateral & (front > 0),
        "back": ~lateral & (front <= 0),
    }
    return {side: float(where.sum()) * _CELL_CM2 for side, where in sides.items()}
