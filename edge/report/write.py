"""Write the report as files: ``report.json`` for programs, ``report.html`` and pictures for people.

One folder holds all versions of a report: the newest as ``report.json`` and ``report.html``, an
older one as ``report.v1.json`` and ``report.v1.html``.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from edge.access import make_folder
from edge.atomic_files import sync_folder, write_atomically, write_whole
from edge.report.evidence import NO_EVIDENCE, OUTLINES, SOURCE, EvidenceFiles, of_version
from edge.report.model import Change, ChangeKind, Report, Status
from edge.report.page import changed_page, render_page
from edge.report.pictures import Pictures, clear_pictures, stray_pictures
from edge.report.serialize import change_to_dict, report_to_dict

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
    report = _values_in(out / "report.json", study_key)
    if report.get("status") != Status.PROVISIONAL.value:
        return False
    reason = "the request for it was lost with the database of the agent"
    text = f"not read again: {reason}"
    change = Change(int(report["version"]) + 1, ChangeKind.GIVEN_UP, text)
    amended = {
        "status": Status.FINAL.value,
        "second_reading_reason": f"{report['second_reading_reason']}; {change.text}",
    }
    _change_files(out, report | amended, change)
    log.warning("pending read lost, report given up", study_key=study_key)
    return True


def refer_to(out: Path, study_key: str, text: str, kind: ChangeKind) -> None:
    """Make a next version of a report, from its files alone, that names what it does not have.

    It may be repeated after a crash at any point. Nothing is done without a report of this study.

    Raises:
        OSError: the folder cannot be written; the older version is unchanged.
    """
    report = _values_in(out / "report.json", study_key)
    if report and text not in report["other_series"]:
        change = Change(int(report["version"]) + 1, kind, text)
        _change_files(out, report | {"other_series": [*report["other_series"], text]}, change)


def _change_files(out: Path, values: dict[str, Any], change: Change) -> None:
    """Write the next version of a report, of these values, with a change and its banner."""
    before = change.version - 1
    _keep_version(out, before)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    changes = [*values["changes"], change_to_dict(change)]
    values = values | {"version": change.version, "created": now, "changes": changes}
    text = json.dumps(values, indent=2, ensure_ascii=False)
    page = (out / f"report.v{before}.html").read_text("utf-8")
    write_atomically(out / "report.html", changed_page(page, change, now).encode())
    write_atomically(out / "report.json", f"{text}\n".encode("utf-8", "replace"))


def version_in(out: Path, study_key: str) -> int:
    """Return the version of this study's report in ``out``, 0 if none can be read."""
    return int(_values_in(out / "report.json", study_key).get("version", 0))


def read_series(out: Path, study_key: str) -> str | None:
    """Return the series that this study's report in ``out`` was read from; None if none was."""
    values = _values_in(out / "report.json", study_key)
    return str(values.get("series_uid", "")) if _was_read(values) else None


def _was_read(values: dict[str, Any]) -> bool:
    is_ignored = values.get("status") == Status.IGNORED.value
    return values.get("rejection", "") is None and not is_ignored


def exported_versions(out: Path, study_key: str) -> tuple[int, ...]:
    """Return the versions of a study's report in ``out`` of which targets get objects, in order.

    A version that says that the study was ignored is left out; and so is one that says that it was
    refused, where it is not known whose it is.
    """
    found = set[int]()
    for path in (out / "report.json", *out.glob("report.v[0-9]*.json")):
        with suppress(OSError):
            values = _values_in(path, study_key)
            version = int(values.get("version", 0))
            source = SOURCE if path.name == "report.json" else of_version(SOURCE, version)
            if _was_read(values) or (values.get("rejection") and (out / source).is_file()):
                found.add(version)
    return tuple(sorted(found))


def _values_in(file: Path, study_key: str) -> dict[str, Any]:
    """Return the values of this study's report in a file; empty if none can be read."""
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        values: dict[str, Any] = json.loads(file.read_bytes())
        if values["study_key"] == study_key and int(values["version"]):
            return values
    return {}


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
