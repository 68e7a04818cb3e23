"""Build the structured report: Comprehensive 3D SR with the template TID 1500.

Each finding and possible finding is one measurement group of a volume (TID 1411), with its centre
as a point in the frame of reference. Where there is a segment, the group refers to it. The document
is the root of all objects of its version, and refers to the others too.

A study that was not read has the status *Failed* and no counts: 0 reads like healthy lungs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from highdicom.sr import (
    CodedConcept,
    CompositeContentItem,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    GraphicTypeValues3D,
    ImageContentItem,
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
    complete,
    general,
    tracking_uid,
    uid,
)
from edge.dicom_out.source import Plane, Source, nearest_plane, planes_of
from edge.findings import DecidedBy, Finding, SecondReading
from edge.report.model import NOT_A_DEVICE, Report, Status
from edge.report.wording import MAY_CHANGE, coverage_text
from imaging.dicom.source import REQUEST_KEYWORDS
from imaging.location import Location

Point = tuple[float, float, float]
_CONTAINS = RelationshipTypeValues.CONTAINS


@dataclass(frozen=True, eq=False)
class _Place:
    """What the places of findings are stated in; ``segments`` are object and number by UID."""

    source: Source
    planes: Sequence[Plane]
    segments: Mapping[str, tuple[Dataset, int]]


def structured_report(
    report: Report,
    source: Source,
    device: Device,
    segmentation: Dataset | None,
    predecessor: Dataset | None,
    others: Sequence[Dataset] = (),
) -> Dataset:
    """Return the structured report of a study.

    Args:
        report: what it says.
        source: the images that were read.
        device: the machine that makes it.
        segmentation: the object of outlines; its segments are referenced by tracking UID.
        predecessor: the structured report of an earlier version.
        others: the other objects of this version: pictures and pages.

    Raises:
        NotExportable: the images of a study that was read have no position.
    """
    segments = dict[str, tuple[Dataset, int]]()
    if segmentation is not None:
        for one in segmentation.SegmentSequence:
            segments[str(one.TrackingUID)] = segmentation, int(one.SegmentNumber)
    place = _Place(source, planes_of(source) if report.rejection is None else (), segments)
    groups = [_group(report, number, one, place) for number, one in report.listed]
    procedures = [*map(CodedConcept.from_dataset, source.subject.get("ProcedureCodeSequence", []))]
    content = MeasurementReport(
        observation_context=_observer(device),
        procedure_reported=procedures or [terms.CHEST_CT],
        imaging_measurements=[_summary(report), *groups],
        title=codes.DCM.ImagingMeasurementReport,
    )
    content[0].ContentSequence.append(_texts(report))
    for series in others:
        item = CompositeContentItem if series.Modality == "DOC" else ImageContentItem
        content[0].ContentSequence.append(
            item(terms.PART, series.SOPClassUID, series.SOPInstanceUID, relationship_type=_CONTAINS)
        )
    made = Comprehensive3DSR(
        evidence=[*source.images, *others, *([segmentation] if segmentation is not None else [])],
        content=content[0],
        is_complete=report.status is Status.FINAL,
        is_final=report.status is not Status.PROVISIONAL,
        is_verified=False,
        performed_procedure_codes=procedures,
        requested_procedures=[*_requests(source)] or None,
        previous_versions=None if predecessor is None else [predecessor],
        coding_schemes=[terms.scheme()],
        **general(Kind.SR, report, device),
    )
    complete(made, source, report)
    return made


def _requests(source: Source) -> Iterator[Dataset]:
    """Yield the requests of the order that the images name (PS3.3, C.17.2)."""
    subject = source.subject
    items = subject.get("ReferencedRequestSequence") or subject.get("RequestAttributesSequence")
    is_named = any(subject.get(keyword) for keyword in REQUEST_KEYWORDS)
    for item in items or [Dataset()] * is_named:
        made = Dataset()
        made.StudyInstanceUID = item.get("StudyInstanceUID") or subject.StudyInstanceUID
        for keyword in REQUEST_KEYWORDS:
            value = item.get(keyword) or subject.get(keyword)
            if value or not keyword.startswith("Issuer"):  # the others may be empty
                setattr(made, keyword, value or None)
        yield made


def _observer(device: Device) -> ObservationContext:
    attributes = DeviceObserverIdentifyingAttributes(
        uid=uid("device", device.serial),
        name=MODEL,
        manufacturer_name=MANUFACTURER,
        model_name=f"{MODEL} {device.version}",
        serial_number=device.serial,
    )
    return ObservationContext(observer_device_context=ObserverContext(codes.DCM.Device, attributes))


def _summary(report: Report) -> MeasurementsAndQualitativeEvaluations:
    """Return the group of the whole series, so that an empty list of findings is one too."""
    counts = (
        (terms.FINDINGS, len(report.findings)),
        (terms.POSSIBLE_FINDINGS, len(report.possible)),
    )
    was_read = report.rejection is None
    edge, cloud = SecondReading.COMPLETE, report.second_reading
    if not was_read:
        edge, cloud = SecondReading.MISSING, SecondReading.OFF
    evaluations = (
        (terms.DETECTIONS, terms.STATUSES[edge]),
        (terms.ANALYSES, terms.STATUSES[cloud]),
        (terms.SECOND_READING, terms.SECOND_READINGS[cloud]),
        (terms.GUARANTEE_GIVEN, terms.YES_NO[report.guarantee.given]),
    )
    return MeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(uid(report.study_key, "series"), "Overread series"),
        algorithm_id=terms.algorithm(report.models.get("edge", "")),
        finding_sites=[FindingSite(terms.LUNG)],
        measurements=[Measurement(name, count, terms.ONE) for name, count in counts if was_read],
        qualitative_evaluations=[
            QualitativeEvaluation(*one) for one in evaluations[: 4 if was_read else 2]
        ],
    )


def _group(
    report: Report, number: int, finding: Finding, place: _Place
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    """Return the measurement group of one finding or possible finding."""
    is_finding = number in dict(report.numbered)
    edge, cloud = report.models["edge"], finding.verdict.model if finding.verdict else ""
    decided_by_cloud = cloud and finding.decided_by is DecidedBy.CLOUD
    tracking = tracking_uid(report, number)
    segment = place.segments.get(tracking)
    group = VolumetricROIMeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(tracking, f"Overread {number}"),
        finding_type=terms.NODULE if is_finding else terms.POSSIBLE_NODULE,
        algorithm_id=terms.algorithm(cloud if decided_by_cloud else edge),
        finding_sites=[_site(report.locations.get(number))],
        measurements=[*_measurements(finding, edge, cloud)],
        qualitative_evaluations=[*_evaluations(finding, is_finding)],
        **_region(finding.centre_mm, place, segment),
    )
    items = group[0].ContentSequence
    if segment and place.source.frame_of_reference_uid:
        point = np.array([finding.centre_mm], dtype=np.float64)
        frame, kind = place.source.frame_of_reference_uid, GraphicTypeValues3D.POINT
        items.append(
            Scoord3DContentItem(terms.CENTRE, kind, point, frame, relationship_type=_CONTAINS)
        )
    if finding.disagreement:
        items.append(_text(terms.DISAGREEMENT, finding.disagreement))
    items.append(_text(terms.REASON, finding.reason))
    return group


def _site(location: Location | None) -> FindingSite:
    """Return lung, side and zone, as far as they are known."""
    zone, side = (location.zone, location.side) if location else ("", "")
    return FindingSite(
        terms.ZONES[zone] if zone else terms.LUNG, terms.SIDES[side] if side else None
    )


def _region(centre_mm: Point, place: _Place, segment: tuple[Dataset, int] | None) -> dict[str, Any]:
    """Return where the finding is: its segment, or its centre.

    Without a frame of reference a point in space has no meaning: it is then one in its image.
    """
    plane, source = nearest_plane(place.planes, centre_mm), place.source
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


def _measurements(finding: Finding, edge: str, cloud: str) -> Iterator[Measurement]:
    """Yield size, probabilities and malignancy score, each with the model that gave it."""
    by_edge, by_cloud = terms.algorithm(edge), terms.algorithm(cloud) if cloud else None
    volume, of_size = finding.volume_mm3, by_cloud or by_edge
    method = terms.ESTIMATED if volume is None else terms.OF_VOLUME
    diameter = finding.diameter_mm
    yield Measurement(terms.DIAMETER, diameter, terms.MM, method=method, algorithm_id=of_size)
    if volume is not None:
        yield Measurement(
            terms.VOLUME, volume, terms.MM3, method=terms.OF_VOXELS, algorithm_id=of_size
        )
    yield Measurement(terms.CERTAINTY, round(100 * finding.probability, 2), terms.PERCENT)
    yield Measurement(terms.EDGE_SCORE, finding.edge_score, terms.ONE, algorithm_id=by_edge)
    if (verdict := finding.verdict) is not None:
        for name, value in (
            (terms.CLOUD_PROBABILITY, verdict.probability),
            (terms.MALIGNANCY, verdict.malignancy),
        ):
            if value is not None:
                yield Measurement(name, value, terms.ONE, algorithm_id=by_cloud)


def _evaluations(finding: Finding, is_finding: bool) -> Iterator[QualitativeEvaluation]:
    yield QualitativeEvaluation(terms.LISTED_AS, terms.LISTS[is_finding])
    yield QualitativeEvaluation(terms.DECIDED_BY, terms.DECIDED[finding.decided_by])
    yield QualitativeEvaluation(terms.SMALL, terms.YES_NO[finding.small])
    texture = finding.verdict.texture if finding.verdict else ""
    if texture in terms.TYPES:
        yield QualitativeEvaluation(terms.TYPE, terms.TYPES[texture])


def _texts(report: Report) -> ContainerContentItem:
    """Return the sentences of the report: what it is, how far to trust it, what changed."""
    reading = f"{report.second_reading.value}: {report.second_reading_reason}"
    provisional = f"This version is provisional: {MAY_CHANGE}."
    given: list[tuple[Code | CodedConcept, str]] = [
        (terms.DISCLAIMER, NOT_A_DEVICE),
        (terms.RESULT, " ".join([report.result, *report.next_steps])),
        (terms.READING, reading),
        (terms.GUARANTEE, report.guarantee.text),
        *((terms.LIMITATION, one.text) for one in report.limitations),
        *((terms.CHANGE, f"version {one.version}: {one.text}") for one in report.changes),
        (terms.COVERAGE, coverage_text(report)),
        *((terms.COMMENT, f"Series not read: {one}") for one in report.other_series),
        (terms.COMMENT, provisional if report.status is Status.PROVISIONAL else ""),
    ]
    if report.rejection is not None:
        given = [*given[:2], (terms.REASON, report.rejection.reason)]
    item = ContainerContentItem(terms.EVALUATIONS, relationship_type=_CONTAINS)
    item.ContentSequence = ContentSequence([_text(name, text) for name, text in given if text])
    return item


def _text(name: Code | CodedConcept, value: str) -> TextContentItem:
    return TextContentItem(name, value, relationship_type=_CONTAINS)
