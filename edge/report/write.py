"""Write the report as files: ``report.json`` for programs, ``report.html`` and pictures for people.

Only this module names the keys of ``report.json``; the command line's ``--json`` prints the same.
One folder holds all versions of a report: the newest as ``report.json`` and ``report.html``, an
older one as ``report.v1.json`` and ``report.v1.html``. The page needs no other file. Its text may
come from an untrusted DICOM header, so it is escaped, and the page forbids scripts.
"""

import json
import math
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from html import escape
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

import structlog
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from edge.access import make_folder
from edge.atomic_files import sync_folder, write_atomically
from edge.clinical.brock import MODEL as BROCK
from edge.clinical.brock import REFERENCE, Brock
from edge.clinical.lung_rads import STANDARD, LungRads
from edge.findings import Decision, Finding, SecondReading
from edge.guarantee import Guarantee
from edge.report.model import NOT_A_DEVICE, Change, ChangeKind, Report, Status
from edge.report.pictures import Pictures, clear_pictures, stray_pictures
from imaging.coverage import Coverage
from imaging.location import Location
from imaging.volume import LimitationKind

log = structlog.get_logger()

SCHEMA = "overread.report/2"
"""Gets a new number when a key goes or changes its meaning; new keys may come without."""


@dataclass(frozen=True)
class ReportPaths:
    """The files of a report; ``pictures`` begin with the overview, and may be empty."""

    json: Path
    html: Path
    pictures: tuple[Path, ...] = ()


def write_report(report: Report, pictures: Pictures, out: Path) -> ReportPaths:
    """Write version 1 into the folder ``out``, which is made if it is missing.

    Every file is complete or absent. ``report.json`` is written last: if it exists, all other files
    of this report are complete. An older report, and pictures of another one, are removed first.
    ``pictures`` are as `draw_pictures` left them in ``out``; empty for a study that was not read.

    Raises:
        OSError: the folder cannot be written.
    """
    clear_pictures(out, keep=pictures)
    return _write_files(report, pictures, out)


def write_version(report: Report, pictures: Pictures, out: Path) -> ReportPaths:
    """Replace the report in ``out`` by its next version, and keep the older one beside it.

    It may be repeated after a crash at any point. ``report.json`` is written last. If somebody
    has removed the older version, the new one is written without it.

    Raises:
        OSError: the folder cannot be written; the older version is unchanged, or complete under its
            version's name.
    """
    make_folder(out)
    _keep_version(out, report.version - 1)
    for name, data in pictures.items():
        if not (out / name).is_file() or (out / name).read_bytes() != data:
            write_atomically(out / name, data)
    paths = _write_files(report, pictures, out)
    for path in stray_pictures(out, keep=pictures):
        path.unlink(missing_ok=True)
    sync_folder(out)
    return paths


def give_up_report(out: Path, study_key: str) -> bool:
    """Make a last version of a provisional report whose pending read is lost, from its files alone.

    Return whether there was one of this study, and log it. Findings and pictures stay as they are.
    It may be repeated after a crash at any point.

    Raises:
        OSError: the folder cannot be written; the older version is unchanged.
    """
    try:
        report = json.loads((out / "report.json").read_bytes())
        is_provisional = report["status"] == Status.PROVISIONAL.value
        version = int(report["version"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    if not is_provisional or report.get("study_key") != study_key:
        return False
    _keep_version(out, version)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    reason = "the request for it was lost with the database of the agent"
    change = Change(version + 1, ChangeKind.GIVEN_UP, f"not read again: {reason}")
    amended = {
        "version": version + 1,
        "status": Status.FINAL.value,
        "created": now,
        "changes": [*report["changes"], _change(change)],
        "second_reading_reason": f"{report['second_reading_reason']}; {change.text}",
    }
    text = json.dumps(report | amended, indent=2, ensure_ascii=False)
    page = (out / f"report.v{version}.html").read_text("utf-8")
    write_atomically(out / "report.html", _given_up_page(page, change, now).encode())
    write_atomically(out / "report.json", f"{text}\n".encode("utf-8", "replace"))
    log.warning("pending read lost, report given up", study_key=study_key)
    return True


def _given_up_page(page: str, change: Change, now: str) -> str:
    """Put stamp, banner and printed head of the new version into a page, in place of the old."""
    stamp = rf"Provisional report, version {change.version - 1}<br>[^<]*<"
    stamped = f"Final report, version {change.version}<br>{now.replace('T', ' ')}<"
    page = re.sub(stamp, stamped, page, count=1)
    head = rf'report version {change.version - 1} of [0-9-]{{10}}"'
    page = re.sub(head, f'report version {change.version} of {now[:10]}"', page, count=1)
    banner = '<div class="banner warn" role="alert"><strong>{}</strong><span>{}</span></div>'
    provisional = r'<div class="banner[^>]*><strong>Provisional report</strong>.*?</div>'
    title, text = (
        f"Last version, {change.version}",
        f"The second reading was {escape(change.text)}.",
    )
    return re.sub(provisional, lambda _: banner.format(title, text), page, count=1)


def version_in(out: Path, study_key: str) -> int:
    """Return the version of this study's report in ``out``, 0 if none can be read."""
    try:
        values = json.loads((out / "report.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return 0
    return int(values["version"]) if values.get("study_key") == study_key else 0


def _write_files(report: Report, pictures: Pictures, out: Path) -> ReportPaths:
    html, json_file = out / "report.html", out / "report.json"
    text = json.dumps(report_to_dict(report), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(html, render_page(report, pictures).encode("utf-8", "replace"))
    write_atomically(json_file, f"{text}\n".encode("utf-8", "replace"))
    return ReportPaths(json_file, html, tuple(out / name for name in pictures))


def _keep_version(out: Path, version: int) -> None:
    """Copy the report under its version's name, JSON last: an existing JSON implies its page."""
    if (out / f"report.v{version}.json").exists():
        return
    for suffix in ("html", "json"):
        newest = out / f"report.{suffix}"
        if newest.is_file():
            write_atomically(out / f"report.v{version}.{suffix}", newest.read_bytes())


def report_to_dict(report: Report) -> dict[str, Any]:
    """Return the report as JSON values; the keys are stable within one `SCHEMA`.

    Points are ``[x, y, z]`` LPS in mm, times are in seconds. A number that is not finite is null.
    """
    audit = report.audit
    whole = all(one.kind is not LimitationKind.COVERAGE for one in report.limitations)
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
        "findings": [
            _finding(n, one, report.location_of(one)) | {"brock": _brock(report.brock_of(one))}
            for n, one in report.numbered
        ],
        "lung_rads": _lung_rads(report.lung_rads),
        "brock": _brock_of_patient(report),
        "clinical": asdict(report.clinical),
        "possible_findings": [
            _finding(n, one, report.location_of(one)) | {"brock": None}
            for n, one in report.numbered_possible
        ],
        "groups": [{"count": len(group), "findings": list(group)} for group in report.groups],
        "picture_note": report.picture_note,
        "second_reading": report.second_reading.value,
        "second_reading_reason": report.second_reading_reason,
        "candidates": [_candidate(decision) for decision in report.decisions],
        "highest_dismissed_score": _number(report.highest_dismissed_score, 4),
        "rejection": asdict(report.rejection) if report.rejection else None,
        "rule": {
            "name": report.rule.name,
            "action": report.rule.action.value,
            "priority": report.rule.priority.value,
            "screening": report.rule.screening,
        },
        "deadline_s": _number(report.deadline_s, 3),
        "took_s": _number(report.took_s, 4),
        "ledger": [
            {
                "stage": entry.stage,
                "budget_s": _number(entry.budget_s, 4),
                "took_s": _number(entry.took_s, 4),
            }
            for entry in report.ledger
        ],
        "models": dict(report.models),
        "coverage": _coverage(report.coverage, whole),
        "limitations": [{"kind": x.kind.value, "text": x.text} for x in report.limitations],
        "guarantee": _guarantee(report.guarantee),
        "audit": audit
        and {
            **asdict(audit),
            "outcome": audit.outcome.value,
            "highest_score": _number(audit.highest_score, 4),
        },
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
        "notes": list(report.brock_notes),
    }


def _lung_rads(suggested: LungRads | None) -> dict[str, Any] | None:
    if suggested is None:
        return None
    return {
        "category": suggested.category,
        "least": suggested.least,
        "most": suggested.most,
        "inputs": [asdict(one) for one in suggested.inputs],
        "reasons": list(suggested.reasons),
        "standard": STANDARD,
    }


def _guarantee(guarantee: Guarantee) -> dict[str, Any]:
    """Terms are written only where they hold: no number stands beside a guarantee not given."""
    terms = guarantee.terms if guarantee.given else None
    return {
        "given": guarantee.given,
        "text": guarantee.text,
        "reason": guarantee.reason,
        "terms": terms
        and {
            "missed_at_most": terms.alpha,
            "confidence": _number(1 - terms.delta, 4),
            "patients": terms.patients,
            "calibration": terms.calibration,
            "basis": terms.basis,
            "edge_model": terms.screening,
            "cloud_model": terms.hybrid,
            "slice_mm": terms.slice_mm,
            "roi_side": terms.region_side,
        },
    }


def _coverage(coverage: Coverage | None, whole: bool) -> dict[str, Any] | None:
    if coverage is None:
        return None
    return {
        "complete": whole,
        "cut": [cut.side for cut in coverage.cuts],
        "cut_area_cm2": [cut.area_cm2 for cut in coverage.cuts],
        "lung_height_mm": coverage.lung_height_mm,
    }


def _change(change: Change) -> dict[str, Any]:
    verdict = {"probability": _number(change.verdict, 4), "model": change.model}
    return {
        "version": change.version,
        "kind": change.kind.value,
        "text": change.text,
        "number": change.number,
        "centre_mm": None if change.centre_mm is None else _point(change.centre_mm),
        "probability_before": _number(change.probability_before, 4),
        "probability_after": _number(change.probability_after, 4),
        "verdict": None if change.verdict is None else verdict,
    }


def _finding(number: int, finding: Finding, location: Location | None) -> dict[str, Any]:
    verdict = finding.verdict
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


def _number(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), digits)


@dataclass(frozen=True)
class Banner:
    """A message above the findings; ``level`` is good, note, warn or bad."""

    level: str
    title: str
    text: str


def render_page(report: Report, pictures: Mapping[str, bytes]) -> str:
    """Render the page with its pictures, which are named as `draw_pictures` names them."""
    return _template().render(
        report=report,
        banners=banners(report),
        images={name: b64encode(data).decode() for name, data in pictures.items()},
        disclaimer=NOT_A_DEVICE,
        standard=STANDARD,
        brock_model=BROCK,
        brock_reference=REFERENCE,
        running_head=_running_head(report),
        total_s=max(report.took_s, 1e-9),
    )


def banners(report: Report) -> tuple[Banner, ...]:
    """Return the messages above the findings, without limitations, the most urgent first."""
    if report.rejection is not None:
        why = report.rejection
        text = f"{why.reason} ({why.file})" if why.file else why.reason
        return (Banner("bad", f"This study was not read: {why.kind}", text),)
    if report.status is Status.IGNORED:
        text = f"{report.second_reading_reason[:1].upper()}{report.second_reading_reason[1:]}."
        return (Banner("note", "This study was not read", text),)
    messages = []
    if report.version > 1:
        title = f"Amended report, version {report.version}"
        messages.append(Banner("warn", title, "The changes are listed below."))
    if report.status is Status.PROVISIONAL:
        messages.append(
            Banner("warn", "Provisional report", "A second reading may change the findings.")
        )
    match report.second_reading:
        case SecondReading.COMPLETE if report.uncertain:
            level = "good"
        case SecondReading.COMPLETE | SecondReading.OFF:
            level = "note"  # nothing was read again, and nothing is missing
        case _:
            level = "warn"
    text = report.second_reading_reason
    return (*messages, Banner(level, report.second_reading_title, text))


@cache
def _template() -> Template:
    """Compile the page's template once: that takes longer than filling it."""
    environment = Environment(
        loader=PackageLoader("edge.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["seconds"] = _seconds
    environment.filters["iso_date"] = _iso_date
    environment.filters["css_string"] = _css_string
    return environment.get_template("report.html.j2")


def _running_head(report: Report) -> str:
    """Say whose report a printed page belongs to."""
    header = report.header
    who = (header.patient_name.replace("^", " "), header.patient_id, _iso_date(header.study_date))
    named = ", ".join(part for part in who if part) or report.source.name
    return f"{named}, report version {report.version} of {report.created[:10]}"


def _css_string(text: str) -> str:
    """Escape text for a string in CSS: it may come from an untrusted header."""
    plain = frozenset(" ,.:-" + ascii_letters + digits)
    return "".join(c if c in plain else f"\\{ord(c):x} " for c in text)


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def _iso_date(text: str) -> str:
    """Turn DICOM's 20260301 into 2026-03-01; other text is returned as it is."""
    dicom = len(text) == 8 and text.isdigit()
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if dicom else text
