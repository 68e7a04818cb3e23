import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evaluation.__main__ import app
from evaluation.errors import MissingData, ServiceFailed
from evaluation.links.edge_worker import OFF
from evaluation.links.link import (
    CAVEAT,
    Run,
    checksums,
    figures,
    link,
    parts_of,
    read_all,
    read_part,
    row,
)
from evaluation.links.trace import Conditions, steady
from evaluation.world import Cloud
from models.runtime.artifacts import find

STEADY, A, B = (steady(Conditions(), name) for name in ("steady", "a", "b"))
GIVEN = {"trace": "t", "number": 0, "bytes": 0, "death": False}
"""What the edge does not tell."""

TOLD = {
    "took_s": 0.1, "scheduler_delay_s": 0.0, "lesions": 2, "found": 1, "false": 1,
    "escalated": 3, "answered": 2, "second_reading": "complete", "refused": "",
}  # fmt: skip
RESULT = GIVEN | TOLD


@dataclass
class WrittenEdge:
    """Answers each study after ``wait_s``; before its first it waits for the others of ``both``."""

    wait_s: float = 0.0
    both: threading.Barrier | None = None
    fails: bool = False
    opened: list[dict[str, Any]] = field(default_factory=list)
    files: list[bool] = field(default_factory=list)

    def open(self, *, replay: bool = False, **settings: Any) -> str:
        self.opened.append({"replay": replay, **settings})
        return "written"

    def read(self, number: int, *, from_files: bool) -> dict[str, Any]:  # noqa: ARG002 - the shape of the real one
        if self.both is not None and not self.files:
            self.both.wait(60)
        if self.fails:
            raise OSError("it died")
        self.files.append(from_files)
        time.sleep(self.wait_s)
        return dict(TOLD)


class WrittenCloud(Cloud):
    """Counts its kills and starts; serves again ``back_after`` looks after a start."""

    def __init__(self, back_after: int = 0) -> None:
        super().__init__(Path())
        self.address, self.back_after, self.starts, self.looks = "127.0.0.1:9", back_after, 0, 0

    @property
    def serves(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    def kill(self) -> None:
        self.kills += 1

    def start(self) -> None:
        self.starts += 1
        self.looks = self.back_after


def test_figures_of_a_trace_by_hand() -> None:
    """Late is more than 20 ms after the deadline."""
    took = [0.1, 0.2, 1.0, 1.02, 1.03, 1.5]
    stalled = [0.0, 0.0, 0.0, 0.0, 0.005, 0.5]
    results = [
        {**RESULT, "took_s": s, "scheduler_delay_s": q} for s, q in zip(took, stalled, strict=True)
    ]
    found = row("t", [*results[:-1], {**results[-1], "bytes": 77, "death": True}], 1.0)
    assert (found["trace"], found["studies"], found["late"]) == ("t", 6, 2)
    assert found["late_without_scheduler_delay"] == 1
    assert found["p50_ms"] == pytest.approx(1010.0)
    assert found["sensitivity"] == 0.5
    assert (found["escalated"], found["answered"], found["complete"]) == (18, 12, 6)
    assert (found["bytes"], found["deaths"], found["refused"]) == (77, 1, 0)
    assert found["bytes_per_study"] == pytest.approx(77 / 6)
    assert found["share_of_scans"] == pytest.approx(77 / 6 / (2 * 120 * 480 * 480))
    assert row("t", [{**RESULT, "lesions": 0}], 1.0)["sensitivity"] is None


def test_the_edge_speaks_through_the_proxy() -> None:
    edge, run = WrittenEdge(), Run(9, {"deadline_s": 2.0}, 2.0, files_every=2, replay=True)
    found = list(read_part(run, STEADY, edge, WrittenCloud(), range(3, 7)))
    (settings,) = edge.opened
    assert (settings["deadline_s"], settings["replay"]) == (2.0, True)
    assert settings["cloud__address"].startswith("127.0.0.1:")
    assert settings["cloud__address"] != "127.0.0.1:9"
    assert edge.files == [False, True, False, True]
    assert [(one["trace"], one["number"]) for one in found] == [("steady", n) for n in range(3, 7)]
    assert {one["bytes"] for one in found} == {0}


def test_off_is_the_edge_alone() -> None:
    edge = WrittenEdge()
    found = list(read_part(Run(3, {}, 2.0), None, edge, WrittenCloud(), range(3)))
    assert edge.opened == [{"replay": False, "cloud__address": "off"}]
    assert [one["trace"] for one in found] == [OFF] * 3


def test_a_cloud_that_is_killed_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a share of 1 it is killed in every study that lasts until then and finds it serving."""
    monkeypatch.setattr("evaluation.links.link.KILL_WITHIN_S", 0.0)
    cloud = WrittenCloud(back_after=2)
    run = Run(4, {}, 2.0, kill_share=1.0)
    found = list(read_part(run, STEADY, WrittenEdge(wait_s=0.5), cloud, range(4)))
    assert [one["death"] for one in found] == [True, False, True, False]
    assert cloud.kills == cloud.starts == 2


def test_a_cloud_that_ends_by_itself_ends_the_run() -> None:
    class Gone(WrittenCloud):
        @property
        def serves(self) -> bool:
            raise ServiceFailed("the cloud ended with 1")

    run = Run(2, {}, 2.0, kill_share=1.0)
    with pytest.raises(ServiceFailed, match="ended with 1"):
        list(read_part(run, STEADY, WrittenEdge(), Gone(), range(2)))


def test_the_cloud_is_not_killed_after_the_study() -> None:
    cloud = WrittenCloud()
    run = Run(5, {}, 2.0, kill_share=1.0, seed=4)
    found = list(read_part(run, STEADY, WrittenEdge(), cloud, range(5)))
    assert cloud.kills == sum(one["death"] for one in found) <= 1


def test_the_result_sums_over_traces() -> None:
    run = Run(5, {}, 1.0, 0.3, files_every=2)
    results = [
        {**RESULT, "trace": name, "number": n, "took_s": 1.1 + n * (name == "b"), "bytes": 10}
        for name in "ab"
        for n in range(5)
    ]
    said = figures(run, results)
    assert (said["studies"], said["late"], said["late_without_scheduler_delay"]) == (10, 10, 10)
    assert (said["from_files"], said["from_memory"]) == (6, 4)
    assert (said["deadline_s"], said["reserve_s"]) == (1.0, 0.3)
    assert said["p50_ms"] == pytest.approx(1100.0)
    assert said["p95_ms"] == pytest.approx(4650.0)
    assert said["p99_ms"] > said["p95_ms"]
    assert (said["sensitivity"], said["escalated"], said["bytes"]) == (0.5, 30, 100)
    assert said["broken_off"] == 10
    assert said["caveat"] == CAVEAT
    assert [one["trace"] for one in said["traces"]] == ["a", "b"]
    assert [len(row) for row in link.table("traces").of(said | {"cpu": "x", "cores": 2}).cells]
    assert [bar.met for bar in link.bars(said)] == [False, False]


def test_a_journal_of_other_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text("{}\n")
    ended = CliRunner().invoke(app, ["link", "--trace", "off", "--journal", str(path)])
    assert isinstance(ended.exception, MissingData)
    for name, checksum in checksums("screening-int8", "hybrid-int8").items():
        assert f"'{name}': '{checksum}'" in str(ended.exception)


def test_a_checksum_follows_weights_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    one = find("screening-int8")
    seen = []
    for now in (one, replace(one, sha256="0"), replace(one, settings={"merge": [1]})):
        monkeypatch.setattr("evaluation.links.link.find", lambda _, now=now: now)
        seen.append(checksums(one.name)[one.name])
    assert len(set(seen)) == 3


def test_an_unknown_trace_starts_nothing() -> None:
    ended = CliRunner().invoke(app, ["link", "--trace", "off", "--trace", "carrier-pigeon"])
    assert isinstance(ended.exception, MissingData)
    assert "satellite" in str(ended.exception)


def test_each_study_is_in_exactly_one_part() -> None:
    parts = parts_of([A, None, B], 5, 2, {("a", 0), (OFF, 3), ("b", 1), ("b", 3)})
    assert parts == [
        (A, (2, 4)), (None, (0, 2, 4)), (B, (0, 2, 4)), (A, (1, 3)), (None, (1,)),
    ]  # fmt: skip
    assert parts_of([A], 1, 3, {("a", 0)}) == []


def test_edges_read_at_the_same_time() -> None:
    told: list[tuple[str, int]] = []
    both = threading.Barrier(2)
    edges = [WrittenEdge(both=both), WrittenEdge(both=both)]
    parts = parts_of([A, B], 6, 2, set())
    read_all(Run(6), parts, edges, WrittenCloud(), lambda r: told.append((r["trace"], r["number"])))
    assert sorted(told) == [(name, n) for name in "ab" for n in range(6)]
    assert all(edge.files for edge in edges)
    seen = [{one["cloud__address"] for one in edge.opened} for edge in edges]
    assert not seen[0] & seen[1]


def test_an_edge_that_fails_ends_the_run() -> None:
    both = threading.Barrier(2)
    edges = [WrittenEdge(both=both), WrittenEdge(both=both, fails=True)]
    with pytest.raises(OSError, match="it died"):
        read_all(Run(4), parts_of([A], 4, 2, set()), edges, WrittenCloud(), lambda _: None)
