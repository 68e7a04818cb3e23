"""Pictures of an amended report: which are kept, drawn or taken away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.report.model import Change, ChangeKind, Report
from edge.report.pictures import OVERVIEW, PICTURED, picture_name, picture_note, redraw
from protos.messages import Roi
from tests.edge.builders import LISTING, SETTINGS, Site, plan_of
from tests.edge.report.reports import FINDING, POSSIBLE, REPORT, VERDICT


def test_pictures_of_findings_are_kept_and_a_new_one_is_drawn(site: Site) -> None:
    """The old files are untouched; an added finding is drawn from its ROI; the report says so."""
    site.study("a", pictures=True)
    out = site.places.outbox / "a"
    before = {path.name: path.read_bytes() for path in out.glob("*.jpg")}
    assert sorted(before) == ["finding_01.jpg", "finding_02.jpg", "overview.jpg"]
    site.cloud.answers = [2]
    site.turns()
    after = {path.name: path.read_bytes() for path in out.glob("*.jpg")}
    assert after.items() >= before.items()
    assert sorted(after) == ["finding_01.jpg", "finding_02.jpg", "finding_03.jpg", "overview.jpg"]
    assert site.report("a")["picture_note"] == (
        "The overview shows the findings of version 1. "
        "Pictures of version 1: finding 2, finding 1. "
        "Pictures of the ROI that was sent to the cloud: finding 3."
    )


def test_a_removed_finding_loses_its_picture_and_a_missing_picture_is_noted(site: Site) -> None:
    """No picture of a finding that is none is left, and one that is gone is said to be gone."""
    site.study("a", pictures=True)
    out = site.places.outbox / "a"
    (out / "finding_01.jpg").unlink()
    site.cloud.answers, site.cloud.probability = [2], 0.01
    site.turns()
    assert [path.name for path in out.glob("*.jpg")] == ["overview.jpg"]
    assert "Without a picture: finding 1." in site.report("a")["picture_note"]


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The edge's model has a list of possible findings."""
    monkeypatch.setitem(SETTINGS, "thresholds", LISTING.__dict__)


@pytest.mark.usefixtures("listing")
def test_a_possible_finding_that_becomes_a_finding_keeps_number_and_picture(site: Site) -> None:
    """Report, page and pictures of two versions through the whole agent."""
    site.study("a", pictures=True)
    out, first = site.places.outbox / "a", site.report("a")
    before = {path.name: path.read_bytes() for path in out.glob("*.jpg")}
    assert sorted(before) == [*map(picture_name, (1, 2, 3)), OVERVIEW]
    assert [one["number"] for one in first["findings"]] == [1, 2]
    assert [one["number"] for one in first["possible_findings"]] == [3]
    site.cloud.answers = [2]
    site.turns()
    second = site.report("a")
    assert [one["number"] for one in second["findings"]] == [2, 3, 1]
    assert second["possible_findings"] == []
    assert {path.name: path.read_bytes() for path in out.glob("*.jpg")} == before
    assert second["picture_note"].endswith(
        "Pictures of version 1: finding 2, finding 3, finding 1."
    )
    assert "possible finding 3 is now a finding" in (out / "report.html").read_text()


@pytest.mark.usefixtures("listing")
def test_a_finding_that_becomes_possible_keeps_its_picture_and_a_removed_one_loses_it(
    site: Site,
) -> None:
    site.study("a", pictures=True)
    site.cloud.answers, site.cloud.probability = [2], 0.3
    site.turns()
    report, out = site.report("a"), site.places.outbox / "a"
    assert [one["number"] for one in report["possible_findings"]] == [2]
    assert sorted(p.name for p in out.glob("*.jpg")) == [*map(picture_name, (1, 2)), OVERVIEW]
    assert report["picture_note"].endswith("version 1: finding 1, possible finding 2.")
    kinds = [change["kind"] for change in report["changes"]]
    assert kinds == ["finding lowered to possible finding", "possible finding removed"]


def amended(
    findings: Sequence[int],
    possible: Sequence[int],
    changes: Sequence[tuple[ChangeKind, int]],
    pictured: int,
) -> Report:
    """Version 2 with these numbers; the candidate of number ``n`` is ``n``."""
    listed = [
        [replace(one, verdict=replace(VERDICT, roi_id=number)) for number in numbers]
        for one, numbers in ((FINDING, findings), (POSSIBLE, possible))
    ]
    return replace(
        REPORT,
        version=2,
        findings=tuple(listed[0]),
        possible=tuple(listed[1]),
        finding_numbers=(*findings, *possible),
        pictured=tuple(range(1, pictured + 1)),
        changes=tuple(Change(2, kind, "", number) for kind, number in changes),
    )


def test_findings_take_the_place_of_possible_findings_where_pictures_are_too_many(
    tmp_path: Path,
) -> None:
    """An added finding, and a raised one that had no picture, are drawn from their ROIs."""
    plan = plan_of(*[0.5] * 30)
    for name in (OVERVIEW, *map(picture_name, range(1, PICTURED + 1))):
        (tmp_path / name).write_bytes(name.encode())
    possible = [n for n in range(1, 25) if n != 23]
    report = amended(
        [23, 25], possible, [(ChangeKind.RAISED, 23), (ChangeKind.ADDED, 25)], PICTURED
    )

    def roi_of(index: int) -> Roi:
        return Roi(index, np.zeros((16, 16, 16), np.uint8), (1.0, 1.0, 1.0), (-1000.0, 400.0), 0.5)

    pictures = redraw(report, plan, roi_of, tmp_path)
    first = [picture_name(n) for n in (23, 25, *range(1, PICTURED - 1))]
    assert [*pictures] == [OVERVIEW, *first]
    assert pictures[picture_name(1)] == picture_name(1).encode()
    assert pictures[picture_name(25)].startswith(b"\xff\xd8")
    note = picture_note(report, pictures)
    assert "Pictures of version 1: possible finding 1, " in note
    assert "Pictures of the ROI that was sent to the cloud: finding 23, finding 25." in note
    assert "Without a picture: possible finding 19, possible finding 20, " in note


def test_an_added_possible_finding_is_drawn_from_its_roi(tmp_path: Path) -> None:
    (tmp_path / picture_name(1)).write_bytes(b"1")
    report = amended([1], [2], [(ChangeKind.POSSIBLE_ADDED, 2)], 1)
    roi = Roi(2, np.zeros((16, 16, 16), np.uint8), (1.0, 1.0, 1.0), (-1000.0, 400.0), 0.5)
    pictures = redraw(report, plan_of(*[0.5] * 3), lambda _: roi, tmp_path)
    assert [*pictures] == [picture_name(1), picture_name(2)]
    assert picture_note(report, pictures) == (
        "Pictures of version 1: finding 1. "
        "Pictures of the ROI that was sent to the cloud: possible finding 2."
    )
