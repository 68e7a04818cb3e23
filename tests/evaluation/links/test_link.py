import json
import socket
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evaluation.__main__ import app
from evaluation.errors import ServiceFailed
from evaluation.links import link as module
from evaluation.links.link import (
    CLOUDS,
    OFF,
    REFUSED,
    SETTLE_S,
    SILENT,
    Run,
    compare,
    dead_clouds,
    figures,
    link,
    parts_of,
    read_all,
    read_part,
    row,
    ways,
)
from evaluation.links.proxy import Conditions, steady
from evaluation.world import Cloud

STEADY, A, B = (steady(Conditions(), name) for name in ("steady", "a", "b"))
GIVEN = {"trace": "t", "number": 0, "bytes": 0, "death": False}
"""What the edge does not tell."""

TOLD = {
    "took_s": 0.1, "scheduler_delay_s": 0.0, "lesions": 2, "found": 1,
    "escalated": 3, "answered": 2, "refused": None,
}  # fmt: skip
RESULT = GIVEN | TOLD


@dataclass
class WrittenEdge:
    """Answers each study after ``wait_s``; before its first it waits for the others of ``both``.

    It says that a study took 1 s, more by its cloud, and 3 s more for the first if there is one.
    """

    wait_s: float = 0.0
    both: threading.Barrier | None = None
    fails: bool = False
    opened: list[dict[str, Any]] = field(default_factory=list)
    files: list[bool] = field(default_factory=list)

    def open(self, *, replay: bool = False, **settings: Any) -> str:
        self.opened.append({"replay": replay, **settings})
        return "written"

    def read(self, number: int, *, from_files: bool) -> dict[str, Any]:
        if self.both is not None and not self.files:
            self.both.wait(60)
        if self.fails:
            raise OSError("it died")
        self.files.append(from_files)
        time.sleep(self.wait_s)
        dead = self.opened[-1]["cloud__address"] != OFF
        took_s = 1.0 + 0.01 * dead + 3.0 * (dead and number == 0)
        return {**TOLD, "took_s": took_s, "stages_s": {"escalate": 0.002 * dead}}


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


def test_figures_of_traces_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Late is more than 20 ms after the deadline; each trace has its own row."""
    monkeypatch.setattr(module, "FILES_EVERY", 2)
    took_s = [0.1, 0.2, 1.0, 1.02, 1.03, 1.5]
    delays_s = [0.0, 0.0, 0.0, 0.0, 0.005, 0.5]
    reads = [
        {**RESULT, "trace": trace, "number": number, "took_s": took, "scheduler_delay_s": delay,
         "bytes": 77 * (number == 5), "death": number == 5}
        for trace in "ab"
        for number, (took, delay) in enumerate(zip(took_s, delays_s, strict=True))
    ]  # fmt: skip
    said = figures(Run({}, 1.0, 0.3), reads)
    for found, times in ((said, 2), *((one, 1) for one in said["traces"])):
        assert (found["studies"], found["late"]) == (6 * times, 2 * times)
        assert found["late_without_scheduler_delay"] == times
        assert found["p50_ms"] == pytest.approx(1010.0)
        assert (found["escalated"], found["answered"]) == (18 * times, 12 * times)
        assert (found["bytes"], found["deaths"], found["refused"]) == (77 * times, times, 0)
        assert found["bytes_per_study"] == pytest.approx(77 / 6)
        assert found["share_of_scans"] == pytest.approx(77 / 6 / (2 * 120 * 480 * 480))
        assert (found["sensitivity"], found["broken_off"]) == (0.5, 6 * times)
    assert [one["trace"] for one in said["traces"]] == ["a", "b"]
    assert (said["from_files"], said["from_memory"]) == (6, 6)
    assert [bar.met for bar in link.bars(said)] == [False, False]
    assert row("t", [{**RESULT, "lesions": 0}], 1.0)["sensitivity"] is None


def test_the_edge_speaks_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILES_EVERY", 2)
    edge, run = WrittenEdge(), Run({"deadline_s": 2.0}, 2.0, replay=True)
    found = list(read_part(run, STEADY, edge, WrittenCloud(), range(3, 7)))
    (settings,) = edge.opened
    assert (settings["deadline_s"], settings["replay"]) == (2.0, True)
    assert settings["cloud__address"].startswith("127.0.0.1:")
    assert settings["cloud__address"] != "127.0.0.1:9"
    assert edge.files == [False, True, False, True]
    assert [(one["trace"], one["number"]) for one in found] == [("steady", n) for n in range(3, 7)]
    assert {one["bytes"] for one in found} == {0}


def test_a_cloud_that_is_killed_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a share of 1 it is killed in every study that lasts until then and finds it serving."""
    monkeypatch.setattr(module, "KILL_WITHIN_S", 0.0)
    cloud = WrittenCloud(back_after=2)
    run = Run({}, 2.0, kill_share=1.0)
    found = list(read_part(run, STEADY, WrittenEdge(wait_s=0.5), cloud, range(4)))
    assert [one["death"] for one in found] == [True, False, True, False]
    assert cloud.kills == cloud.starts == 2


def test_a_cloud_that_ends_by_itself_ends_the_run() -> None:
    class Gone(WrittenCloud):
        @property
        def serves(self) -> bool:
            raise ServiceFailed("the cloud ended with 1")

    run = Run({}, 2.0, kill_share=1.0)
    with pytest.raises(ServiceFailed, match="ended with 1"):
        list(read_part(run, STEADY, WrittenEdge(), Gone(), range(2)))


def test_edges_read_at_the_same_time() -> None:
    told: list[tuple[str, int]] = []
    both = threading.Barrier(2)
    edges = [WrittenEdge(both=both), WrittenEdge(both=both)]
    parts = parts_of([A, B], 6, 2)
    read_all(Run(), parts, edges, WrittenCloud(), lambda r: told.append((r["trace"], r["number"])))
    assert sorted(told) == [(name, n) for name in "ab" for n in range(6)]
    assert all(edge.files for edge in edges)
    seen = [{one["cloud__address"] for one in edge.opened} for edge in edges]
    assert not seen[0] & seen[1]


def test_an_edge_that_fails_ends_the_run() -> None:
    both = threading.Barrier(2)
    edges = [WrittenEdge(both=both), WrittenEdge(both=both, fails=True)]
    with pytest.raises(OSError, match="it died"):
        read_all(Run(), parts_of([A], 4, 2), edges, WrittenCloud(), lambda _: None)


def test_one_cloud_refuses_and_one_never_answers() -> None:
    with dead_clouds() as addresses:
        assert addresses[OFF] == OFF
        host, _, port = addresses[REFUSED].rpartition(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=60)
        host, _, port = addresses[SILENT].rpartition(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(b"anyone there?")
            connection.settimeout(0.05)
            with pytest.raises(TimeoutError):
                connection.recv(1)


def test_clouds_alternate_and_each_study_is_compared_with_itself() -> None:
    edges, slept = {way: WrittenEdge() for way in CLOUDS}, list[float]()
    results = list(compare(edges, {"deadline_s": 9.0}, 2, 3, slept.append))
    assert [one["way"] for one in results[:12]] == [*CLOUDS, *CLOUDS, *CLOUDS[::-1]]
    assert slept == [SETTLE_S] * 2
    for edge in edges.values():
        assert edge.files == [True, False, False, False] * 2
        assert {one["deadline_s"] for one in edge.opened} == {9.0}
    found = ways(results)
    off, again, refused, silent = found
    assert again["more_p95_ms"] == 0.0
    assert (off["median_ms"], off["more_median_ms"], off["studies"]) == (1000.0, 0.0, 6)
    assert refused["more_median_ms"] == pytest.approx(10.0)
    assert refused["more_p95_ms"] == pytest.approx(10.0)
    assert silent["first_more_median_ms"] == pytest.approx(3010.0)
    assert silent["escalate_p95_ms"] == pytest.approx(2.0)
    assert [bar.met for bar in link.bars({"ways": found, "bar_ms": 50.0})] == [True] * 4


def test_a_slow_tenth_of_the_studies_misses_the_limit() -> None:
    results = [
        {"round": 0, "way": way, "study": n, "stages_s": {"escalate": 0.0},
         "took_s": 1.0 + 0.06 * (way == SILENT and n % 10 == 1)}
        for way in CLOUDS
        for n in range(41)
    ]  # fmt: skip
    met = {bar.what: bar.met for bar in link.bars({"ways": ways(results), "bar_ms": 50.0})}
    assert [what for what, kept in met.items() if not kept] == [
        "cloud black hole: more than without a cloud, p95"
    ]


@pytest.mark.parametrize("scenario", ["traces", "dead-cloud"])
def test_the_command_reads_studies_over_each_link_or_in_rounds(
    scenario: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edge and cloud stand in for their processes."""
    monkeypatch.setattr(module, "apart", lambda *_: nullcontext(WrittenEdge()))
    monkeypatch.setattr(module, "running_cloud", lambda: nullcontext(WrittenCloud()))
    monkeypatch.setattr(module, "SETTLE_S", 0.0)
    options = ["--scenario", scenario, "--studies", "2", "--workers", "2", "--deadline", "5"]
    done = CliRunner().invoke(app, ["link", *options, "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    if scenario == "traces":
        assert (said["studies"], said["late"], said["deadline_s"]) == (20, 0, 5.0)
        assert len(said["traces"]) == 10
    else:
        assert [(one["way"], one["studies"]) for one in said["ways"]] == [(w, 8) for w in CLOUDS]
