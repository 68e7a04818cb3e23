"""The daemon: takes studies from the inbox, one after the other, until it is told to stop.

Here its parts are opened and put together; what it does with them are its `edge.turns`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import structlog

from edge.amend import Amender, Asked
from edge.assemble import open_line
from edge.begun import Begun
from edge.carry import Places, Read, carry
from edge.drain import draining
from edge.escalate import Escalator, NoSecondReader
from edge.ingest import Inbox
from edge.keep import Keep, keep_in
from edge.outcome import Job
from edge.persistence import Persistence
from edge.pipeline import Reading
from edge.reading import read_and_report
from edge.settings import EdgeSettings
from edge.spool import Spool, StepHook, exclusive
from edge.telemetry import Meters
from edge.turns import Turns

LOCK = ".overread.lock"

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
        clock: monotonic seconds, and that of the line.
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
        second = second or NoSecondReader()
        meters.watch(second.glance if isinstance(second, Escalator) else second.estimate)
        held.enter_context(draining(stop))
        inbox, begun = Inbox(places.inbox, settings.quiet_s, clock), Begun(clock())
        persistence = Persistence.of(settings)
        amender = Amender(
            spool, places.outbox, second, persistence, tell=meters.amended, clock=clock
        )
        side = settings.roi_side
        read = _told(line, keep_in(spool.owed, (side, side, side)), begun, amender)
        bring = partial(
            carry,
            places=places,
            spool=spool,
            read=read,
            deadline_s=settings.deadline_s,
            tell=meters.count,
            waited_s=lambda key: max(0.0, clock() - begun.since_s(key)),
        )
        Turns(places, spool, inbox, begun, bring, amender, meters, settings, stop).work()
    log.info("stopped", unfinished="nothing is lost; what is left is taken up at the next start")


def _told(line: Read, keep: Keep, begun: Begun, amender: Amender) -> Read:
    """The line, told since when a study's budget runs, and with what its reports owe kept.

    The amender is told when the cloud has answered.
    """

    def read(job: Job) -> Reading:
        since_s = begun.since_s(job.study_key)
        reading = line(replace(job, keep=keep, since_s=since_s))
        if "cloud" in reading.report.models:
            amender.heard()
        return reading

    return read
