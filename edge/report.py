"""The report as files: ``report.json`` for programs, ``report.html`` and PNGs for people.

The one place that names the keys of ``report.json``; the command line's ``--json`` prints the
same. It knows nothing of how a finding was decided.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.audit import Audit
from edge.durable import sync_folder, write_atomically
from edge.finding import Decision, Finding
from edge.guarantee import Guaranteed
from edge.outcome import NOT_A_DEVICE, Change, Report
from edge.page import render_page
from imaging.preprocess import Preprocessed
from imaging.render import Contour, Mark, encode_png, finding_picture, overview_picture

SCHEMA = "overread.report/1"
"""Changes its number when a key changes its meaning or goes; new keys may come without."""

PICTURED_FINDINGS = 20
"""Findings with pictures of their own, by falling probability; the overview shows all."""

OVERVIEW = "overview.png"

Pictures = Mapping[str, bytes]
"""File name to PNG: ``overview.png``, then ``finding_01.png`` and so on, in their order."""


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
    _clear(out, keep=pictures)
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


def draw_pictures(findings: Sequence[Finding], box: Preprocessed, out: Path) -> Pictures:
    """The pictures of one study, which lie in the folder ``out`` too when this returns.

    What an older report has left there is gone by then.

    Raises:
        OSError: the folder cannot be written.
    """
    pictures = _drawn(findings, box)
    _clear(out)
    for name, png in pictures.items():
        write_atomically(out / name, png)
    return pictures


def _drawn(findings: Sequence[Finding], box: Preprocessed) -> Pictures:
    marks = [
        Mark(f.index_zyx, f.diameter_mm, str(n), _contour(f)) for n, f in enumerate(findings, 1)
    ]
    pictured = marks[:PICTURED_FINDINGS]
    with ThreadPoolExecutor(max_workers=2) as pool:  # OpenCV lets go of the interpreter
        overview = pool.submit(lambda: encode_png(overview_picture(box.voxels, marks)))
        pngs = list(pool.map(lambda m: encode_png(finding_picture(box.voxels, m)), pictured))
    named = {picture_name(n): png for n, png in enumerate(pngs, start=1)}
    return {OVERVIEW: overview.result(), **named}


def picture_name(number: int) -> str:
    """The file with the picture of the finding of this number."""
    return f"finding_{number:02d}.png"


def stray_pictures(out: Path, keep: Collection[str] = ()) -> list[Path]:
    """The pictures in ``out`` that are not among ``keep``."""
    pictures = [out / OVERVIEW, *out.glob("finding_[0-9][0-9].png")]
    return [path for path in pictures if path.name not in keep]


def _contour(finding: Finding) -> Contour | None:
    outline = finding.outline
    return None if outline is None else Contour(outline.mask, outline.start)


def _clear(out: Path, keep: Collection[str] = ()) -> None:
    """Make the folder, and remove an older report: what vouches for the pictures goes first."""
    out.mkdir(parents=True, exist_ok=True)
    sync_folder(out.parent)
    versions = out.glob("report.v[0-9]*.*")
    for path in (out / "report.json", out / "report.html", *versions, *stray_pictures(out, keep)):
        path.unlink(missing_ok=True)
    sync_folder(out)


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
        "guarantee": report.guarantee,
        "guarantee_terms": _terms(report.guaranteed),
        "audit": None if report.audit is None else _audit(report.audit),
        "other_series": list(report.other_series),
        "disclaimer": NOT_A_DEVICE,
    }


def _terms(guaranteed: Guaranteed) -> dict[str, Any]:
    """What is promised; ``given`` tells whether it is, ``reason`` why it is not."""
    terms = guaranteed.terms
    found = {} if terms is None else asdict(terms)
    return {"given": guaranteed.given, "reason": guaranteed.reason, **found}


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
