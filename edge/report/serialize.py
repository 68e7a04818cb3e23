"""Turn a report into the values of ``report.json``, and such values into a report again.

All keys are named here; the command line's ``--json`` prints the same. Of a patient the audit trail
gets the identifiers alone that it needs: no name, no date, no description.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from edge.clinical.brock import MODEL as BROCK
from edge.clinical.brock import REFERENCE, Brock, notes_of
from edge.clinical.lung_rads import STANDARD
from edge.errors import EdgeError
from edge.findings import Decision, Finding
from edge.guarantee import Guarantee
from edge.report.model import NOT_A_DEVICE, Change, Report
from imaging.location import Location

SCHEMA = "overread.report/1"
"""Gets a new number when a key goes or changes its meaning; new keys may come without."""

_UNKNOWN = (math.nan, math.nan, math.nan)
_TERMS = {
    "missed_at_most": "alpha",
    "missed_by_findings_at_most": "alpha_findings",
    "confidence": "delta",
    "patients": "patients",
    "calibration": "calibration",
    "basis": "basis",
    "edge_model": "screening",
    "cloud_model": "hybrid",
    "slice_mm": "slice_mm",
    "roi_side": "region_side",
}
"""For each key of the terms its field; the confidence is what delta leaves of 1."""


class NotAReport(EdgeError):
    """A file or value is not a report that this version can read; the message says why."""


def report_to_dict(report: Report) -> dict[str, Any]:
    """Return the report as JSON values; the keys are stable within one `SCHEMA`.

    Points are ``[x, y, z]`` LPS in mm, times are in seconds. A number that is not finite is null.
    """
    return {
        "schema": SCHEMA,
        "study_key": report.study_key,
        "version": report.version,
        "status": report.status.value,
        "changes": [_change(change) for change in report.changes],
        "created": report.created,
        "source": str(report.source),
        "series_uid": report.series_uid,
        "study": asdict(report.header),
        "result": report.result,
        "next_steps": list(report.next_steps),
        "findings": [_finding(report, n, one) for n, one in report.numbered],
        "lung_rads": report.lung_rads and {**_values(report.lung_rads), "standard": STANDARD},
        "brock": _brock_of_patient(report),
        "clinical": asdict(report.clinical),
        "possible_findings": [_finding(report, n, one) for n, one in report.numbered_possible],
        "groups": [{"count": len(group), "findings": list(group)} for group in report.groups],
        "picture_note": report.picture_note,
        "outlined": list(report.drawn_outlines),
        "second_reading": report.second_reading.value,
        "second_reading_reason": report.second_reading_reason,
        "candidates": [_candidate(decision) for decision in report.decisions],
        "highest_dismissed_score": _number(report.highest_dismissed_score, 4),
        "rejection": asdict(report.rejection) if report.rejection else None,
        "rule": _values(report.rule),
        "deadline_s": _number(report.deadline_s, 3),
        "took_s": _number(sum(round(entry.took_s, 4) for entry in report.ledger), 4),
        "ledger": [_values(entry, budget_s=4, took_s=4) for entry in report.ledger],
        "models": dict(report.models),
        "coverage": _coverage(report),
        "acquisition": report.acquisition and asdict(report.acquisition),
        "limitations": [_values(limitation) for limitation in report.limitations],
        "guarantee": _guarantee(report.guarantee),
        "audit": report.audit and _values(report.audit, highest_score=4),
        "other_series": list(report.other_series),
        "disclaimer": NOT_A_DEVICE,
    }


def _brock(brock: Brock | None) -> dict[str, Any] | None:
    if brock is None:
        return None
    return {
        "probability": _number(brock.probability, 4),
        **{name: getattr(brock.inputs, name) for name in ("diameter_mm", "texture", "upper")},
        "unknown": list(brock.unknown_of_nodule),
    }


def _brock_of_patient(report: Report) -> dict[str, Any]:
    """Return what holds for the model's result of every finding."""
    brock = report.brock_of_patient
    names = ("age_years", "female", "family_history", "emphysema", "spiculation", "count")
    return {
        "model": BROCK,
        "inputs": brock and {name: getattr(brock.inputs, name) for name in names},
        "unknown": list(brock.unknown_of_patient) if brock else [],
        "reference": REFERENCE,
        "notes": list(notes_of(report.header, report.clinical)),
    }


def _guarantee(guarantee: Guarantee) -> dict[str, Any]:
    """Terms are written only where they hold: no number stands beside a guarantee not given."""
    terms = guarantee.terms if guarantee.given else None
    return {
        "given": guarantee.given,
        "text": guarantee.text,
        "reason": guarantee.reason,
        "terms": terms
        and {key: getattr(terms, name) for key, name in _TERMS.items()}
        | {"confidence": _number(1 - terms.delta, 4)},
    }


def _coverage(report: Report) -> dict[str, Any] | None:
    coverage = report.coverage
    if coverage is None:
        return None
    return {
        "complete": report.shows_whole_lungs,
        "cut": [cut.side for cut in coverage.cuts],
        "cut_area_cm2": [cut.area_cm2 for cut in coverage.cuts],
        "lung_height_mm": coverage.lung_height_mm,
    }


def _change(change: Change) -> dict[str, Any]:
    values = _values(change, probability_before=4, probability_after=4)
    verdict = {"probability": _number(change.verdict, 4), "model": values.pop("model")}
    return values | {
        "centre_mm": None if change.centre_mm is None else _point(change.centre_mm),
        "verdict": None if change.verdict is None else verdict,
    }


def _finding(report: Report, number: int, finding: Finding) -> dict[str, Any]:
    verdict, location = finding.verdict, report.locations.get(number)
    return {
        "number": number,
        "centre_mm": _point(finding.centre_mm),
        "location": location and _location(location),
        "diameter_mm": _number(finding.diameter_mm, 2),
        "small": finding.small,
        "volume_mm3": _number(finding.volume_mm3, 1),
        "probability": _number(finding.probability, 4),
        "decided_by": finding.decided_by.value,
        "reason": finding.reason,
        "edge_score": _number(finding.edge_score, 4),
        "disagreement": finding.disagreement or None,
        "route": finding.route.value,
        "verdict": verdict
        and {
            "probability": _number(verdict.probability, 4),
            "diameter_mm": _number(verdict.diameter_mm, 2),
            "malignancy": _number(verdict.malignancy, 4),
            "texture": verdict.texture or None,
            "model": verdict.model,
            "queue_s": _number(verdict.queue_s, 4),
            "compute_s": _number(verdict.compute_s, 4),
        },
        "brock": _brock(report.brock.get(number)),
    }


def _location(location: Location) -> dict[str, Any]:
    """Return where a finding lies; what the files do not state, or what is not plain, is null."""
    return {
        "image_number": location.image.number,
        "frame_number": location.image.frame,
        "sop_instance_uid": location.image.sop_instance_uid or None,
        "frame_of_reference_uid": location.frame_of_reference_uid or None,
        "slice_index": location.slice_index,
        "side": location.side or None,
        "zone": location.zone or None,
    }


def _candidate(decision: Decision) -> dict[str, Any]:
    candidate = decision.candidate
    return {
        "centre_mm": _point(candidate.centre_mm),
        "diameter_mm": _number(candidate.diameter_mm, 2),
        "score": _number(candidate.score, 4),
        "route": decision.route.value,
        "reason": decision.reason,
    }


def _point(centre_mm: Iterable[float]) -> list[float | None]:
    return [_number(value, 2) for value in centre_mm]


def _values(one: Any, **digits: int) -> dict[str, Any]:
    """Return the fields of a dataclass as JSON values, those in ``digits`` rounded."""
    fields = asdict(one)
    for name, value in fields.items():
        if isinstance(value, Enum):
            fields[name] = value.value
        elif isinstance(value, tuple):
            fields[name] = list(value)
    return fields | {name: _number(fields[name], count) for name, count in digits.items()}


def _number(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), digits)


def read_report(file: Path) -> Report:
    """Return the report in a file ``report.json``.

    Raises:
        OSError: the file cannot be read.
        NotAReport: it holds no report, or one of a newer version.
    """
    try:
        return report_from_dict(json.loads(file.read_bytes()))
    except ValueError as error:
        raise NotAReport(f"{file.name} is damaged: {type(error).__name__}") from None
    except NotAReport as error:
        raise NotAReport(f"{file.name}: {error}") from None


def own_report(file: Path, study_key: str) -> Report | None:
    """Return this study's report in a file; None if it is missing, damaged, or of another study.

    Raises:
        OSError: the file cannot be read.
    """
    with suppress(FileNotFoundError, NotAReport):
        report = read_report(file)
        if report.study_key == study_key:
            return report
    return None


def report_from_dict(values: object) -> Report:
    """Return the report from which `report_to_dict` has made these values.

    Numbers are as they were rounded. What the values do not hold is not known: outlines, pictured
    numbers, the locator, indices in the lung box and numbers of ROIs.

    Raises:
        NotAReport: they are no report, or one of a newer version.
    """
    schema = values.get("schema") if isinstance(values, Mapping) else None
    family, _, _ = SCHEMA.partition("/")
    if not isinstance(values, Mapping) or not str(schema).startswith(f"{family}/"):
        raise NotAReport("it is damaged, or not of Overread: expected a report with its schema")
    if schema != SCHEMA:
        raise NotAReport(f"its schema is {schema}, this version reads {SCHEMA}")
    try:
        report: Report = adapter(Report).validate_python(_fields(values))
    except ValidationError as error:  # without its values: they may be of the patient
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise NotAReport(f"it is damaged: {where}: {first['msg']}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise NotAReport(f"it is damaged: {type(error).__name__} {error}") from None
    return report


def report_in(out: Path) -> dict[str, Any]:
    """Return what the audit trail says of the report in a folder; empty if there is none."""
    try:
        return report_facts(read_report(out / "report.json"))
    except (OSError, NotAReport):
        return {}


def report_facts(report: Report) -> dict[str, Any]:
    """Return what the audit trail says of a report: its study, counts, and who decided."""
    changes = [one.kind.value for one in report.changes if one.version == report.version]
    return {
        "version": report.version,
        "status": report.status.value,
        "models": report.models,
        "findings": len(report.findings),
        "possible_findings": len(report.possible),
        "decided_by": dict(Counter(one.decided_by.value for _, one in report.listed)),
        "second_reading": report.second_reading.value,
        "patient_id": report.header.patient_id,
        "study_uid": report.header.study_uid,
        "series_uid": report.series_uid,
        **({"changes": changes} if changes else {}),
        **({"kind": report.rejection.kind} if report.rejection else {}),
    }


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """Return a reader and writer of such values; building one takes longer than using it."""
    return TypeAdapter(kind)


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a report; a key that this version does not know is ignored."""
    both = [*values["findings"], *values["possible_findings"]]
    coverage = values["coverage"]
    of_patient = values["brock"]
    return {
        **values,
        "header": values["study"],
        "findings": [_finding_fields(one) for one in values["findings"]],
        "possible": [_finding_fields(one) for one in values["possible_findings"]],
        "finding_numbers": [one["number"] for one in both],
        "locations": {one["number"]: _place(one["location"]) for one in both if one["location"]},
        "groups": [group["findings"] for group in values["groups"]],
        "decisions": [
            {**one, "candidate": {**one, "index_zyx": _UNKNOWN}} for one in values["candidates"]
        ],
        "coverage": coverage
        and {
            "lung_height_mm": coverage["lung_height_mm"],
            "cuts": [
                {"side": side, "area_cm2": cm2}
                for side, cm2 in zip(coverage["cut"], coverage["cut_area_cm2"], strict=True)
            ],
        },
        "guarantee": _guarantee_fields(values["guarantee"]),
        "changes": [
            {**change, "verdict": verdict.get("probability"), "model": verdict.get("model", "")}
            for change in values["changes"]
            for verdict in [change["verdict"] or {}]
        ],
        "brock": {
            finding["number"]: {
                "probability": brock["probability"],
                "inputs": {**of_patient["inputs"], **brock},
                "unknown": [*brock["unknown"], *of_patient["unknown"]],
            }
            for finding in values["findings"]
            if (brock := finding["brock"])
        },
    }


def _finding_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    verdict = values["verdict"]
    return {
        **values,
        "index_zyx": _UNKNOWN,
        "verdict": verdict and {**verdict, "texture": verdict["texture"] or "", "roi_id": -1},
    }


def _place(location: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a location; of how many slices is not known."""
    stated = {name: value for name, value in location.items() if value is not None}
    image = {"number": location["image_number"], "frame": location["frame_number"]}
    uid = stated.get("sop_instance_uid", "")
    return {**stated, "slices": 0, "image": {**image, "sop_instance_uid": uid}}


def _guarantee_fields(guarantee: Mapping[str, Any]) -> dict[str, Any]:
    terms = guarantee["terms"]
    return {
        "reason": guarantee["reason"],
        "terms": terms
        and {name: terms[key] for key, name in _TERMS.items()} | {"delta": 1 - terms["confidence"]},
    }
