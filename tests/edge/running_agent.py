"""The agent put to work, here or as a process, as its parts see it, and its commands."""

import json
import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from enum import Enum
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import structlog
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from edge.cli.main import app
from edge.database import StepHook
from edge.escalation.client import NoSecondReader
from edge.job import Job
from edge.part import Agent, Panel, Part
from edge.pipeline import PersistPending, StudyResult, read_and_report
from edge.report.model import Rejection, Report, Status
from edge.report.write import write_report
from edge.retention import RetentionPart
from edge.run import ReadStudy, run_agent, site_of
from edge.settings.core import EdgeSettings
from edge.store.pending import PendingStep
from edge.store.record import Step
from edge.store.studies import StudyStore
from edge.telemetry import EdgeTelemetry
from evaluation.world import settings_in
from imaging.dicom.arrival import arrived
from imaging.errors import IncompleteSeries
from tests.edge.builders import (
    ForgetfulCloud,
    SilentCloud,
    nothing,
    pending_pipeline,
    report_in,
    report_with,
    study_at,
)

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.edge.running_agent"])
PATIENCE_S = 300.0

Crash = tuple[Enum, bool] | None
"""The durable step at which an agent kills itself, and whether just after it."""


class Stop(threading.Event):
    """The agent's stop, which leaves a file when the agent first asks whether it is set."""

    def __init__(self, asked: Path) -> None:
        super().__init__()
        self._asked = asked

    def is_set(self) -> bool:
        self._asked.touch()
        return super().is_set()


def nothing_pending(*_: object) -> None:
    """Persist nothing."""


def quick_read(job: Job, persist: PersistPending = nothing_pending) -> StudyResult:
    """Obeys the study's text: ``bad`` is rejected, ``boom`` raises, ``pending`` is provisional."""
    text = "".join(path.read_text() for path in sorted(job.source.glob("*.dcm")))
    if "boom" in text:
        raise RuntimeError("a fault in the pipeline")
    if "pending" in text:
        return read_and_report(
            replace(pending_pipeline(SilentCloud()), persist_pending=persist), job
        )
    rejection = Rejection("NotCt", "this is no CT", "0.dcm") if "bad" in text else None
    report = Report(
        study_key=job.study_key,
        created="2026-01-02T03:04:05+00:00",
        source=job.source,
        deadline_s=10.0,
        status=Status.REJECTED if rejection else Status.FINAL,
        rejection=rejection,
    )
    return StudyResult(report, write_report(report, {}, job.out))


class Reader:
    """The pipeline behind the agent, around a way to read files.

    ``names`` and ``read`` are the names and images of the studies that it got. A study with fewer
    than ``enough`` images is refused.
    """

    def __init__(
        self,
        enough: int = 0,
        files: Callable[[Path], Any] = study_at,
        second: Any = None,
        **stages: Any,
    ) -> None:
        self.names, self.read = list[str](), list[set[str]]()
        self.second = second or NoSecondReader()
        self._enough, self._files, self._stages = enough, files, stages

    def __call__(self, job: Job, persist: PersistPending = nothing_pending) -> StudyResult:
        images = {image.image_uid for image in arrived(job.source)}
        self.names.append(job.source.name)
        self.read.append(images)

        def read(path: Path) -> Any:
            if len(images) < self._enough:
                raise IncompleteSeries("too few slices: send the whole series", path)
            return self._files(path)

        return report_with(job, persist, read, self.second, pictures=True, **self._stages)


def serve(root: Path, crash: Crash = None, read: ReadStudy = quick_read) -> None:
    """Run the agent in this process; it kills itself at the durable step ``crash``.

    ``started`` lies in ``root`` before it opens anything, ``watching`` once it obeys signals.
    """

    def on_step(step: Step | PendingStep, durable: bool) -> None:
        if (step, durable) == crash:
            os.kill(os.getpid(), signal.SIGKILL)

    (root / "started").touch()
    with a_version_for_each_verdict():
        run_agent(
            settings_in(root),
            read=read,
            second=ForgetfulCloud(root / "asked"),
            on_step=on_step,
            stop=Stop(root / "watching"),
        )


def a_version_for_each_verdict() -> AbstractContextManager[object]:
    return patch("edge.amend.amender.QUIET_S", 0.0)


def work_off(
    root: Path,
    read: ReadStudy = quick_read,
    on_step: StepHook | None = None,
    clock: Callable[[], float] = time.monotonic,
    settings: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Run the agent in this process until every study in the inbox has been processed."""
    stop = threading.Event()
    expected = sum(not name.startswith(".") for name in os.listdir(root / "inbox"))
    expected += unfinished(root)

    def watch(step: Step | PendingStep, durable: bool) -> None:
        nonlocal expected
        if on_step is not None:
            on_step(step, durable)
        if durable and step in (Step.DONE, Step.QUARANTINED):
            expected -= 1
        if expected <= 0:
            stop.set()

    given = settings_in(root, **settings)
    run_agent(given, read=read, stop=stop, on_step=watch, clock=clock)


Logs = list[Any]


@contextmanager
def running(settings: EdgeSettings, **parts: Any) -> Iterator[Logs]:
    """The agent in a thread, and what it logs; it must end without an error."""
    stop, failed = threading.Event(), list[BaseException]()

    def live() -> None:
        try:
            run_agent(settings, stop=stop, **parts)
        except BaseException as error:
            failed.append(error)

    agent = threading.Thread(target=live)
    with capture_logs() as logs:
        agent.start()
        try:
            yield logs
        finally:
            stop.set()
            agent.join()
            assert failed == []


def wait_for_log(logs: Logs, event: str) -> dict[str, Any]:
    """The first line of this event, once it is there."""
    wait_until(lambda: any(log["event"] == event for log in list(logs)))
    return next(log for log in list(logs) if log["event"] == event)


def unfinished(root: Path) -> int:
    """Unfinished studies and pending reads, read without disturbing the agent."""
    if not database(root).exists():
        return 0
    query = "SELECT (SELECT count(*) FROM studies WHERE step NOT IN (?, ?)) +"
    query += " (SELECT count(*) FROM pending)"
    with closing(sqlite3.connect(f"file:{database(root)}?mode=ro", uri=True)) as opened:
        ends = (Step.DONE.value, Step.QUARANTINED.value)
        return int(opened.execute(query, ends).fetchone()[0])


def idle(root: Path) -> bool:
    left = [name for name in os.listdir(root / "inbox") if not name.startswith(".")]
    try:
        return not left and unfinished(root) == 0
    except sqlite3.OperationalError:  # the agent has not made the tables yet
        return False


def start(root: Path, crash: Crash = None, read: ReadStudy = quick_read) -> ForkServerProcess:
    process = PROCESSES.Process(target=serve, args=(root, crash, read))
    process.start()
    return process


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when it holds; fail the test if it never does."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "it never held"
        time.sleep(0.005)


def drain(root: Path) -> None:
    """Start the agent, let it do all there is, and end it by SIGTERM."""
    watching = root / "watching"
    watching.unlink(missing_ok=True)
    process = start(root)
    wait_until(lambda: process.exitcode is not None or (watching.exists() and idle(root)))
    process.terminate()
    process.join(PATIENCE_S)
    assert process.exitcode == 0


def whereabouts(root: Path) -> dict[str, list[str]]:
    """By study name, the folders that hold all of it."""
    places: dict[str, list[str]] = {}
    for end, pattern in (("done", "done/*/*"), ("quarantine", "quarantine/*/study/*")):
        for folder in (root / "state").glob(pattern):
            assert len(list(folder.glob("*.dcm"))) == 2
            places.setdefault(folder.name, []).append(end)
    return places


def statuses(root: Path) -> dict[str, str]:
    reports = (root / "outbox").glob("*/report.json")
    return {path.parent.name: json.loads(path.read_text())["status"] for path in reports}


def assert_each_once(root: Path, good: set[str], bad: set[str]) -> None:
    ends = {**{name: ["done"] for name in good}, **{name: ["quarantine"] for name in bad}}
    assert whereabouts(root) == ends
    outcomes = {**dict.fromkeys(good, "final"), **dict.fromkeys(bad, "rejected")}
    assert statuses(root) == outcomes
    assert [*os.listdir(root / "state" / "work"), *root.rglob("*.part")] == []


def assert_amended_once(out: Path) -> None:
    """The last version is final with both verdicts, and the versions before it lie beside it."""
    root, name = out.parents[1], out.name
    last = report_in(root, name)
    version = last["version"]
    older = [report_in(root, name, f".v{n}") for n in range(1, version)]
    assert [report["version"] for report in older] == list(range(1, version))
    assert {report["study_key"] for report in older} == {last["study_key"]}
    assert len(list(out.glob("report.v*.json"))) == version - 1
    assert [change["number"] for change in last["changes"]] == [2, 3]
    assert [finding["number"] for finding in last["findings"]] == [2, 3, 1]
    assert f"version {version}<br>" in (out / "report.html").read_text()


class Killed(BaseException):
    """Stands for a crash inside this process: nothing may catch it."""


def killed(*_: object, **__: object) -> None:
    raise Killed


def reading(act: Callable[[Job], object] = killed) -> ReadStudy:
    """`quick_read` after ``act``, which may raise; by default the process dies."""

    def read(job: Job, persist: PersistPending) -> StudyResult:
        act(job)
        return quick_read(job, persist)

    return read


def once_at(step: Enum, durable: bool, act: Callable[[], object] = killed) -> StepHook:
    """A hook that acts once, at this step; by default the process dies."""
    left = [act]

    def on_step(now: Enum, is_durable: bool) -> None:
        if left and (now, is_durable) == (step, durable):
            left.pop()()

    return on_step


def database(root: Path) -> Path:
    return root / "state" / "spool.sqlite3"


def sql(path: Path, *statements: str, values: Sequence[object] = ()) -> None:
    """Change a database as another program does; ``values`` are for each statement."""
    with closing(sqlite3.connect(path, isolation_level=None)) as opened:
        for statement in statements:
            opened.execute(statement, values)


def full_error() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


def full_at(step: Step | PendingStep, times: int) -> StepHook:
    """A hook that finds the disk full just before ``step`` is durable, ``times`` times."""
    left = [times]

    def on_step(now: Step | PendingStep, durable: bool) -> None:
        if now is step and not durable and left[0]:
            left[0] -= 1
            raise full_error()

    return on_step


def held_at(path: Path, step: Step | PendingStep, looks: int) -> StepHook:
    """A hook from which on another holds the database at ``path``, just before ``step``.

    It releases it after ``looks`` more steps.
    """
    left, others = [looks], list[sqlite3.Connection]()

    def on_step(now: Step | PendingStep, durable: bool) -> None:
        if others:
            left[0] -= 1
            if not left[0]:
                others.pop().close()
        elif left[0] and now is step and not durable:
            others.append(sqlite3.connect(path, isolation_level=None))
            others[0].execute("BEGIN IMMEDIATE")

    return on_step


def agent_of(settings: EdgeSettings, store: StudyStore | None = None, **given: Any) -> Agent:
    """The agent of these settings, without parts; only the main loop has an open database."""
    values: dict[str, Any] = {
        "clock": lambda: 0.0,
        "wake": lambda: None,
        "problem": lambda: "",
        "telemetry": EdgeTelemetry(),
        **given,
    }
    agent = Agent(site_of(settings), stop=threading.Event(), on_step=nothing, **values)
    if store is not None:
        agent.store = store
    return agent


def remove_old(
    settings: EdgeSettings, store: StudyStore, wall: Callable[[], float], parts: Sequence[Part] = ()
) -> None:
    """Remove all that may go by these settings."""
    agent = agent_of(settings, store=store)
    agent.parts = list(parts)
    retention = RetentionPart(agent, wall)
    retention.started()
    while retention.work(waiting=False):
        pass


class Showing(Part):
    """A part that only shows panels."""

    def __init__(self, agent: Agent, panels: Iterable[Panel]) -> None:
        super().__init__(agent)
        self._panels = tuple(panels)

    def panels(self) -> tuple[Panel, ...]:
        return self._panels


def config_in(root: Path, *lines: str) -> Path:
    """The settings of the agent below ``root``, in a file; ``lines`` come after its folders."""
    folders = {"inbox": "inbox", "outbox": "outbox", "state_dir": "state"}
    file = root / "edge.toml"
    file.write_text("\n".join([*(f'{n} = "{root / p}"' for n, p in folders.items()), *lines]))
    return file


def command(
    root: Path, *arguments: str, lines: Iterable[str] = (), status: int | None = None
) -> Result:
    """A command of ``overread-edge`` with those settings; ``status`` is the expected one."""
    result = CliRunner().invoke(app, [*arguments, "--config", str(config_in(root, *lines))])
    structlog.reset_defaults()  # its standard error is closed now
    assert status in (None, result.exit_code), result.output
    return result
