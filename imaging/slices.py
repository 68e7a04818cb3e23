"""One slice: where it lies in the patient and how its pixels are stored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imaging.errors import IrregularGeometry
from imaging.instance import Instance
from imaging.layout import Layout, Rescale, layout_of, rescale_of
from imaging.volume import FloatArray

MIN_PIXEL_MM, MAX_PIXEL_MM = 0.05, 3.0
"""Pixel spacing of any chest CT: a field of view of 500 mm in 512 pixels is 0.98 mm."""

_UNIT_TOLERANCE = 0.01  # of a direction cosine; some scanners write three digits


@dataclass(frozen=True, eq=False)
class Slice:
    """One image of a series.

    Attributes:
        position_mm: world centre of the first pixel, ``(x, y, z)`` LPS.
        axes: ``(2, 3)``, the unit directions in which the column and the row index grow.
        pixel_mm: distance of rows and of columns, ``(y, x)``.
        thickness_mm: nominal thickness of the slice; 0 where the header is silent.
        tilt_deg: gantry tilt as the header states it.
    """

    file: Path
    frame: int
    transfer_syntax: str
    layout: Layout
    rescale: Rescale
    position_mm: FloatArray
    axes: FloatArray
    pixel_mm: tuple[float, float]
    thickness_mm: float = 0.0
    tilt_deg: float = 0.0

    @property
    def normal(self) -> FloatArray:
        """Unit normal of the slice plane, ``(3,)``, right-handed with the two axes."""
        normal = np.cross(self.axes[0], self.axes[1])
        return np.asarray(normal / np.linalg.norm(normal))


def slice_of(image: Instance) -> Slice:
    """The slice that one image's header describes.

    Raises:
        UnreadableFile, NotCt: the pixels are not those of a CT image.
        IrregularGeometry: the place in the patient is missing or impossible.
    """
    return Slice(
        file=image.file,
        frame=image.frame,
        transfer_syntax=image.transfer_syntax,
        layout=layout_of(image),
        rescale=rescale_of(image),
        position_mm=_required(image, "ImagePositionPatient", 3),
        axes=_axes(image),
        pixel_mm=_pixel_mm(image),
        thickness_mm=max(image.number("SliceThickness") or 0.0, 0.0),
        tilt_deg=image.number("GantryDetectorTilt") or 0.0,
    )


def _required(image: Instance, keyword: str, count: int) -> FloatArray:
    values = image.numbers(keyword, count)
    if values is None:
        reason = f"{keyword} is missing: send the original axial series"
        raise IrregularGeometry(reason, image.file)
    return values


def _axes(image: Instance) -> FloatArray:
    axes = _required(image, "ImageOrientationPatient", 6).reshape(2, 3)
    with np.errstate(over="ignore", invalid="ignore"):  # huge values are refused just below
        gram = axes @ axes.T
    if not np.allclose(gram, np.eye(2), atol=2 * _UNIT_TOLERANCE):
        reason = f"ImageOrientationPatient {axes.ravel().tolist()} is no pair of directions"
        raise IrregularGeometry(f"{reason}: send the original series", image.file)
    return np.asarray(axes / np.linalg.norm(axes, axis=1, keepdims=True))


def _pixel_mm(image: Instance) -> tuple[float, float]:
    y, x = (float(v) for v in _required(image, "PixelSpacing", 2))
    if not all(MIN_PIXEL_MM <= v <= MAX_PIXEL_MM for v in (y, x)):
        reason = f"PixelSpacing {y:g} x {x:g} mm is not {MIN_PIXEL_MM} to {MAX_PIXEL_MM} mm"
        raise IrregularGeometry(f"{reason}: send the original series", image.file)
    return y, x
