import sqlite3
from contextlib import closing
from pathlib import Path

from edge.database import BUSY_S
from edge.settings.core import load_settings
from edge.store.steps import Step
from tests.edge.databases import open_store


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
