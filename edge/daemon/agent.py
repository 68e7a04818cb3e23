"""The daemon: takes studies from the inbox, one after the other, until it is told to stop.

Here its parts are opened and put together; what it does with them are its `edge.daemon.loop`.

Ends the daemon in two signals: the first finishes the study at hand, the second ends at once.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from types import FrameType

import structlog

from edge.amend.amender import Amender, Persistence
from edge.assemble import open_pipeline
from edge.daemon.inbox import Inbox
from edge.daemon.loop import Begun, Turns
from edge.daemon.study import Places, Read, carry
from edge.escalation.client import Escalator, NoSecondReader, SecondReader
from edge.job import Job
from edge.pipeline import Pipeline, StudyResult, read_and_report
from edge.settings import EdgeSettings
from edge.store.pending import PersistPending, keep_in
from edge.store.studies import Spool, StepHook, exclusive
from edge.telemetry import Meters


@contextmanager
def draining(stop: threading.Event) -> Iterator[None]:
    """The first SIGTERM or SIGINT sets ``stop``; the second ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread
        return
    numbers = (signal.SIGTERM, signal.SIGINT)

    def drain(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        # not here: the main thread may hold the event's lock, and this is the main thread
        threading.Thread(target=stop.set, daemon=True).start()

    before = {number: signal.signal(number, drain) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


LOCK = ".overread.lock"

ReadStudy = Callable[[Job, PersistPending], StudyResult]
"""Reads one study, and persists what is still pending before its report is out."""

log = structlog.get_logger()


def run_agent(
    settings: EdgeSettings,
    *,
    read: ReadStudy | None = None,
    second: SecondReader | None = None,
    clock: Callable[[], float] = time.monotonic,
    stop: threading.Event | None = None,
    on_step: StepHook | None = None,
) -> None:
    """Work until ``stop`` is set or SIGTERM or SIGINT arrives; the study at hand is finished.

    Args:
        settings: of this process.
        read: reads one study; the pipeline of the settings does if None.
        second: is asked again for what is owed; that of the pipeline if None.
        clock: monotonic seconds, and that of the pipeline.
        stop: ends the work when it is set.
        on_step: is told of every durable step.

    Raises:
        AlreadyRunning: another agent works on the inbox or the state folder.
        EdgeError: the pipeline, the database or the metrics cannot be opened.
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
        metrics = meters.serve(settings.metrics_address, settings.metrics_port)
        if (port := held.enter_context(metrics)) is not None:
            log.info("metrics served", address=f"{settings.metrics_address}:{port}")
        if read is None:
            pipeline = held.enter_context(open_pipeline(settings, clock=clock))
            read, second = partial(_read, pipeline), second or pipeline.second_reader
        second = second or NoSecondReader()
        meters.watch(second.estimate_now if isinstance(second, Escalator) else second.estimate)
        held.enter_context(draining(stop))
        inbox, begun = Inbox(places.inbox, settings.quiet_s, clock), Begun(clock())
        persistence = Persistence.of(settings)
        amender = Amender(
            spool, places.outbox, second, persistence, tell=meters.amended, clock=clock
        )
        side = settings.roi_side
        persist = keep_in(spool.owed, (side, side, side))
        bring = partial(
            carry,
            places=places,
            spool=spool,
            read=_told(read, persist, begun, amender),
            deadline_s=settings.deadline_s,
            tell=meters.count,
            waited_s=lambda key: max(0.0, clock() - begun.since_s(key)),
        )
        Turns(places, spool, inbox, begun, bring, amender, meters, settings, stop).work()
    log.info("stopped", unfinished="nothing is lost; what is left is taken up at the next start")


def _read(pipeline: Pipeline, job: Job, persist: PersistPending) -> StudyResult:
    return read_and_report(replace(pipeline, persist_pending=persist), job)


def _told(read: ReadStudy, persist: PersistPending, begun: Begun, amender: Amender) -> Read:
    """Add to a job since when its budget runs, and tell the amender when the cloud answers."""

    def read_job(job: Job) -> StudyResult:
        result = read(replace(job, since_s=begun.since_s(job.study_key)), persist)
        if "cloud" in result.report.models:
            amender.heard()
        return result

    return read_job
