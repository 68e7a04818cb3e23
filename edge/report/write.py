"""Write the report as files: ``report.json`` for programs, ``report.html`` and pictures for people.

One folder holds all versions of a report: the newest as ``report.json`` and ``report.html``, an
older one as ``report.v1.json`` and ``report.v1.html``.
"""

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import structlog

from edge.access import make_folder
from edge.atomic_files import sync_folder, write_atomically, write_whole
from edge.report.evidence import NO_EVIDENCE, OUTLINES, SOURCE, EvidenceFiles, of_version
from edge.report.model import Change, ChangeKind, Report, Status
from edge.report.page import render_page
from edge.report.pictures import Pictures, clear_pictures, pictures_in, stray_pictures
from edge.report.serialize import own_report, report_to_dict

log = structlog.get_logger()


@dataclass(frozen=True)
class ReportPaths:
    """The files of a report; ``pictures`` begin with the overview, and may be empty."""

    json: Path
    html: Path
    pictures: tuple[Path, ...] = ()


def write_report(
    report: Report, pictures: Pictures, out: Path, evidence: EvidenceFiles = NO_EVIDENCE
) -> ReportPaths:
    """Write version 1 into the folder ``out``, which is made if it is missing.

    Every file is complete or absent. ``report.json`` is written last: if it exists, all other files
    of this report are complete. An older report, and pictures of another one, are removed first.
    ``pictures`` are as `draw_pictures` left them in ``out``; empty for a study that was not read.
    ``evidence`` is what DICOM objects are made from later.

    Raises:
        OSError: the folder cannot be written.
    """
    clear_pictures(out, keep=pictures)
    return _write_files(report, pictures, out, evidence)


def write_version(
    report: Report, pictures: Pictures, out: Path, evidence: EvidenceFiles = NO_EVIDENCE
) -> ReportPaths:
    """Replace the report in ``out`` by its next version, and keep the older one beside it.

    It may be repeated after a crash at any point. ``report.json`` is written last. If somebody
    has removed the older version, the new one is written without it. What ``evidence`` does not
    name stays as it was.

    Raises:
        OSError: the folder cannot be written; the older version is unchanged, or complete under its
            version's name.
    """
    make_folder(out)
    _keep_version(out, report.version - 1)
    for name, data in pictures.items():
        if not (out / name).is_file() or (out / name).read_bytes() != data:
            write_atomically(out / name, data)
    paths = _write_files(report, pictures, out, evidence)
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
    report = own_report(out / "report.json", study_key)
    if report is None or report.status is not Status.PROVISIONAL:
        return False
    text = "not read again: the request for it was lost with the database of the agent"
    reason = f"{report.second_reading_reason}; {text}"
    last = replace(report, status=Status.FINAL, second_reading_reason=reason)
    _write_changed(last, out, ChangeKind.GIVEN_UP, text)
    log.warning("pending read lost, report given up", study_key=study_key)
    return True


def refer_to(out: Path, study_key: str, text: str, kind: ChangeKind) -> None:
    """Make a next version of a report, from its files alone, that names what it does not have.

    It may be repeated after a crash at any point. Nothing is done without a report of this study.

    Raises:
        OSError: the folder cannot be written; the older version is unchanged.
    """
    report = own_report(out / "report.json", study_key)
    if report and text not in report.other_series:
        named = replace(report, other_series=(*report.other_series, text))
        _write_changed(named, out, kind, text)


def _write_changed(report: Report, out: Path, kind: ChangeKind, text: str) -> None:
    """Write the next version of a report, with one change; its other files stay."""
    version = report.version + 1
    changed = replace(
        report,
        version=version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        changes=(*report.changes, Change(version, kind, text)),
    )
    _keep_version(out, report.version)
    _write_files(changed, pictures_in(out, report), out, NO_EVIDENCE)


def version_in(out: Path, study_key: str) -> int:
    """Return the version of this study's report in ``out``, 0 if none can be read."""
    report = own_report(out / "report.json", study_key)
    return report.version if report else 0


def read_series(out: Path, study_key: str) -> str | None:
    """Return the series that this study's report in ``out`` was read from; None if none was."""
    report = own_report(out / "report.json", study_key)
    return report.series_uid if report and report.was_read else None


def exported_versions(out: Path, study_key: str) -> tuple[int, ...]:
    """Return the versions of a study's report in ``out`` of which targets get objects, in order.

    A version that says that the study was ignored is left out; and so is one that says that it was
    refused, where it is not known whose it is.
    """
    found = set[int]()
    for path in (out / "report.json", *out.glob("report.v[0-9]*.json")):
        with suppress(OSError):
            if report := own_report(path, study_key):
                is_newest = path.name == "report.json"
                source = SOURCE if is_newest else of_version(SOURCE, report.version)
                if report.was_read or (report.rejection and (out / source).is_file()):
                    found.add(report.version)
    return tuple(sorted(found))


def _write_files(
    report: Report, pictures: Pictures, out: Path, evidence: EvidenceFiles
) -> ReportPaths:
    for name, data in evidence.items():
        if data:
            write_whole(out / name, data)
        else:
            (out / name).unlink(missing_ok=True)
    html, json_file = out / "report.html", out / "report.json"
    text = json.dumps(report_to_dict(report), indent=2, ensure_ascii=False, allow_nan=False)
    # with the page, evidence and pictures are durable too
    write_atomically(html, render_page(report, pictures).encode("utf-8", "replace"))
    write_atomically(json_file, f"{text}\n".encode("utf-8", "replace"))
    return ReportPaths(json_file, html, tuple(out / name for name in pictures))


def _keep_version(out: Path, version: int) -> None:
    """Copy the report under its version's name, JSON last: an existing JSON implies the others."""
    if (out / f"report.v{version}.json").exists():
        return
    for name in (SOURCE, OUTLINES, "report.html", "report.json"):
        if (out / name).is_file():
            write_atomically(out / of_version(name, version), (out / name).read_bytes())
