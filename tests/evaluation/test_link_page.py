"""The part of the documents on deadlines and recovery, from files made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evaluation.dead_cloud import MUTE, REFUSED
from evaluation.dead_cloud import as_json as dead_cloud_json
from evaluation.detection import row as detection_row
from evaluation.link import OFF, Run
from evaluation.link import as_json as link_json
from evaluation.link_page import render
from tests.evaluation.written import RESULT

MACHINE = {"cpu": "a CPU", "cores": 2, "system": "s"}


def keep(folder: Path, name: str, result: dict[str, Any]) -> None:
    """As `evaluation.claims` does."""
    (folder / f"{name}.json").write_text(json.dumps({"command": f"do {name}", **result}))


def test_every_number_is_from_the_files(tmp_path: Path) -> None:
    """The sections that were measured are there, each with its command, and no other."""
    results = [{**RESULT, "trace": name, "took_s": 2.0, "bytes": 3_000_000} for name in "ab"]
    keep(tmp_path, "link", link_json(Run(1, deadline_s=1.0, reserve_s=0.25), results, MACHINE))
    took = [{"total_ms": 80.0, "parts_ms": {"compute": 44.0}}] * 3
    detection = {**MACHINE, "engine": "some engine", "bar_ms": 85.0}
    keep(tmp_path, "detection", {**detection, "links": [detection_row("fibre", took)]})
    dead = [
        {"round": 0, "way": way, "study": n, "took_s": s, "stalled_s": 0.0,
         "stages_s": {"escalate": 0.001}}
        for way, s in ((OFF, 1.0), (REFUSED, 1.007), (MUTE, 1.01))
        for n in range(2)
    ]  # fmt: skip
    keep(tmp_path, "dead_cloud", dead_cloud_json(dead, MACHINE))
    found = {"studies": 90, "provisional": 50, "amendments": 61, "lost": [], "doubled": ["x"]}
    keep(tmp_path, "flaps", {"flaps": 50, **found, "left": []})
    page = render(tmp_path)
    assert "2 of 2 answers came more than 20 ms after their deadline of 1 s" in page
    assert "| a | 1 | 1 | 2000 | 2000 | 2000 | 2000 | 50.0 % | 3 | 2 | 1 | 3.0 | 0 |" in page
    assert "ends 0.25 s before the deadline (`reserve_s`), 0.75 s after" in page
    assert "2 studies started from files, 0 not." in page
    assert "had found no cloud" not in page
    assert "It is kept. The first" in page
    assert "| compute | 44.0 (44.0) |" in page
    assert "| refused | 1 | 1007.0 | 1007.0 | 7.0 | 7.0 | 7.0 | 1.0 | 7.0 | 7.0 | 1.0 |" in page
    assert "| the link lost | 50 | 90 | 50 | 61 | 0 | 1 | 0 |" in page
    commands = [line for line in page.splitlines() if line.startswith("    do ")]
    assert commands == ["    do link", "    do dead_cloud", "    do detection", "    do flaps"]
    assert "smaller regions" not in page


def test_links_over_which_nothing_was_sent_are_named(tmp_path: Path) -> None:
    """There the watch knows beforehand, and no study waits: that they are in time says little."""
    none = {**RESULT, "trace": "hole", "escalated": 0, "answered": 0}
    keep(tmp_path, "link", link_json(Run(1), [none, {**RESULT, "trace": "b"}], MACHINE))
    assert "Over `hole` the watch had found no cloud before" in render(tmp_path)


def test_a_bar_that_is_broken_is_called_so(tmp_path: Path) -> None:
    """With the way that breaks it."""
    dead = [
        {"round": 0, "way": way, "study": n, "took_s": s, "stalled_s": 0.0,
         "stages_s": {"escalate": 0.001}}
        for way, s in ((OFF, 1.0), (REFUSED, 1.007), (MUTE, 1.1))
        for n in range(2)
    ]  # fmt: skip
    keep(tmp_path, "dead_cloud", dead_cloud_json(dead, MACHINE))
    assert "Not kept: black hole. " in render(tmp_path)


def test_without_results_there_is_no_section(tmp_path: Path) -> None:
    """Nothing is claimed that was not measured."""
    assert render(tmp_path).strip() == ""
