"""Pictures of an amended report: which are kept, drawn or taken away."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.report.model import Report
from edge.report.pictures import OVERVIEW, PICTURED, picture_name, picture_note, redraw
from protos.messages import Roi
from tests.edge.builders import LISTING, SETTINGS, Site, plan_of
from tests.edge.report.reports import FINDING, POSSIBLE, REPORT, VERDICT


def pictures_in(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.jpg"))}


def test_pictures_of_findings_are_kept_and_a_new_one_is_drawn(site: Site) -> None:
    """The old files are untouched; an added finding is drawn from its ROI; the report says so."""
    site.study("a", pictures=True)
    out = site.places.outbox / "a"
    before = pictures_in(out)
    assert [*before] == [*map(picture_name, (1, 2)), OVERVIEW]
    site.cloud.answers = [2]
    site.turns()
    assert pictures_in(out).items() >= before.items()
    assert [*pictures_in(out)] == [*map(picture_name, (1, 2, 3)), OVERVIEW]
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
    assert [*pictures_in(out)] == [OVERVIEW]
    assert "Without a picture: finding 1." in site.report("a")["picture_note"]


@pytest.mark.parametrize(
    ("probability", "findings", "possible", "note", "told"),
    [
        (None, [2, 3, 1], [], "finding 2, finding 3, finding 1",
         "possible finding 3 is now a finding"),
        (0.3, [1], [2], "finding 1, possible finding 2",
         "finding 2 is now a possible finding"),
    ],
    ids=["raised", "lowered"],
)  # fmt: skip
def test_what_moves_to_the_other_list_keeps_number_and_picture(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    probability: float | None,
    findings: list[int],
    possible: list[int],
    note: str,
    told: str,
) -> None:
    """Report, page and pictures of two versions; what is in no list loses its picture."""
    monkeypatch.setitem(SETTINGS, "thresholds", LISTING.__dict__)
    site.study("a", pictures=True)
    out, first = site.places.outbox / "a", site.report("a")
    before = pictures_in(out)
    assert [*before] == [*map(picture_name, (1, 2, 3)), OVERVIEW]
    assert [one["number"] for one in first["possible_findings"]] == [3]
    site.cloud.answers, site.cloud.probability = [2], probability or site.cloud.probability
    site.turns()
    second = site.report("a")
    assert [one["number"] for one in second["findings"]] == findings
    assert [one["number"] for one in second["possible_findings"]] == possible
    kept = [*map(picture_name, sorted(findings + possible)), OVERVIEW]
    assert pictures_in(out) == {name: before[name] for name in kept}
    assert second["picture_note"].endswith(f"Pictures of version 1: {note}.")
    assert told in (out / "report.html").read_text()


def amended(findings: Sequence[int], possible: Sequence[int], pictured: int) -> Report:
    """Version 2 with these numbers; the candidate of number ``n`` is ``n``."""
    listed = [
        tuple(replace(one, verdict=replace(VERDICT, roi_id=number)) for number in numbers)
        for one, numbers in ((FINDING, findings), (POSSIBLE, possible))
    ]
    return replace(
        REPORT,
        version=2,
        findings=listed[0],
        possible=listed[1],
        finding_numbers=(*findings, *possible),
        pictured=tuple(range(1, pictured + 1)),
    )


def roi_of(index: int) -> Roi:
    return Roi(index, np.zeros((16, 16, 16), np.uint8), (1.0, 1.0, 1.0), (-1000.0, 400.0), 0.5)


def test_findings_take_the_place_of_possible_findings_where_pictures_are_too_many(
    tmp_path: Path,
) -> None:
    """An added finding, and a raised one that had no picture, are drawn from their ROIs."""
    plan = plan_of(*[0.5] * 30)
    for name in (OVERVIEW, *map(picture_name, range(1, PICTURED + 1))):
        (tmp_path / name).write_bytes(name.encode())
    possible = [n for n in range(1, 25) if n != 23]
    report = amended([23, 25], possible, PICTURED)
    pictures = redraw(report, plan, roi_of, tmp_path)
    first = [picture_name(n) for n in (23, 25, *range(1, PICTURED - 1))]
    assert [*pictures] == [OVERVIEW, *first]
    assert pictures[picture_name(1)] == picture_name(1).encode()
    assert pictures[picture_name(25)].startswith(b"\xff\xd8")
    note = picture_note(report, pictures)
    assert "Pictures of version 1: possible finding 1, " in note
    assert "Pictures of the ROI that was sent to the cloud: finding 23, finding 25." in note
    assert "Without a picture: possible finding 19, possible finding 20, " in note
