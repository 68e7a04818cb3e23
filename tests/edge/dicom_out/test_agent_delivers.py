"""The agent delivers what it reports, whatever database it has, and beside its commands."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from edge.database import InvalidDatabase, StepHook
from edge.dicom_out.exports import DeliveryStep, ExportStore
from edge.dicom_out.overview import resend
from edge.escalation.rois import EscalationResult
from edge.folders import AgentFolders
from edge.report.evidence import OUTLINES, of_version, read_outlines
from edge.retention import DAY_S
from edge.run import run_agent, site_of
from edge.settings.core import EdgeSettings
from edge.store.record import Step
from edge.store.repair import damaged_databases
from evaluation.world import settings_in
from protos.messages import Roi
from tests.dicom_peers import Pacs
from tests.edge.builders import ForgetfulCloud, nothing, open_store, put
from tests.edge.dicom_out.sites import make_objects, pacs_at, uids
from tests.edge.running_agent import (
    a_version_for_each_verdict,
    once_at,
    quick_read,
    remove_old,
    running,
    unfinished,
    wait_until,
    work_off,
)

# pynetdicom drops the socket of a connection that failed without closing it
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


def with_target(root: Path, port: int) -> EdgeSettings:
    return settings_in(root, targets=(pacs_at(port),))


@contextmanager
def agent(root: Path, port: int, cloud: ForgetfulCloud | None = None) -> Iterator[None]:
    """The agent in a thread of this process."""
    given = {"second": cloud or ForgetfulCloud(root / "asked"), "make_objects": make_objects}
    settings = with_target(root, port)
    with a_version_for_each_verdict(), running(settings, read=quick_read, **given):
        yield


def work(root: Path, port: int, *, sent: int) -> None:
    """Run the agent in this process until this number of deliveries is sent."""
    with agent(root, port):
        wait_until(lambda: count(root, "deliveries", "sent") >= sent)


def work_until_lost(root: Path, port: int, on_step: StepHook = nothing) -> None:
    """Run the agent in this process; it ends because its database is lost."""
    with pytest.raises(InvalidDatabase):
        run_agent(
            with_target(root, port), read=quick_read, make_objects=make_objects, on_step=on_step
        )


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


def lose_database(root: Path) -> None:
    for file in (root / "state").glob("spool.sqlite3*"):
        file.unlink()


def test_after_a_lost_database_every_report_reaches_its_target_and_none_comes_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One had been sent before, others not; it is lost while the agent rests, and while it runs.

    Only an object that is under way at the loss may come twice: its answer finds no database.
    The last loss is a damage that only the thread of the target finds.
    """
    put(tmp_path / "inbox", "a")
    pacs = Pacs()
    with pacs.running():
        work(tmp_path, pacs.port, sent=1)
    put(tmp_path / "inbox", "b")
    with agent(tmp_path, pacs.port):
        wait_until(lambda: count(tmp_path, "deliveries", "sending") == 1)
    lose_database(tmp_path)
    with pacs.running():
        put(tmp_path / "inbox", "c")
        lose = once_at(DeliveryStep.SENT, True, lambda: lose_database(tmp_path))
        work_until_lost(tmp_path, pacs.port, lose)
        work(tmp_path, pacs.port, sent=3)
        put(tmp_path / "inbox", "d")
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        with monkeypatch.context() as patch:
            patch.setattr(ExportStore, "due", Mock(side_effect=error))
            work_until_lost(tmp_path, pacs.port)
        assert damaged_databases(tmp_path / "state" / "spool.sqlite3")
        work(tmp_path, pacs.port, sent=4)
    objects = {name: uids(key, 1) for name, key in keys(tmp_path).items()}
    assert list(dict.fromkeys(pacs.received)) == [uid for name in "abcd" for uid in objects[name]]
    assert all(pacs.received.count(uid) == 1 for name in "abd" for uid in objects[name])


def test_a_target_may_be_named_objects(tmp_path: Path, pacs: Pacs) -> None:
    """As the thread that makes them is."""
    put(tmp_path / "inbox", "a")
    settings = settings_in(tmp_path, targets=(pacs_at(pacs.port, "objects"),))
    with running(settings, read=quick_read, make_objects=make_objects):
        wait_until(lambda: count(tmp_path, "deliveries", "sent") == 1)


def test_a_report_stays_until_every_target_has_it(tmp_path: Path, pacs: Pacs) -> None:
    put(tmp_path / "inbox", "a")
    work(tmp_path, pacs.port, sent=1)
    settings = settings_in(tmp_path, targets=(pacs_at(pacs.port),), retention__reports_days=1.0)
    days: dict[str, float] = {"retention__reports_days": 1.0, "retention__studies_days": 1.0}
    all_settings = settings_in(tmp_path, targets=(pacs_at(pacs.port),), **days)
    folders = AgentFolders.of(settings)
    with open_store(folders.state / "spool.sqlite3", targets=["pacs"]) as store:
        (key,) = keys(tmp_path).values()
        later = (folders.outbox / "a" / "report.json").stat().st_mtime + 2 * DAY_S
        for step in (DeliveryStep.SENDING, DeliveryStep.DEAD):
            change = "UPDATE deliveries SET step = ?"
            store.database.execute(change, (step.value,))
            remove_old(settings, store, lambda: later)
            assert (folders.outbox / "a" / "report.json").is_file()
        store.database.execute("UPDATE deliveries SET step = 'sent'")
        store.database.execute("UPDATE exports SET step = 'not made'")
        remove_old(all_settings, store, lambda: later)
        assert (folders.outbox / "a" / "report.json").is_file()
        assert (folders.done / key).is_dir()
        store.database.execute("UPDATE exports SET step = 'made'")
        remove_old(settings, store, lambda: later)
        assert not (folders.outbox / "a").exists()
        assert store.extension(ExportStore).of(key) == []


def test_a_report_is_sent_again_beside_a_running_agent(tmp_path: Path, pacs: Pacs) -> None:
    """Also one that is older than its target: without targets nothing is exported."""
    put(tmp_path / "inbox", "a")
    work_off(tmp_path)
    assert count(tmp_path, "exports", "making") == 0
    assert not (tmp_path / "outbox" / "a" / "dicom").exists()
    site = site_of(with_target(tmp_path, pacs.port))
    with agent(tmp_path, pacs.port):
        (key,) = keys(tmp_path).values()
        for study, to in (("a", "pacs"), ("a", None), (key, None)):
            before = len(pacs.received)
            assert resend(study, to, site) == ["a version 1 to pacs"]
            wait_until(lambda before=before: len(pacs.received) == before + 2)  # type: ignore[misc]
        wait_until(lambda: count(tmp_path, "deliveries", "sent") == 1)
    assert pacs.kept == uids(key, 1)


class OutliningCloud(ForgetfulCloud):
    """It answers one region, then the other; each answer outlines a cube in the middle."""

    def read_rois(self, rois: Sequence[Roi], *rest: Any, **more: Any) -> EscalationResult:
        result = super().read_rois(rois, *rest, **more)
        shapes = {roi.roi_id: roi.voxels.shape for roi in rois}
        masks = {roi_id: np.zeros(shapes[roi_id], bool) for roi_id in result.verdicts}
        for mask in masks.values():
            mask[tuple(slice(side // 2 - 2, side // 2 + 2) for side in mask.shape)] = True
        return replace(result, masks=masks)


def test_an_amended_version_has_the_newer_outlines_and_an_older_one_keeps_its_own(
    tmp_path: Path,
) -> None:
    """None, then one, then two."""
    put(tmp_path / "inbox", "a", "pending")
    cloud, out = OutliningCloud(tmp_path / "asked"), tmp_path / "outbox" / "a"
    with agent(tmp_path, 9, cloud):
        wait_until(lambda: (out / "report.v2.json").is_file() and unfinished(tmp_path) == 0)
    files = (out / of_version(OUTLINES, 1), out / of_version(OUTLINES, 2), out / OUTLINES)
    found = [{*read_outlines(one.read_bytes() if one.is_file() else b"")} for one in files]
    assert [len(numbers) for numbers in found] == [0, 1, 2]
    assert found[1] < found[2]
