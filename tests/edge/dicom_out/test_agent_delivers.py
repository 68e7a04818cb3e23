"""The agent delivers what it reports, whatever kills it, and beside its commands."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from enum import Enum
from pathlib import Path

import pytest

from edge.dicom_out.exports import DeliveryStep, ExportStep, ExportStore
from edge.dicom_out.overview import NothingToSend, overview, resend
from edge.folders import AgentFolders
from edge.retention import DAY_S, Retention
from edge.run import run_agent, site_of
from edge.settings.core import EdgeSettings
from edge.store.pending import PendingStep
from edge.store.steps import Step
from evaluation.recovery.agent import Crash, settings_in
from tests.dicom_peers import Pacs
from tests.edge.builders import ForgetfulCloud, HandClock, put
from tests.edge.databases import open_store
from tests.edge.dicom_out.sites import make_objects, pacs_at, uids
from tests.edge.running_agent import (
    PATIENCE_S,
    PROCESSES,
    a_version_for_each_verdict,
    quick_read,
    statuses,
    wait_until,
)

# pynetdicom drops the socket of a connection that failed without closing it
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    with Pacs().running() as pacs:
        yield pacs


def with_target(root: Path, port: int) -> EdgeSettings:
    return settings_in(root).model_copy(update={"targets": (pacs_at(port),)})


def serve(root: Path, port: int, crash: Crash = None, stop: threading.Event | None = None) -> None:
    """The agent; it kills itself at the durable step ``crash``, in whatever thread that is."""

    def on_step(step: Enum, durable: bool) -> None:
        if (step, durable) == crash:
            os.kill(os.getpid(), signal.SIGKILL)

    with a_version_for_each_verdict():
        run_agent(
            with_target(root, port),
            read=quick_read,
            second=ForgetfulCloud(root / "asked"),
            on_step=on_step,
            stop=stop,
            make_objects=make_objects,
        )


def work(root: Path, port: int, *, sent: int) -> None:
    """Run the agent in this process until so many deliveries are sent."""
    stop = threading.Event()
    agent = threading.Thread(target=serve, args=(root, port, None, stop))
    agent.start()
    try:
        wait_until(lambda: count(root, "deliveries", "sent") >= sent)
    finally:
        stop.set()
        agent.join()


def count(root: Path, table: str, step: str) -> int:
    path = root / "state" / "spool.sqlite3"
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            query = f"SELECT count(*) FROM {table} WHERE step = ?"
            return int(database.execute(query, (step,)).fetchone()[0])
    except sqlite3.OperationalError:  # the agent has not made it yet
        return 0


def keys(root: Path) -> dict[str, str]:
    """Study keys by report name."""
    with open_store(root / "state" / "spool.sqlite3") as store:
        return {one.report_name: one.id for one in store.at(*Step)}


STEPS: list[Enum] = [
    Step.REPORTED,
    PendingStep.PENDING,
    PendingStep.CLOSED,
    ExportStep.MADE,
    DeliveryStep.TRYING,
    DeliveryStep.SENT,
]


@pytest.mark.parametrize("durable", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.value)
def test_killed_at_any_durable_step_every_version_reaches_its_target(
    tmp_path: Path, pacs: Pacs, step: Enum, durable: bool
) -> None:
    """SIGKILL; an amended report has three versions, a refused study none."""
    for name, text in (("a", "x"), ("b", "bad"), ("c", "pending")):
        put(tmp_path / "inbox", name, text)
    process = PROCESSES.Process(target=serve, args=(tmp_path, pacs.port, (step, durable)))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGKILL
    work(tmp_path, pacs.port, sent=4)
    assert statuses(tmp_path) == {"a": "final", "b": "rejected", "c": "final"}
    named = keys(tmp_path)
    expected = [*uids(named["a"], 1), *uids(named["c"], 1, 2, 3)]
    assert sorted(pacs.kept) == sorted(expected)
    of_c = [uid for uid in pacs.kept if uid in expected[2:]]
    assert of_c == expected[2:]  # in the order of versions
    assert count(tmp_path, "exports", "made") == count(tmp_path, "deliveries", "sent") == 4


def lose_database(root: Path) -> None:
    for file in (root / "state").glob("spool.sqlite3*"):
        file.unlink()


def test_after_a_lost_database_every_report_reaches_its_target_and_none_comes_twice(
    tmp_path: Path,
) -> None:
    """One had been sent before, another not."""
    put(tmp_path / "inbox", "a")
    pacs = Pacs()
    with pacs.running():
        work(tmp_path, pacs.port, sent=1)
    put(tmp_path / "inbox", "b")
    stop = threading.Event()
    agent = threading.Thread(target=serve, args=(tmp_path, pacs.port, None, stop))
    agent.start()
    wait_until(lambda: count(tmp_path, "deliveries", "sending") == 1)
    stop.set()
    agent.join()
    lose_database(tmp_path)
    with pacs.running():
        work(tmp_path, pacs.port, sent=2)
    named = keys(tmp_path)
    assert pacs.received == [*uids(named["a"], 1), *uids(named["b"], 1)]


def test_a_database_that_is_lost_while_the_agent_runs_stops_no_delivery(
    tmp_path: Path, pacs: Pacs
) -> None:
    put(tmp_path / "inbox", "a")
    stop = threading.Event()
    agent = threading.Thread(target=serve, args=(tmp_path, pacs.port, None, stop))
    agent.start()
    try:
        wait_until(lambda: count(tmp_path, "deliveries", "sent") == 1)
        lose_database(tmp_path)
        put(tmp_path / "inbox", "b")
        wait_until(lambda: count(tmp_path, "deliveries", "sent") == 2)
    finally:
        stop.set()
        agent.join()
    named = keys(tmp_path)
    assert pacs.received == [*uids(named["a"], 1), *uids(named["b"], 1)]


def test_without_targets_the_agent_makes_no_rows_and_no_objects(tmp_path: Path) -> None:
    put(tmp_path / "inbox", "a")
    stop = threading.Event()

    def on_step(step: Enum, durable: bool) -> None:
        if step is Step.DONE and durable:
            stop.set()

    run_agent(
        settings_in(tmp_path),
        read=quick_read,
        stop=stop,
        on_step=on_step,
        make_objects=make_objects,
    )
    assert count(tmp_path, "exports", "making") == 0
    assert not (tmp_path / "outbox" / "a" / "dicom").exists()


def test_a_report_stays_until_every_target_has_it(tmp_path: Path, pacs: Pacs) -> None:
    put(tmp_path / "inbox", "a")
    work(tmp_path, pacs.port, sent=1)
    settings = with_target(tmp_path, pacs.port).model_copy(update={"keep_reports_days": 1.0})
    folders = AgentFolders.of(settings)
    with open_store(folders.state / "spool.sqlite3", targets=["pacs"]) as store:
        (key,) = keys(tmp_path).values()
        later = (folders.outbox / "a" / "report.json").stat().st_mtime + 2 * DAY_S

        def remove_old() -> None:
            clock = HandClock()
            retention = Retention(folders, store, settings, [].append, clock, lambda: later)
            while retention.run_once():
                pass

        for step in (DeliveryStep.SENDING, DeliveryStep.DEAD):
            change = "UPDATE deliveries SET step = ?"
            store.database.execute(change, (step.value,))
            remove_old()
            assert (folders.outbox / "a" / "report.json").is_file()
        store.database.execute("UPDATE deliveries SET step = 'sent'")
        remove_old()
        assert not (folders.outbox / "a").exists()
        assert store.extension(ExportStore).of(key) == []


def test_a_report_is_sent_again_beside_a_running_agent(tmp_path: Path, pacs: Pacs) -> None:
    put(tmp_path / "inbox", "a")
    settings = with_target(tmp_path, pacs.port)
    stop = threading.Event()
    agent = threading.Thread(target=serve, args=(tmp_path, pacs.port, None, stop))
    agent.start()
    try:
        wait_until(lambda: count(tmp_path, "deliveries", "sent") == 1)
        (key,) = keys(tmp_path).values()
        for study in ("a", key):
            before = len(pacs.received)
            assert resend(study, None, site_of(settings)) == ["a version 1 to pacs"]
            wait_until(lambda before=before: len(pacs.received) == before + 2)  # type: ignore[misc]
        wait_until(lambda: count(tmp_path, "deliveries", "sent") == 1)
    finally:
        stop.set()
        agent.join()
    assert pacs.kept == uids(key, 1)
    for study, to in (("b", None), ("a", "other")):
        with pytest.raises(NothingToSend, match=f"^{to or study}: no "):
            resend(study, to, site_of(settings))


def test_a_report_from_before_the_target_can_be_sent(tmp_path: Path, pacs: Pacs) -> None:
    put(tmp_path / "inbox", "a")
    stop = threading.Event()

    def on_step(step: Enum, durable: bool) -> None:
        if step is Step.DONE and durable:
            stop.set()

    run_agent(settings_in(tmp_path), read=quick_read, stop=stop, on_step=on_step)
    settings = with_target(tmp_path, pacs.port)
    assert resend("a", "pacs", site_of(settings)) != []
    work(tmp_path, pacs.port, sent=1)
    assert pacs.received == uids(keys(tmp_path)["a"], 1)


def test_the_overview_has_backlog_dead_letters_and_reports_without_objects(
    tmp_path: Path, pacs: Pacs
) -> None:
    for name in "abc":
        put(tmp_path / "inbox", name)
    work(tmp_path, pacs.port, sent=3)
    settings = with_target(tmp_path, pacs.port)
    settings = settings.model_copy(update={"targets": (*settings.targets, pacs_at(9, "gone"))})
    folders, named = AgentFolders.of(settings), keys(tmp_path)
    with open_store(folders.state / "spool.sqlite3", targets=["pacs"]) as store:
        put_at = "UPDATE deliveries SET step = ?, reason = 'why' WHERE study_key = ?"
        store.database.execute(put_at, ("dead", named["a"]))
        store.database.execute(put_at, ("sending", named["b"]))
        change = "UPDATE exports SET step = 'none', reason = 'NIfTI' WHERE study_key = ?"
        store.database.execute(change, (named["c"],))
    states, unmade = overview(site_of(settings))
    assert [(one.name, one.problem, one.waiting) for one in states[:1]] == [("pacs", "", 1)]
    assert states[1].problem == "127.0.0.1:9: Connection refused"
    assert [(one.report, one.reason) for one in states[0].dead] == [("a", "why")]
    assert [(one.report, one.reason) for one in unmade] == [("c", "NIfTI")]
    assert states[0].oldest_s >= 0.0
    assert resend(None, None, site_of(settings)) == ["a version 1 to pacs"]
    states, _ = overview(site_of(settings))
    assert (states[0].waiting, states[0].dead) == (2, ())
