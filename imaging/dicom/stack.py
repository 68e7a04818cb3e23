"""Stack the slices of one series in order, and require that they make a regular volume."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from imaging.dicom.header import Instance
from imaging.dicom.layout import Layout, Rescale, layout_of, rescale_of
from imaging.dicom.planes import Plane
from imaging.dicom.scan import Pixels
from imaging.errors import IncompleteSeries, IrregularGeometry, UnreadableFile
from imaging.volume import UNNAMED, FloatArray, Geometry, ImageRef, Triple, triple

MIN_PIXEL_MM, MAX_PIXEL_MM = 0.05, 3.0
"""Limits of the pixel spacing of a chest CT: a field of view of 500 mm in 512 pixels is 0.98 mm."""
_UNIT_TOLERANCE = 0.01  # of a direction cosine; some scanners write three digits
MIN_EXTENT_MM = 20.0
"""A shorter volume does not hold a nodule with its surroundings."""
MIN_SPACING_MM, MAX_SPACING_MM = 0.1, 10.0
MAX_GAP_MM = 3.0
"""Tissue between two slices that neither of them shows: a small nodule could be missed in it."""
MAX_EXTENT_MM: Triple = (2000.0, 1000.0, 1000.0)
"""Size along ``(z, y, x)``: a whole body, in the widest gantry (900 mm) with room to spare."""
MAX_VOXELS = 4096 * 512 * 512
"""About 2 GB of HU."""
DUPLICATE_MM = 0.01
"""Slices nearer than this have the same position."""
MIN_TOLERANCE_MM, MAX_TOLERANCE_MM, TOLERANCE_STEPS = 0.06, 0.2, 0.25
"""How far a slice may be off the uniform grid that fits all slices best.

It is a quarter of the slice spacing, from 0.06 to 0.2 mm. A missing slice does not hide in it: it
moves its two neighbours one whole step apart, so that one of them is half a step off any grid. At
most a fifth of the networks' voxel, it changes no image. Positions rounded to one decimal, as some
scanners write them, are off by up to 0.05 mm.
"""
SHIFT_TOLERANCE_MM = 0.5
"""How far a slice may be off the line through the first slice along the normal: half the
networks' voxel. A gantry tilt of one degree moves the last slice of 300 mm by 5 mm."""
_COSINE_TOLERANCE = 2e-3  # 0.1 degree
_SPACING_TOLERANCE = 1e-3  # of the pixel spacing, relative
_AXIAL_COSINE = np.cos(np.pi / 4)


@dataclass(frozen=True, eq=False)
class Slice:
    """One image of a series.

    Attributes:
        position_mm: world centre of the first pixel, ``(x, y, z)`` LPS.
        axes: ``(2, 3)``, the unit directions in which the column and the row index grow.
        pixel_mm: distance of rows and of columns, ``(y, x)``.
        thickness_mm: nominal thickness of the slice; 0 if the header does not state it.
        image: how viewers and archives name it.
        pixels: where they lie in the file, if that is known.
        plane: the decoded slice, where that was done already.
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
    image: ImageRef = UNNAMED
    pixels: Pixels | None = None
    plane: Plane | None = None

    @property
    def name(self) -> str:
        """The name of its file, with the frame where a file holds several."""
        return f"{self.file.name} frame {self.frame}" if self.frame else self.file.name

    @cached_property
    def normal(self) -> FloatArray:
        """Unit normal of the slice plane, ``(3,)``, right-handed with the two axes."""
        # the axes are perpendicular only to within rounding, and so is the length of the product
        normal = np.cross(self.axes[0], self.axes[1])
        return np.asarray(normal / np.linalg.norm(normal))


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in the order of the patient's axis, feet to head, with the volume's geometry."""

    slices: tuple[Slice, ...]
    geometry: Geometry

    @property
    def spacing_mm(self) -> float:
        """Distance between neighbouring slices."""
        return self.geometry.spacing_mm[0]

    @property
    def extent_mm(self) -> float:
        """Length along the normal; every slice counts with its spacing."""
        return len(self.slices) * self.spacing_mm


def slice_of(image: Instance) -> Slice:
    """Read position and layout of one slice from its header.

    Raises:
        UnreadableFile, NotCt: the pixels are not those of a CT image.
        IrregularGeometry: the position in the patient is missing or impossible.
    """
    made: Slice | None = image.made.get("slice")
    if made is not None:
        return replace(made, file=image.file, plane=image.plane)
    one = image.made["slice"] = Slice(
        file=image.file,
        frame=image.frame,
        transfer_syntax=image.transfer_syntax,
        layout=layout_of(image),
        rescale=rescale_of(image),
        position_mm=_required(image, "ImagePositionPatient", 3),
        axes=_axes(image),
        pixel_mm=_pixel_mm(image),
        thickness_mm=max(image.advisory("SliceThickness") or 0.0, 0.0),
        image=_image_ref(image),
        pixels=image.pixels,
        plane=image.plane,
    )
    return one


def _image_ref(image: Instance) -> ImageRef:
    """Read how the image is named; a damaged name refuses no study."""
    try:
        number, frames = image.integer("InstanceNumber"), image.integer("NumberOfFrames")
    except UnreadableFile:
        number = frames = None
    uid = image.text("SOPInstanceUID")
    # the longest values that DICOM allows (PS3.5, 6.2)
    return ImageRef(
        number if number is not None and abs(number) < 2**31 else None,
        uid if len(uid) <= 64 else "",
        image.frame + 1 if (frames or 1) > 1 else None,
    )


def _required(image: Instance, keyword: str, count: int) -> FloatArray:
    values = image.numbers(keyword, count)
    if values is None:
        raise IrregularGeometry(f"{keyword} is missing: send the original axial series", image.file)
    return values


def _axes(image: Instance) -> FloatArray:
    axes = _required(image, "ImageOrientationPatient", 6).reshape(2, 3)
    # the products of two perpendicular unit vectors, each with each, are the identity
    with np.errstate(over="ignore", invalid="ignore"):  # huge values are refused just below
        products = axes @ axes.T
    if not (np.abs(products - np.eye(2)) <= 2 * _UNIT_TOLERANCE).all():
        reason = f"ImageOrientationPatient is {axes.ravel().tolist()}"
        advice = "expected two perpendicular unit vectors: send the original series"
        raise IrregularGeometry(f"{reason}, {advice}", image.file)
    return np.asarray(axes / np.linalg.norm(axes, axis=1, keepdims=True))


def _pixel_mm(image: Instance) -> tuple[float, float]:
    y, x = (float(v) for v in _required(image, "PixelSpacing", 2))
    if not all(MIN_PIXEL_MM <= v <= MAX_PIXEL_MM for v in (y, x)):
        reason = f"PixelSpacing {y:g} x {x:g} mm, expected {MIN_PIXEL_MM} to {MAX_PIXEL_MM} mm"
        raise IrregularGeometry(f"{reason}: send the original series", image.file)
    return y, x


def stack_of(slices: Sequence[Slice], folder: Path) -> Stack:
    """Stack slices that come in any order.

    Raises:
        IncompleteSeries: slices are missing, duplicated or too few.
        IrregularGeometry: they differ in matrix, orientation or spacing, or the gantry is tilted.
    """
    _require_alike(slices)
    # the position of a slice along the stack is its first pixel's projection on the normal
    at_mm = np.array([s.position_mm @ _upward(slices[0]) for s in slices])
    ordered = [slices[i] for i in np.argsort(at_mm, kind="stable")]
    at_mm.sort()
    # an error names the first thing that is wrong: holes and tilts look uneven too
    _require_enough(ordered, at_mm, folder)
    _require_distinct(ordered, at_mm)
    _require_axial(ordered[0])
    _require_untilted(ordered)
    _require_no_hole(ordered, at_mm)
    _require_uniform(ordered, at_mm)
    start, step = _grid(at_mm)
    _require_sane_spacing(ordered, step, folder)
    first, upward = ordered[0], _upward(ordered[0])
    origin = first.position_mm + (start - at_mm[0]) * upward
    direction = np.column_stack([*first.axes, upward])
    geometry = Geometry((step, *first.pixel_mm), triple(origin), direction)
    return Stack(_without_shared_numbers(ordered), geometry)


def _without_shared_numbers(ordered: Sequence[Slice]) -> tuple[Slice, ...]:
    """Take away image numbers that several slices have: they name none of them."""
    times = Counter((s.image.number, s.image.frame) for s in ordered)
    return tuple(
        replace(s, image=replace(s.image, number=None))
        if times[s.image.number, s.image.frame] > 1
        else s
        for s in ordered
    )


def _upward(one: Slice) -> FloatArray:
    """Turn the slice normal towards the head."""
    return one.normal if one.normal[2] >= 0 else -one.normal


def _require_alike(slices: Sequence[Slice]) -> None:
    """Require one matrix, pixel spacing, orientation, and conversion to HU."""
    if (
        len(
            {
                (s.layout.rows, s.layout.columns, s.axes.tobytes(), s.pixel_mm, s.rescale)
                for s in slices
            }
        )
        == 1
    ):
        return  # as in almost every series
    # the error names the slice that differs from most, not most of them
    looks = [
        (s.layout.rows, s.layout.columns, *s.axes.ravel().round(1), *s.rescale) for s in slices
    ]
    first = slices[looks.index(Counter(looks).most_common(1)[0][0])]
    size = (first.layout.rows, first.layout.columns)
    for other in slices:
        if (other.layout.rows, other.layout.columns) != size:
            found = f"matrix {other.layout.rows} x {other.layout.columns}"
            _refuse_mixture(found, f"{size[0]} x {size[1]}", first, other)
        if not np.allclose(other.pixel_mm, first.pixel_mm, rtol=_SPACING_TOLERANCE, atol=0):
            _refuse_mixture(f"pixels of {other.pixel_mm} mm", f"{first.pixel_mm} mm", first, other)
        if not np.allclose(other.axes, first.axes, rtol=0, atol=_COSINE_TOLERANCE):
            axes, expected = (np.round(s.axes, 4).ravel().tolist() for s in (other, first))
            _refuse_mixture(f"orientation {axes}", f"{expected}", first, other)
        if other.rescale != first.rescale:
            usual = f"rescale slope and intercept {first.rescale}"
            _refuse_mixture(f"rescale slope and intercept {other.rescale}", usual, first, other)


def _refuse_mixture(found: str, expected: str, first: Slice, other: Slice) -> None:
    reason = f"{found}, but {first.file.name} of the same series has {expected}"
    raise IrregularGeometry(f"{reason}: send one uniform series", other.file)


def _require_enough(ordered: Sequence[Slice], at_mm: FloatArray, folder: Path) -> None:
    if len(ordered) < 2:
        reason = "is the only slice of its series: send the whole series"
        raise IncompleteSeries(reason, ordered[0].file)
    # the median, which a hole or a duplicate does not change: those have errors of their own
    step = float(np.median(np.diff(at_mm)))
    if step > DUPLICATE_MM and len(ordered) * step < MIN_EXTENT_MM:
        reason = f"{len(ordered)} slices every {step:.2f} mm are {len(ordered) * step:.1f} mm"
        advice = f"at least {MIN_EXTENT_MM:g} mm are needed: send the whole series"
        raise IncompleteSeries(f"{reason}, {advice}", folder)


def _require_distinct(ordered: Sequence[Slice], at_mm: FloatArray) -> None:
    """Refuse two files of one position: it cannot be known which of them is right."""
    same = np.flatnonzero(np.diff(at_mm) < DUPLICATE_MM)
    if len(same):
        at = int(same[0])
        reason = f"duplicate slice: same position as {ordered[at].name} ({at_mm[at]:.2f} mm)"
        raise IncompleteSeries(f"{reason}: send each slice once", ordered[at + 1].file)


def _require_axial(one: Slice) -> None:
    if abs(one.normal[2]) < _AXIAL_COSINE:
        normal = np.round(one.normal, 3).tolist()
        reason = f"slices are not axial (normal {normal}): send the axial series"
        raise IrregularGeometry(reason, one.file)


def _require_untilted(ordered: Sequence[Slice]) -> None:
    """Refuse a sheared stack.

    Only positions count. GantryDetectorTilt is a nominal angle, "not intended for mathematical
    computations" (DICOM PS3.3, C.8.2.1); some files keep it after the tilt was corrected.
    """
    first, normal = ordered[0], ordered[0].normal
    for other in ordered[1:]:
        # the part of the step from the first slice that does not run along the normal
        step = other.position_mm - first.position_mm
        shift = float(np.linalg.norm(step - (step @ normal) * normal))
        if shift > SHIFT_TOLERANCE_MM:
            reason = f"gantry tilt or shifted slices: {shift:.1f} mm off the axis of {first.name}"
            raise IrregularGeometry(f"{reason}: reconstruct without tilt", other.file)


def _require_no_hole(ordered: Sequence[Slice], at_mm: FloatArray) -> None:
    """Refuse missing slices: steps of about twice, three times ... the usual step.

    When more than a quarter of the steps are such, or one of them is no whole multiple, the
    spacing is not uniform: that is another error.
    """
    # the median step is the usual one as long as most slices are there
    multiples = np.diff(at_mm) / np.median(np.diff(at_mm))
    holes = np.flatnonzero(multiples > 1.5)
    whole = np.abs(multiples[holes] - np.round(multiples[holes])) < 0.15
    if 0 < len(holes) <= max(1, len(multiples) // 4) and whole.all():
        at = int(holes[0])
        missing = int(np.sum(np.round(multiples[holes]) - 1))
        between = f"{ordered[at].name} ({at_mm[at]:.2f} mm) and {ordered[at + 1].name}"
        reason = f"{missing} missing between {between} ({at_mm[at + 1]:.2f} mm)"
        raise IncompleteSeries(f"slices: {reason}: send the whole series", ordered[at + 1].file)


def _require_uniform(ordered: Sequence[Slice], at_mm: FloatArray) -> None:
    """Require that every slice lies on the uniform grid.

    Single steps are not compared: rounded positions make them differ, a drift adds up.
    """
    start, step = _grid(at_mm)
    off = np.abs(at_mm - (start + step * np.arange(len(at_mm))))
    worst = int(np.argmax(off))
    if off[worst] > np.clip(TOLERANCE_STEPS * step, MIN_TOLERANCE_MM, MAX_TOLERANCE_MM):
        steps = np.diff(at_mm)
        reason = f"spacing is not uniform ({steps.min():.2f} to {steps.max():.2f} mm), this slice"
        detail = f"is {off[worst]:.2f} mm off the uniform grid: reconstruct with uniform spacing"
        raise IrregularGeometry(f"{reason} {detail}", ordered[worst].file)


def _grid(at_mm: FloatArray) -> tuple[float, float]:
    """Return start and step of the uniform grid that fits the positions best (least squares)."""
    # indices about their middle: step and mean are then independent of each other
    index = np.arange(len(at_mm)) - (len(at_mm) - 1) / 2
    step = float(index @ at_mm / (index @ index))
    return float(at_mm.mean()) + float(index[0]) * step, step


def _require_sane_spacing(ordered: Sequence[Slice], step: float, folder: Path) -> None:
    if not MIN_SPACING_MM <= step <= MAX_SPACING_MM:
        reason = f"slice spacing {step:.3g} mm, expected {MIN_SPACING_MM} to {MAX_SPACING_MM:g} mm"
        raise IrregularGeometry(f"{reason}: send the thin series", folder)
    if (gap := widest_gap_mm(ordered, step)) > MAX_GAP_MM:
        apart = f"{step - gap:g} mm every {step:.2f} mm"
        reason = f"slices of {apart} leave gaps over {MAX_GAP_MM:g} mm"
        raise IncompleteSeries(f"{reason}: send the contiguous series", folder)
    layout = ordered[0].layout
    voxels = len(ordered) * layout.rows * layout.columns
    if voxels > MAX_VOXELS:
        size = f"{len(ordered)} x {layout.rows} x {layout.columns}"
        reason = f"{size} voxels are more than {MAX_VOXELS}: send a smaller series"
        raise IrregularGeometry(reason, folder)
    require_extent(
        (len(ordered), layout.rows, layout.columns), (step, *ordered[0].pixel_mm), folder
    )


def widest_gap_mm(ordered: Sequence[Slice], step: float) -> float:
    """Return the most tissue between two slices that neither shows; 0 if no thickness is stated."""
    # each of two neighbours reaches half of its thickness towards the other
    reach = (
        (low.thickness_mm + high.thickness_mm) / 2
        for low, high in pairwise(ordered)
        if low.thickness_mm and high.thickness_mm
    )
    return step - min(reach, default=step)


def require_extent(shape: Sequence[int], spacing_mm: Triple, file: Path) -> None:
    """Refuse a volume that no scanner makes, as a wrong spacing does.

    Raises:
        IrregularGeometry: it is larger than `MAX_EXTENT_MM`.
    """
    extent = [n * mm for n, mm in zip(shape, spacing_mm, strict=True)]
    if any(mm > most for mm, most in zip(extent, MAX_EXTENT_MM, strict=True)):
        found, most = (" x ".join(f"{mm:.0f}" for mm in side) for side in (extent, MAX_EXTENT_MM))
        reason = f"is {found} mm (z, y, x), at most {most} mm can be of a patient"
        raise IrregularGeometry(f"{reason}: check the spacing, export it again", file)
