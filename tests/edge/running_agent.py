"""The daemon put to work, in this process or as one of its own, and what it leaves behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from edge.daemon.agent import ReadStudy, run_agent
from edge.store.pending import PendingStep
from edge.store.studies import Step, StepHook
from evaluation.recovery.agent import Crash, settings_in
from tests.edge.killable import quick_line, serve

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.edge.killable"])
PATIENCE_S = 300.0


def work_off(
    root: Path,
    read: ReadStudy = quick_line,
    on_step: StepHook | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run the agent in this process until every study in the inbox has come to its end."""
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

    run_agent(settings_in(root), read=read, stop=stop, on_step=watch, clock=clock)


def unfinished(root: Path) -> int:
    """Studies that have not come to their end, and debts; read without disturbing the agent."""
    path = root / "state" / "spool.sqlite3"
    if not path.exists():
        return 0
    query = "SELECT (SELECT count(*) FROM studies WHERE step NOT IN (?, ?)) +"
    query += " (SELECT count(*) FROM pending)"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        ends = (Step.DONE.value, Step.QUARANTINED.value)
        return int(database.execute(query, ends).fetchone()[0])


def idle(root: Path) -> bool:
    """Whether there is nothing left to do."""
    left = [name for name in os.listdir(root / "inbox") if not name.startswith(".")]
    try:
        return not left and unfinished(root) == 0
    except sqlite3.OperationalError:  # the agent has not made the tables yet
        return False


def start(root: Path, crash: Crash = None) -> ForkServerProcess:
    """The agent as a process of its own."""
    process = PROCESSES.Process(target=serve, args=(root, crash))
    process.start()
    return process


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when it holds; fail the test if it never does."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "waited in vain"
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
    """By study name, each place where the whole of it came to rest."""
    places: dict[str, list[str]] = {}
    for end, pattern in (("done", "done/*/*"), ("quarantine", "quarantine/*/study/*")):
        for folder in (root / "state").glob(pattern):
            assert len(list(folder.glob("*.dcm"))) == 2
            places.setdefault(folder.name, []).append(end)
    return places


def statuses(root: Path) -> dict[str, str]:
    """By report folder, the status in its ``report.json``."""
    reports = (root / "outbox").glob("*/report.json")
    return {path.parent.name: json.loads(path.read_text())["status"] for path in reports}


def leftovers(root: Path) -> list[str]:
    """What should not be there any more."""
    return [*os.listdir(root / "state" / "work"), *(str(p) for p in root.rglob("*.part"))]


def assert_each_once(root: Path, good: set[str], bad: set[str]) -> None:
    """Every study ended once, where it belongs, with one report."""
    ends = {**{name: ["done"] for name in good}, **{name: ["quarantine"] for name in bad}}
    assert whereabouts(root) == ends
    outcomes = {**dict.fromkeys(good, "final"), **dict.fromkeys(bad, "rejected")}
    assert statuses(root) == outcomes
    assert leftovers(root) == []


def assert_amended_once(out: Path) -> None:
    """The last version is final with both verdicts, and the versions before it lie beside it."""
    last = json.loads((out / "report.json").read_text())
    version = last["version"]
    older = [json.loads((out / f"report.v{n}.json").read_text()) for n in range(1, version)]
    assert [report["version"] for report in older] == list(range(1, version))
    assert {report["study_key"] for report in older} == {last["study_key"]}
    assert len(list(out.glob("report.v*.json"))) == version - 1
    assert [change["number"] for change in last["changes"]] == [2, 3]
    assert [finding["number"] for finding in last["findings"]] == [2, 3, 1]
    assert f"version {version}<br>" in (out / "report.html").read_text()


class Killed(BaseException):
    """Stands for a crash inside this process: nothing may catch it."""
