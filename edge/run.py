"""The agent: a core and its parts, from the first lock to the last port.

This is the only module that knows all parts. It opens them in order around the main loop of
`edge.agent.loop`, and closes them in reverse.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from enum import Enum
from functools import partial
from importlib.metadata import version
from types import FrameType

import structlog

from edge.agent.loop import MainLoop, ReadStudy
from edge.assemble import open_pipeline
from edge.audit import Event
from edge.checks import folder_problem
from edge.database import Schema, StepHook
from edge.dicom_in.part import ReceivePart
from edge.dicom_out.deliver import MakeObjects, made_objects
from edge.dicom_out.part import DeliverPart
from edge.drift.part import DriftPart
from edge.escalation.client import Escalator, NoSecondReader, SecondReader
from edge.folders import exclusive
from edge.link.estimate import LinkEstimate
from edge.models.part import ModelsPart
from edge.part import Agent, Part
from edge.retention import RetentionPart
from edge.rules.rule import load_rules
from edge.settings.core import CLOUD_OFF, EdgeSettings
from edge.site import Site
from edge.status.part import PagePart
from edge.store.repair import opened
from edge.telemetry import EdgeTelemetry
from edge.trail.part import TrailPart
from process.command_line import ignore_hangup
from process.endpoints import Pulse, notify_systemd, serving_metrics
from process.memory import share_free_memory

PARTS: Sequence[type[Part]] = (
    TrailPart, ModelsPart, DriftPart, RetentionPart, PagePart, DeliverPart, ReceivePart
)  # fmt: skip
"""All parts, in the order in which they are opened: what receives studies last."""

STALLED_S = 300.0
"""After this time without a new pass, stage or durable step, the main loop counts as stalled."""

log = structlog.get_logger()


def site_of(settings: EdgeSettings) -> Site:
    """Return the site of these settings, with what all parts store in its database."""
    return Site.of(settings, Schema.joined(part.schema(settings) for part in PARTS))


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
        EdgeError: the pipeline, the database, the metrics or a part cannot be opened.
        ModelError: the model cannot be opened.
        OSError: a folder cannot be created or written.
    """
    rules, site = load_rules(settings.rules), site_of(settings)
    site.folders.make()
    share_free_memory()
    ignore_hangup()
    with ExitStack() as held:
        if settings.traces:  # by an extra
            from process.otel import exporting

            held.enter_context(exporting("overread-edge", settings.traces))
        for folder in dict.fromkeys((site.folders.inbox, site.folders.outbox, site.folders.state)):
            held.enter_context(exclusive(folder / ".overread.lock"))
        # No stage may take longer than STALLED_S, except waiting: for the cloud, or in a pause.
        pulse = Pulse(STALLED_S + settings.deadline_s + site.pause_s, clock)

        hook = on_step or (lambda _step, _durable: None)
        loops: list[MainLoop] = []

        def step(to: Enum, durable: bool) -> None:
            pulse.beat()
            hook(to, durable)

        arrived, opening = threading.Event(), ["the model is being loaded"]
        agent = Agent(
            site, EdgeTelemetry(), stop or threading.Event(), hook, clock,
            wake=arrived.set, problem=pulse.problem,
        )  # fmt: skip
        agent.store = held.enter_context(opened(site.database, site.schema, step))
        agent.parts = parts_of(agent, make_objects)
        ready = {"model": lambda: "".join(opening), **readiness(agent)}
        metrics = serving_metrics(
            agent.telemetry.registry, settings.metrics_address, {"main loop": pulse.problem}, ready
        )
        if (address := held.enter_context(metrics)) is not None:
            log.info("metrics served", address=address)

        def on_stage(stage: str) -> None:
            pulse.beat()
            agent.telemetry.begin_stage(stage)
            if stage == "escalate":  # the machine waits for the cloud
                for loop in loops:
                    loop.read_ahead()

        if read is None:
            (models,) = [part for part in agent.parts if isinstance(part, ModelsPart)]
            opening_pipeline = open_pipeline(
                settings,
                on_stage=on_stage,
                on_sending=lambda sending: agent.store.trail.record(Event.SENT, **asdict(sending)),
                clock=clock,
                reads_ahead=True,
                screening=models.live.open_active,
            )
            pipeline = held.enter_context(opening_pipeline)
            models.attach(pipeline)
            agent.telemetry.observe_reading(pipeline.read_peak_mb)
            read, second = models.live.read, second or pipeline.second_reader
            if settings.cloud.address is not None:
                agent.telemetry.observe_expiries(settings.cloud.tls)
        second = second or NoSecondReader()
        # collecting metrics must not wait for a health check
        estimate = second.estimate_now if isinstance(second, Escalator) else second.estimate
        agent.telemetry.observe_link(estimate)
        if isinstance(second, Escalator):
            agent.telemetry.traffic.traffic = second.traffic
        agent.links = partial(_links, settings, second)
        held.enter_context(draining(agent.stop))
        for part in agent.parts:
            held.enter_context(part.opened())
        opening.clear()
        notify_systemd("READY=1")
        model = agent.pipeline()
        label = model.provenance.edge_model if model else ""
        log.info("agent started", **description(settings), model=label)
        for part in agent.parts:
            part.started()
        loops.append(MainLoop(agent, read, second, rules, arrived))
        loops[0].work(pulse.beat)
    log.info("agent stopped", hint="unfinished studies continue at the next start")


def parts_of(agent: Agent, make_objects: MakeObjects = made_objects) -> list[Part]:
    """Return all parts of an agent, none of them open."""
    return [kind(agent, make_objects) if kind is DeliverPart else kind(agent) for kind in PARTS]


def readiness(agent: Agent) -> dict[str, Callable[[], str]]:
    """Return the checks of ``/readyz``: whether the agent can read the next study."""
    folders = agent.site.folders
    checks: dict[str, Callable[[], str]] = {
        "inbox": partial(folder_problem, folders.inbox),
        "outbox": partial(folder_problem, folders.outbox),
        "state_dir": partial(folder_problem, folders.state),
        "database": agent.site.problem,
    }
    for part in agent.parts:
        checks |= part.ready()
    return checks


def description(settings: EdgeSettings) -> Mapping[str, object]:
    """Return, for the log, what the agent watches, where its results go, and who reads again."""
    cloud = settings.cloud
    return {
        "version": version("overread"),
        "settings": str(settings.file or "no file"),
        "inbox": str(settings.inbox.absolute()),
        "outbox": str(settings.outbox.absolute()),
        "state_dir": str(settings.state_dir.absolute()),
        "cloud": cloud.address or CLOUD_OFF,
        **({"fallback": cloud.fallback} if cloud.fallback else {}),
        **({"encryption": cloud.tls.encryption} if cloud.address else {}),
        **({"targets": [one.name for one in settings.targets]} if settings.targets else {}),
        "quiet_s": settings.quiet_s,
        "deadline_s": settings.deadline_s,
        **({"rules": str(settings.rules.absolute())} if settings.rules else {}),
    }


def _links(settings: EdgeSettings, second: SecondReader) -> dict[str, LinkEstimate]:
    """Return the estimate of each cloud by its address; nothing waits for a health check."""
    cloud = settings.cloud
    if isinstance(second, Escalator):
        clouds = filter(None, (cloud.address, cloud.fallback))
        return dict(zip(clouds, second.estimates_now(), strict=False))
    estimate = second.estimate()
    return {} if estimate.off else {cloud.address or "cloud": estimate}


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
