"""Find the lungs: the box to screen, the region in which a candidate is accepted.

The region is generous, so that no nodule is lost: it includes masses, consolidation, effusion and
pleura, and whatever is doubtful. It is found on cells of about 4 mm, from the air outwards:

1. the air in the lungs, told from gas in bowel and stomach by the density in its interior;
2. what lies between lung above and lung below;
3. where one side lacks what the other has (effusion, consolidation, a mass, a lung removed), the
   mirror image of the other side;
4. hollows that a ball of 80 mm does not enter: masses, hilum, vessels;
5. a margin of 8 mm.

Known limit: a part that both lungs have lost at the same height and at their rim, such as
effusions behind both lungs, is not found.

The region also reaches into bowel and heart: `imaging.lung_tissue` tells what lies at lung.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from imaging.errors import NoLung
from imaging.morphology import (
    bounds,
    closed,
    closed_along_z,
    dilate,
    doubled,
    erode,
    halved,
    hull,
    opened,
)
from imaging.slices import FINE_MM, SliceMeasures, fine_means, of_each
from imaging.volume import HuArray, Triple, UInt8Array

AIR_HU = -320
"""Below it a cell counts as air; ground glass and fibrosis stay below, fat stays above."""
_PURE_AIR_HU = -930
"""Below it a cell may be air outside the body or gas in the bowel; lung is rarely so empty."""
_AERATED_HU = -500
"""Above it a cell may be stool with bubbles, or lung with little air."""
_SURFACE_CELLS = 1.5
_THICK_CELLS = 1.5
"""Radius in cells of 8 mm: a ball that fits into a lung, not into clothing, foam or skin."""
_PADDING_HU = -1023
"""A cell whose mean is at or below it holds padding, not measured air."""
_MIN_RIM_CELLS = 3
_MIN_WITHIN_SHARE = 0.8
_MIN_LUNG_ML = 25.0
"""Less air than this, as in the lowest tips of the lungs, is not worth a reading."""
_MIN_AERATED_SHARE, _MIN_AERATED_SHARE_OF_THICK = 0.4, 0.8
_THICK_SLICE_MM, _SMALL_ML = 5.0, 200.0
"""In slices thicker than this, folds and walls mix with the gas of a bowel of less than 200 ml."""
_MIN_BULLOUS_SHARE = 0.15
_MIN_BULLOUS_ML = 400.0
_MIN_INTERIOR_CELLS = 8
_MIN_SIZE_SHARE = 0.05
_MIN_COMPACT = 0.5
"""Of the interior's share of the largest region, 0.62 to 0.74. Stool, full of walls, has 0.3."""

CELL_MM = FINE_MM
MARGIN_MM = 8.0
GAP_MM = 72.0
"""A mass of 60 mm lies between lung above and lung below at most this far apart."""
_BALL_MM = 40.0
"""Radius of the ball that fills hollows: it enters the liver's dome, not a mass of 60 mm."""
_PIECE_MM = 24.0
_BONE_HU = 200
_SPINE_MM = 60.0
_TISSUE_HU = -200
_MIN_BONE_CELLS = 100
_DEFICIENT = 0.6
"""A side with less than this share of the other's air in a slice has lost some to disease."""
_TRACHEA_MM2 = 600.0
_LARGE_MM2 = 8000.0
"""Section of one lung well above the diaphragm."""

Index = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Lungs:
    """The lung box and the lung region of a volume.

    Attributes:
        start: first voxel of the lung box, ``(z, y, x)``: the region's bounds.
        stop: the voxel after its last, ``(z, y, x)``.
        mask: uint8 ``(z, y, x)``, 1 in the lung region, on equal cells of about `CELL_MM` that
            cover the volume.
        air: uint8 on the same cells, 1 where they hold air of lungs and airways.
        hu: int16 on the same cells, the mean within the slice that is nearest to their middle.
        shape: of the volume in voxels, ``(z, y, x)``.
    """

    start: Index
    stop: Index
    mask: UInt8Array
    air: UInt8Array
    hu: HuArray
    shape: Index

    def contains(self, index_zyx: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Tell which voxel indices ``(n, 3)`` lie in the lung region, bool ``(n,)``."""
        index = np.asarray(index_zyx, dtype=np.float64).reshape(-1, 3)
        scale = np.asarray(self.mask.shape) / np.asarray(self.shape)
        cell = np.floor((index + 0.5) * scale).astype(np.intp)
        inside = np.all((cell >= 0) & (cell < self.mask.shape), axis=1)
        # indices outside are clipped only so that they can be looked up; `inside` rejects them
        z, y, x = np.clip(cell, 0, np.asarray(self.mask.shape) - 1).T
        return np.asarray(inside & (self.mask[z, y, x] > 0))


def find_lungs(
    hu: HuArray, spacing_mm: Triple, source: Path | str, measures: Sequence[SliceMeasures] = ()
) -> Lungs:
    """Find the lungs in ``hu``, int16 ``(z, y, x)``, at least -1024.

    x goes to the patient's left, y to the back, z to the head. ``spacing_mm`` follows the array;
    ``source`` is the file or folder that the error names. ``measures`` are those of the slices,
    where they are known.

    Raises:
        NoLung: nothing in the volume looks like lung.
    """
    z = max(1, round(hu.shape[0] * spacing_mm[0] / CELL_MM))
    # cells: the nearest slices, and the mean within the slice
    picked = ((np.arange(z) + 0.5) * hu.shape[0] / z).astype(int)
    if measures:
        coarse = np.stack([measures[i].fine for i in picked])
    else:
        planes = (hu[i] for i in picked)
        coarse = np.stack(of_each(lambda plane: fine_means(plane, spacing_mm[1:]), planes))
    # the air in the body and not elsewhere (around the patient, bowel, stomach, sinuses)
    gas = _air_in_body(coarse)
    labels = labelled(gas)
    slice_mm = spacing_mm[0]
    lungs = _lung_like(labels, _interior(gas, slice_mm), coarse, slice_mm)
    air = lungs.astype(np.uint8)[labels]
    if not air.any():
        largest_l = np.bincount(labels.ravel())[1:].max(initial=0) * CELL_MM**3 / 1e6
        raise NoLung(
            f"no lung in the volume: its largest air-filled region holds {largest_l:.2f} l, and"
            " none is lung by its density; check that it is the chest series",
            source,
        )
    mask = _region(air.copy(), coarse)
    # the bounds in voxels, rounded outwards
    first, last = bounds(mask)
    start = first * hu.shape // mask.shape
    stop = np.minimum(-(-last * hu.shape // mask.shape), hu.shape)
    return Lungs(_index(start), _index(stop), mask, air, coarse, _index(hu.shape))


def _index(values: Iterable[int]) -> Index:
    z, y, x = map(int, values)
    return z, y, x


def _air_in_body(coarse: HuArray) -> UInt8Array:
    """Find air that is not connected to the edge of the slice, and lung that the edge cuts."""
    air = (coarse < AIR_HU).astype(np.uint8)
    # Two floods from the edge of the slice: one through all that is less dense than fat, one
    # through air that is too empty for lung. Between the two lie skin, clothing, blankets and
    # foam, and also lung that the field of view cuts through.
    outside = connected_to_edge(air)
    pure = connected_to_edge((coarse < _PURE_AIR_HU).astype(np.uint8))
    doubtful = outside & (1 - pure)
    cut_lung = doubled(
        _cut_lung(halved(doubtful), halved(1 - air), _rim(coarse[::2, ::2, ::2])), air.shape
    )
    return (air & (1 - outside)) | (doubtful & cut_lung)


def _cut_lung(doubtful: UInt8Array, tissue: UInt8Array, rim: UInt8Array) -> UInt8Array:
    """Select the regions of ``doubtful`` that are lung cut by the field of view.

    They are thick, lie mostly between ``tissue`` and reach the ``rim``. All masks, the result too,
    are on cells of twice the coarse size.
    """
    labels = labelled(opened(doubtful, _THICK_CELLS))
    n = int(labels.max()) + 1
    reach = np.bincount(labels[rim > 0], minlength=n)
    if not (reach[1:] >= _MIN_RIM_CELLS).any():
        return np.zeros_like(doubtful)
    # the largest region of the tissue is the patient
    bodies = labelled(opened(tissue, _THICK_CELLS))
    sizes = np.bincount(bodies.ravel())
    sizes[0] = 0
    within = _between((bodies > 0) & (bodies == sizes.argmax()))
    # cells of each label: all of them, and those between tissue
    sizes, inner = np.bincount(labels.ravel()), np.bincount(labels[within > 0], minlength=n)
    cut = (reach >= _MIN_RIM_CELLS) & (inner >= _MIN_WITHIN_SHARE * sizes)
    cut[0] = False  # label 0 is the background
    return np.asarray(cut[labels], dtype=np.uint8)


def _between(tissue: npt.NDArray[np.bool_]) -> UInt8Array:
    """Fill the rows between the first and the last of ``tissue``, slice by slice.

    Lung lies between the front and the back of the patient; table, foam and blankets mostly not.
    """
    rows = np.asarray(tissue.any(axis=2))
    # a row counts if there is tissue at or before it and at or after it
    after = np.logical_or.accumulate(rows, axis=1)
    before = np.logical_or.accumulate(rows[:, ::-1], axis=1)[:, ::-1]
    return np.repeat((after & before)[:, :, None].astype(np.uint8), tissue.shape[2], axis=2)


def _rim(coarse: HuArray) -> UInt8Array:
    """Mark where the image ends: the edge of a square or round slice, and around padding."""
    y, x = (np.linspace(-1, 1, n) for n in coarse.shape[1:])
    edge = (y[:, None] ** 2 + x**2 > 0.94**2).astype(np.uint8)
    return edge | dilate((coarse <= _PADDING_HU).astype(np.uint8), 1.5)


def connected_to_edge(air: UInt8Array) -> UInt8Array:
    """Find the cells of ``air`` that are connected to the edge of their slice within the slice."""
    # One flood for all slices: framed with air and set below each other, they are one tall image
    # in which the frames connect the slices.
    framed = np.pad(air, ((0, 0), (1, 1), (1, 1)), constant_values=1)
    tall = framed.reshape(-1, framed.shape[2]).copy()
    cv2.floodFill(tall, None, (0, 0), 2)
    reached = tall.reshape(framed.shape)[:, 1:-1, 1:-1] == 2
    return np.asarray(reached, dtype=np.uint8)


def _lung_like(
    labels: npt.NDArray[np.uint32], interior: UInt8Array, coarse: HuArray, slice_mm: float
) -> npt.NDArray[np.bool_]:
    """Tell which labels are lung, by what fills their ``interior``.

    Lung is air and tissue everywhere; bowel, stomach and trachea hold gas alone, but for folds and
    contents. In slabs of 22 mm of 16 scans, 56 to 100 % of a lung's interior is aerated tissue,
    least in emphysema, and 0 to 32 % of a bowel's that holds 10 ml or more. Size tells where
    density is doubtful: no bowel holds as much that is not gas as a lung with large bullae, or with
    little air.
    """
    sizes = np.bincount(labels.ravel())
    # the labels and the HU of the cells inside
    inside = np.flatnonzero(interior)
    of, hu = labels.ravel()[inside], coarse.ravel()[inside]
    tissue = hu > _PURE_AIR_HU
    cells, parenchyma, aerated = (
        np.bincount(of[part], minlength=len(sizes))
        for part in (slice(None), tissue, tissue & (hu < _AERATED_HU))
    )
    blurred = (slice_mm > _THICK_SLICE_MM) & (_ml(sizes) < _SMALL_ML)
    needed = np.where(blurred, _MIN_AERATED_SHARE_OF_THICK, _MIN_AERATED_SHARE)
    lungs = (aerated >= needed * cells) | (
        (parenchyma >= _MIN_BULLOUS_SHARE * cells) & (_ml(parenchyma) >= _MIN_BULLOUS_ML)
    )
    lungs &= cells >= _MIN_INTERIOR_CELLS
    lungs[0] = False  # label 0 is the background
    if _ml(sizes[lungs].sum()) < _MIN_LUNG_ML:
        return np.zeros_like(lungs)
    largest = np.where(lungs, sizes, 0).argmax()
    compact = cells * sizes[largest] >= _MIN_COMPACT * sizes * cells[largest]
    return np.asarray(lungs & compact & (sizes > _MIN_SIZE_SHARE * sizes[largest]))


def _ml(cells: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    return np.asarray(cells * (CELL_MM / 10) ** 3, dtype=np.float64)


def _interior(air: UInt8Array, slice_mm: float) -> UInt8Array:
    """Leave out the surface of ``air``, where gas and tissue mix in one cell and look like lung.

    Cells of one thick slice are alike, so that the surface is a whole slice deep.
    """
    interior = erode(air, _SURFACE_CELLS)
    # a cell stays only if the cells up to a slice above and below are air too
    for step in range(2, int(np.ceil(slice_mm / CELL_MM)) + 1):
        interior[step:] &= air[:-step]
        interior[:-step] &= air[step:]
    return interior


def labelled(mask: UInt8Array) -> npt.NDArray[np.uint32]:
    """Number the regions of ``mask`` from 1; cells are connected by their faces."""
    import SimpleITK  # here, since the screening network needs this module, but not SimpleITK

    connect = SimpleITK.ConnectedComponentImageFilter()
    connect.SetNumberOfWorkUnits(1)  # two cores take longer for so few cells
    labels = connect.Execute(SimpleITK.GetImageFromArray(mask))
    return np.asarray(SimpleITK.GetArrayFromImage(labels), dtype=np.uint32)


def _region(air: UInt8Array, coarse: HuArray) -> UInt8Array:
    """Extend the lungs' ``air`` to the lung region: steps 2 to 5 of the module's list."""
    # remove the slices at the top that hold no more than a trachea
    large = np.flatnonzero(air.sum(axis=(1, 2)) * CELL_MM**2 > _TRACHEA_MM2)
    if large.size:
        air[large[-1] + 1 :] = 0
    columns = closed_along_z(air, int(GAP_MM / CELL_MM))
    both = columns | _missing(columns, coarse)
    # on cells of twice the size: the ball is large, and filling needs no precision
    hollow = closed(halved(both), _BALL_MM / (2 * CELL_MM))
    return dilate(both, MARGIN_MM / CELL_MM) | doubled(hollow, air.shape)


def _missing(air: UInt8Array, coarse: HuArray) -> UInt8Array:
    """Find where the mirror image of the other side has air and this side has none.

    Two things count: pieces into which a ball of 24 mm fits, and all of a slice in which one side
    has much less air than the other; there the hollows of the other lung are filled.
    """
    # slices in which one side has lost air; the other slices show the axis of symmetry
    middle = spine_of(air, coarse)
    right, left = (side.sum(axis=(1, 2)) for side in (air[:, :, :middle], air[:, :, middle:]))
    poor_right, poor_left = right < _DEFICIENT * left, left < _DEFICIENT * right
    middle = _symmetry_axis(air, ~(poor_right | poor_left), middle)
    # large pieces that are lacking anywhere
    mirror = _mirrored(air, middle)
    lacking = mirror & (1 - air)
    pieces = opened(halved(lacking), _PIECE_MM / (4 * CELL_MM))
    # the whole mirror image on a poor side
    mirror[~poor_right, :, :middle] = 0
    mirror[~poor_left, :, middle:] = 0
    for z in np.flatnonzero(mirror.sum(axis=(1, 2)) * CELL_MM**2 > _LARGE_MM2):
        # the heart dents one lung and not the other: the hull has no dents
        mirror[z] = hull(mirror[z])
    return mirror | (lacking & doubled(pieces, air.shape))


def spine_of(air: UInt8Array, coarse: HuArray) -> int:
    """Find the x cell of the spine in the slices of the lungs.

    It is where a strip of the spine's width holds most bone, in the rear part of the lungs' depth:
    heart and aorta with contrast medium lie further in front. Without bone it is the median of
    the tissue.
    """
    z, y = (np.flatnonzero(air.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    slices = coarse[z[0] : z[-1] + 1]
    # bone cells of every x column in the rear 30 % of the lungs' depth
    bone = (slices[:, int(0.3 * y[0] + 0.7 * y[-1]) :] > _BONE_HU).sum(axis=(0, 1))
    if bone.sum() < _MIN_BONE_CELLS:
        x = np.nonzero(slices > _TISSUE_HU)[2]
        return int(np.median(x)) if x.size else coarse.shape[2] // 2
    # moving sum over the spine's width (an odd number of cells); the middle of its plateau
    strip = np.convolve(bone, np.ones(int(_SPINE_MM / CELL_MM) | 1), mode="same")
    return int(np.flatnonzero(strip == strip.max()).mean())


def _symmetry_axis(air: UInt8Array, even: npt.NDArray[np.bool_], spine: int) -> int:
    """Find the x cell midway between the lungs' outer walls in the ``even`` slices.

    A rotated patient is more symmetric about it than about the ``spine``, which is returned where
    fewer than half of the lungs' slices show two lungs.
    """
    columns = np.asarray(air.any(axis=1))
    filled = np.asarray(columns.any(axis=1))
    use = even & filled
    if 2 * use.sum() < filled.sum():
        return spine
    # first and last x cell with air in each slice: the outer walls
    first = columns[use].argmax(axis=1)
    last = air.shape[2] - 1 - columns[use, ::-1].argmax(axis=1)
    return int(np.median(first + last) / 2 + 0.5)


def _mirrored(air: UInt8Array, middle: int) -> UInt8Array:
    """Exchange right and left about the x cell ``middle``."""
    width = air.shape[2]
    source = 2 * middle - np.arange(width)
    valid = (source >= 0) & (source < width)
    return np.asarray(air[:, :, np.clip(source, 0, width - 1)] * valid.astype(np.uint8))
