"""A database of an earlier version opens in this one, and nothing of it is lost."""

import multiprocessing
import os
import signal
import sqlite3
import tarfile
from contextlib import closing
from enum import Enum
from pathlib import Path

import pytest

from edge.amend.amender import Amender
from edge.database import BUSY_S, Migration, MigrationStep, OtherVersion, Schema, copies
from edge.dicom_out.exports import DeliveryStep, ExportStep, ExportStore
from edge.folders import DATABASE
from edge.models.store import open_models
from edge.run import site_of
from edge.settings.core import load_settings
from edge.store.repair import open_or_replace
from edge.store.steps import Step
from edge.store.studies import StudyStore, all_migrations
from edge.trail.verify import verify
from evaluation.world import settings_in
from tests.edge.builders import UNHURRIED, SilentCloud, nothing, open_store, report_in, schema_of

VERSION_0 = Path(__file__).parent / "data" / "version-0.tar.xz"
"""The folders of an agent of the version before there were numbers: it was stopped with two pending
reads, deliveries that wait, were sent and were given up, an audit trail, and a promoted model.
Pages, pictures and locks are left out.
"""

TARGETS = ("pacs", "viewer")
PROCESSES = multiprocessing.get_context("forkserver")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with tarfile.open(VERSION_0) as packed:
        if hasattr(tarfile, "data_filter"):  # from Python 3.11.4 on
            packed.extraction_filter = tarfile.data_filter
        packed.extractall(tmp_path)
    return tmp_path


def schema(root: Path) -> Schema:
    return schema_of(root / "state" / DATABASE, TARGETS)


def migrate(root: Path, crash: tuple[Enum, bool] | None = None, at: int = 0) -> None:
    """Open the database as the agent does; die at the ``at``-th of the steps ``crash``."""
    left = at

    def on_step(step: Enum, durable: bool) -> None:
        nonlocal left
        if (step, durable) == crash:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    open_or_replace(root / "state" / DATABASE, schema(root), on_step).close()


def assert_nothing_is_lost(root: Path) -> None:
    path = root / "state" / DATABASE
    with StudyStore(path, schema(root)) as store:
        assert store.problem() == ""
        names = {record.name: record for record in store.at(*Step)}
        ends = {"certain": Step.DONE, "empty": Step.DONE, "uncertain": Step.DONE}
        assert {name: one.step for name, one in names.items()} == {
            **ends, "refused": Step.QUARANTINED,
        }  # fmt: skip
        assert names["refused"].kind == "NotCt"
        for name, rois in (("certain", 1), ("uncertain", 3)):
            key = names[name].id
            assert store.pending.context(key).report.study_key == key
            assert len(store.pending.rois(key)) == rois
        exports = store.extension(ExportStore)
        steps = sorted((one.target, one.step.value) for one in exports.deliveries(*DeliveryStep))
        assert steps == [("pacs", "sending")] * 3 + [
            ("viewer", "dead"), ("viewer", "sending"), ("viewer", "sent"),
        ]  # fmt: skip
        assert {one.step for key in names.values() for one in exports.of(key.id)} == {
            ExportStep.MADE
        }
        assert store.parts.notes(names["certain"].id) == ("changed images came later",)
        assert len(store.parts.later_parts(names["certain"].id)) == 1
        (count,) = store.database.execute("SELECT count(*) FROM drift").fetchone()
        assert count == 3
        store.trail.flush()
    found = verify(root / "state" / "trail", path)
    assert found.broken is None
    assert found.sequence > 10
    with open_models(site_of(settings_in(root))) as models:
        assert (models.choice().active, models.choice().changed_by) == ("2.0-lab-1", "physicist")
        (package,) = models.packages()
        assert (package.version, package.engine) == ("2.0-lab-1", "openvino")


def test_nothing_of_the_version_before_is_lost(root: Path) -> None:
    migrate(root)
    assert_nothing_is_lost(root)
    assert not list((root / "state").glob("*damaged*"))


def test_pending_reads_of_the_version_before_are_read_and_amend_their_reports(root: Path) -> None:
    """One is of an uncertain study, the other of a finding that lacks its characterization."""
    migrate(root)
    with StudyStore(root / "state" / DATABASE, schema(root)) as store:
        amender = Amender(store, root / "outbox", SilentCloud([3, 3]), UNHURRIED)
        while amender.run_once():
            pass
        assert store.pending.keys() == set()
    for name in ("certain", "uncertain"):
        report = report_in(root, name)
        assert (report["version"], report["status"]) == (2, "final")
        assert report["second_reading"] == "complete"


COUNT = len(all_migrations(schema(Path())))
KILLS: list[tuple[MigrationStep, bool, int]] = [
    (MigrationStep.BACKED_UP, False, 0),
    (MigrationStep.BACKED_UP, True, 0),
    *((MigrationStep.MIGRATED, False, at) for at in range(COUNT)),
    (MigrationStep.MIGRATED, True, 0),
]


def test_a_kill_at_any_step_loses_nothing(root: Path) -> None:
    for step, durable, at in KILLS:
        process = PROCESSES.Process(target=migrate, args=(root, (step, durable), at))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (step, durable, at)
    migrate(root)
    assert_nothing_is_lost(root)
    assert [copy.name for copy in copies(root / "state" / DATABASE)] == [f"{DATABASE}.version-0"]


def test_the_copy_is_the_database_before_the_migration(root: Path) -> None:
    path = root / "state" / DATABASE
    with closing(sqlite3.connect(path)) as opened:
        before = list(opened.iterdump())
    migrate(root)
    (copy,) = copies(path)
    assert copy.name == f"{DATABASE}.version-0"
    assert copy.stat().st_mode & 0o077 == 0
    with closing(sqlite3.connect(copy)) as opened:
        assert list(opened.iterdump()) == before
    copy.replace(path)  # going back, and forward again
    migrate(root)
    assert_nothing_is_lost(root)


def test_a_newer_database_is_refused_and_stays_as_it_is(root: Path) -> None:
    path = root / "state" / DATABASE
    migrate(root)
    with closing(sqlite3.connect(path)) as opened:
        opened.execute("PRAGMA user_version = 999")
    with pytest.raises(OtherVersion, match=r"version 999.*a newer Overread has used it"):
        open_or_replace(path, schema(root), nothing)
    with closing(sqlite3.connect(path)) as opened:
        assert opened.execute("PRAGMA user_version").fetchone() == (999,)
        opened.execute(f"PRAGMA user_version = {COUNT}")
    assert_nothing_is_lost(root)


def test_a_command_leaves_an_older_database_to_the_agent(root: Path) -> None:
    with pytest.raises(OtherVersion, match="start the agent, which migrates it"):
        StudyStore(root / "state" / DATABASE, schema(root))


def test_a_migration_that_fails_changes_nothing_and_sets_nothing_aside(root: Path) -> None:
    path, now = root / "state" / DATABASE, schema(root)
    migrate(root)
    wrong = "ALTER TABLE studies ADD COLUMN x TEXT;\nALTER TABLE nowhere ADD COLUMN x TEXT;"
    later = Schema((*now.migrations, Migration(900, wrong)), now.audit, now.extensions)
    with pytest.raises(OtherVersion, match="migration 900 failed, and changed nothing"):
        open_or_replace(path, later, nothing)
    assert_nothing_is_lost(root)


def test_all_migrations_have_their_own_number() -> None:
    numbers = sorted(one.number for one in all_migrations(schema(Path())))
    assert numbers == list(range(1, len(numbers) + 1))


def test_waiting_for_who_holds_the_database_costs_no_deadline() -> None:
    """It is a small part of what is kept for writing the report."""
    assert load_settings().reserve_s / 4 >= BUSY_S


def test_a_locked_database_can_be_opened_and_read(tmp_path: Path) -> None:
    """A backup that runs while the agent starts is no reason to stop."""
    path = tmp_path / "s.db"
    with open_store(path):
        pass
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with open_store(path) as store:
            assert store.at(*Step) == []
            assert store.pending.backlog() == (0, 0.0)
