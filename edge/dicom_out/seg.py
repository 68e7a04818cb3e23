"""Build the segmentation: the outlines of findings, on the pixels of the source images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from highdicom import PlanePositionSequence
from highdicom.enum import CoordinateSystemNames
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from pydicom import Dataset
from pydicom.valuerep import DSfloat

from edge.dicom_out import terms
from edge.dicom_out.errors import NotExportable
from edge.dicom_out.evidence import PlacedOutline, interpolated
from edge.dicom_out.identity import Device, Kind, Names, complete, general, names_of, uid
from edge.dicom_out.planes import Plane, nearest_plane, planes_of
from edge.dicom_out.subject import Source, put
from imaging.volume import FloatArray

BoolArray = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.uint8 | np.uint16]
MAX_STACKED = 256 << 20
"""Most bytes of the pixels of outlines that overlap; beyond it they are cut, not whole."""


@dataclass(frozen=True, eq=False)
class _Patch:
    """The pixels of one outline in one plane: ``mask`` begins at ``row`` and ``column``."""

    plane: int
    row: int
    column: int
    mask: BoolArray

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of its plane."""
        height, width = self.mask.shape
        return slice(self.row, self.row + height), slice(self.column, self.column + width)


def segmentation(
    report: Mapping[str, Any], source: Source, outlines: Mapping[int, PlacedOutline], device: Device
) -> Dataset:
    """Return the segmentation with a segment for each finding and possible finding of an outline.

    Args:
        report: content of ``report.json``.
        source: the images that were read.
        outlines: by number of finding or possible finding.
        device: the machine that makes it.

    Raises:
        NotExportable: there is no outline, or the images cannot be segmented.
    """
    names = names_of(report)
    listed = [
        (values, is_finding)
        for key, is_finding in (("findings", True), ("possible_findings", False))
        for values in report[key]
        if int(values["number"]) in outlines
    ]
    if not listed:
        raise NotExportable("no finding has an outline: only a second reading gives one")
    if not source.frame_of_reference_uid:
        raise NotExportable("the source images have no valid FrameOfReferenceUID")
    planes = planes_of(source)
    _require_one_grid(source, planes)
    used, pixels, numbers = _drawn(listed, outlines, planes)
    described = [one for one in listed if int(one[0]["number"]) in numbers]
    made = Segmentation(
        **_images(source, planes, used),
        pixel_array=pixels,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _description(index, values, is_finding, names)
            for index, (values, is_finding) in enumerate(described, start=1)
        ],
        content_label="NODULES",
        content_description=f"Outlines of nodules, report version {names.version}",
        content_creator_name="Overread^edge",
        **general(Kind.SEG, names, device),
    )
    made.ContentDescription = f"Outlines of nodules, report version {names.version}"
    _name_dimensions(made, str(uid(names.study_key, "seg", str(names.version), "dimensions")))
    complete(made, source, names)
    return made


def _require_one_grid(source: Source, planes: Sequence[Plane]) -> None:
    if len(source.images) > 1 and any(plane.frame is not None for plane in planes):
        raise NotExportable("the series has several images of many frames")
    if len({(plane.rows, plane.columns) for plane in planes}) > 1:
        raise NotExportable("the source images differ in rows and columns")


def _description(
    index: int, values: Mapping[str, Any], is_finding: bool, names: Names
) -> SegmentDescription:
    number = int(values["number"])
    model = (values["verdict"] or {}).get("model", "")
    return SegmentDescription(
        segment_number=index,
        segment_label=f"{'Finding' if is_finding else 'Possible finding'} {number}",
        segmented_property_category=terms.ABNORMAL,
        segmented_property_type=terms.NODULE if is_finding else terms.POSSIBLE_NODULE,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=terms.segmentation_algorithm(model),
        tracking_uid=names.tracking_uid(number),
        tracking_id=f"Overread {number}",
        anatomic_regions=[terms.LUNG],
    )


def _drawn(
    listed: Sequence[tuple[Mapping[str, Any], bool]],
    outlines: Mapping[int, PlacedOutline],
    planes: Sequence[Plane],
) -> tuple[list[int], Pixels, set[int]]:
    """Return the planes that any outline meets, their pixels, and the numbers that have a segment.

    The pixels are labels ``(plane, row, column)``: a pixel of two outlines belongs to the more
    probable one, and an outline that lies wholly in others has no segment. If outlines overlap and
    memory suffices, they are ``(plane, row, column, segment)``, and each outline is whole.
    """
    patches = {
        int(values["number"]): list(patches_of(outlines[int(values["number"])], planes))
        for values, _ in listed
    }
    used = sorted({patch.plane for some in patches.values() for patch in some})
    place = {plane: index for index, plane in enumerate(used)}
    shape = len(used), planes[0].rows, planes[0].columns
    labels: Pixels = np.zeros(shape, np.uint16)
    numbers: set[int] = set()
    overlap = False
    for number, some in patches.items():
        any_left = False
        for patch in some:
            part = labels[place[patch.plane], *patch.window]
            overlap |= bool(part[patch.mask].any())
            free = patch.mask & (part == 0)
            part[free] = len(numbers) + 1
            any_left |= bool(free.any())
        if any_left:
            numbers.add(number)
    whole = {number: some for number, some in patches.items() if some}
    if not overlap or int(np.prod(shape)) * len(whole) > MAX_STACKED:
        return used, labels, numbers
    stacked: Pixels = np.zeros((*shape, len(whole)), np.uint8)
    for segment, some in enumerate(whole.values()):
        for patch in some:
            stacked[place[patch.plane], *patch.window, segment][patch.mask] = 1
    return used, stacked, set(whole)


def patches_of(outline: PlacedOutline, planes: Sequence[Plane]) -> Iterator[_Patch]:
    """Yield the pixels of an outline in each plane that it meets, at least one pixel in all.

    A pixel belongs to the outline if the outline, interpolated linearly, covers half of it. An
    outline between two planes, or smaller than a pixel, has the pixel nearest to its centre.
    """
    found = False
    for number, plane in enumerate(planes):
        patch = _patch(outline, plane, number)
        if patch is not None:
            found = True
            yield patch
    if found:
        return
    centre = outline.geometry.to_world(np.argwhere(outline.mask).mean(0))
    plane = nearest_plane(planes, centre.tolist())
    row, column = (round(value) for value in plane.pixel_of(centre.tolist()))
    if 0 <= row < plane.rows and 0 <= column < plane.columns:
        number = next(i for i, one in enumerate(planes) if one is plane)
        yield _Patch(number, row, column, np.ones((1, 1), bool))


def _patch(outline: PlacedOutline, plane: Plane, number: int) -> _Patch | None:
    size = np.array(outline.mask.shape)
    # the corners of a box that holds the outline and half a voxel around it
    corners = np.array(list(product(*((-0.5, side - 0.5) for side in size))))
    corners_mm = outline.geometry.to_world(corners)
    off_mm = (corners_mm - plane.position_mm) @ plane.normal
    if off_mm.min() > 0 or off_mm.max() < 0:
        return None
    pixels = np.array([plane.pixel_of(corner.tolist()) for corner in corners_mm])
    first = np.maximum(np.floor(pixels.min(0)), 0).astype(int)
    last = np.minimum(np.ceil(pixels.max(0)) + 1, (plane.rows, plane.columns)).astype(int)
    if (first >= last).any():
        return None
    rows, columns = (np.arange(a, b, dtype=np.float64) for a, b in zip(first, last, strict=True))
    index = outline.geometry.to_index(plane.points_mm(rows, columns))
    mask = interpolated(outline.mask, index) >= 0.5
    return _Patch(number, int(first[0]), int(first[1]), mask) if mask.any() else None


def _images(source: Source, planes: Sequence[Plane], used: Sequence[int]) -> dict[str, Any]:
    """Return the source images of the ``used`` planes as highdicom expects them.

    All have the orientation and the spacing of the first: reading has required that they agree.
    """
    first = planes[0]
    distance_mm = abs(float((planes[1].position_mm - first.position_mm) @ first.normal))
    same = Dataset()
    same.PixelSpacing = _decimals(first.pixel_mm)
    same.SliceThickness = DSfloat(first.thickness_mm or distance_mm, auto_format=True)
    direction = Dataset()
    direction.ImageOrientationPatient = _decimals(first.axes.ravel())
    if first.frame is None:
        images = []
        for plane in (planes[i] for i in used):
            image = _copied(plane.image, same, direction)
            put(image, "ImagePositionPatient", _decimals(plane.position_mm))
            images.append(image)
        return {"source_images": images}
    image, shared = _copied(source.images[0]), Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [same], [direction]
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = [_group(plane) for plane in planes]
    positions = [
        PlanePositionSequence(CoordinateSystemNames.PATIENT, _decimals(planes[i].position_mm))
        for i in used
    ]
    return {"source_images": [image], "plane_positions": positions}


def _copied(image: Dataset, *others: Dataset) -> Dataset:
    """Return the image without functional groups, and with the elements of the others."""
    copy = Dataset()
    copy.update(image)
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        copy.pop(keyword, None)
    for other in others:
        copy.update(other)
    return copy


def _group(plane: Plane) -> Dataset:
    group, position = Dataset(), Dataset()
    position.ImagePositionPatient = _decimals(plane.position_mm)
    group.PlanePositionSequence = [position]
    return group


def _decimals(values: Sequence[float] | FloatArray) -> list[DSfloat]:
    return [DSfloat(float(value), auto_format=True) for value in values]


def _name_dimensions(made: Dataset, name: str) -> None:
    """Replace the random name of the dimensions, so that an object made again is the same."""
    for keyword in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in made.get(keyword) or []:
            item.DimensionOrganizationUID = name
