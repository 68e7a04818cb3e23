"""The planes of the source images in the patient: one for each image, or frame of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom import Dataset

from edge.dicom_out.errors import NotExportable
from edge.dicom_out.subject import Source
from imaging.volume import FloatArray


@dataclass(frozen=True, eq=False)
class Plane:
    """One image of ``rows`` x ``columns`` pixels in the patient.

    Attributes:
        image: the data set that it belongs to.
        frame: its number in that, from 1; None in an image of one frame.
        position_mm: centre of the first pixel, ``(x, y, z)`` LPS.
        axes: ``(2, 3)``, unit directions in which the column and the row index grow.
        pixel_mm: distance of rows and of columns.
        thickness_mm: nominal thickness; None where the image does not state it.
    """

    image: Dataset
    frame: int | None
    position_mm: FloatArray
    axes: FloatArray
    pixel_mm: tuple[float, float]
    rows: int
    columns: int
    thickness_mm: float | None = None

    @property
    def normal(self) -> FloatArray:
        """Unit normal, ``(3,)``."""
        normal = np.cross(self.axes[0], self.axes[1])
        return np.asarray(normal / np.linalg.norm(normal))

    def pixel_of(self, point_mm: Sequence[float]) -> tuple[float, float]:
        """Return row and column of the point's projection; 0 is the middle of the first pixel."""
        offset = np.asarray(point_mm, dtype=np.float64) - self.position_mm
        y_mm, x_mm = self.pixel_mm
        return float(offset @ self.axes[1]) / y_mm, float(offset @ self.axes[0]) / x_mm

    def points_mm(self, rows: FloatArray, columns: FloatArray) -> FloatArray:
        """Return the centres of the pixels of these rows and columns, ``(rows, columns, 3)``."""
        down = rows[:, None, None] * self.pixel_mm[0] * self.axes[1]
        across = columns[None, :, None] * self.pixel_mm[1] * self.axes[0]
        return np.asarray(self.position_mm + down + across)


def planes_of(source: Source) -> list[Plane]:
    """Return the planes in the order of the images and of their frames.

    Raises:
        NotExportable: an image has no position, orientation or pixel spacing.
    """
    return [plane for image in source.images for plane in _planes(image)]


def nearest_plane(planes: Sequence[Plane], point_mm: Sequence[float]) -> Plane:
    """Return the plane with the least distance from the point."""
    point = np.asarray(point_mm, dtype=np.float64)
    return min(planes, key=lambda plane: abs(float((point - plane.position_mm) @ plane.normal)))


def _planes(image: Dataset) -> list[Plane]:
    frames = image.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        return [_plane(image, [image], None)]
    shared = (image.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    return [
        _plane(image, [*_macros(own), *_macros(shared), image], number)
        for number, own in enumerate(frames, start=1)
    ]


def _macros(group: Dataset) -> list[Dataset]:
    keywords = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
    return [item for keyword in keywords for item in (group.get(keyword) or [])[:1]]


def _plane(image: Dataset, parts: Sequence[Dataset], frame: int | None) -> Plane:
    position = _numbers(parts, "ImagePositionPatient", 3)
    axes = _numbers(parts, "ImageOrientationPatient", 6).reshape(2, 3)
    y_mm, x_mm = (float(value) for value in _numbers(parts, "PixelSpacing", 2))
    lengths = np.linalg.norm(axes, axis=1, keepdims=True)
    try:
        rows, columns = int(image.Rows), int(image.Columns)
    except (AttributeError, TypeError, ValueError):
        raise NotExportable("a source image does not state its rows and columns") from None
    # an image of a single frame may still have functional groups
    many = int(image.get("NumberOfFrames") or 1) > 1
    return Plane(
        image,
        frame if many else None,
        position,
        axes / lengths,
        (y_mm, x_mm),
        rows,
        columns,
        _thickness_mm(parts),
    )


def _thickness_mm(parts: Sequence[Dataset]) -> float | None:
    """Return what the image states; a damaged value is none, since no point depends on it."""
    value = next((part.get("SliceThickness") for part in parts if part.get("SliceThickness")), None)
    try:
        thickness = float(value) if value is not None else 0.0
    except (TypeError, ValueError):
        return None
    return thickness if 0 < thickness < 100 else None


def _numbers(parts: Sequence[Dataset], keyword: str, count: int) -> FloatArray:
    value: Any = next((part.get(keyword) for part in parts if part.get(keyword)), None)
    try:
        values = np.array([float(one) for one in value], dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise NotExportable(f"a source image has no valid {keyword}")
    return values
