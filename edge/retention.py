"""Remove old studies and reports, where the settings say so; by default nothing is ever removed.

A study or report stays while anything of it is pending or provisional, and whatever its age if it
is not the agent's own. A report also stays while a target lacks objects of it, and with its study
while they cannot be made. The wall clock decides the age; while it does not agree with the
monotonic clock, nothing is removed.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import structlog

from edge.atomic_files import is_transient, move, remove, sync_folder
from edge.audit import Event
from edge.part import Agent, Part
from edge.queue import is_provisional
from edge.report.evidence import remove_evidence
from edge.report.folder import owner_of, release_folder
from edge.report.pictures import stray_pictures
from edge.store.record import Step

SCAN_S = 60.0
"""Pause between two scans that found nothing to remove."""
CLOCK_TOLERANCE_S = 3600.0
"""By how much the wall clock may be set while the agent runs, before it is distrusted."""
DAY_S, GB = 86_400.0, 1e9
_REMOVED = ".removed-"

log = structlog.get_logger()


@dataclass(frozen=True)
class Limits:
    """How long, and how much, of one kind is kept; None is without a limit.

    Attributes:
        kind: ``study`` or ``report``.
        setting: name of the settings without their unit.
    """

    kind: str
    setting: str
    days: float | None
    gb: float | None


@dataclass(frozen=True)
class _Kept:
    """One study or report: its key, its folder, and when it last changed, since the epoch.

    What ``must_stay`` counts against a size, and is not removed.
    """

    key: str
    folder: Path
    changed: float
    must_stay: bool


class RetentionPart(Part):
    """Removes old studies and reports while nothing waits.

    ``wall`` gives the seconds since the epoch.
    """

    name = "retention"

    def __init__(self, agent: Agent, wall: Callable[[], float] = time.time) -> None:
        super().__init__(agent)
        self._folders, self._clock, self._wall = agent.site.folders, agent.clock, wall
        keep = agent.site.settings.retention
        self._studies = Limits("study", "retention.studies", keep.studies_days, keep.studies_gb)
        self._reports = Limits("report", "retention.reports", keep.reports_days, keep.reports_gb)
        self._is_on = bool(keep.model_dump(exclude_none=True))
        self._bytes, self._unremovable = dict[Path, int](), set[Path]()
        self._offset_s, self._next_s, self._distrusts = 0.0, float("-inf"), False

    def started(self) -> None:
        """Note how far the two clocks are apart."""
        self._offset_s = self._wall() - self._clock()

    def work(self, waiting: bool) -> bool:
        """Remove or measure one thing at most."""
        return not waiting and self.make_room()

    def make_room(self) -> bool:
        """Remove or measure one thing at most, also while nothing can be written.

        What cannot be removed is left for the next start.

        Raises:
            OSError, sqlite3.OperationalError: nothing can be written now; call again later.
        """
        if not self._is_on or self._clock() < self._next_s or not self._clock_is_sound():
            return False
        try:
            if self._finish_removal() or self._limit_studies() or self._limit_reports():
                return True
            self._forget_rows()
        except OSError as error:
            if is_transient(error):
                raise
            log.exception("old studies and reports cannot be looked for")
        self._next_s = self._clock() + SCAN_S
        return False

    def _clock_is_sound(self) -> bool:
        moved_s = abs(self._wall() - self._clock() - self._offset_s)
        if moved_s > CLOCK_TOLERANCE_S and not self._distrusts:
            log.error("clock was set, nothing is removed until the next start", by_s=round(moved_s))
            self._distrusts = True
        return not self._distrusts

    def _finish_removal(self) -> bool:
        """Remove what a crash left of a study that was being removed."""
        done = self._folders.done
        left = [p for p in done.glob(f"{_REMOVED}*") if p not in self._unremovable]
        return any(self._remove(path, partial(remove, path)) for path in left)

    def _remove(self, folder: Path, action: Callable[[], None]) -> bool:
        """Run the action; return whether the folder could be removed."""
        try:
            action()
        except OSError as error:
            if is_transient(error):
                raise
            log.exception("cannot be removed, left until the next start", folder=str(folder))
            self._unremovable.add(folder)
            return False
        return True

    def _limit_studies(self) -> bool:
        held = self.agent.store.held(studies=True)
        ended = {
            key: (changed, is_pending or key in held)
            for key, _, changed, is_pending in self._ended(Step.DONE)
        }
        present = (path for path in self._folders.done.iterdir() if path.name in ended)
        kept = [_Kept(path.name, path, *ended[path.name]) for path in present]
        return self._limit(self._studies, kept, self._remove_study)

    def _limit_reports(self) -> bool:
        present, held = set(os.listdir(self._folders.outbox)), self.agent.store.held()
        kept = [
            _Kept(key, self._folders.outbox / name, changed, is_pending or key in held)
            for key, name, changed, is_pending in self._ended(Step.DONE, Step.QUARANTINED)
            if name in present
        ]
        return self._limit(self._reports, kept, self._remove_report)

    def _ended(self, *steps: Step) -> Iterator[tuple[str, str, float, bool]]:
        """Yield key, report and last change of the studies at these steps, and what is pending."""
        pending = self.agent.store.pending.keys()
        for key, name, updated in self.agent.store.ended(*steps):
            yield key, name, datetime.fromisoformat(updated).timestamp(), key in pending

    def _limit(
        self, limits: Limits, every: Iterable[_Kept], remove_one: Callable[[_Kept], None]
    ) -> bool:
        """Remove the oldest one that is beyond a limit, or measure one; return whether there is."""
        trail = self.agent.store.trail
        can_go = (one for one in every if one.folder not in self._unremovable)
        kept = sorted(can_go, key=lambda one: one.changed)
        reason, now = "", self._wall()
        if limits.gb is not None:
            for study in kept:
                if study.folder not in self._bytes:
                    self._bytes[study.folder] = _bytes(study.folder)
                    return True
            total = sum(self._bytes[one.folder] for one in kept)
            if total > limits.gb * GB:
                reason = f"{total / GB:.3g} GB are more than {limits.setting}_gb"
        for study in kept:
            if limits.days is not None and now - study.changed > limits.days * DAY_S:
                why = f"older than {limits.setting}_days"
            elif reason:
                why = reason
            else:
                return False  # the others are younger
            if study.must_stay or is_provisional(self.agent.store.get(study.key), self._folders):
                continue
            if study.folder.parent == self._folders.outbox:
                age_s = now - _changed(study.folder / "report.json")
                is_amended = not reason and age_s <= (limits.days or 0.0) * DAY_S
                if is_amended or owner_of(study.folder) != study.key:
                    continue
            # before it is begun: half a removal is one too
            event = Event.STUDY_REMOVED if limits is self._studies else Event.REPORT_REMOVED
            trail.record_removal(event, study.key, why)
            if self._remove(study.folder, partial(remove_one, study)):
                self._bytes.pop(study.folder, None)
                log.info("removed", kind=limits.kind, study_key=study.key, reason=why)
                return True
            trail.record(Event.REMOVAL_FAILED, study_key=study.key, kind=limits.kind)
        return False

    def _remove_study(self, one: _Kept) -> None:
        """Remove a study, so that half of it never lies where a whole one is expected."""
        for part in self.agent.parts:
            part.forget(one.key)
        gone = one.folder.with_name(f"{_REMOVED}{one.key}")
        move(one.folder, gone)
        remove(gone)

    def _remove_report(self, one: _Kept) -> None:
        """Remove a report, ``report.json`` first: without it, no report is there.

        What is not of the report stays, and with it the folder.
        """
        out = one.folder
        (out / "report.json").unlink(missing_ok=True)
        sync_folder(out)
        for path in (out / "report.html", *out.glob("report.v[0-9]*.*"), *stray_pictures(out)):
            path.unlink(missing_ok=True)
        remove_evidence(out)
        release_folder(out, one.key)
        sync_folder(out.parent)
        self.agent.store.forget_report(one.key)

    def _forget_rows(self) -> None:
        """Delete the rows of which no file is left: they hold names too."""
        homes = self._folders.done, self._folders.quarantine
        for key, name, _, is_pending in list(self._ended(Step.DONE, Step.QUARANTINED)):
            if not is_pending and not any((home / key).exists() for home in homes):
                folder = self._folders.outbox / name
                if not folder.exists() or owner_of(folder) != key:
                    self.agent.store.forget(key)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _bytes(folder: Path) -> int:
    files = (os.path.join(top, name) for top, _, names in os.walk(folder) for name in names)
    return sum(os.lstat(path).st_size for path in files)
