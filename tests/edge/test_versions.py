from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from edge.durable import write_atomically
from edge.outcome import Change, ChangeKind
from edge.report import draw_pictures, write_report
from edge.versions import version_in, write_version
from tests.edge.reports import FINDING, REPORT, box

CHANGE = Change(2, ChangeKind.ADDED, "finding 4 is new", 4, (1.0, 2.0, 3.0), 0.3, 0.9, 0.8, "m 1")
SECOND = dataclasses.replace(
    REPORT, version=2, findings=(FINDING, FINDING), finding_numbers=(4, 1), changes=(CHANGE,)
)
PICTURES = {"overview.png": b"\x89PNG o", "finding_01.png": b"\x89PNG 1", "finding_04.png": b"4"}
FILES = ["finding_04.png", "report.v1.html", "report.v1.json", "report.html", "report.json"]


def first(out: Path) -> dict[str, bytes]:
    """Version 1 in ``out``; returns its files."""
    write_report(REPORT, draw_pictures(REPORT.findings, box(), out), out)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_the_new_version_takes_the_place_and_the_old_one_lies_beside_it(tmp_path: Path) -> None:
    """Page and data of version 1 are what they were, byte for byte."""
    before = first(tmp_path)
    paths = write_version(SECOND, PICTURES, tmp_path)
    for suffix in ("html", "json"):
        assert (tmp_path / f"report.v1.{suffix}").read_bytes() == before[f"report.{suffix}"]
    words = json.loads(paths.json.read_text())
    assert [finding["number"] for finding in words["findings"]] == [4, 1]
    assert words["changes"][0]["verdict"] == {"probability": 0.8, "model": "m 1"}
    assert [path.name for path in paths.pictures] == list(PICTURES)


def test_pictures_that_are_not_of_the_new_version_go(tmp_path: Path) -> None:
    """Nothing but pictures is removed."""
    first(tmp_path)
    (tmp_path / "finding_notes.png").touch()
    write_version(SECOND, {}, tmp_path)
    names = ["finding_notes.png", "report.html", "report.json", "report.v1.html", "report.v1.json"]
    assert sorted(os.listdir(tmp_path)) == names


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("file", FILES)
def test_killed_at_any_file_the_old_version_is_whole_and_the_next_attempt_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, after: bool
) -> None:
    """``report.json`` is one version or the other, never none, and version 1 is never changed."""
    before = first(tmp_path)

    def dies(path: Path, data: bytes) -> None:
        if path.name != file or after:
            write_atomically(path, data)
        if path.name == file:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("edge.versions.write_atomically", dies)
        with pytest.raises(KeyboardInterrupt):
            write_version(SECOND, PICTURES, tmp_path)
    assert version_in(tmp_path, "k1") == (2 if after and file == "report.json" else 1)
    write_version(SECOND, PICTURES, tmp_path)
    assert version_in(tmp_path, "k1") == 2
    for suffix in ("html", "json"):
        assert (tmp_path / f"report.v1.{suffix}").read_bytes() == before[f"report.{suffix}"]
    assert sorted(os.listdir(tmp_path)) == sorted({*before, *FILES})


def test_the_version_of_another_study_is_none(tmp_path: Path) -> None:
    """A folder that is empty, damaged, or of another key holds no version."""
    assert version_in(tmp_path, "k1") == 0
    first(tmp_path)
    assert (version_in(tmp_path, "k1"), version_in(tmp_path, "k2")) == (1, 0)
    (tmp_path / "report.json").write_text("{")
    assert version_in(tmp_path, "k1") == 0


def test_a_new_study_s_report_leaves_no_version_of_an_older_one(tmp_path: Path) -> None:
    """Versions of one patient never lie beside another's report."""
    first(tmp_path)
    write_version(SECOND, PICTURES, tmp_path)
    before = first(tmp_path)
    assert not [name for name in before if name.startswith("report.v")]
