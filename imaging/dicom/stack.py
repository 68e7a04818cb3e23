"""A stack: the slices of one series in order, proven to make a regular volume.

One slice: where it lies in the patient and how its pixels are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imaging.dicom.header import Instance
from imaging.dicom.layout import Layout, Rescale, layout_of, rescale_of
from imaging.errors import IncompleteSeries, IrregularGeometry
from imaging.volume import FloatArray, Geometry

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


MIN_EXTENT_MM = 20.0
"""Less holds no nodule with its surroundings."""
MIN_SPACING_MM, MAX_SPACING_MM = 0.1, 10.0
MAX_GAP_MM = 3.0
"""Tissue between two slices that neither of them shows: a nodule could lie in it unseen."""
MAX_VOXELS = 4096 * 512 * 512
"""About 2 GB of HU."""

SAME_PLACE_MM = 0.01
PLACE_TOLERANCE_MM = 0.1
"""How far a slice may lie from the even grid between the first and the last.

Scanners write positions with as little as one decimal, so that a slice and the grid's ends are
each off by up to 0.05 mm. A tenth of a millimetre is a tenth of the networks' voxel.
"""
SHIFT_TOLERANCE_MM = 0.5
"""How far a slice may lie beside the line through the first slice along the normal: half the
networks' voxel. A gantry tilt of one degree moves the last of 300 mm by 5 mm."""
_COSINE_TOLERANCE = 2e-3  # 0.1 degree
_SPACING_TOLERANCE = 1e-3  # of the pixel spacing, relative
_MIN_TILT_DEG = 1.0
_AXIAL_COSINE = np.cos(np.pi / 4)


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in the order of the patient's axis, feet to head, with the volume's geometry."""

    slices: tuple[Slice, ...]
    geometry: Geometry

    @property
    def spacing_mm(self) -> float:
        """Distance of neighbouring slices."""
        return self.geometry.spacing_mm[0]

    @property
    def extent_mm(self) -> float:
        """Length along the normal, every slice counted with its spacing."""
        return len(self.slices) * self.spacing_mm


def stack_of(slices: Sequence[Slice], folder: Path) -> Stack:
    """The stack that the slices make, in whatever order they come.

    Raises:
        IncompleteSeries: slices are missing, doubled or too few.
        IrregularGeometry: they differ in matrix, orientation or spacing, or the gantry is tilted.
    """
    _require_alike(slices)
    places = np.array([s.position_mm @ _upward(slices[0]) for s in slices])
    ordered = [slices[i] for i in np.argsort(places, kind="stable")]
    places.sort()
    _require_enough(ordered, places, folder)
    _require_distinct(ordered, places)
    _require_axial(ordered[0])
    _require_untilted(ordered)
    _require_even(ordered, places)
    step = float(places[-1] - places[0]) / (len(places) - 1)
    _require_sane_spacing(ordered, step, folder)
    return Stack(tuple(ordered), _geometry(ordered[0], step))


def _upward(one: Slice) -> FloatArray:
    """The slice normal, turned towards the head."""
    return one.normal if one.normal[2] >= 0 else -one.normal


def _geometry(first: Slice, step: float) -> Geometry:
    x, y, z = (float(v) for v in first.position_mm)
    direction = np.column_stack([first.axes[0], first.axes[1], _upward(first)])
    return Geometry((step, *first.pixel_mm), (x, y, z), direction)


def _require_alike(slices: Sequence[Slice]) -> None:
    first = slices[0]
    size = (first.layout.rows, first.layout.columns)
    for other in slices:
        if (other.layout.rows, other.layout.columns) != size:
            found = f"matrix {other.layout.rows} x {other.layout.columns}"
            _refuse_mixture(found, f"{size[0]} x {size[1]}", first, other)
        if not np.allclose(other.pixel_mm, first.pixel_mm, rtol=_SPACING_TOLERANCE, atol=0):
            _refuse_mixture(f"pixels of {other.pixel_mm} mm", f"{first.pixel_mm} mm", first, other)
        if not np.allclose(other.axes, first.axes, rtol=0, atol=_COSINE_TOLERANCE):
            axes, wanted = (np.round(s.axes, 4).ravel().tolist() for s in (other, first))
            _refuse_mixture(f"orientation {axes}", f"{wanted}", first, other)


def _refuse_mixture(found: str, wanted: str, first: Slice, other: Slice) -> None:
    reason = f"{found}, but {first.file.name} of the same series has {wanted}"
    raise IrregularGeometry(f"{reason}: send one uniform series", other.file)


def _require_enough(ordered: Sequence[Slice], places: FloatArray, folder: Path) -> None:
    if len(ordered) < 2:
        reason = "is the only slice of its series: send the whole series"
        raise IncompleteSeries(reason, ordered[0].file)
    step = float(np.median(np.diff(places)))
    if step > SAME_PLACE_MM and len(ordered) * step < MIN_EXTENT_MM:
        reason = f"{len(ordered)} slices every {step:.2f} mm are {len(ordered) * step:.1f} mm"
        advice = f"at least {MIN_EXTENT_MM:g} mm are needed: send the whole series"
        raise IncompleteSeries(f"{reason}, {advice}", folder)


def _require_distinct(ordered: Sequence[Slice], places: FloatArray) -> None:
    """Even an exact copy is refused: which of two files is the right one is not ours to say."""
    same = np.flatnonzero(np.diff(places) < SAME_PLACE_MM)
    if len(same):
        at = int(same[0])
        reason = f"duplicate slice: lies where {_name(ordered[at])} lies ({places[at]:.2f} mm)"
        raise IncompleteSeries(f"{reason}: send each slice once", ordered[at + 1].file)


def _require_axial(one: Slice) -> None:
    if abs(one.normal[2]) < _AXIAL_COSINE:
        normal = np.round(one.normal, 3).tolist()
        reason = f"slices are not axial (normal {normal}): send the axial series"
        raise IrregularGeometry(reason, one.file)


def _require_untilted(ordered: Sequence[Slice]) -> None:
    """Refuse a sheared stack, and a stated tilt of which the orientation knows nothing."""
    first, normal = ordered[0], ordered[0].normal
    for other in ordered[1:]:
        step = other.position_mm - first.position_mm
        shift = float(np.linalg.norm(step - (step @ normal) * normal))
        if shift > SHIFT_TOLERANCE_MM:
            reason = f"gantry tilt or moved slices: lies {shift:.1f} mm beside {_name(first)}"
            raise IrregularGeometry(f"{reason}: reconstruct without tilt", other.file)
    tilt = abs(first.tilt_deg)
    leaning = float(np.degrees(np.arccos(min(abs(normal[2]), 1.0))))
    if tilt >= _MIN_TILT_DEG and leaning < tilt / 2:
        reason = f"GantryDetectorTilt is {first.tilt_deg:g} degrees, but the slices are upright"
        raise IrregularGeometry(f"{reason}: reconstruct without tilt", first.file)


def _require_even(ordered: Sequence[Slice], places: FloatArray) -> None:
    _require_no_hole(ordered, places)
    grid = np.linspace(places[0], places[-1], len(places))
    off = np.abs(places - grid)
    worst = int(np.argmax(off))
    if off[worst] > PLACE_TOLERANCE_MM:
        steps = np.diff(places)
        reason = f"spacing is not uniform ({steps.min():.2f} to {steps.max():.2f} mm), this slice"
        detail = f"lies {off[worst]:.2f} mm off the even grid"
        raise IrregularGeometry(f"{reason} {detail}: reconstruct evenly", ordered[worst].file)


def _require_no_hole(ordered: Sequence[Slice], places: FloatArray) -> None:
    """Name the slices around a hole: a few steps that are whole multiples of the usual one."""
    multiples = np.diff(places) / np.median(np.diff(places))
    holes = np.flatnonzero(multiples > 1.5)
    whole = np.abs(multiples[holes] - np.round(multiples[holes])) < 0.15
    if 0 < len(holes) <= max(1, len(multiples) // 4) and whole.all():
        at = int(holes[0])
        missing = int(np.sum(np.round(multiples[holes]) - 1))
        between = f"{_name(ordered[at])} ({places[at]:.2f} mm) and {_name(ordered[at + 1])}"
        reason = f"{missing} missing between {between} ({places[at + 1]:.2f} mm)"
        raise IncompleteSeries(f"slices: {reason}: send the whole series", ordered[at + 1].file)


def _require_sane_spacing(ordered: Sequence[Slice], step: float, folder: Path) -> None:
    if not MIN_SPACING_MM <= step <= MAX_SPACING_MM:
        reason = f"slice spacing {step:.3g} mm is not {MIN_SPACING_MM} to {MAX_SPACING_MM:g} mm"
        raise IrregularGeometry(f"{reason}: send the thin series", folder)
    thickness = ordered[0].thickness_mm
    if thickness and step - thickness > MAX_GAP_MM:
        reason = f"slices of {thickness:g} mm every {step:.2f} mm leave tissue unseen"
        raise IncompleteSeries(f"{reason}: send the contiguous series", folder)
    layout = ordered[0].layout
    voxels = len(ordered) * layout.rows * layout.columns
    if voxels > MAX_VOXELS:
        size = f"{len(ordered)} x {layout.rows} x {layout.columns}"
        reason = f"{size} voxels are more than {MAX_VOXELS}: send a smaller series"
        raise IrregularGeometry(reason, folder)


def _name(one: Slice) -> str:
    return f"{one.file.name} frame {one.frame}" if one.frame else one.file.name
