"""Require that every slice of the lungs shows its own part of the body.

Lost pixel data leaves slices constant. A fault of an archive or an export repeats a slice, puts it
elsewhere, or takes it from another series. Slices are compared as means of coarse cells.
"""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np

from imaging.errors import IncompleteSeries, NoLung
from imaging.lungs import Lungs, find_lungs
from imaging.slices import SliceMeasures
from imaging.volume import FloatArray, HuArray, Triple

MAX_JUMP = 4.0
"""Most that a slice differs from the next, in multiples of the usual difference around it.

17 real scans reach 2.2, at the shoulders, and 2.7 with slices 10 to 12 mm apart; phantoms 1.6. It
is at least 4.6 at the ends of 20 slices that lie 20 places off, 5.8 for a slice of another patient.
"""
MAX_SINGLE = 1.3
"""Most that a slice differs from both neighbours, as a multiple of their own difference.

The same scans and phantoms reach 0.68, and 0.78 with slices 10 to 12 mm apart. It is at least 1.8
for a slice that lies 20 places off, or whose upper half is lost.
"""
_LOW_HU, _HIGH_HU, _BODY_HU = -1000, 200, -950
"""Metal counts like bone. Cells of air alone, below the last, hold noise, and are left out."""
_MEASURED = 256
"""Different HU in a slice: a measured one of a chest has at least 1,000, a drawn one few."""
_FURTHER, _MAX_RATIO = 20, 1.15
"""A slice differs from the next less than from the 19 after that: by 0.69 of it in 18 real scans,
0.89 with slices 10 to 12 mm apart, 1.07 in phantoms with noise of 120 HU every 0.5 mm. It is at
least 1.4 for two neighbours exchanged, 1.2 for a block of 2 to 30 slices reversed or moved."""
_EMPTY_HU = -950
_MIN_FLAT_CELLS, _MIN_FLAT_AIR_CELLS, _MAX_FLAT_AROUND = 12, 75, 0.4
"""Cells of 4 mm of constant value in a slice: 18 real scans, most near-lossless, have at most 2.
Gas in the body may be constant where most air around it is, clipped: a trachea has 50 cells."""
_NEARBY = 4
_MIN_HU, _MAX_HU_PER_MM, _MAX_OF_MEDIAN = 25.0, 20.0, 1.5
"""Limits of the usual difference. It is 25 HU for slices 2.5 mm apart: thinner slices count as
these, because breath moves a chest by millimetres between two rotations of the scanner. No real
scan has more than 15 HU per mm: there many slices are out of place."""


def require_continuous(
    hu: HuArray,
    spacing_mm: Triple,
    names: Sequence[str],
    files: Sequence[Path],
    measures: Sequence[SliceMeasures],
) -> None:
    """Refuse a volume ``(z, y, x)`` with slices of these names that do not belong where they are.

    ``measures`` are those of the slices.

    Raises:
        IncompleteSeries: a slice between the first and the last with lung is constant, equals
            another, or differs from its neighbours far more than they do.
    """
    cells = np.stack([one.coarse for one in measures])
    flat = [z for z, one in enumerate(measures) if one.low == one.high]
    shown = np.setdiff1d(np.arange(len(hu)), flat)
    if len(shown) < 2:
        return
    faults: dict[str, list[int]] = {
        # constant slices at an end are padding, or count as not scanned (`imaging.coverage`)
        "constant: their pixel data is lost": [z for z in flat if shown[0] < z < shown[-1]],
        "equal to another in every voxel": _equal(hu, cells),
        "unlike the slices beside them": shown[_unlike(cells[shown], spacing_mm[0])].tolist(),
    }
    if not any(faults.values()):
        return
    try:
        lungs = find_lungs(hu, spacing_mm, files[0], measures)
    except NoLung:  # it is refused where the lungs are needed
        return
    for what, found in faults.items():
        odd = [z for z in found if lungs.start[0] <= z < lungs.stop[0]]
        if odd:
            listed = ", ".join(names[z] for z in odd[:3])
            if len(odd) > 3:
                is_run = odd[-1] - odd[0] == len(odd) - 1
                listed = f"{names[odd[0]]} to {names[odd[-1]]}" if is_run else f"{listed} ..."
            reason = f"{len(odd)} of {len(hu)} slices ({listed}) are {what}"
            raise IncompleteSeries(f"{reason}: send the series again", files[odd[0]])


def out_of_order(cells: HuArray) -> list[int]:
    """Return the slices of ``(z, y, x)`` that are more like ones further on than like the next.

    So are those before, seen from the other end. Noise hardly shows in the means of cells.
    """
    body = np.clip(cells, _BODY_HU, _HIGH_HU).reshape(len(cells), -1)
    apart = [
        np.abs(body[step:] - body[:-step]).mean(axis=1, dtype=np.float32)
        for step in range(1, min(_FURTHER + 1, len(body)))
    ]
    if len(apart) < 2:
        return []
    onward, back = (np.full(len(body) - 1, np.inf) for _ in range(2))
    for step, differences in enumerate(apart[1:], 1):
        onward[: len(body) - 1 - step] = np.minimum(onward[: len(body) - 1 - step], differences)
        back[step:] = np.minimum(back[step:], differences)
    return np.flatnonzero(apart[0] > _MAX_RATIO * np.minimum(onward, back)).tolist()


def lost_areas(lungs: Lungs, measures: Sequence[SliceMeasures]) -> list[int]:
    """Return the slices with areas of constant value in the lung region."""
    cells = np.arange(len(measures)) * len(lungs.mask) // len(measures)
    flat, empty = (
        np.stack(part)
        for part in zip(*((one.flat, one.fine <= _EMPTY_HU) for one in measures), strict=True)
    )
    inside = lungs.mask[cells] > 0
    # air around the patient that was cut away or clipped: then gas in the body may be clipped too
    around = empty & ~inside
    is_clipped = (flat & around).sum() > _MAX_FLAT_AROUND * around.sum()
    tissue = (flat & inside & ~empty).sum(axis=(1, 2))
    air = (flat & empty & (lungs.air[cells] > 0 if is_clipped else inside)).sum(axis=(1, 2))
    least = _MIN_FLAT_AIR_CELLS if is_clipped else _MIN_FLAT_CELLS
    return np.flatnonzero((tissue >= _MIN_FLAT_CELLS) | (air >= least)).tolist()


def _equal(hu: HuArray, cells: HuArray) -> list[int]:
    """Return the slices that equal another in every voxel; those drawn without noise may."""
    first, found = dict[bytes, int](), set[int]()
    for z, plane in enumerate(hu):
        # equal cells are found by their bytes; only those slices are compared voxel by voxel
        before = first.setdefault(cells[z].tobytes(), z)
        if before != z and np.array_equal(hu[before], plane) and len(np.unique(plane)) >= _MEASURED:
            found |= {before, z}
    return sorted(found)


def _unlike(cells: HuArray, slice_mm: float) -> list[int]:
    """Return the slices ``(z, y, x)`` that differ from those beside them far more than these do."""
    # a slice out of place differs from both neighbours, which resemble each other
    near, next_but_one = _differences(cells, 1), _differences(cells, 2)
    both = np.minimum(near[:-1], near[1:])
    found = {*(1 + np.flatnonzero(both > MAX_SINGLE * np.maximum(next_but_one, _MIN_HU)))}
    most = min(_MAX_OF_MEDIAN * float(np.median(near)), _MAX_HU_PER_MM * slice_mm)
    jumps = []
    for z in np.flatnonzero(near > MAX_JUMP * _MIN_HU).tolist():
        difference = near[z]
        around = [*near[max(0, z - _NEARBY) : z], *near[z + 1 : z + 1 + _NEARBY]]
        usual = max(min(float(np.median(around or 0)), most), _MIN_HU)
        if difference > MAX_JUMP * usual and not {z, z + 1} & found:
            jumps.append(z)
    # two jumps are the ends of a block; after one alone all others may be wrong, or all before
    for begin, end in zip_longest(jumps[::2], jumps[1::2]):
        found.update((begin, begin + 1) if end is None else range(begin + 1, end + 1))
    return sorted(found)


def _differences(cells: HuArray, step: int) -> FloatArray:
    """Return the mean difference in HU of each slice from that ``step`` further on, in the body."""
    # the mean over cells that hold body in either slice
    hu = np.clip(cells, _LOW_HU, _HIGH_HU).astype(np.float32)
    body = np.maximum(cells[step:], cells[:-step]) > _BODY_HU
    total = (np.abs(hu[step:] - hu[:-step]) * body).sum(axis=(1, 2))
    return np.asarray(total / np.maximum(body.sum(axis=(1, 2)), 1), dtype=np.float64)
