"""What the pages show of the agent: read from its database and folders, and never changed.

Each look has a connection of its own, which can only read. The agent writes meanwhile, and no look
holds it up: in WAL mode readers and the writer do not wait for each other.
"""

import json
import re
import shutil
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge.folders import DATABASE
from edge.job import KEY_CHARACTERS
from edge.queue import STATES, Queued, arriving
from edge.report.evidence import OUTLINES, PlacedOutline, read_outlines
from edge.report.folder import owner_of
from edge.site import Site
from edge.store.steps import Step

Json = Mapping[str, Any]

KEY = re.compile(rf"[0-9a-f]{{{KEY_CHARACTERS}}}")
VERSION = re.compile(r"report\.v([1-9][0-9]{0,4})\.json")
PICTURE = re.compile(r"overview\.jpg|finding_[0-9]{2}\.jpg")

INBOX_S = 2.0
"""The inbox is listed at most once in this time, however many look."""
MOST_REPORTS = 200
"""Reports that are kept parsed."""
LONGEST_REPORT = 20_000_000
"""Bytes of a report; a longer file is none of ours."""

_NEEDED = (
    "study_key", "version", "status", "created", "study", "findings", "possible_findings",
    "candidates", "second_reading", "second_reading_reason", "ledger", "deadline_s", "took_s",
    "models", "guarantee", "limitations", "changes", "rejection", "source", "series_uid",
)  # fmt: skip
_COLUMNS = "id, members, report_name, step, attempts, kind, reason, file, created, updated"


@dataclass(frozen=True)
class StudyRow:
    """One study in the database; times are UTC."""

    key: str
    name: str
    report_name: str
    step: Step
    attempts: int
    kind: str
    reason: str
    file: str
    created: datetime
    updated: datetime

    @property
    def state(self) -> str:
        """The step in plain words."""
        return STATES[self.step]


@dataclass(frozen=True)
class Pending:
    """A report whose second reading is missing; ``age_s`` is time in which agents ran."""

    study: StudyRow
    rois: int
    attempts: int
    age_s: float
    reason: str


@dataclass(frozen=True)
class Disk:
    """Free and total bytes where ``name`` lies, and the size of the database."""

    name: str
    free: int
    total: int


class SiteState:
    """The agent's folders and database, as far as the pages show them."""

    def __init__(self, site: Site, clock: Callable[[], float] = time.monotonic) -> None:
        self.folders, self._quiet_s = site.folders, site.settings.quiet_s
        self.database, self._clock = site.reading, clock
        self._lock, self._inbox_lock = threading.Lock(), threading.Lock()
        self._arriving: tuple[float, list[Queued]] = (float("-inf"), [])
        self._reports: OrderedDict[Path, tuple[tuple[int, int], Json | None]] = OrderedDict()

    def arriving(self) -> list[Queued]:
        """Return the studies in the inbox, at most `INBOX_S` old."""
        with self._inbox_lock:
            at_s, found = self._arriving
            if self._clock() - at_s > INBOX_S:
                with suppress(OSError):  # `doctor` and the log say what is wrong with the inbox
                    found = list(arriving(self.folders.inbox, self._quiet_s))
                self._arriving = self._clock(), found
            return found

    def unfinished(self) -> list[StudyRow]:
        """Return the studies that are claimed and not done, in the order of their claims."""
        steps = (Step.CLAIMING, Step.CLAIMED, Step.JOINING, Step.READING, Step.REPORTED,
                 Step.QUARANTINING)  # fmt: skip
        return self._at(*steps, order="rowid")

    def refused(self) -> list[StudyRow]:
        """Return the studies in quarantine whose files are there, the last one first."""
        found = self._at(Step.QUARANTINED, order="updated DESC LIMIT 200")
        return [row for row in found if (self.folders.quarantine / row.key).is_dir()]

    def latest(self, count: int, skip: int = 0) -> list[StudyRow]:
        """Return the studies that were read, the last one first.

        Later parts of studies, which have no report of their own, are left out.
        """
        query = (
            f"SELECT {_COLUMNS} FROM studies WHERE step IN (?, ?) AND id NOT IN"
            " (SELECT part_key FROM parts) ORDER BY updated DESC LIMIT ? OFFSET ?"
        )
        values = (Step.DONE.value, Step.REPORTED.value, count, skip)
        with self.database() as database:
            return [_row(row) for row in database.execute(query, values)]

    def pending(self) -> list[Pending]:
        """Return the pending reads, the oldest first."""
        columns = ", ".join(f"s.{name.strip()}" for name in _COLUMNS.split(","))
        query = (
            f"SELECT {columns}, p.attempts AS retries, p.age_s AS age_s, p.reason AS why,"
            " (SELECT count(*) FROM pending_rois r WHERE r.study_key = s.id) AS rois"
            " FROM pending p JOIN studies s ON s.id = p.study_key WHERE p.step != 'saved'"
            " ORDER BY p.age_s DESC LIMIT 200"
        )
        with self.database() as database:
            return [
                Pending(_row(row), row["rois"], row["retries"], row["age_s"], row["why"])
                for row in database.execute(query)
            ]

    def study(self, key: str) -> StudyRow | None:
        """Return one study; None if there is none of this key."""
        if not KEY.fullmatch(key):
            return None
        query = f"SELECT {_COLUMNS} FROM studies WHERE id = ?"
        with self.database() as database:
            row = database.execute(query, (key,)).fetchone()
        return None if row is None else _row(row)

    def source(self, study: StudyRow) -> Path | None:
        """Return the folder or file of a study's images; None where they were removed."""
        folders = self.folders
        for home in (folders.done / study.key, folders.work / study.key,
                     folders.quarantine / study.key / "study"):  # fmt: skip
            if (home / study.name).exists():
                return home / study.name
        return None

    def report(self, study: StudyRow, version: int | None = None) -> Json | None:
        """Return a report's newest version, or an older one; None if it is not there or damaged."""
        folder = self._report_folder(study)
        if folder is None:
            return None
        older = None if version is None else folder / f"report.v{version}.json"
        if older is not None and older.is_file():
            return self._load(older, study.key)
        newest = self._load(folder / "report.json", study.key)
        is_meant = newest is not None and version in (None, newest["version"])
        return newest if is_meant else None

    def versions(self, study: StudyRow) -> list[int]:
        """Return the versions of a report, the newest first."""
        folder, newest = self._report_folder(study), self.report(study)
        if folder is None or newest is None:
            return []
        found = (VERSION.fullmatch(path.name) for path in folder.glob("report.v*.json"))
        older = {int(match.group(1)) for match in found if match}
        return sorted(older | {int(newest["version"])}, reverse=True)

    def file_of(self, study: StudyRow, name: str) -> bytes | None:
        """Return a picture, or the page of a version (``report.html``, ``report.v1.html``)."""
        is_page = re.fullmatch(r"report(\.v[1-9][0-9]{0,4})?\.html", name)
        folder = self._report_folder(study)
        if folder is None or not (is_page or PICTURE.fullmatch(name)):
            return None
        try:
            if (folder / name).is_symlink():
                return None
            return (folder / name).read_bytes()
        except OSError:
            return None

    def pictures(self, study: StudyRow) -> list[str]:
        """Return the names of a report's pictures."""
        folder = self._report_folder(study)
        names = () if folder is None else sorted(path.name for path in folder.glob("*.jpg"))
        return [name for name in names if PICTURE.fullmatch(name)]

    def outlines(self, study: StudyRow) -> dict[int, PlacedOutline]:
        """Return the outlines of a report's newest version by number; none where it has none."""
        folder = self._report_folder(study)
        try:
            file = None if folder is None else folder / OUTLINES
            if file is None or file.is_symlink() or file.stat().st_size > LONGEST_REPORT:
                return {}
            return read_outlines(file.read_bytes())
        except (OSError, ValueError):  # missing or damaged
            return {}

    def disks(self) -> list[Disk]:
        """Return the free room of the folders; one disk is named once."""
        found: dict[int, Disk] = {}
        named = {"studies and database": self.folders.state, "reports": self.folders.outbox}
        for name, folder in named.items():
            with suppress(OSError):
                usage, device = shutil.disk_usage(folder), folder.stat().st_dev
                both = f"{found[device].name}, {name}" if device in found else name
                found[device] = Disk(both, usage.free, usage.total)
        return list(found.values())

    def database_bytes(self) -> int:
        """Return the size of the database and its log."""
        return sum(path.stat().st_size for path in self.folders.state.glob(f"{DATABASE}*")
                   if not path.name.startswith(f"{DATABASE}.damaged"))  # fmt: skip

    def _at(self, *steps: Step, order: str) -> list[StudyRow]:
        marks = ", ".join("?" * len(steps))
        query = f"SELECT {_COLUMNS} FROM studies WHERE step IN ({marks}) ORDER BY {order}"
        with self.database() as database:
            return [_row(row) for row in database.execute(query, [one.value for one in steps])]

    def _report_folder(self, study: StudyRow) -> Path | None:
        """Return the folder of the study's report; None if it is gone or another study's."""
        folder = self.folders.outbox / study.report_name
        try:
            if folder.parent != self.folders.outbox or owner_of(folder) != study.key:
                return None
        except OSError:
            return None
        return folder

    def _load(self, path: Path, key: str) -> Json | None:
        """Return a report as JSON values; None if it is damaged, or of another study."""
        try:
            status = path.stat()
            stamp = status.st_mtime_ns, status.st_size
            with self._lock:
                known = self._reports.get(path)
            if known is None or known[0] != stamp:
                text = path.read_bytes() if status.st_size <= LONGEST_REPORT else b""
                known = stamp, _checked(json.loads(text))
                with self._lock:
                    self._reports[path] = known
                    while len(self._reports) > MOST_REPORTS:
                        self._reports.popitem(last=False)
        except (OSError, ValueError):
            return None
        values = known[1]
        return values if values is not None and values["study_key"] == key else None


def _checked(values: Any) -> Json | None:
    """Return a report that has all that the pages need."""
    if not isinstance(values, dict) or any(name not in values for name in _NEEDED):
        return None
    return values


def _row(row: sqlite3.Row) -> StudyRow:
    return StudyRow(
        key=row["id"],
        name=str(json.loads(row["members"])[0]),
        report_name=row["report_name"],
        step=Step(row["step"]),
        attempts=row["attempts"],
        kind=row["kind"],
        reason=row["reason"],
        file=row["file"],
        created=_time(row["created"]),
        updated=_time(row["updated"]),
    )


def _time(text: str) -> datetime:
    parsed = datetime.fromisoformat(text)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
