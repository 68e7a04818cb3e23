"""The main loop: claim complete studies, process the most urgent one, amend a report, ask parts.

Nothing that matters is only in memory. Every pass begins with the unfinished rows of the database,
so that a start after a crash and the end of a full disk need no code of their own.
"""

import math
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from threading import Event

import structlog

from edge.agent.adopt import adopt, release_unused, reports_by_study, settle, strays
from edge.agent.claim import claim, received, resume_claim
from edge.agent.inbox import Inbox
from edge.agent.study import UNFINISHED, Work, process_study
from edge.amend.amender import Amender, RetryBudget
from edge.amend.persist import persist_in
from edge.atomic_files import is_transient
from edge.database import is_damage, require_own_files
from edge.escalation.client import SecondReader
from edge.job import Job
from edge.part import Agent, Part
from edge.pipeline import PersistPending, StudyResult
from edge.report.model import Report
from edge.rules.rule import Rules
from edge.rules.selection import priority_of
from edge.store.record import Record, Step
from imaging.errors import is_machine_fault
from process.backoff import doubled
from protos.messages import Priority

ReadStudy = Callable[[Job, PersistPending], StudyResult]
"""Reads one study, and persists what is still pending before its report is out."""

MAX_PAUSE_S = 300.0
"""Longest wait of one study after a fault of the machine; it doubles from the length of a pause."""
SETTLED_S = 3.0
"""A file that a program copies is read ahead when it has not changed for this time."""
AMEND_EVERY = 10
"""Studies in a row after which a pending read is retried although more studies wait."""

LOOK_S = 0.02
"""Between two looks at whether a series has arrived."""

log = structlog.get_logger()


class MainLoop:
    """The main loop of the agent, and the studies that are suspended until the next start.

    ``arrived`` ends the pause between two polls of the inbox when it is set.
    """

    def __init__(
        self, agent: Agent, read: ReadStudy, second: SecondReader, rules: Rules, arrived: Event
    ) -> None:
        settings, store = agent.site.settings, agent.store
        clock = self._clock = agent.clock
        self._agent, self._site, self._folders = agent, agent.site, agent.site.folders
        self._store, self._inbox = store, Inbox(self._folders.inbox, settings.quiet_s, clock)
        budget, amended = RetryBudget.of(settings, self._site.pause_s), self._on_amended
        self._amender = Amender(
            store, self._folders.outbox, second, budget, on_amended=amended, clock=clock
        )
        persist = persist_in(store.pending)
        self._work = Work(
            self._folders,
            store,
            lambda job: read(job, persist),
            settings.deadline_s,
            self._on_report,
            clock,
        )
        self._priority_of = priority_of(rules, Priority(settings.priority))
        self._priorities = dict[str, Priority]()
        self._stop, self._arrived, self._telemetry = agent.stop, arrived, agent.telemetry
        # A study that an earlier process claimed has its budget from now on: the clock of that
        # process is not known here.
        self._start_s, self._since_s = clock(), dict[str, float]()
        self._retry_at: dict[str, tuple[float, int]] = {}  # until when; failures so far
        self._current: Record | None = None
        self._next: Record | None = None
        self._in_a_row = 0
        self._adopted = False
        self._trail_error = ""

    def work(self, on_pass: Callable[[], None]) -> None:
        """Run until the stop is set, and call ``on_pass`` with each pass.

        Raises:
            InvalidDatabase: the database was deleted or replaced during the last pass.
        """
        while not self._stop.is_set():
            on_pass()
            try:
                busy = self.run_once()
                self._write_trail()
            except (OSError, sqlite3.OperationalError) as error:
                if not is_transient(error):
                    raise
                self._pause(error)
                busy = True  # it has waited
            finally:  # it is the cause of any other error
                require_own_files(self._site.database, self._store.files)
            if not busy:
                self._wait_for_poll()

    def run_once(self) -> bool:
        """Claim what is complete, and process one study; return whether there was work.

        It is the oldest of the stat studies, or the oldest of all where there is none. A pending
        read is retried when no study waits, and after every `AMEND_EVERY` studies.

        Raises:
            OSError, sqlite3.OperationalError: nothing can be written now; call again later.
        """
        if not self._adopted:
            self._attempt("adoption", self._adopt, field="task")
        self._take_attempt_back()
        full, held = self._claim()
        unfinished = self._store.at(*UNFINISHED)
        waiting = self._by_priority([r for r in unfinished if not self._is_held(r.id)])
        suspended = len(unfinished) - len(waiting) + held + self._amender.suspended
        pending = self._store.pending.backlog()
        self._telemetry.set_backlog(len(waiting) + len(full), suspended, *pending)
        self._next = waiting[1] if len(waiting) > 1 else None
        for record in waiting[:1]:
            self._current = record
            since_s = self._since_s.get(record.id, self._start_s)
            work = replace(self._work, since_s=since_s)
            if self._attempt(record.id, partial(process_study, record, work)):
                self._since_s.pop(record.id, None)
        self._in_a_row = self._in_a_row + 1 if waiting else 0
        due = self._in_a_row % AMEND_EVERY == 0 or self._amender.over_limit
        amends = due and self._amender.run_once()
        worked = [due and self._ask(part, bool(waiting)) for part in self._agent.parts]
        busy = bool(waiting) or amends or any(worked)
        if not busy:
            self.read_ahead()
            self._store.write_log()  # now, so that no report has to wait for it
        if full and not busy:
            raise full[0]
        return busy

    def read_ahead(self) -> None:
        """Let the next study be read ahead: the next one that waits, or one that still arrives.

        It is called between two studies, and while the second reader reads one.
        """
        pipeline = self._agent.pipeline()
        if pipeline is None or (ahead := pipeline.ahead) is None:
            return
        if self._next is not None:
            studies = [self._folders.work / self._next.id / self._next.name]
        else:
            studies = self._inbox.arriving()
        # what has begun stays: of several that arrive, another changes every moment
        if studies and not any(map(ahead.has_begun, studies)):
            is_settled = self._next is not None or bool(received(studies[-1]))
            with suppress(OSError):  # no room for a process: the study is then read as any other
                ahead.begin(studies[-1], 0.0 if is_settled else SETTLED_S)

    def _ask(self, part: Part, waiting: bool) -> bool:
        """Let a part do one piece of work; after a fault of the part it waits, and others go on."""
        if self._is_held(part.name):
            return False
        try:
            busy = part.work(waiting)
        except Exception as error:  # whatever it is: the next study must be read
            if is_of_the_database(error):
                raise
            log.exception(
                "fault of a part, it waits", part=part.name, pause_s=self._hold(part.name)
            )
            return False
        self._retry_at.pop(part.name, None)
        return busy

    def _wait_for_poll(self) -> None:
        """Wait for the next poll of the inbox, not longer than until a series has arrived."""
        left_s = self._site.settings.poll_s
        while left_s > 0 and not (self._arrived.is_set() or self._stop.wait(min(left_s, LOOK_S))):
            left_s -= LOOK_S
        self._arrived.clear()

    def _write_trail(self) -> None:
        """Append the records of this pass to the files of the audit trail.

        Where that is not possible for a lasting reason, they wait in the database.
        """
        try:
            self._store.trail.flush()
        except OSError as error:
            if is_transient(error):
                raise
            if str(error) != self._trail_error:
                log.error("audit trail cannot be written, its records wait", reason=str(error))
            self._trail_error = str(error)

    def _by_priority(self, waiting: Sequence[Record]) -> list[Record]:
        """Return stat studies first; the order stays the same within one priority.

        Priorities follow from files and rules, and are looked up again after a restart.
        """
        for record in waiting:
            if record.id not in self._priorities:
                source = self._folders.work / record.id / record.name
                with suppress(OSError):  # a fault of the machine, which its reading will name
                    self._priorities[record.id] = self._priority_of(source)
        known = {r.id: self._priorities[r.id] for r in waiting if r.id in self._priorities}
        self._priorities = known
        return sorted(waiting, key=lambda record: known.get(record.id) is not Priority.STAT)

    def _adopt(self) -> None:
        where = (self._folders, self._store)
        settle(*where)
        found = strays(*where)
        reports = reports_by_study(self._folders.outbox) if found else {}
        done = [self._attempt(k, partial(adopt, k, step, reports, *where)) for k, step in found]
        self._adopted = all(done)
        if self._adopted:
            release_unused(*where)

    def _claim(self) -> tuple[list[OSError], int]:
        """Claim complete studies, and finish claims that were interrupted.

        Returns what kept studies from being claimed if that passes: the disk may be too full for
        one, and those that are claimed, or smaller, must not wait for it. Then how many are held.
        """
        folders, store = self._folders, self._store
        full = list[OSError]()
        tasks: list[tuple[str, Callable[[], object], str]] = [
            (record.id, partial(resume_claim, record, folders, store), "study_key")
            for record in store.at(Step.CLAIMING)
        ]
        for study in self._inbox.complete():
            take = partial(claim, study, folders, store, self._since_s.__setitem__)
            tasks.append((study.fingerprint, take, "entry"))
        self._telemetry.set_blocked(self._inbox.blocked)
        for key, action, field in tasks:
            try:
                self._attempt(key, action, field=field)
            except OSError as error:
                full.append(error)
        return full, sum(self._is_held(key) for key, _, _ in tasks)

    def _attempt(self, key: str, action: Callable[[], object], *, field: str = "study_key") -> bool:
        """Run the action; suspend the study if its files cannot be moved or written.

        After a fault of the machine, or without permission, which may be of this study's files
        alone, the study waits and the others go on. The log names it by ``field``: an inbox entry
        without a study key by its fingerprint. Returns whether it was done.
        """
        if self._is_held(key):
            return False
        try:
            action()
        except (OSError, MemoryError) as error:
            if is_transient(error):
                raise
            if is_machine_fault(error) or isinstance(error, PermissionError):
                values = {field: key, "error": str(error), "pause_s": self._hold(key)}
                log.error("fault of the machine, the study waits", **values)
            else:
                log.exception("suspended until the next start", **{field: key})
                self._retry_at[key] = math.inf, 0
            self._take_attempt_back()
            return False
        self._retry_at.pop(key, None)
        return True

    def _hold(self, key: str) -> float:
        """Let a study or a part wait, twice as long as the last time; return the pause in s."""
        _, failures = self._retry_at.get(key, (0.0, 0))
        pause_s = doubled(self._site.pause_s, MAX_PAUSE_S, failures)
        self._retry_at[key] = self._clock() + pause_s, failures + 1
        return pause_s

    def _is_held(self, key: str) -> bool:
        """Return whether a study is suspended, or waits after a fault of the machine."""
        return self._clock() < self._retry_at.get(key, (0.0, 0))[0]

    def _pause(self, error: Exception) -> None:
        """Wait for a transient error to pass; it is not counted against the current study."""
        pause_s = self._site.pause_s
        log.error("cannot write, pausing", error=str(error), pause_s=pause_s)
        with suppress(sqlite3.OperationalError):  # the next pass tries again
            self._take_attempt_back()
        with suppress(OSError, sqlite3.OperationalError):  # it may make room
            while any(part.make_room() for part in self._agent.parts):
                pass
        self._stop.wait(pause_s)

    def _take_attempt_back(self) -> None:
        """Do not count the attempt of the current study, if this process began it and it failed.

        Between passes nothing is being read. An attempt from before a crash still counts.
        """
        if (before := self._current) is not None:
            for now in self._store.at(Step.READING):
                if now.id == before.id and now.attempts > before.attempts:
                    self._store.advance(now.id, Step.CLAIMED)
            self._current = None

    def _on_report(self, report: Report) -> None:
        self._telemetry.count_report(report)
        self._tell(lambda part: part.reported(report))
        if "cloud" in report.models:
            self._amender.responded()

    def _on_amended(self, report: Report) -> None:
        self._tell(lambda part: part.amended(report))

    def _tell(self, tell: Callable[[Part], None]) -> None:
        """Tell all parts of a report; a fault of a part harms no report."""
        for part in self._agent.parts:
            try:
                tell(part)
            except Exception as error:  # whatever it is: the next study must be read
                if is_of_the_database(error):
                    raise
                log.exception("fault of a part", part=part.name)


def is_of_the_database(error: Exception) -> bool:
    """Return whether the main loop must deal with a fault, because the database is at fault."""
    return is_damage(error) or is_transient(error)
