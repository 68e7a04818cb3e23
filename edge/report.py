"""The report as files: ``report.json`` for programs, ``report.html`` and PNGs for people.

The one place that names the keys of ``report.json``; the command line's ``--json`` prints the
same. It knows nothing of how a finding was decided.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.durable import write_atomically
from edge.finding import Decision, Finding
from edge.outcome import NOT_A_DEVICE, Report
from edge.page import render_page
from imaging.preprocess import Preprocessed
from imaging.render import Mark, encode_png, finding_picture, overview_picture

SCHEMA = "overread.report/1"
"""Changes its number when a key changes its meaning or goes; new keys may come without."""

PICTURED_FINDINGS = 20
"""Findings with pictures of their own, by falling probability; the overview shows all."""


@dataclass(frozen=True)
class ReportPaths:
    """Where a report was written; ``pictures`` begin with the overview, empty without a box."""

    json: Path
    html: Path
    pictures: tuple[Path, ...] = ()


def write_report(report: Report, box: Preprocessed | None, out: Path) -> ReportPaths:
    """Write everything of one report into the folder ``out``, made if need be.

    Every file is whole or not there. ``report.json`` comes last: where it is, the rest is too.

    Args:
        report: what is to be said.
        box: what the pictures are cut from; None, as for a study not read, gives no pictures.
        out: an amended report is written over the older one.

    Raises:
        OSError: the folder cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    pictures = {} if box is None else draw_pictures(report.findings, box)
    for name, png in pictures.items():
        write_atomically(out / name, png)
    html, json_file = out / "report.html", out / "report.json"
    write_atomically(html, render_page(report, pictures).encode("utf-8", "replace"))
    text = json.dumps(report_to_dict(report), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(json_file, f"{text}\n".encode("utf-8", "replace"))
    return ReportPaths(json_file, html, tuple(out / name for name in pictures))


def draw_pictures(findings: Sequence[Finding], box: Preprocessed) -> dict[str, bytes]:
    """File name to PNG: ``overview.png``, then ``finding_01.png`` and so on, in their order."""
    marks = [Mark(f.index_zyx, f.diameter_mm, str(n)) for n, f in enumerate(findings, start=1)]
    pictured = marks[:PICTURED_FINDINGS]
    with ThreadPoolExecutor(max_workers=2) as pool:  # OpenCV lets go of the interpreter
        overview = pool.submit(lambda: encode_png(overview_picture(box.voxels, marks)))
        pngs = list(pool.map(lambda m: encode_png(finding_picture(box.voxels, m)), pictured))
    named = {f"finding_{n:02d}.png": png for n, png in enumerate(pngs, start=1)}
    return {"overview.png": overview.result(), **named}


def report_to_dict(report: Report) -> dict[str, Any]:
    """The report as JSON values; keys are stable within one `SCHEMA`.

    Points are ``[x, y, z]`` LPS in mm, times in seconds; a number that is not finite is null.
    """
    head = {
        "schema": SCHEMA,
        "study_key": report.study_key,
        "version": report.version,
        "status": report.status.value,
        "created": report.created,
        "source": str(report.source),
        "series_uid": report.series_uid,
        "study": asdict(report.header),
    }
    reading = {
        "findings": [_finding(n, f) for n, f in enumerate(report.findings, start=1)],
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
        "other_series": list(report.other_series),
        "disclaimer": NOT_A_DEVICE,
    }


def _finding(number: int, finding: Finding) -> dict[str, Any]:
    verdict = finding.verdict
    return {
        "number": number,
        "centre_mm": [_number(value, 2) for value in finding.centre_mm],
        "diameter_mm": _number(finding.diameter_mm, 2),
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
