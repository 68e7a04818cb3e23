"""The agent: read the studies in the inbox, one after the other, until SIGTERM.

This module opens the parts and connects them. The work is in `edge.agent.loop`.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from types import FrameType

import structlog

from edge.agent.folders import AgentFolders
from edge.agent.inbox import Inbox
from edge.agent.loop import MainLoop
from edge.agent.study import process_study
from edge.amend.amender import Amender, RetryBudget
from edge.assemble import open_pipeline
from edge.escalation.client import Escalator, NoSecondReader, SecondReader
from edge.job import Job
from edge.pipeline import Pipeline, StudyResult, read_and_report
from edge.report.model import Report
from edge.settings import EdgeSettings
from edge.store.pending import PersistPending, persist_in
from edge.store.studies import StepHook, StudyStore, exclusive
from edge.telemetry import Telemetry

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
    """Work until ``stop`` is set or SIGTERM or SIGINT arrives; finish the current study.

    ``read`` and ``second`` stand in for the pipeline of the settings and its second reader;
    ``on_step`` is called with every durable step.

    Raises:
        AlreadyRunning: another agent uses the inbox, the outbox or the state folder.
        EdgeError: the pipeline, the database or the metrics cannot be opened.
        ModelError: the model cannot be opened.
        OSError: a folder cannot be created or written.
    """
    folders = AgentFolders.of(settings)
    folders.make()
    stop = stop or threading.Event()
    with ExitStack() as held:
        for folder in dict.fromkeys((folders.inbox, folders.outbox, folders.state)):
            held.enter_context(exclusive(folder / ".overread.lock"))
        store = held.enter_context(StudyStore(folders.state / "spool.sqlite3", on_step))
        telemetry = Telemetry()
        metrics = telemetry.serve(settings.metrics_address, settings.metrics_port)
        if (port := held.enter_context(metrics)) is not None:
            log.info("metrics served", address=f"{settings.metrics_address}:{port}")
        if read is None:
            pipeline = held.enter_context(open_pipeline(settings, clock=clock))
            read, second = partial(_read, pipeline), second or pipeline.second_reader
        second = second or NoSecondReader()
        # collecting metrics must not wait for a health check
        estimate = second.estimate_now if isinstance(second, Escalator) else second.estimate
        telemetry.observe_link(estimate)
        held.enter_context(draining(stop))
        budget = RetryBudget.of(settings)
        amender = Amender(
            store, folders.outbox, second, budget, on_amended=telemetry.count_amendment, clock=clock
        )

        def on_report(report: Report) -> None:
            telemetry.count_report(report)
            if "cloud" in report.models:
                amender.responded()

        side, read_study = settings.roi_side, read
        persist = persist_in(store.pending, (side, side, side))
        process = partial(
            process_study,
            folders=folders,
            store=store,
            read=lambda job: read_study(job, persist),
            deadline_s=settings.deadline_s,
            on_report=on_report,
            clock=clock,
        )
        inbox = Inbox(folders.inbox, settings.quiet_s, clock)
        MainLoop(folders, store, inbox, process, amender, telemetry, settings, stop, clock).work()
    log.info("agent stopped", hint="unfinished studies continue at the next start")


def _read(pipeline: Pipeline, job: Job, persist: PersistPending) -> StudyResult:
    return read_and_report(replace(pipeline, persist_pending=persist), job)


@contextmanager
def draining(stop: threading.Event) -> Iterator[None]:
    """Set ``stop`` at the first SIGTERM or SIGINT; the second one ends the process at once."""
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
