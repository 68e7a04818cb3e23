"""Build the segmentation: the outlines of findings, on the pixels of the source images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from edge.dicom_out import terms
from edge.dicom_out.identity import Device, Kind, complete, general, tracking_uid, uid
from edge.dicom_out.source import Plane, Source, planes_of, put
from edge.errors import NotApplicable
from edge.findings import Finding
from edge.report.evidence import PlacedOutline, interpolated
from edge.report.model import Report
from imaging.volume import FloatArray

MAX_PLAIN = 1 << 20
"""Most bytes of pixels that are not deflated: 1,000 frames are 33 MB, and 0.1 MB deflated."""
BoolArray = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.uint8 | np.uint16]
MAX_STACKED = 256 << 20
"""Most bytes of the pixels of outlines that overlap; beyond it they are cut, not whole."""


@dataclass(frozen=True, eq=False)
class _Patch:
    """The pixels of one outline in one plane: ``mask`` begins at ``row`` and ``column``.

    ``mask`` is bool, or how much of each pixel is covered.
    """

    plane: int
    row: int
    column: int
    mask: npt.NDArray[Any]

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of its plane."""
        height, width = self.mask.shape
        return slice(self.row, self.row + height), slice(self.column, self.column + width)


def segmentation(
    report: Report, source: Source, device: Device, outlines: Mapping[int, PlacedOutline]
) -> Dataset:
    """Return the segmentation with a segment for each finding and possible finding of an outline.

    Args:
        report: the report with the findings.
        source: the images that were read.
        device: the machine that makes it.
        outlines: by number of finding or possible finding.

    Raises:
        NotApplicable: there is no outline, or the images cannot be segmented.
    """
    listed = [(number, one) for number, one in report.listed if number in outlines]
    if not listed:
        raise NotApplicable("no finding has an outline: only a second reading gives one")
    if not source.frame_of_reference_uid:
        raise NotApplicable("the source images have no valid FrameOfReferenceUID")
    planes = planes_of(source)
    _require_one_grid(source, planes)
    used, pixels, numbers = _drawn(listed, outlines, planes)
    described = f"Outlines of nodules, report version {report.version}"
    made = Segmentation(
        **_images(source, planes, used),
        pixel_array=pixels,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _description(report, index, *entry)
            for index, entry in enumerate((one for one in listed if one[0] in numbers), start=1)
        ],
        content_label="NODULES",
        content_description=described,
        content_creator_name="Overread^edge",
        **general(Kind.SEG, report, device),
    )
    made.ContentDescription = described
    # highdicom names the dimensions at random, and an object that is made again would differ
    name = str(uid(report.study_key, "seg", str(report.version), "dimensions"))
    for keyword in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in made.get(keyword) or []:
            item.DimensionOrganizationUID = name
    if len(made.PixelData) > MAX_PLAIN:
        made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    complete(made, source, report)
    return made


def _require_one_grid(source: Source, planes: Sequence[Plane]) -> None:
    if len(source.images) > 1 and any(plane.frame is not None for plane in planes):
        raise NotApplicable("the series has several images of many frames")
    if len({(plane.rows, plane.columns) for plane in planes}) > 1:
        raise NotApplicable("the source images differ in rows and columns")


def _description(report: Report, index: int, number: int, finding: Finding) -> SegmentDescription:
    model = finding.verdict.model if finding.verdict else ""
    is_finding = number in dict(report.numbered)
    return SegmentDescription(
        segment_number=index,
        segment_label=f"{'Finding' if is_finding else 'Possible finding'} {number}",
        segmented_property_category=terms.ABNORMAL,
        segmented_property_type=terms.NODULE if is_finding else terms.POSSIBLE_NODULE,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=terms.segmentation_algorithm(model),
        tracking_uid=tracking_uid(report, number),
        tracking_id=f"Overread {number}",
        anatomic_regions=[terms.LUNG],
    )


def _drawn(
    listed: Sequence[tuple[int, Finding]],
    outlines: Mapping[int, PlacedOutline],
    planes: Sequence[Plane],
) -> tuple[list[int], Pixels, set[int]]:
    """Return the planes that any outline meets, their pixels, and the numbers that have a segment.

    The pixels are labels ``(plane, row, column)``: a pixel of two outlines belongs to the more
    probable one, and an outline that lies wholly in others has no segment. If outlines overlap and
    memory suffices, they are ``(plane, row, column, segment)``, and each outline is whole.
    """
    patches = {
        number: patches_of(outlines[number], planes, finding.volume_mm3)
        for number, finding in listed
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


def patches_of(
    outline: PlacedOutline, planes: Sequence[Plane], volume_mm3: float | None = None
) -> list[_Patch]:
    """Return the pixels of an outline in each plane that it meets, at least one pixel in all.

    They are those that the outline, interpolated linearly, covers most, as many as give
    ``volume_mm3``: a viewer measures what the report states. Without a volume they are those that
    the outline covers by half.
    """
    apart_mm = _apart_mm(planes)
    covers = (_covered(outline, plane, i, apart_mm / 2) for i, plane in enumerate(planes))
    met = [one for one in covers if one is not None]
    if not met:
        return []
    covered = np.concatenate([one.mask.ravel() for one in met])
    count = int((covered > 0.49).sum())
    if volume_mm3 is not None:
        count = round(volume_mm3 / (np.prod(planes[0].pixel_mm) * apart_mm))
    kept = np.zeros(covered.shape, bool)
    kept[np.argsort(-covered, kind="stable")[: max(count, 1)]] = True
    parts = np.split(kept, np.cumsum([one.mask.size for one in met])[:-1])
    masks = [part.reshape(one.mask.shape) for part, one in zip(parts, met, strict=True)]
    return [replace(one, mask=mask) for one, mask in zip(met, masks, strict=True) if mask.any()]


def _covered(outline: PlacedOutline, plane: Plane, number: int, reach_mm: float) -> _Patch | None:
    """Return how much of each pixel of a plane up to ``reach_mm`` away the outline covers.

    Of pixels that are covered alike, those nearer to the middle have a little more.
    """
    size = np.array(outline.mask.shape)
    # the corners of a box that holds the outline and half a voxel around it
    corners = np.array(list(product(*((-0.5, side - 0.5) for side in size))))
    corners_mm = outline.geometry.to_world(corners)
    off_mm = (corners_mm - plane.position_mm) @ plane.normal
    if off_mm.min() > reach_mm or off_mm.max() < -reach_mm:
        return None
    pixels = np.array([plane.pixel_of(corner.tolist()) for corner in corners_mm])
    first = np.maximum(np.floor(pixels.min(0)), 0).astype(int)
    last = np.minimum(np.ceil(pixels.max(0)) + 1, (plane.rows, plane.columns)).astype(int)
    if (first >= last).any():
        return None
    rows, columns = (np.arange(a, b, dtype=np.float64) for a, b in zip(first, last, strict=True))
    index = outline.geometry.to_index(plane.points_mm(rows, columns))
    away = np.linalg.norm(index - np.argwhere(outline.mask).mean(0), axis=-1)
    covered = interpolated(outline.mask, index) - 1e-4 * away
    return _Patch(number, int(first[0]), int(first[1]), covered)


def _images(source: Source, planes: Sequence[Plane], used: Sequence[int]) -> dict[str, Any]:
    """Return the source images of the ``used`` planes as highdicom expects them.

    All have the orientation and the spacing of the first: reading has required that they agree.
    """
    first = planes[0]
    apart_mm = _apart_mm(planes)
    same = Dataset()
    same.PixelSpacing = _decimals(first.pixel_mm)
    same.SliceThickness = DSfloat(first.thickness_mm or apart_mm, auto_format=True)
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


def _apart_mm(planes: Sequence[Plane]) -> float:
    """Return the distance of neighbours; reading has required that it is the same for all.

    The planes come in the order of the frames, which need not be that in the patient.
    """
    at_mm = np.sort([float(plane.position_mm @ planes[0].normal) for plane in planes])
    return float(np.median(np.diff(at_mm)))


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
