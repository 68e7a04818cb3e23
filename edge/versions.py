"""Versions of one report in one folder: the newest under its plain name, each older one beside it.

``report.json`` and ``report.html`` are always whole and there; ``report.v1.json`` and
``report.v1.html`` are what they were before the first amendment.
"""

from __future__ import annotations

import json
from pathlib import Path

from edge.durable import sync_folder, write_atomically
from edge.outcome import Report
from edge.report import Pictures, ReportPaths, json_bytes, page_bytes, stray_pictures


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
