"""Build the structured report: Comprehensive 3D SR with the template TID 1500.

Each finding and possible finding is one measurement group of a volume (TID 1411), with its centre
as a point in the frame of reference. Where there is a segment, the group refers to it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from highdicom.sr import (
    CodedConcept,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    GraphicTypeValues3D,
    ImageRegion,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    ReferencedSegment,
    Scoord3DContentItem,
    SourceImageForRegion,
    SourceImageForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    VolumeSurface,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from highdicom.sr.enum import GraphicTypeValues, RelationshipTypeValues
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from edge.dicom_out import terms
from edge.dicom_out.identity import (
    MANUFACTURER,
    MODEL,
    Device,
    Kind,
    Names,
    complete,
    general,
    names_of,
    uid,
)
from edge.dicom_out.planes import Plane, nearest_plane, planes_of
from edge.dicom_out.subject import Source
from edge.report.model import Status
from edge.report.wording import coverage_text

Values = Mapping[str, Any]
"""A part of ``report.json``."""


def structured_report(
    report: Values,
    source: Source,
    device: Device,
    *,
    segmentation: Dataset | None = None,
    predecessor: Dataset | None = None,
) -> Dataset:
    """Return the structured report of a study that was read.

    Args:
        report: content of ``report.json``.
        source: the images that were read.
        device: the machine that makes it.
        segmentation: the object of outlines; its segments are referenced by tracking UID.
        predecessor: the structured report of an earlier version.

    Raises:
        NotExportable: the images have no position.
    """
    names, planes = names_of(report), planes_of(source)
    segments = _segments(segmentation)
    groups = [
        _group(values, is_finding, report["models"], names, source, planes, segments)
        for key, is_finding in (("findings", True), ("possible_findings", False))
        for values in report[key]
    ]
    content = MeasurementReport(
        observation_context=_observer(device),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=[_summary(report, names), *groups],
        title=codes.DCM.ImagingMeasurementReport,
    )
    content[0].ContentSequence.append(_texts(report))
    made = Comprehensive3DSR(
        evidence=[*source.images, *([segmentation] if segmentation is not None else [])],
        content=content[0],
        is_complete=report["status"] == Status.FINAL.value,
        is_final=report["status"] == Status.FINAL.value,
        is_verified=False,
        previous_versions=None if predecessor is None else [predecessor],
        coding_schemes=[terms.scheme()],
        **general(Kind.SR, names, device),
    )
    complete(made, source, names)
    return made


def _segments(segmentation: Dataset | None) -> dict[str, tuple[Dataset, int]]:
    """Return object and number of each segment by its tracking UID."""
    if segmentation is None:
        return {}
    return {
        str(one.TrackingUID): (segmentation, int(one.SegmentNumber))
        for one in segmentation.SegmentSequence
    }


def _observer(device: Device) -> ObservationContext:
    attributes = DeviceObserverIdentifyingAttributes(
        uid=uid("device", device.serial),
        name=MODEL,
        manufacturer_name=MANUFACTURER,
        model_name=f"{MODEL} {device.version}",
        serial_number=device.serial,
    )
    return ObservationContext(observer_device_context=ObserverContext(codes.DCM.Device, attributes))


def _summary(report: Values, names: Names) -> MeasurementsAndQualitativeEvaluations:
    """Return the group of the whole series, so that an empty list of findings is one too."""
    counts = (
        (terms.FINDINGS, len(report["findings"])),
        (terms.POSSIBLE_FINDINGS, len(report["possible_findings"])),
    )
    evaluations = (
        (terms.SECOND_READING, terms.SECOND_READINGS[report["second_reading"]]),
        (terms.GUARANTEE_GIVEN, terms.YES_NO[bool(report["guarantee"]["given"])]),
    )
    return MeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(uid(names.study_key, "series"), "Overread series"),
        algorithm_id=terms.algorithm(report["models"]["edge"]),
        finding_sites=[FindingSite(terms.LUNG)],
        measurements=[Measurement(name, count, terms.ONE) for name, count in counts],
        qualitative_evaluations=[QualitativeEvaluation(*one) for one in evaluations],
    )


def _group(
    values: Values,
    is_finding: bool,
    models: Mapping[str, str],
    names: Names,
    source: Source,
    planes: Sequence[Plane],
    segments: Mapping[str, tuple[Dataset, int]],
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    """Return the measurement group of one finding or possible finding."""
    number, verdict = int(values["number"]), values["verdict"]
    tracking_uid = names.tracking_uid(number)
    cloud = verdict["model"] if verdict else ""
    decided_by_cloud = cloud and values["decided_by"] == "cloud"
    group = VolumetricROIMeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(tracking_uid, f"Overread {number}"),
        finding_type=terms.NODULE if is_finding else terms.POSSIBLE_NODULE,
        algorithm_id=terms.algorithm(cloud if decided_by_cloud else models["edge"]),
        finding_sites=[_site(values["location"] or {})],
        measurements=[*_measurements(values, models["edge"], cloud)],
        qualitative_evaluations=[*_evaluations(values, is_finding)],
        **_region(values["centre_mm"], source, planes, segments.get(tracking_uid)),
    )
    items = group[0].ContentSequence
    if tracking_uid in segments and source.frame_of_reference_uid:
        items.append(_centre(values["centre_mm"], source))
    if apart := values.get("disagreement"):
        items.append(_text(terms.DISAGREEMENT, apart))
    items.append(_text(terms.REASON, values["reason"]))
    return group


def _site(location: Values) -> FindingSite:
    """Return lung, side and zone, as far as they are known."""
    zone, side = location.get("zone"), location.get("side")
    return FindingSite(
        terms.ZONES[zone] if zone else terms.LUNG, terms.SIDES[side] if side else None
    )


def _region(
    centre_mm: Sequence[float],
    source: Source,
    planes: Sequence[Plane],
    segment: tuple[Dataset, int] | None,
) -> dict[str, Any]:
    """Return where the finding is: its segment, or its centre.

    Without a frame of reference a point in space has no meaning: it is then one in its image.
    """
    plane = nearest_plane(planes, centre_mm)
    frames = None if plane.frame is None else [plane.frame]
    image = SourceImageForSegmentation.from_source_image(plane.image, frames)
    if segment is not None:
        seg, number = segment
        referenced = ReferencedSegment(
            seg.SOPClassUID, seg.SOPInstanceUID, number, source_images=[image]
        )
        return {"referenced_segment": referenced}
    if source.frame_of_reference_uid:
        surface = VolumeSurface(
            GraphicTypeValues3D.POINT,
            np.array([centre_mm], dtype=np.float64),
            source.frame_of_reference_uid,
            source_images=[image],
        )
        return {"referenced_volume_surface": surface}
    row, column = plane.pixel_of(centre_mm)
    # of the pixels' edges, as DICOM counts: the middle of the first pixel is 0.5
    point = np.array([[column + 0.5, row + 0.5]])
    in_image = SourceImageForRegion.from_source_image(plane.image, frames)
    return {"referenced_regions": [ImageRegion(GraphicTypeValues.POINT, point, in_image)]}


def _centre(centre_mm: Sequence[float], source: Source) -> Scoord3DContentItem:
    return Scoord3DContentItem(
        terms.CENTRE,
        GraphicTypeValues3D.POINT,
        np.array([centre_mm], dtype=np.float64),
        source.frame_of_reference_uid,
        relationship_type=RelationshipTypeValues.CONTAINS,
    )


def _measurements(values: Values, edge: str, cloud: str) -> Iterator[Measurement]:
    """Yield size, probabilities and malignancy score, each with the model that gave it."""
    by_edge, by_cloud = terms.algorithm(edge), terms.algorithm(cloud) if cloud else None
    volume = values["volume_mm3"]
    method = terms.ESTIMATED if volume is None else terms.OF_VOLUME
    of_size = by_cloud or by_edge
    diameter = values["diameter_mm"]
    yield Measurement(terms.DIAMETER, diameter, terms.MM, method=method, algorithm_id=of_size)
    if volume is not None:
        yield Measurement(
            terms.VOLUME, volume, terms.MM3, method=terms.OF_VOXELS, algorithm_id=of_size
        )
    certainty = round(100 * values["probability"], 2)
    yield Measurement(terms.CERTAINTY, certainty, terms.PERCENT)
    yield Measurement(terms.EDGE_SCORE, values["edge_score"], terms.ONE, algorithm_id=by_edge)
    if (verdict := values["verdict"]) is not None:
        for name, key in (
            (terms.CLOUD_PROBABILITY, "probability"),
            (terms.MALIGNANCY, "malignancy"),
        ):
            if verdict[key] is not None:
                yield Measurement(name, verdict[key], terms.ONE, algorithm_id=by_cloud)


def _evaluations(values: Values, is_finding: bool) -> Iterator[QualitativeEvaluation]:
    yield QualitativeEvaluation(terms.LISTED_AS, terms.LISTS[is_finding])
    yield QualitativeEvaluation(terms.DECIDED_BY, terms.DECIDED[values["decided_by"]])
    yield QualitativeEvaluation(terms.SMALL, terms.YES_NO[bool(values["small"])])
    texture = (values["verdict"] or {}).get("texture")
    if texture is not None and texture in terms.TYPES:
        yield QualitativeEvaluation(terms.TYPE, terms.TYPES[texture])


def _texts(report: Values) -> ContainerContentItem:
    """Return the sentences of the report: what it is, how far to trust it, what changed."""
    coverage = report["coverage"]
    given: list[tuple[Code | CodedConcept, str]] = [
        (terms.DISCLAIMER, report["disclaimer"]),
        (terms.RESULT, " ".join([report.get("result", ""), *report.get("next_steps", ())])),
        (terms.READING, f"{report['second_reading']}: {report['second_reading_reason']}"),
        (terms.GUARANTEE, report["guarantee"]["text"]),
        *((terms.LIMITATION, one["text"]) for one in report["limitations"]),
        *((terms.CHANGE, f"version {c['version']}: {c['text']}") for c in report["changes"]),
    ]
    if coverage is not None:
        given.append((terms.COVERAGE, coverage_text(coverage)))
    if report["status"] == Status.PROVISIONAL.value:
        text = "This version is provisional: a second reading may change the findings."
        given.append((terms.COMMENT, text))
    item = ContainerContentItem(
        terms.EVALUATIONS, relationship_type=RelationshipTypeValues.CONTAINS
    )
    item.ContentSequence = ContentSequence([_text(name, text) for name, text in given if text])
    return item


def _text(name: Code | CodedConcept, value: str) -> TextContentItem:
    return TextContentItem(name, value, relationship_type=RelationshipTypeValues.CONTAINS)
