"""The daemon: takes studies from the inbox, one after the other, until it is told to stop.

It keeps nothing in memory that matters. Every turn begins with what the spool says is unfinished,
so that starting after a crash and going on after a full disk are the ordinary turn.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial

import structlog

from edge.amend import Amender, Asked, Persistence
from edge.assemble import open_line
from edge.carry import UNFINISHED, Carry, Places, Read, carry
from edge.claim import claim, resume_claim
from edge.drain import draining
from edge.durable import no_room
from edge.escalate import NoSecondReader
from edge.ingest import Inbox
from edge.keep import Keep, keep_in
from edge.outcome import Job
from edge.pipeline import Reading
from edge.reading import read_and_report
from edge.settings import EdgeSettings
from edge.spool import Spool, Step, StepHook, exclusive
from edge.telemetry import Meters

LOCK = ".overread.lock"
PAUSE_POLLS = 10
"""Polls that a pause for a full disk lasts."""
AMEND_EVERY = 10
"""Studies in a row after which what is owed gets a turn although more studies wait."""

log = structlog.get_logger()


def run_agent(
    settings: EdgeSettings,
    *,
    line: Read | None = None,
    second: Asked | None = None,
    clock: Callable[[], float] = time.monotonic,
    stop: threading.Event | None = None,
    on_step: StepHook | None = None,
) -> None:
    """Work until ``stop`` is set or SIGTERM or SIGINT arrives; the study at hand is finished.

    Args:
        settings: of this process.
        line: reads one study; the line of the settings if None.
        second: is asked again for what is owed; that of the line if None.
        clock: monotonic seconds.
        stop: ends the work when it is set.
        on_step: is told of every durable step.

    Raises:
        AlreadyRunning: another agent works on the inbox or the state folder.
        EdgeError: the line, the database or the metrics cannot be opened.
        ModelError: the model cannot be opened.
        OSError: a folder cannot be made or written.
    """
    places = Places.of(settings)
    places.make()
    stop = stop or threading.Event()
    with ExitStack() as held:
        for folder in (places.inbox, places.state):
            held.enter_context(exclusive(folder / LOCK))
        spool = held.enter_context(Spool(places.state / "spool.sqlite3", on_step))
        meters = Meters()
        held.enter_context(meters.served(settings.metrics_port))
        if line is None:
            opened = held.enter_context(open_line(settings, clock=clock))
            line, second = partial(read_and_report, opened), second or opened.second_reader
        held.enter_context(draining(stop))
        inbox = Inbox(places.inbox, settings.quiet_s, clock)
        amender = _amender(settings, places, spool, second or NoSecondReader(), meters, clock)
        side = settings.roi_side
        read = _told(line, keep_in(spool.owed, (side, side, side)), amender)
        bring = partial(
            carry,
            places=places,
            spool=spool,
            read=read,
            deadline_s=settings.deadline_s,
            tell=meters.count,
        )
        Agent(places, spool, inbox, bring, amender, settings, stop).work()
    log.info("stopped", unfinished="nothing is lost; what is left is taken up at the next start")


class Agent:
    """The turns of the daemon, and the studies it has set aside until the next start."""

    def __init__(
        self,
        places: Places,
        spool: Spool,
        inbox: Inbox,
        bring: Carry,
        amender: Amender,
        settings: EdgeSettings,
        stop: threading.Event,
    ) -> None:
        self._places = places
        self._spool = spool
        self._inbox = inbox
        self._carry = bring
        self._amender = amender
        self._settings = settings
        self._stop = stop
        self._aside: set[str] = set()
        self._blameless: set[str] = set()
        self._in_a_row = 0

    def work(self) -> None:
        """Turn after turn, until the stop is set; waits where there is nothing to do."""
        log.info("watching", quiet_s=self._settings.quiet_s, deadline_s=self._settings.deadline_s)
        while not self._stop.is_set():
            try:
                busy = self.turn()
            except (OSError, sqlite3.OperationalError) as error:
                if not no_room(error):
                    raise
                self._pause(error)
                continue
            if not busy:
                self._stop.wait(self._settings.poll_s)

    def turn(self) -> bool:
        """Claim what is complete, and carry the oldest unfinished study to its end.

        Where there is none, and now and then where there are many, what is owed has its turn.
        Returns whether there was anything to do.

        Raises:
            OSError, sqlite3.OperationalError: the disk is full; nothing is lost, turn again.
        """
        places, spool = self._places, self._spool
        self._take_attempts_back()
        for record in spool.at(Step.CLAIMING):
            resume = partial(resume_claim, record, places.inbox, places.work, spool)
            self._attempt(record.id, resume)
        for arrival in self._inbox.complete():
            take = partial(claim, arrival, places.inbox, places.work, spool, self._is_taken)
            self._attempt(arrival.fingerprint, take)
        waiting = (r for r in spool.at(*UNFINISHED) if r.id not in self._aside)
        record_now = next(waiting, None)
        if record_now is not None:
            self._attempt(record_now.id, partial(self._carry, record_now))
        self._in_a_row = 0 if record_now is None else self._in_a_row + 1
        amends = self._in_a_row % AMEND_EVERY == 0 and self._amender.turn()
        return record_now is not None or amends

    def _attempt(self, key: str, action: Callable[[], object]) -> None:
        """Do it; if files cannot be written or moved, set it aside, so that the others go on."""
        if key in self._aside:
            return
        try:
            action()
        except OSError as error:
            if no_room(error):
                raise
            log.exception("set aside until the next start", study_key=key)
            self._aside.add(key)
            self._blameless |= {key} & self._being_read()
            self._take_attempts_back()

    def _is_taken(self, name: str) -> bool:
        return (self._places.outbox / name).exists()

    def _pause(self, error: Exception) -> None:
        """Wait for room; the attempt that met the full disk is not held against its study."""
        pause_s = PAUSE_POLLS * self._settings.poll_s
        log.error("no room on the disk, pausing", error=str(error), pause_s=pause_s)
        self._blameless |= self._being_read()
        with suppress(sqlite3.OperationalError):  # the next turn tries again
            self._take_attempts_back()
        self._stop.wait(pause_s)

    def _being_read(self) -> set[str]:
        return {record.id for record in self._spool.at(Step.READING)}

    def _take_attempts_back(self) -> None:
        """Of the studies that are not to blame; the database itself may have no room."""
        for key in sorted(self._blameless):
            self._spool.advance(key, Step.CLAIMED)
            self._blameless.discard(key)


def _told(line: Read, keep: Keep, amender: Amender) -> Read:
    """The line, with what its reports owe kept; the amender is told when the cloud has answered."""

    def read(job: Job) -> Reading:
        reading = line(replace(job, keep=keep))
        if "cloud" in reading.report.models:
            amender.heard()
        return reading

    return read


def _amender(
    settings: EdgeSettings,
    places: Places,
    spool: Spool,
    second: Asked,
    meters: Meters,
    clock: Callable[[], float],
) -> Amender:
    persistence = Persistence(
        settings.deadline_s, settings.max_rois, settings.owed_pause_s, settings.owed_keep_days
    )
    return Amender(spool, places.outbox, second, persistence, tell=meters.amended, clock=clock)
