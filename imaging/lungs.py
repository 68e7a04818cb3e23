"""Finding the lungs: the box to screen, and the region in which a candidate is believed.

The region is drawn generously, as a reader would who must not lose a nodule: masses,
consolidation, effusion and pleura belong to it, and in doubt a place is inside. It is found on
cells of about 4 mm, from the lungs' air outwards:

1. what air there is in the lungs (`imaging.lungs`);
2. what lies between lung above and lung below;
3. where one side lacks what the other has (effusion, consolidation, a mass, a lung removed), the
   mirror image of the other side;
4. hollows that no ball of 80 mm enters: masses, hilum, vessels;
5. 8 mm all around.

It knows nothing of a part that both lungs have lost at the same place and that lies at their
rim, such as effusions behind both lungs.

The air-filled part of the lungs on a coarse grid: where every search for lungs begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import SimpleITK

from imaging import morphology
from imaging.errors import NoLung
from imaging.morphology import dilate, doubled, halved, opened
from imaging.volume import HuArray, Triple, UInt8Array

_AIR_HU = -320
"""Below it a cell counts as air; ground glass and fibrosis stay below, fat stays above."""
_PLAIN_AIR_HU = -930
"""Below it a cell may be air outside the body or gas in the bowel; lung is rarely so empty."""
_THICK_CELLS = 1.5
"""Radius in cells of 8 mm: a ball that fits into a lung, not into clothing, foam or skin."""
_PADDING_HU = -1023
"""At or below it as the mean of a cell: no measured air, but what the scanner fills up with."""
_RIM_CELLS = 3
_WITHIN_SHARE = 0.8
_PARENCHYMA_SHARE = 0.1
_LEAST_CELLS = 400
_LEAST_SHARE = 0.05


def coarse_hu(hu: HuArray, cells: tuple[int, int, int]) -> HuArray:
    """``hu`` on a grid of ``cells`` ``(z, y, x)``: nearest slices, mean within the slice."""
    z, y, x = cells
    picked = ((np.arange(z) + 0.5) * hu.shape[0] / z).astype(int)
    return np.stack([_shrunk(hu[i], (x, y)) for i in picked])


def lung_air(coarse: HuArray) -> UInt8Array:
    """The lungs' air as a mask of cells; empty when nothing in the volume looks like lung.

    Left out are the air around the patient and gas that is no lung (bowel, stomach, sinuses).
    """
    air = _air_in_body(coarse)
    labels = _labelled(air)
    return _lung_like(labels, opened(air, 1) > 0, coarse)[labels].astype(np.uint8)


def largest_air_cells(coarse: HuArray) -> int:
    """How many cells the largest air-filled region inside the body has, lung or not."""
    return int(np.bincount(_labelled(_air_in_body(coarse)).ravel())[1:].max(initial=0))


def _shrunk(plane: HuArray, size_xy: tuple[int, int]) -> HuArray:
    # halving first takes OpenCV's fast path: half the time of one step
    height, width = plane.shape
    steps = [size_xy]
    if width >= 2 * size_xy[0] and height >= 2 * size_xy[1]:
        steps.insert(0, (width // 2, height // 2))
    shrunk: npt.NDArray[np.integer | np.floating] = np.ascontiguousarray(plane)
    for step in steps:
        shrunk = cv2.resize(shrunk, step, interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk, dtype=np.int16)


def _air_in_body(coarse: HuArray) -> UInt8Array:
    """Air that is not joined to the edge of the slice, and lung that the edge cuts through."""
    air = (coarse < _AIR_HU).astype(np.uint8)
    joined = _joined_to_edge(air)
    plain = _joined_to_edge((coarse < _PLAIN_AIR_HU).astype(np.uint8))
    # between the two floods lie skin, clothing, blankets, foam; and lung cut by the field of view
    doubtful = joined & (1 - plain)
    cut_lung = doubled(
        _cut_lung(halved(doubtful), halved(1 - air), _rim(coarse[::2, ::2, ::2])), air.shape
    )
    return (air & (1 - joined)) | (doubtful & cut_lung)


def _cut_lung(doubtful: UInt8Array, tissue: UInt8Array, rim: UInt8Array) -> UInt8Array:
    """What of ``doubtful`` lies mostly between ``tissue``, is thick and reaches the ``rim``.

    All are on cells of twice the coarse size, and so is what comes back.
    """
    labels = _labelled(opened(doubtful, _THICK_CELLS))
    within = _between(_largest(opened(tissue, _THICK_CELLS)))
    n = int(labels.max()) + 1
    sizes, inner, reach = (
        np.bincount(labels[part > 0], minlength=n) for part in (np.ones_like(rim), within, rim)
    )
    cut = (reach >= _RIM_CELLS) & (inner >= _WITHIN_SHARE * sizes)
    cut[0] = False
    return np.asarray(cut[labels], dtype=np.uint8)


def _largest(mask: UInt8Array) -> UInt8Array:
    """The largest region of ``mask`` that hangs together: of the tissue, the patient."""
    labels = _labelled(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(mask & (labels == sizes.argmax()), dtype=np.uint8)


def _between(tissue: UInt8Array) -> UInt8Array:
    """The rows between the first and the last of ``tissue``, slice by slice.

    Lung lies between the front and the back of the patient; table, foam and blankets mostly not.
    """
    rows = np.asarray(tissue.any(axis=2))
    after = np.logical_or.accumulate(rows, axis=1)
    before = np.logical_or.accumulate(rows[:, ::-1], axis=1)[:, ::-1]
    return np.repeat((after & before)[:, :, None].astype(np.uint8), tissue.shape[2], axis=2)


def _rim(coarse: HuArray) -> UInt8Array:
    """Where the picture ends: the edge of a square or round slice, and all around padding."""
    y, x = (np.linspace(-1, 1, n) for n in coarse.shape[1:])
    edge = (y[:, None] ** 2 + x**2 > 0.94**2).astype(np.uint8)
    return edge | dilate((coarse <= _PADDING_HU).astype(np.uint8), 1.5)


def _joined_to_edge(air: UInt8Array) -> UInt8Array:
    """The cells of ``air`` that are joined to the edge of their slice, within the slice."""
    # one flood for all slices: with a rim of air they hang together as one tall picture
    framed = np.pad(air, ((0, 0), (1, 1), (1, 1)), constant_values=1)
    picture = framed.reshape(-1, framed.shape[2]).copy()
    cv2.floodFill(picture, None, (0, 0), 2)
    reached = picture.reshape(framed.shape)[:, 1:-1, 1:-1] == 2
    return np.asarray(reached, dtype=np.uint8)


def _lung_like(
    labels: npt.NDArray[np.uint32], inner: npt.NDArray[np.bool_], coarse: HuArray
) -> npt.NDArray[np.bool_]:
    """Which labelled regions are lung: large, and not filled with plain gas."""
    parenchyma = inner & (coarse > _PLAIN_AIR_HU)
    sizes = np.bincount(labels.ravel())
    volume, tissue = (
        np.bincount(labels[part], minlength=len(sizes)) for part in (inner, parenchyma)
    )
    volume[0] = 0
    lungs = (tissue > _PARENCHYMA_SHARE * volume) & (volume > 0)
    if tissue[lungs].sum() < _LEAST_CELLS:
        return np.zeros_like(lungs)
    return np.asarray(lungs & (sizes > _LEAST_SHARE * sizes[lungs].max()))


def _labelled(mask: UInt8Array) -> npt.NDArray[np.uint32]:
    """Each region of ``mask`` that hangs together by the faces of its cells, numbered from 1."""
    image = SimpleITK.GetImageFromArray(mask)
    labels = SimpleITK.ConnectedComponent(image)
    return np.asarray(SimpleITK.GetArrayFromImage(labels), dtype=np.uint32)


CELL_MM = 4.0
MARGIN_MM = 8.0
_GAP_MM = 72.0
"""A mass of 60 mm lies between lung above and lung below no further apart than this."""
_BALL_MM = 40.0
"""Radius of the ball that fills hollows: it enters the liver's dome, not a mass of 60 mm."""
_PIECE_MM = 24.0
_BONE_HU = 200
_SPINE_MM = 60.0
_TISSUE_HU = -200
_LEAST_BONE_CELLS = 100
_DEFICIENT = 0.6
"""A side with less than this share of the other's air in a slice has lost some to disease."""
_WINDPIPE_MM2 = 600.0
_LARGE_MM2 = 8000.0
"""Section of one lung well above the diaphragm."""

Index = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Lungs:
    """Where the lungs lie in a volume.

    Attributes:
        start: first voxel of the lung box, ``(z, y, x)``: the region's bounds.
        stop: the voxel after its last, ``(z, y, x)``.
        mask: uint8 ``(z, y, x)``, 1 in the lung region, on equal cells that cover the volume.
        cell_mm: the cells' size, to within rounding to a whole number of cells.
        shape: of the volume in voxels, ``(z, y, x)``.
    """

    start: Index
    stop: Index
    mask: UInt8Array
    cell_mm: float
    shape: Index

    def contains(self, index_zyx: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Whether voxel indices ``(n, 3)`` of the volume lie in the lung region, bool ``(n,)``."""
        index = np.asarray(index_zyx, dtype=np.float64).reshape(-1, 3)
        scale = np.asarray(self.mask.shape) / np.asarray(self.shape)
        cell = np.floor((index + 0.5) * scale).astype(np.intp)
        inside = np.all((cell >= 0) & (cell < self.mask.shape), axis=1)
        z, y, x = np.clip(cell, 0, np.asarray(self.mask.shape) - 1).T
        return np.asarray(inside & (self.mask[z, y, x] > 0))


def find_lungs(hu: HuArray, spacing_mm: Triple, source: Path | str) -> Lungs:
    """The lungs in ``hu``, int16 ``(z, y, x)``.

    x goes to the patient's left, y to the back, z to the head; the voxels' values begin at -1024.
    ``spacing_mm`` follows the array; ``source`` is only for the message.

    Raises:
        NoLung: nothing in the volume looks like lung.
    """
    nz, ny, nx = hu.shape
    z, y, x = (max(1, round(n * s / CELL_MM)) for n, s in zip(hu.shape, spacing_mm, strict=True))
    coarse = coarse_hu(hu, (z, y, x))
    air = lung_air(coarse)
    if not air.any():
        found_l = largest_air_cells(coarse) * CELL_MM**3 / 1e6
        raise NoLung(
            f"no lung in the volume: its largest air-filled region holds {found_l:.2f} l;"
            " check that it is the chest series",
            source,
        )
    mask = _region(air, coarse)
    start, stop = _bounds(mask, hu.shape)
    return Lungs(start, stop, mask, CELL_MM, (nz, ny, nx))


def _region(air: UInt8Array, coarse: HuArray) -> UInt8Array:
    """The lung region that belongs to the lungs' ``air``."""
    air = _without_windpipe(air)
    columns = morphology.closed_along_z(air, int(_GAP_MM / CELL_MM))
    both = columns | _missing(columns, coarse)
    hollow = morphology.closed(morphology.halved(both), _BALL_MM / (2 * CELL_MM))
    return morphology.dilate(both, MARGIN_MM / CELL_MM) | morphology.doubled(hollow, air.shape)


def _without_windpipe(air: UInt8Array) -> UInt8Array:
    """``air`` without the slices at the top that hold no more than a windpipe."""
    area_mm2 = air.sum(axis=(1, 2)) * CELL_MM**2
    large = np.flatnonzero(area_mm2 > _WINDPIPE_MM2)
    below = air.copy()
    if large.size:
        below[large[-1] + 1 :] = 0
    return below


def _missing(air: UInt8Array, coarse: HuArray) -> UInt8Array:
    """Where the other side's mirror image has air and this side has not, in large pieces.

    Large is a piece into which a ball of 24 mm fits, and all of a slice in which one side has
    much less air than the other; there the other lung counts with its hollows filled.
    """
    middle = _spine(air, coarse)
    right, left = (side.sum(axis=(1, 2)) for side in (air[:, :, :middle], air[:, :, middle:]))
    poor_right, poor_left = right < _DEFICIENT * left, left < _DEFICIENT * right
    middle = _lungs_middle(air, ~(poor_right | poor_left), middle)
    image = _mirrored(air, middle)
    lacking = image & (1 - air)
    pieces = morphology.opened(morphology.halved(lacking), _PIECE_MM / (4 * CELL_MM))
    image[~poor_right, :, :middle] = 0
    image[~poor_left, :, middle:] = 0
    for z in np.flatnonzero(image.sum(axis=(1, 2)) * CELL_MM**2 > _LARGE_MM2):
        # the heart's bay in one lung is no bay in the other
        image[z] = morphology.hull(image[z])
    return image | (lacking & morphology.doubled(pieces, air.shape))


def _spine(air: UInt8Array, coarse: HuArray) -> int:
    """The x cell of the spine at the height of the lungs.

    It is where a strip of the spine's width holds most bone, in the hindmost part of the lungs'
    depth: there the heart and the aorta with contrast medium are out of the way. Where there is
    no bone, the middle of the tissue.
    """
    z, y = (np.flatnonzero(air.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    slices = coarse[z[0] : z[-1] + 1]
    bone = (slices[:, int(0.3 * y[0] + 0.7 * y[-1]) :] > _BONE_HU).sum(axis=(0, 1))
    if bone.sum() < _LEAST_BONE_CELLS:
        x = np.nonzero(slices > _TISSUE_HU)[2]
        return int(np.median(x)) if x.size else coarse.shape[2] // 2
    strip = np.convolve(bone, np.ones(int(_SPINE_MM / CELL_MM) | 1), mode="same")
    return int(np.flatnonzero(strip == strip.max()).mean())


def _lungs_middle(air: UInt8Array, even: npt.NDArray[np.bool_], spine: int) -> int:
    """The x cell midway between the lungs' outer walls, by the ``even`` slices.

    A patient who lies askew is more alike about it than about the ``spine``, which stands in
    where fewer than half of the lungs' slices show two lungs.
    """
    columns = np.asarray(air.any(axis=1))
    filled = np.asarray(columns.any(axis=1))
    use = even & filled
    if 2 * use.sum() < filled.sum():
        return spine
    first = columns[use].argmax(axis=1)
    last = air.shape[2] - 1 - columns[use, ::-1].argmax(axis=1)
    return int(np.median(first + last) / 2 + 0.5)


def _mirrored(air: UInt8Array, middle: int) -> UInt8Array:
    """``air`` with right and left exchanged about the x cell ``middle``."""
    width = air.shape[2]
    source = 2 * middle - np.arange(width)
    valid = (source >= 0) & (source < width)
    return np.asarray(air[:, :, np.clip(source, 0, width - 1)] * valid.astype(np.uint8))


def _bounds(mask: UInt8Array, shape: tuple[int, ...]) -> tuple[Index, Index]:
    """First voxel and the one after the last of the region, for a volume of ``shape``."""
    start, stop = [], []
    for axis, (cells, voxels) in enumerate(zip(mask.shape, shape, strict=True)):
        others = tuple(a for a in range(3) if a != axis)
        hit = np.flatnonzero(mask.any(axis=others))
        start.append(int(hit[0] * voxels / cells))
        stop.append(min(voxels, int(np.ceil((hit[-1] + 1) * voxels / cells))))
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])
