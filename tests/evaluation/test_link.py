"""Studies over traces, with an edge and a cloud whose every answer is written down here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from evaluation.errors import MissingData
from evaluation.link import CAVEAT, OFF, Run, as_json, row, run_trace
from evaluation.link_command import _table, link_command
from evaluation.trace import Conditions, steady

RESULT = {
    "took_s": 0.1,
    "lesions": 2,
    "found": 1,
    "false": 1,
    "escalated": 3,
    "answered": 2,
    "second_reading": "complete",
    "refused": "",
}
STEADY = steady(Conditions())


@dataclass
class WrittenEdge:
    """Answers each study with the next of ``took_s``;."""

    took_s: list[float]
    opened: list[dict[str, Any]] = field(default_factory=list)
    files: list[bool] = field(default_factory=list)

    def open(self, **settings: Any) -> str:
        """Notes the settings."""
        self.opened.append(settings)
        return "written"

    def read(self, number: int, *, from_files: bool) -> dict[str, Any]:
        """The answer to one study."""
        self.files.append(from_files)
        return {**RESULT, "took_s": self.took_s[number]}


@dataclass
class WrittenCloud:
    """Counts its deaths; is back when it is waited for, or ``back_after`` looks later."""

    back_after: int = 0
    address: str = "127.0.0.1:9"
    deaths: int = 0
    starts: int = 0
    looks: int = 0

    @property
    def serves(self) -> bool:
        """Whether it is up again."""
        self.looks -= 1
        return self.looks < 0

    def kill(self) -> None:
        """Dies."""
        self.deaths += 1

    def start(self) -> None:
        """Begins to come back."""
        self.starts += 1
        self.looks = self.back_after

    def wait(self) -> None:
        """Comes back."""
        self.looks = 0


def test_figures_of_a_trace_by_hand() -> None:
    """Late is more than 20 ms after the deadline; percentiles are of all studies."""
    took = [0.1, 0.2, 1.0, 1.02, 1.03]
    found = row("t", [{**RESULT, "took_s": s} for s in took], 1.0, carried=77, deaths=1)
    assert (found["trace"], found["studies"], found["late"]) == ("t", 5, 1)
    assert found["p50_ms"] == pytest.approx(1000.0)
    assert found["p95_ms"] == pytest.approx(1028.0)
    assert found["sensitivity"] == 0.5
    assert (found["escalated"], found["answered"], found["complete"]) == (15, 10, 5)
    assert (found["bytes"], found["deaths"], found["refused"]) == (77, 1, 0)
    assert row("t", [{**RESULT, "lesions": 0}], 1.0)["sensitivity"] is None


def test_the_edge_speaks_through_the_proxy() -> None:
    """It is given the proxy's address, not the cloud's; every second study starts from files."""
    edge, run = WrittenEdge([0.1] * 5), Run(5, {"deadline_s": 2.0}, 2.0, files_every=2)
    found = run_trace(run, STEADY, edge, WrittenCloud(), range(5))
    (settings,) = edge.opened
    assert settings["deadline_s"] == 2.0
    assert settings["cloud"].startswith("127.0.0.1:")
    assert settings["cloud"] != "127.0.0.1:9"
    assert edge.files == [True, False, True, False, True]
    assert (found["trace"], found["late"], found["bytes"]) == ("steady", 0, 0)


def test_without_a_cloud_none_is_asked() -> None:
    """The trace ``off`` is the edge alone."""
    edge = WrittenEdge([0.1] * 3)
    found = run_trace(Run(3, {}, 2.0), None, edge, WrittenCloud(), range(3))
    assert edge.opened == [{"cloud": "off"}]
    assert (found["trace"], found["studies"]) == (OFF, 3)


def test_every_cloud_that_is_killed_is_started_again() -> None:
    """With a share of 1 it dies in every study that finds it serving, the same for a seed."""
    edge, cloud = WrittenEdge([0.001] * 6), WrittenCloud()
    found = run_trace(Run(6, {}, 2.0, kill_share=1.0), STEADY, edge, cloud, range(6))
    assert found["deaths"] == cloud.deaths == cloud.starts == 6


def test_a_death_waits_until_there_is_somebody_to_die() -> None:
    """While the cloud is coming back the next death is put off, and studies go on."""
    edge, cloud = WrittenEdge([0.001] * 9), WrittenCloud(back_after=2)
    found = run_trace(Run(9, {}, 2.0, kill_share=1.0), STEADY, edge, cloud, range(9))
    assert found["studies"] == 9
    assert found["deaths"] == 3


def test_the_same_seed_kills_in_the_same_studies() -> None:
    """And a share of a half kills in some and not in others."""
    counts = []
    for _ in range(2):
        run = Run(20, {}, 2.0, kill_share=0.5, seed=4)
        found = run_trace(run, STEADY, WrittenEdge([0.001] * 20), WrittenCloud(), range(20))
        counts.append(found["deaths"])
    assert counts[0] == counts[1]
    assert 0 < counts[0] < 20


def test_the_whole_says_what_it_was_made_of() -> None:
    """Sums over traces, how many started from files, and that phantoms are synthetic."""
    run = Run(5, {}, 1.0, files_every=2)
    rows = [row(name, [{**RESULT, "took_s": 1.1}] * 5, 1.0) for name in ("a", "b")]
    said = as_json(run, rows, {"cpu": "x", "cores": 2})
    assert (said["studies"], said["late"]) == (10, 10)
    assert (said["from_files"], said["from_memory"]) == (6, 4)
    assert said["caveat"] == CAVEAT
    assert [one["trace"] for one in said["traces"]] == ["a", "b"]
    assert _table(said).row_count == 2


def test_a_trace_that_is_nowhere_starts_nothing() -> None:
    """It is told before any process is started."""
    app = typer.Typer()
    app.command()(link_command)
    ended = CliRunner().invoke(app, ["--trace", "off", "--trace", "carrier-pigeon"])
    assert isinstance(ended.exception, MissingData)
    assert "satellite" in str(ended.exception)
