"""Parts of a run, and edges that read them side by side."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from evaluation.lanes import Part, parts_of, read_all
from evaluation.link import OFF, Reaper, Run
from evaluation.trace import Conditions, steady
from tests.evaluation.written import GIVEN, RESULT, WrittenCloud

A, B = steady(Conditions(), "a"), steady(Conditions(), "b")


class Edge:
    """Notes what it reads, under the address that it has been opened with."""

    def __init__(self, both: threading.Barrier | None = None, fails: bool = False) -> None:
        self.read_here: list[tuple[str, int]] = []
        self._both, self._fails, self._cloud = both, fails, ""

    def open(self, *, replay: bool = False, **settings: Any) -> str:
        """Notes where the cloud is."""
        self._cloud = settings["cloud"]
        return f"replay {replay}"

    def read(self, number: int, *, from_files: bool) -> dict[str, Any]:  # noqa: ARG002 - the shape of the real one
        """A study; the first waits for the other edge's."""
        if self._both is not None and not self.read_here:
            self._both.wait(60)
        if self._fails:
            raise OSError("it died")
        self.read_here.append((self._cloud, number))
        return {key: RESULT[key] for key in RESULT if key not in GIVEN}


def test_each_study_is_in_exactly_one_part() -> None:
    """And what was read before in none; neighbours are of different traces."""
    parts = parts_of([A, None, B], 5, 2, {("a", 0), (OFF, 3), ("b", 1), ("b", 3)})
    assert parts == [
        Part(A, (2, 4)),
        Part(None, (0, 2, 4)),
        Part(B, (0, 2, 4)),
        Part(A, (1, 3)),
        Part(None, (1,)),
    ]
    assert parts_of([A], 1, 3, {("a", 0)}) == []


def test_edges_read_at_the_same_time() -> None:
    """Every study is told once, and each edge has its own proxy to the cloud."""
    told: list[tuple[str, int]] = []
    edges = [Edge(both := threading.Barrier(2)), Edge(both)]
    parts = parts_of([A, B], 6, 2, set())
    read_all(
        Run(6),
        parts,
        edges,
        Reaper(WrittenCloud()),
        lambda r: told.append((r["trace"], r["number"])),
    )
    assert sorted(told) == [(name, n) for name in "ab" for n in range(6)]
    assert all(edge.read_here for edge in edges)
    seen = [{address for address, _ in edge.read_here} for edge in edges]
    assert not seen[0] & seen[1]


def test_an_edge_that_fails_ends_the_run() -> None:
    """The error is raised, though the other edge reads on."""
    both = threading.Barrier(2)
    with pytest.raises(OSError, match="it died"):
        read_all(
            Run(4), parts_of([A], 4, 2, set()), [Edge(both), Edge(both, fails=True)],
            Reaper(WrittenCloud()),
            lambda _: None,
        )  # fmt: skip
