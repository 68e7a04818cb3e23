"""Old studies and reports go where the settings say so, and nothing else does."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import chain, repeat
from pathlib import Path

import pytest

from edge import retention as removing
from edge.job import Job
from edge.part import Part
from edge.report.evidence import OBJECTS, SOURCE
from edge.retention import DAY_S
from edge.status.part import PagePart
from edge.store.record import Step
from edge.store.studies import StudyStore
from evaluation.world import settings_in
from tests.edge.agent.test_adopt import work
from tests.edge.builders import open_store, put, put_all
from tests.edge.running_agent import (
    Killed,
    agent_of,
    database,
    killed,
    reading,
    remove_old,
    sql,
    statuses,
    whereabouts,
)

NOW = 1_800_000_000.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Studies a to d are 40, 30, 20 and 10 days old; c is pending; e was refused.

    The report of a has objects and headers beside it.
    """
    put_all(tmp_path / "inbox", a="x", b="x", c="pending", d="x", e="bad")
    work(tmp_path)
    for name, days in (("a", 40), ("b", 30), ("c", 20), ("d", 10), ("e", 50)):
        at = NOW - days * DAY_S
        values = (datetime.fromtimestamp(at, UTC).isoformat(), name)
        change = "UPDATE studies SET updated = ? WHERE report_name = ?"
        sql(database(tmp_path), change, values=values)
        os.utime(tmp_path / "outbox" / name / "report.json", (at, at))
    (tmp_path / "outbox" / "a" / OBJECTS / "v1").mkdir(parents=True)
    for path in (f"{OBJECTS}/v1/sr.dcm", SOURCE):
        (tmp_path / "outbox" / "a" / path).touch()
    return tmp_path


@pytest.fixture
def store(root: Path) -> Iterator[StudyStore]:
    with open_store(database(root)) as store:
        yield store


def run(root: Path, store: StudyStore, **limits: float) -> None:
    settings = {f"retention__{name}": limit for name, limit in limits.items()}
    remove_old(settings_in(root, **settings), store, lambda: NOW)


def test_parts_forget_a_study_before_its_files_go(root: Path, store: StudyStore) -> None:
    """The status page forgets the voxels that somebody has looked at."""
    settings = settings_in(root, retention__studies_days=35.0)
    agent = agent_of(settings)
    agent.site.folders.viewer.mkdir()
    keys = {one.name: one.id for one in store.at(Step.DONE)}
    for name in ("a", "d"):
        for suffix in ("npy", "json"):
            (agent.site.folders.viewer / f"{keys[name]}.{suffix}").write_text("x")
    forgotten: list[str] = []

    class Forgetting(Part):
        def forget(self, key: str) -> None:
            assert (agent.site.folders.done / key).exists()
            forgotten.append(key)

    remove_old(settings, store, lambda: NOW, [PagePart(agent), Forgetting(agent)])
    assert forgotten == [keys["a"]]
    assert {path.stem for path in agent.site.folders.viewer.iterdir()} == {keys["d"]}


def test_by_default_nothing_is_ever_removed(root: Path, store: StudyStore) -> None:
    before = sorted(root.rglob("*"))
    run(root, store)
    assert sorted(root.rglob("*")) == before


def amended_yesterday(root: Path) -> None:
    """39 days after its study was done."""
    os.utime(root / "outbox" / "a" / "report.json", (NOW - DAY_S, NOW - DAY_S))


def lose_pending(root: Path) -> None:
    sql(database(root), "DELETE FROM pending")


@pytest.mark.parametrize(
    ("change", "limits", "studies", "reports"),
    [
        (None, {"studies_days": 15.0}, "cde", "abcde"),
        (None, {"reports_days": 15.0}, "abcde", "cd"),
        (None, {"studies_days": 15.0, "reports_days": 15.0}, "cde", "cd"),
        (amended_yesterday, {"reports_days": 15.0}, "abcde", "acd"),
        (lose_pending, {"studies_days": 1.0, "reports_days": 1.0}, "ce", "c"),
    ],
    ids=["studies", "reports", "both", "amended", "provisional, nothing pending"],
)
def test_what_is_too_old_goes_but_for_what_is_pending_or_waits_for_a_person(
    root: Path,
    store: StudyStore,
    change: Callable[[Path], None] | None,
    limits: dict[str, float],
    studies: str,
    reports: str,
) -> None:
    """A row goes with the last file of study and report: it has a name, maybe the patient's."""
    if change is not None:
        change(root)
    run(root, store, **limits)
    assert whereabouts(root) == {n: ["quarantine" if n == "e" else "done"] for n in studies}
    folders = {path.name for path in (root / "outbox").iterdir() if path.is_dir()}
    assert statuses(root).keys() == folders == set(reports)
    rows = {record.name for record in (*store.at(Step.DONE), *store.at(Step.QUARANTINED))}
    assert rows == {*studies, *reports}


def test_the_oldest_go_until_the_rest_is_small_enough(root: Path, store: StudyStore) -> None:
    """What is pending counts, and stays."""
    size = sum(path.stat().st_size for path in (root / "state" / "done").rglob("*.dcm"))
    run(root, store, studies_gb=(size - 1) / 1e9)
    assert whereabouts(root).keys() == set("bcde")


def test_the_name_of_a_removed_study_is_free_again(root: Path, store: StudyStore) -> None:
    run(root, store, studies_days=15.0, reports_days=15.0)
    put(root / "inbox", "a", "x")
    work(root)
    assert statuses(root) == {"a": "final", "c": "provisional", "d": "final"}


def test_folders_and_files_that_are_not_the_agent_s_stay(root: Path, store: StudyStore) -> None:
    """A note beside a report, a folder in the outbox, another study's report in the same place."""
    outbox = root / "outbox"
    (outbox / "a" / "note.txt").write_text("seen")
    (outbox / "mine").mkdir()
    shutil.rmtree(outbox / "b")
    (outbox / "b").mkdir()
    (outbox / "b" / ".study-another").touch()
    (outbox / "b" / "report.json").write_text("theirs")
    run(root, store, studies_days=15.0, reports_days=15.0)
    assert [path.name for path in (outbox / "a").iterdir()] == ["note.txt"]
    assert (outbox / "b" / "report.json").read_text() == "theirs"
    assert (outbox / "mine").is_dir()


def test_killed_while_it_removes_a_report_no_half_report_counts_as_whole(
    root: Path, store: StudyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = Path.unlink, [1]

    def unlink(path: Path, *, missing_ok: bool = False) -> None:
        real(path, missing_ok=missing_ok)
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(Killed):
            run(root, store, reports_days=35.0)
    half = [
        p for p in (root / "outbox").iterdir() if p.is_dir() and not (p / "report.json").exists()
    ]
    assert len(half) == 1
    run(root, store, reports_days=35.0)
    assert sorted(statuses(root)) == ["b", "c", "d"]
    assert not half[0].exists()


def test_killed_while_it_removes_a_study_no_half_study_is_left(
    root: Path, store: StudyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(removing, "remove", killed)
        with pytest.raises(Killed):
            run(root, store, studies_days=35.0)
    assert whereabouts(root).keys() == set("abcde")  # a under its hidden name
    run(root, store, studies_days=35.0)
    assert whereabouts(root).keys() == set("bcde")
    assert list((root / "state" / "done").glob(".removed-*")) == []


def test_a_clock_that_was_set_removes_nothing(root: Path, store: StudyStore) -> None:
    """A year forward while the agent runs: everything would be too old."""
    times = chain([NOW], repeat(NOW + 365 * DAY_S))
    days = {"retention__studies_days": 100.0, "retention__reports_days": 100.0}
    remove_old(settings_in(root, **days), store, lambda: next(times))
    assert whereabouts(root).keys() == statuses(root).keys() == set("abcde")


def test_one_that_cannot_be_removed_does_not_keep_the_others(
    root: Path, store: StudyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = removing.move

    def move(source: Path, target: Path) -> None:
        if (source / "a").exists():
            raise PermissionError("not yours")
        real(source, target)

    monkeypatch.setattr(removing, "move", move)
    run(root, store, studies_days=15.0)
    assert whereabouts(root).keys() == set("acde")


def test_the_agent_removes_while_it_is_idle(tmp_path: Path) -> None:
    """The whole way from the settings: everything older than a tenth of a second."""
    put(tmp_path / "inbox", "a")
    work(tmp_path)
    assert whereabouts(tmp_path) == {"a": ["done"]}
    work(tmp_path, settings={"retention__studies_days": 1e-6, "retention__reports_days": 1e-6})
    assert whereabouts(tmp_path) == statuses(tmp_path) == {}
    assert list((tmp_path / "outbox").glob("a")) == []


def test_a_full_disk_lets_the_agent_remove_before_it_reads(tmp_path: Path) -> None:
    """It is never idle then: the study that waits cannot be claimed."""
    put(tmp_path / "inbox", "a")
    work(tmp_path)
    put(tmp_path / "inbox", "b")

    def fill(_job: Job) -> None:
        if "a" in whereabouts(tmp_path):
            raise OSError(errno.ENOSPC, "no room")

    work(tmp_path, reading(fill), settings={"retention__studies_days": 1e-6})
    assert statuses(tmp_path) == {"a": "final", "b": "final"}
