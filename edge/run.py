"""The agent: read the studies in the inbox, one after the other, until SIGTERM.

This module opens the parts and connects them. The work is in `edge.agent.loop`.
"""

import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from enum import Enum
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType

import structlog

from edge.agent.inbox import Inbox
from edge.agent.loop import PAUSE_POLLS, MainLoop
from edge.agent.ready import database_problem, folder_problem
from edge.agent.study import process_study
from edge.amend.amender import Amender, RetryBudget
from edge.assemble import open_pipeline
from edge.audit import AuditTrail, Event
from edge.database import StepHook
from edge.dicom_in.receiving import Receivers, receiving
from edge.dicom_out import exports
from edge.dicom_out.deliver import MakeObjects, delivering, made_objects, open_target
from edge.dicom_out.exports import ExportStore
from edge.drift import store as drift_store
from edge.drift.keeper import FINDING, DriftKeeper
from edge.drift.monitor import DriftMonitor
from edge.escalation.client import Escalator, NoSecondReader, SecondReader
from edge.folders import AgentFolders, exclusive
from edge.job import Job
from edge.link.estimate import LinkEstimate
from edge.models import store as model_store
from edge.models.live import LiveModels, fetching
from edge.pipeline import Pipeline, StudyResult, read_and_report
from edge.report.model import Report
from edge.retention import Retention
from edge.rules.file import load_rules
from edge.rules.rule import Rules
from edge.rules.selection import priority_of
from edge.settings.cloud import CLOUD_OFF
from edge.settings.core import EdgeSettings
from edge.site import Site
from edge.status.serve import serve_status, state_of
from edge.store.pending import PersistPending, persist_in
from edge.store.repair import LostDatabase, is_damage, open_or_replace, reopen
from edge.store.schema import Schema
from edge.store.studies import StudyStore
from edge.telemetry import Telemetry
from edge.trail import store as trail_store
from edge.trail.lifecycle import record_start, recording
from edge.trail.store import TrailStore
from process.endpoints import Pulse
from process.tracing import exporting
from protos.messages import Priority

ReadStudy = Callable[[Job, PersistPending], StudyResult]
"""Reads one study, and persists what is still pending before its report is out."""

STALLED_S = 300.0
"""After this time without a new pass, stage or durable step, the main loop counts as stalled."""

log = structlog.get_logger()


def run_agent(
    settings: EdgeSettings,
    *,
    read: ReadStudy | None = None,
    second: SecondReader | None = None,
    clock: Callable[[], float] = time.monotonic,
    stop: threading.Event | None = None,
    on_step: StepHook | None = None,
    make_objects: MakeObjects = made_objects,
) -> None:
    """Work until ``stop`` is set or SIGTERM or SIGINT arrives; finish the current study.

    ``read`` and ``second`` stand in for the pipeline of the settings and its second reader;
    ``on_step`` is called with every durable step, those of deliveries in other threads;
    ``make_objects`` makes what the targets get.

    Raises:
        AlreadyRunning: another agent uses the inbox, the outbox or the state folder.
        EdgeError: the pipeline, the database, the metrics or a port for studies cannot be opened.
        ModelError: the model cannot be opened.
        OSError: a folder cannot be created or written.
    """
    rules = load_rules(settings.rules)
    site = site_of(settings)
    folders = site.folders
    folders.make()
    stop = stop or threading.Event()
    with ExitStack() as held:
        held.enter_context(exporting("overread-edge", settings.traces))
        for folder in dict.fromkeys((folders.inbox, folders.outbox, folders.state)):
            held.enter_context(exclusive(folder / ".overread.lock"))
        # No stage may take longer than STALLED_S, except waiting: for the cloud, or in a pause.
        waits_s = settings.deadline_s + PAUSE_POLLS * settings.poll_s
        pulse, opening = Pulse(STALLED_S + waits_s, clock), ["the model is being loaded"]

        def step(to: Enum, durable: bool) -> None:
            pulse.beat()
            if on_step is not None:
                on_step(to, durable)

        path = site.database
        store = open_or_replace(path, site.schema, step)
        held.callback(lambda: store.close())
        held.enter_context(recording(lambda: store.trail, settings))
        telemetry = Telemetry()
        state = state_of(settings)
        drift = DriftMonitor(state.database)
        telemetry.observe_drift(drift.level)
        receivers = list[Receivers]()
        ready: dict[str, Callable[[], str]] = {
            "model": lambda: "".join(opening),
            "inbox": partial(folder_problem, folders.inbox),
            "outbox": partial(folder_problem, folders.outbox),
            "state_dir": partial(folder_problem, folders.state),
            "database": partial(database_problem, path),
        }
        if settings.receive.is_on:
            ready |= {"receiving": lambda: next((one.problem() for one in receivers), "")}
        metrics = telemetry.serve(settings, {"main loop": pulse.problem}, ready)
        if (address := held.enter_context(metrics)) is not None:
            log.info("metrics served", address=address)
        models: LiveModels | None = None
        if read is None:
            models = LiveModels(site, clock)
            opened = open_pipeline(
                settings,
                on_stage=lambda _stage: pulse.beat(),
                on_sending=lambda sending: store.trail.record(Event.SENT, **asdict(sending)),
                clock=clock,
                screening=models.open_active,
            )
            pipeline = held.enter_context(opened)
            models.attach(pipeline)
            telemetry.observe_models(models.active_model, models.shadow_state)
            held.enter_context(fetching(site))
            read, second = models.reading(_read), second or pipeline.second_reader
            if settings.cloud.address is not None:
                telemetry.set_expiries(settings.cloud.tls.expiries())
        second = second or NoSecondReader()
        # collecting metrics must not wait for a health check
        estimate = second.estimate_now if isinstance(second, Escalator) else second.estimate
        telemetry.observe_link(estimate)
        clouds = partial(_links, settings, second)
        page = serve_status(site, state, drift, live=models, links=clouds, alive=pulse.problem)
        if (url := held.enter_context(page)) is not None:
            log.info("status page served", url=url)
        held.enter_context(draining(stop))
        if settings.targets:
            held.enter_context(
                delivering(
                    site,
                    make_objects,
                    [(one, open_target(one)) for one in settings.targets],
                    on_step=on_step or (lambda _step, _durable: None),
                    on_outcome=telemetry.count_delivery,
                    on_backlog=telemetry.set_deliveries,
                    clock=clock,
                )
            )
        opening.clear()
        # opened last: at the end nothing comes in any more before the other parts are closed
        hook = on_step or (lambda _step, _durable: None)
        arrived = threading.Event()
        opened_ports = receiving(settings, folders.inbox, telemetry, hook, arrived.set)
        ports = held.enter_context(opened_ports)
        receivers.append(ports)
        model = models.label if models else ""
        log.info("agent started", **description(settings), model=model)
        record_start(store.trail, settings, model, stop)
        while True:
            make = partial(_main_loop, settings, folders, store, read, second, models)
            try:
                make(telemetry, clock, stop, arrived, rules, ports.forget).work(pulse.beat)
                break
            except (LostDatabase, sqlite3.DatabaseError) as error:
                if not isinstance(error, LostDatabase) and not is_damage(error):
                    raise
                folders.make()
                store = reopen(path, store, error, site.schema, step)
                store.trail.flush()
    log.info("agent stopped", hint="unfinished studies continue at the next start")


def site_of(settings: EdgeSettings) -> Site:
    """Return the site of these settings, with what all parts store in its database."""
    trail, targets = AgentFolders.of(settings).trail, [one.name for one in settings.targets]
    return Site.of(settings, schema_of(trail, targets))


def schema_of(trail: Path, targets: Sequence[str]) -> Schema:
    """Return what all parts store; ``trail`` is the folder of the audit trail."""
    stores = (trail_store, exports, drift_store, model_store)
    migrations = tuple(one for store in stores for one in store.MIGRATIONS)

    def audit(database: sqlite3.Connection, on_step: StepHook) -> AuditTrail:
        return TrailStore(database, trail, on_step=on_step)

    def export(database: sqlite3.Connection, audit: AuditTrail, on_step: StepHook) -> ExportStore:
        return ExportStore(database, on_step, targets, audit)

    return Schema(migrations, audit, (export,) if targets else ())


def description(settings: EdgeSettings) -> dict[str, object]:
    """Return, for the log, what the agent watches, where its results go, and who reads again."""
    return {
        "version": version("overread"),
        "settings": str(settings.file or "no file"),
        "inbox": str(settings.inbox.absolute()),
        "outbox": str(settings.outbox.absolute()),
        "state_dir": str(settings.state_dir.absolute()),
        "cloud": settings.cloud.address or CLOUD_OFF,
        **({"fallback": settings.cloud.fallback} if settings.cloud.fallback else {}),
        **({"encryption": settings.cloud.tls.encryption} if settings.cloud.address else {}),
        **({"targets": [one.name for one in settings.targets]} if settings.targets else {}),
        "quiet_s": settings.quiet_s,
        "deadline_s": settings.deadline_s,
        **({"rules": str(settings.rules.absolute())} if settings.rules else {}),
    }


def _main_loop(
    settings: EdgeSettings,
    folders: AgentFolders,
    store: StudyStore,
    read: ReadStudy,
    second: SecondReader,
    models: LiveModels | None,
    telemetry: Telemetry,
    clock: Callable[[], float],
    stop: threading.Event,
    arrived: threading.Event,
    rules: Rules,
    on_refused: Callable[[str], None],
) -> MainLoop:
    """Connect the parts around an open database; without ``models`` the model never changes.

    ``on_refused`` is called with the name in the inbox of a study that was refused.
    """
    budget = RetryBudget.of(settings)
    keeper = DriftKeeper(store, folders.outbox, lambda: models.finding if models else FINDING)

    def on_amended(report: Report) -> None:
        telemetry.count_amendment(report)
        keeper.changed()

    amender = Amender(store, folders.outbox, second, budget, on_amended=on_amended, clock=clock)

    def on_report(report: Report) -> None:
        telemetry.count_report(report)
        keeper.changed()
        if report.rejection is not None:
            on_refused(report.source.name)
        if "cloud" in report.models:
            amender.responded()

    side = settings.cloud.roi_side
    persist = persist_in(store.pending, (side, side, side))
    process = partial(
        process_study,
        folders=folders,
        store=store,
        read=lambda job: read(job, persist),
        deadline_s=settings.deadline_s,
        on_report=on_report,
        clock=clock,
    )
    inbox = Inbox(folders.inbox, settings.quiet_s, clock)
    retention = Retention(folders, store, settings, telemetry.count_removal, clock)
    priority = priority_of(rules, Priority(settings.priority))
    parts = (process, amender, keeper, retention, telemetry, settings)
    between = models.run_once if models else lambda _waiting: False
    return MainLoop(folders, store, inbox, *parts, stop, arrived, clock, priority, between=between)


def _read(pipeline: Pipeline, job: Job, persist: PersistPending) -> StudyResult:
    provenance = replace(pipeline.provenance, amends=True)
    amended = replace(pipeline, persist_pending=persist, provenance=provenance)
    return read_and_report(amended, job)


def _links(settings: EdgeSettings, second: SecondReader) -> dict[str, LinkEstimate]:
    """Return the estimate of each cloud by its address; nothing waits for a health check."""
    if isinstance(second, Escalator):
        clouds = filter(None, (settings.cloud.address, settings.cloud.fallback))
        return dict(zip(clouds, second.estimates_now(), strict=False))
    estimate = second.estimate()
    return {} if estimate.off else {settings.cloud.address or "cloud": estimate}


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
