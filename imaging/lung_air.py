"""The air-filled part of the lungs on a coarse grid: where every search for lungs begins."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import SimpleITK

from imaging.morphology import dilate, doubled, halved, opened
from imaging.volume import HuArray, UInt8Array

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
