"""A piece of lung with what is known in it; what is done to the picture is done to the truth."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from imaging.volume import FloatArray, UInt8Array

NONE: FloatArray = np.zeros((0, 4))


@dataclass(frozen=True, eq=False)
class Piece:
    """Voxels at 1 mm with their truth.

    Attributes:
        voxels: uint8 ``(z, y, x)`` of the HU window.
        mask: uint8 of the same shape, 255 where a nodule is.
        nodules: ``(n, 4)``: z, y, x in voxels and diameter in mm.
        ignored: the same for places that count neither way.
    """

    voxels: UInt8Array
    mask: UInt8Array
    nodules: FloatArray
    ignored: FloatArray


def crop(piece: Piece, start: npt.ArrayLike, size: npt.ArrayLike) -> Piece:
    """The part from ``start`` of ``size``; marks outside stay, in the part's coordinates."""
    first = np.asarray(start, dtype=int)
    box = tuple(slice(a, a + n) for a, n in zip(first, np.asarray(size, dtype=int), strict=True))
    shift = np.array([*first, 0.0])
    return Piece(piece.voxels[box], piece.mask[box], piece.nodules - shift, piece.ignored - shift)


def mirrored(piece: Piece, axes: tuple[bool, bool, bool], swap_yx: bool = False) -> Piece:
    """Flipped along the axes asked for; then y and x exchanged."""
    flips = tuple(slice(None, None, -1) if flip else slice(None) for flip in axes)
    voxels, mask = piece.voxels[flips], piece.mask[flips]
    marks = [_flip_marks(m, axes, piece.voxels.shape) for m in (piece.nodules, piece.ignored)]
    if swap_yx:
        voxels, mask = voxels.transpose(0, 2, 1), mask.transpose(0, 2, 1)
        marks = [m[:, [0, 2, 1, 3]] for m in marks]
    return Piece(voxels, mask, marks[0], marks[1])


def _flip_marks(
    marks: FloatArray, axes: tuple[bool, bool, bool], shape: tuple[int, ...]
) -> FloatArray:
    out = marks.copy()
    for axis, flip in enumerate(axes):
        if flip:
            out[:, axis] = shape[axis] - 1 - out[:, axis]
    return out


def zoomed(piece: Piece, factor: float) -> Piece:
    """Everything ``factor`` times as large, diameters too."""
    marks = [_zoom_marks(m, factor) for m in (piece.nodules, piece.ignored)]
    return Piece(resize(piece.voxels, factor), resize(piece.mask, factor), marks[0], marks[1])


def _zoom_marks(marks: FloatArray, factor: float) -> FloatArray:
    out = marks * factor
    out[:, :3] += 0.5 * factor - 0.5
    return out


def resize(voxels: UInt8Array, factor: float) -> UInt8Array:
    """uint8 ``(z, y, x)`` scaled by ``factor`` along every axis, trilinear."""
    z, y, x = (max(4, round(n * factor)) for n in voxels.shape)
    deep = cv2.resize(np.ascontiguousarray(voxels).reshape(voxels.shape[0], -1),
                      (voxels[0].size, z)).reshape(z, *voxels.shape[1:])  # fmt: skip
    out = np.empty((z, y, x), np.uint8)
    for image, target in zip(deep, out, strict=True):
        cv2.resize(image, (x, y), dst=target)
    return out
