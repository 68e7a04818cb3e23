"""What the pages show of the agent: read from its database and folders, and never changed.

Each look has a connection of its own, which can only read. The agent writes meanwhile, and no look
holds it up: in WAL mode readers and the writer do not wait for each other.
"""

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from edge.folders import DATABASE
from edge.job import KEY_CHARACTERS
from edge.queue import Queued, arriving, is_here
from edge.report.evidence import OUTLINES, PlacedOutline, read_outlines
from edge.report.folder import owner_of
from edge.report.model import Report
from edge.report.serialize import NotAReport, read_report
from edge.site import Site
from edge.store.later_parts import PartStore
from edge.store.record import Record, Step, record_of
from process.files import state_of

Json = Mapping[str, Any]

KEY = re.compile(rf"[0-9a-f]{{{KEY_CHARACTERS}}}")
UID = re.compile(r"[0-9.]{1,64}")
VERSION = re.compile(r"report\.v([1-9][0-9]{0,4})\.json")
PAGE = re.compile(r"report(\.v[1-9][0-9]{0,4})?\.html")
PICTURE = re.compile(r"overview\.jpg|finding_[0-9]{2}\.jpg")

INBOX_S = 2.0
"""The inbox is listed at most once in this time, however many look."""
MAX_REPORTS = 200
"""Reports that are kept parsed."""
MAX_REPORT = 20_000_000
"""Bytes of a report; a longer file is none of ours."""

_READ = "step IN ('done', 'reported') AND id NOT IN (SELECT part_key FROM parts)"


@dataclass(frozen=True)
class Pending:
    """A report whose second reading is missing; ``age_s`` is time in which agents ran."""

    key: str
    name: str
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

    def __init__(self, site: Site) -> None:
        self.folders, self._quiet_s = site.folders, site.settings.quiet_s
        self.database = site.reading
        self._inbox_lock = threading.Lock()
        self._arriving: tuple[float, list[Queued]] = (float("-inf"), [])

    def arriving(self) -> list[Queued]:
        """Return the studies in the inbox, at most `INBOX_S` old."""
        with self._inbox_lock:
            at_s, found = self._arriving
            if time.monotonic() - at_s > INBOX_S:
                with suppress(OSError):  # `doctor` and the log say what is wrong with the inbox
                    found = list(arriving(self.folders.inbox, self._quiet_s))
                self._arriving = time.monotonic(), found
            return found

    def unfinished(self) -> list[Record]:
        """Return the studies that are claimed and not done, in the order of their claims."""
        steps = (Step.CLAIMING, Step.CLAIMED, Step.JOINING, Step.READING, Step.REPORTED,
                 Step.QUARANTINING)  # fmt: skip
        marks = ", ".join("?" * len(steps))
        return self._records(f"step IN ({marks}) ORDER BY rowid", *(one.value for one in steps))

    def refused(self) -> list[Record]:
        """Return the studies in quarantine whose files are there, the last one first."""
        rows = self._records("step = ? ORDER BY updated DESC", Step.QUARANTINED.value)
        return [row for row in rows if is_here(row, self.folders)]

    def latest(self, count: int, skip: int = 0) -> list[Record]:
        """Return the studies that were read, the last one first.

        Later parts of studies, which have no report of their own, are left out.
        """
        return self._records(f"{_READ} ORDER BY updated DESC LIMIT ? OFFSET ?", count, skip)

    def count(self) -> int:
        """Return how many studies were read."""
        with self.database() as database:
            return int(
                database.execute(f"SELECT count(*) FROM studies WHERE {_READ}").fetchone()[0]
            )

    def study(self, key: str) -> Record | None:
        """Return one study; None if there is none of this key."""
        return next(iter(self._records("id = ?", key)), None) if KEY.fullmatch(key) else None

    def by_uid(self, study_uid: str) -> Record | None:
        """Return the study with this StudyInstanceUID: of several, the last one that was read."""
        with self.database() as database:
            keys = PartStore(database).of_study(study_uid) if UID.fullmatch(study_uid) else ()
        marks = ", ".join("?" * len(keys))
        order = "step IN ('done', 'reported') DESC, rowid DESC"
        return next(iter(self._records(f"id IN ({marks}) ORDER BY {order}", *keys)), None)

    def results(self, key: str) -> list[Json]:
        """Return which target has which version of a study's results, the newest first.

        ``made`` is the step of its objects, and ``step`` that of their delivery.
        """
        query = (
            "SELECT version, target, e.step AS made, d.step, d.attempts, d.created,"
            " coalesce(nullif(d.reason, ''), e.reason) AS reason FROM exports e"
            " LEFT JOIN deliveries d USING (study_key, version) WHERE study_key = ?"
            " ORDER BY version DESC, target"
        )
        with self.database() as database:
            return [dict(row) for row in database.execute(query, (key,))]

    def pending(self) -> list[Pending]:
        """Return the pending reads, the oldest first."""
        query = (
            "SELECT s.id, s.members, p.attempts, p.age_s, p.reason,"
            " (SELECT count(*) FROM pending_rois r WHERE r.study_key = s.id) AS rois"
            " FROM pending p JOIN studies s ON s.id = p.study_key WHERE p.step != 'saved'"
            " ORDER BY p.age_s DESC"
        )
        with self.database() as database:
            return [
                Pending(key, json.loads(members)[0], rois, attempts, age_s, reason)
                for key, members, attempts, age_s, reason, rois in database.execute(query)
            ]

    def source(self, study: Record) -> Path | None:
        """Return the folder or file of a study's images; None where they were removed."""
        folders = self.folders
        for home in (folders.done / study.id, folders.work / study.id,
                     folders.quarantine / study.id / "study"):  # fmt: skip
            if (home / study.name).exists():
                return home / study.name
        return None

    def report(self, study: Record) -> Report | None:
        """Return a report's newest version; None if it is gone, damaged, or of another study."""
        try:
            path = self._report_folder(study) / "report.json"
            status = path.stat()
            report = _read(path, state_of(status)) if status.st_size <= MAX_REPORT else None
        except (OSError, NotAReport):
            return None
        return report if report is not None and report.study_key == study.id else None

    def versions(self, study: Record) -> list[int]:
        """Return the versions of a report, the newest first."""
        newest = self.report(study)
        if newest is None:
            return []
        older = {int(found.group(1)) for found in self._files(study, VERSION)}
        return sorted(older | {newest.version}, reverse=True)

    def pictures(self, study: Record) -> list[str]:
        """Return the names of a report's pictures."""
        return sorted(found.group() for found in self._files(study, PICTURE))

    def file_of(self, study: Record, name: str) -> bytes | None:
        """Return a picture, or the page of a version (``report.html``, ``report.v1.html``)."""
        if not (PAGE.fullmatch(name) or PICTURE.fullmatch(name)):
            return None
        try:
            file = self._report_folder(study) / name
            return None if file.is_symlink() else file.read_bytes()
        except OSError:
            return None

    def outlines(self, study: Record) -> dict[int, PlacedOutline]:
        """Return the outlines of a report's newest version by number; none where it has none."""
        try:
            file = self._report_folder(study) / OUTLINES
            if file.is_symlink() or file.stat().st_size > MAX_REPORT:
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

    def _records(self, which: str, *values: str | int) -> list[Record]:
        with self.database() as database:
            rows = database.execute(f"SELECT * FROM studies WHERE {which}", values)
            return [record_of(row) for row in rows]

    def _files(self, study: Record, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
        """Yield the names in the folder of a report that match; none where there is no report."""
        with suppress(OSError):
            yield from filter(None, map(pattern.fullmatch, os.listdir(self._report_folder(study))))

    def _report_folder(self, study: Record) -> Path:
        """Return the folder of the study's report.

        Raises:
            OSError: it is gone, or another study's.
        """
        folder = self.folders.outbox / study.report_name
        if folder.parent != self.folders.outbox or owner_of(folder) != study.id:
            raise FileNotFoundError(folder)
        return folder


@lru_cache(MAX_REPORTS)
def _read(path: Path, _state: object) -> Report:
    """Return a report; it is read again when the file has changed."""
    return read_report(path)
