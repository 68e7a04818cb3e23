import socket
from typing import Any

import pytest

from evaluation.links.dead_cloud import (
    CLOUDS,
    REFUSED,
    SETTLE_S,
    SILENT,
    compare,
    dead_clouds,
    ways,
)
from evaluation.links.edge_worker import OFF
from evaluation.links.link import link


class Edge:
    """Takes 1 s, more by its cloud, and 3 s more for the first study if there is a cloud."""

    def __init__(self) -> None:
        self.opened: list[dict[str, Any]] = []
        self.files: list[bool] = []

    def open(self, *, replay: bool = False, **settings: Any) -> str:
        self.opened.append({"replay": replay, **settings})
        return ""

    def read(self, number: int, *, from_files: bool) -> dict[str, Any]:
        self.files.append(from_files)
        dead = self.opened[-1]["cloud__address"] != OFF
        return {
            "took_s": 1.0 + 0.01 * dead + 3.0 * (dead and number == 0),
            "scheduler_delay_s": 0.1,
            "stages_s": {"escalate": 0.002 * dead},
        }


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
    edges, slept = {way: Edge() for way in CLOUDS}, list[float]()
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
        {"round": 0, "way": way, "study": n, "scheduler_delay_s": 0.0,
         "stages_s": {"escalate": 0.0},
         "took_s": 1.0 + 0.06 * (way == SILENT and n % 10 == 1)
         + 0.07 * (way == REFUSED and n == 2)}
        for way in CLOUDS
        for n in range(41)
    ]  # fmt: skip
    found = ways(results)
    _, _, refused, silent = found
    assert silent["more_median_ms"] == 0.0
    assert silent["more_p95_ms"] == pytest.approx(60.0)
    assert refused["more_most_ms"] == pytest.approx(70.0)
    met = {bar.what: bar.met for bar in link.bars({"ways": found, "bar_ms": 50.0})}
    assert [what for what, kept in met.items() if not kept] == [
        "cloud black hole: more than without a cloud, p95"
    ]
