"""The report as files: ``report.json`` for programs, ``report.html`` and PNGs for people.

The one place that names the keys of ``report.json``; the command line's ``--json`` prints the
same. It knows nothing of how a finding was decided.

Versions of one report in one folder: the newest under its plain name, each older one beside it.

``report.json`` and ``report.html`` are always whole and there; ``report.v1.json`` and
``report.v1.html`` are what they were before the first amendment.

The report as one HTML page that needs no other file and runs no script.

Everything in it may come from a stranger's DICOM header, so every value is escaped and the page
forbids its own scripts as well.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from edge.atomic_files import sync_folder, write_atomically
from edge.audit import Audit
from edge.findings import Decision, Finding, SecondReading
from edge.guarantee import Guarantee
from edge.report.model import NOT_A_DEVICE, Change, Report, Status
from edge.report.pictures import Pictures, clear_pictures, stray_pictures


@dataclass(frozen=True)
class Banner:
    """What a reader must know before anything else; ``level`` is good, warn or bad."""

    level: str
    title: str
    text: str


def render_page(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The page as text.

    Args:
        report: what is to be said.
        pictures: file name to PNG, as `edge.report.pictures.draw_pictures` names them.
    """
    return _template().render(
        report=report,
        banners=banners(report),
        images={name: b64encode(png).decode() for name, png in pictures.items()},
        disclaimer=NOT_A_DEVICE,
        total_s=max(report.took_s, 1e-9),
    )


@cache
def _template() -> Template:
    """The page's template, compiled once: that takes longer than filling it."""
    environment = Environment(
        loader=PackageLoader("edge.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["seconds"] = _seconds
    environment.filters["iso_date"] = _iso_date
    return environment.get_template("report.html.j2")


def banners(report: Report) -> tuple[Banner, ...]:
    """What stands above the findings, most urgent first; never empty."""
    if report.rejection is not None:
        why = report.rejection
        text = f"{why.reason} ({why.file})" if why.file else why.reason
        return (Banner("bad", f"This study was not read: {why.kind}", text),)
    found = []
    if report.version > 1:
        title = f"Amended report, version {report.version}"
        found.append(Banner("warn", title, "What changed is listed below."))
    if report.status is Status.PROVISIONAL:
        found.append(Banner("warn", "Provisional report", "It may still be amended."))
    found.append(_second_reading(report))
    return tuple(found)


def _second_reading(report: Report) -> Banner:
    title = f"Second reading {report.second_reading.value}"
    unread = report.second_reading in (SecondReading.MISSING, SecondReading.PARTIAL)
    return Banner("warn" if unread else "good", title, report.second_reading_reason)


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def _iso_date(text: str) -> str:
    """DICOM writes 20260301; whatever is no such date stays as it is."""
    dicom = len(text) == 8 and text.isdigit()
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if dicom else text


SCHEMA = "overread.report/1"
"""Changes its number when a key changes its meaning or goes; new keys may come without."""


@dataclass(frozen=True)
class ReportPaths:
    """Where a report was written; ``pictures`` begin with the overview, empty without a box."""

    json: Path
    html: Path
    pictures: tuple[Path, ...] = ()


def write_report(report: Report, pictures: Pictures, out: Path) -> ReportPaths:
    """Write page and data of one report into the folder ``out``, made if need be.

    Every file is whole or not there. ``report.json`` comes last: where it is, the rest is too,
    and all of it is of this report: an older one, and pictures that are not of this, go first.

    Args:
        report: what is to be said.
        pictures: as `draw_pictures` has left them in ``out``; empty for a study not read.
        out: the folder.

    Raises:
        OSError: the folder cannot be written.
    """
    clear_pictures(out, keep=pictures)
    html, json_file = out / "report.html", out / "report.json"
    write_atomically(html, page_bytes(report, pictures))
    write_atomically(json_file, json_bytes(report))
    return ReportPaths(json_file, html, tuple(out / name for name in pictures))


def page_bytes(report: Report, pictures: Pictures) -> bytes:
    """What ``report.html`` holds."""
    return render_page(report, pictures).encode("utf-8", "replace")


def json_bytes(report: Report) -> bytes:
    """What ``report.json`` holds."""
    text = json.dumps(report_to_dict(report), indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode("utf-8", "replace")


def report_to_dict(report: Report) -> dict[str, Any]:
    """The report as JSON values; keys are stable within one `SCHEMA`.

    Points are ``[x, y, z]`` LPS in mm, times in seconds; a number that is not finite is null.
    """
    head = {
        "schema": SCHEMA,
        "study_key": report.study_key,
        "version": report.version,
        "status": report.status.value,
        "changes": [_change(change) for change in report.changes],
        "created": report.created,
        "source": str(report.source),
        "series_uid": report.series_uid,
        "study": asdict(report.header),
    }
    reading = {
        "findings": [_finding(n, finding) for n, finding in report.numbered if not finding.small],
        "small_nodules": [_finding(n, finding) for n, finding in report.numbered if finding.small],
        "picture_note": report.picture_note,
        "second_reading": report.second_reading.value,
        "second_reading_reason": report.second_reading_reason,
        "candidates": [_candidate(decision) for decision in report.decisions],
        "highest_dismissed_score": _number(report.highest_dismissed_score, 4),
        "rejection": asdict(report.rejection) if report.rejection else None,
    }
    return head | reading | _provenance(report)


def _provenance(report: Report) -> dict[str, Any]:
    entries = report.ledger
    return {
        "deadline_s": _number(report.deadline_s, 3),
        "took_s": _number(report.took_s, 4),
        "ledger": [
            {
                "stage": entry.stage,
                "budget_s": _number(entry.budget_s, 4),
                "took_s": _number(entry.took_s, 4),
            }
            for entry in entries
        ],
        "models": dict(report.models),
        "guarantee": report.guarantee.text,
        "guarantee_terms": _terms(report.guarantee),
        "audit": None if report.audit is None else _audit(report.audit),
        "other_series": list(report.other_series),
        "disclaimer": NOT_A_DEVICE,
    }


def _terms(guarantee: Guarantee) -> dict[str, Any]:
    """What is promised; ``given`` tells whether it is, ``reason`` why it is not."""
    terms = guarantee.terms
    found = {} if terms is None else asdict(terms)
    return {"given": guarantee.given, "reason": guarantee.reason, **found}


def _audit(audit: Audit) -> dict[str, Any]:
    return {
        **asdict(audit),
        "outcome": audit.outcome.value,
        "highest_score": _number(audit.highest_score, 4),
    }


def _change(change: Change) -> dict[str, Any]:
    place, given = change.centre_mm, change.verdict
    before, after = change.probability_before, change.probability_after
    return {
        "version": change.version,
        "kind": change.kind.value,
        "words": change.words,
        "number": change.number,
        "centre_mm": None if place is None else [_number(value, 2) for value in place],
        "probability_before": None if before is None else _number(before, 4),
        "probability_after": None if after is None else _number(after, 4),
        "verdict": None
        if given is None
        else {"probability": _number(given, 4), "model": change.model},
    }


def _finding(number: int, finding: Finding) -> dict[str, Any]:
    verdict = finding.verdict
    return {
        "number": number,
        "centre_mm": [_number(value, 2) for value in finding.centre_mm],
        "diameter_mm": _number(finding.diameter_mm, 2),
        "volume_mm3": _number(finding.outline.volume_mm3, 1) if finding.outline else None,
        "probability": _number(finding.probability, 4),
        "decided_by": finding.decided_by.value,
        "reason": finding.reason,
        "edge_score": _number(finding.edge_score, 4),
        "route": finding.route.value,
        "verdict": None
        if verdict is None
        else {
            "probability": _number(verdict.probability, 4),
            "diameter_mm": _number(verdict.diameter_mm, 2),
            "malignancy": None if verdict.malignancy is None else _number(verdict.malignancy, 4),
            "texture": verdict.texture or None,
            "model": verdict.model,
            "queue_s": _number(verdict.queue_s, 4),
            "compute_s": _number(verdict.compute_s, 4),
        },
    }


def _candidate(decision: Decision) -> dict[str, Any]:
    candidate = decision.candidate
    return {
        "centre_mm": [_number(value, 2) for value in candidate.centre_mm],
        "diameter_mm": _number(candidate.diameter_mm, 2),
        "score": _number(candidate.score, 4),
        "route": decision.route.value,
        "reason": decision.reason,
    }


def _number(value: float, digits: int) -> float | None:
    return round(float(value), digits) if math.isfinite(value) else None


def write_version(report: Report, pictures: Pictures, out: Path) -> ReportPaths:
    """Put the next version of a report in the place of the one in ``out``, which stays beside it.

    It may be called again after a crash at any point. ``report.json`` comes last. If somebody
    has taken the older version away, the new one is there without it.

    Raises:
        OSError: the folder cannot be written; the older version is untouched or whole beside.
    """
    out.mkdir(parents=True, exist_ok=True)
    _set_beside(out, report.version - 1)
    for name, png in pictures.items():
        if not (out / name).is_file() or (out / name).read_bytes() != png:
            write_atomically(out / name, png)
    html, json_file = out / "report.html", out / "report.json"
    write_atomically(html, page_bytes(report, pictures))
    write_atomically(json_file, json_bytes(report))
    for path in stray_pictures(out, keep=pictures):
        path.unlink(missing_ok=True)
    sync_folder(out)
    return ReportPaths(json_file, html, tuple(out / name for name in pictures))


def version_in(out: Path, study_key: str) -> int:
    """The version of this study's report in ``out``, 0 if there is none that can be read."""
    try:
        words = json.loads((out / "report.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return 0
    return int(words["version"]) if words.get("study_key") == study_key else 0


def _set_beside(out: Path, version: int) -> None:
    """Copy the report under its version's name; the data last: where they are, the page is too."""
    if (out / f"report.v{version}.json").exists():
        return
    for suffix in ("html", "json"):
        newest = out / f"report.{suffix}"
        if newest.is_file():
            write_atomically(out / f"report.v{version}.{suffix}", newest.read_bytes())
