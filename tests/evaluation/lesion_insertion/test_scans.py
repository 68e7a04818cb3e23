"""Scans with implants through a reader that sees what is bright, from the volume on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.accuracy.froc import Scored
from evaluation.accuracy.subgroups import Traits
from evaluation.errors import MissingData
from evaluation.lesion_insertion.command import draw_sheet, save_sheet, tables
from evaluation.lesion_insertion.donors import cut_donor
from evaluation.lesion_insertion.hosts import of_splits
from evaluation.lesion_insertion.insert import Copy, Implant
from evaluation.lesion_insertion.scans import (
    HostScores,
    as_dict,
    least_score,
    read_copies,
    read_host,
    scored,
)
from imaging.preprocess import Preprocessed
from models.markdown import Rows
from models.runtime.detection import Candidate
from tests.evaluation.plain_chest import LUNG_HU, bright, host, in_lung, nodule

ALARM_MM = in_lung(1, 20.0)


def reads(box: Preprocessed) -> list[Candidate]:
    """What is bright, and one place that is always suspected."""
    z, y, x = (float(v) for v in box.geometry.to_index(ALARM_MM))
    return [*bright(box), Candidate(ALARM_MM, (z, y, x), 5.0, 0.6)]


@pytest.fixture(scope="module")
def untouched() -> HostScores:
    """The plain chest, read."""
    return read_host(host(), reads)


def copy(untouched: HostScores, *shifts_mm: float, masses: bool = False) -> Copy:
    """A copy with nodules of 10 mm in the right lung at these places."""
    donor = cut_donor(*nodule(10.0))
    assert donor is not None
    implants = [
        Implant(0, donor, 3.0 if masses else 1.0, centre_mm=in_lung(0, shift), lung_hu=LUNG_HU)
        for shift in shifts_mm
    ]
    return Copy(untouched.ready, tuple(implants), masses)


def test_alarms_are_those_of_the_untouched_scan(untouched: HostScores) -> None:
    """However many copies were read, the scan's alarm counts once."""
    read = read_copies([copy(untouched, 0.0), copy(untouched, 10.0)], [untouched], reads)
    found = [one for each in read for one in each.found]
    whole = scored(found, [untouched])
    assert whole.false_score.tolist() == [0.6]
    assert whole.scans == 1
    assert [one.score for one in found] == [pytest.approx(0.54), pytest.approx(0.64)]
    assert [each.brought for each in read] == [(), ()]


def test_what_only_a_copy_has_is_told_apart(untouched: HostScores) -> None:
    """A mark beside the implant and away from the untouched scan's was brought by it."""

    def nervous(box: Preprocessed) -> list[Candidate]:
        found = reads(box)
        extra = in_lung(0, -30.0)
        z, y, x = (float(v) for v in box.geometry.to_index(extra))
        return [*found, Candidate(extra, (z, y, x), 5.0, 0.9)]

    (read,) = read_copies([copy(untouched, 10.0)], [untouched], nervous)
    assert read.brought == (0.9,)


def result(untouched: HostScores) -> dict[str, object]:
    """Two nodules found, one of them below the alarm, and a mass."""
    copies = [copy(untouched, 0.0), copy(untouched, 10.0), copy(untouched, 0.0, masses=True)]
    read = read_copies(copies, [untouched], reads)
    one = np.array([10.0])
    found = as_dict(
        read, [untouched], Traits(one, one / 2, one / 2, one / 10), resamples=20, seed=0
    )
    return {"stage": "edge", "split": "test", "not_placed": ["a, 60 mm, patients"], **found}


def test_json_has_figures_subgroups_and_masses(untouched: HostScores) -> None:
    """One of two nodules is above the alarm; the mass is found; all of it is plain JSON."""
    said = json.loads(json.dumps(result(untouched), allow_nan=False))
    group = said["groups"]["patients"]
    assert list(said["groups"]) == ["patients"]
    assert "Semi-synthetic" in said["semi_synthetic"]
    assert [point["value"] for point in group["sensitivity"]] == [0.5] * 3 + [1.0] * 4
    assert group["scans"][0]["false_positives"] == {
        "0.125": 0, "0.25": 0, "0.5": 0, "1": 1, "2": 1, "4": 1, "8": 1
    }  # fmt: skip
    assert group["from_5_mm"]["nodules"] == 2
    assert group["subgroups"]["diameter"]["8 to 15 mm"]["nodules"] == 2
    assert group["subgroups"]["original location"]["freely in the lung"]["nodules"] == 2
    assert group["masses"]["by_size"] == {"30 mm": {"masses": 1, "missed": 0}}
    assert group["masses"]["missed"] == []
    assert [one["mass"] for one in said["insertions"]] == [False, False, True]


def test_operating_point_is_the_lowest_threshold_allowed() -> None:
    """One alarm a scan on two scans leaves two of three; where all are allowed nothing is cut."""
    of = Scored(
        nodule_score=np.array([0.1]),
        nodule_group=np.array([0]),
        false_score=np.array([0.5, 0.9, 0.7]),
        false_scan=np.array([0, 1, 1]),
        scans=2,
        paired=False,
    )
    assert 0.5 < least_score(of, 1.0) < 0.5 + 1e-9
    assert least_score(of, 2.0) == -np.inf


def test_every_table_says_what_it_is(untouched: HostScores) -> None:
    """The title of each table says semi-synthetic."""
    said = result(untouched)
    shown = tables(said)
    assert all("emi-synthetic" in str(t.title) for t in shown if isinstance(t, Rows))
    assert any("a, 60 mm" in str(t) for t in shown)


def test_sheet_shows_before_and_after(untouched: HostScores, tmp_path: Path) -> None:
    """The sheet is a picture with bright nodules; a folder that is not there is an error."""
    sheet = draw_sheet([copy(untouched, 0.0, 15.0)])
    assert sheet.ndim == 2
    tile = sheet.shape[0] // 2
    assert sheet[tile:].max() > 150
    save_sheet(tmp_path / "sheet.png", sheet)
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    with pytest.raises(MissingData):
        save_sheet(tmp_path / "none" / "sheet.png", sheet)


def test_training_scans_are_no_hosts(tmp_path: Path) -> None:
    """Roles decide; without such a column every scan may serve, and none left is an error."""
    folders = [tmp_path / name for name in ("a", "b")]
    table = tmp_path / "scans.csv"
    table.write_text("scan,role\na,train\nb,test\n")
    assert of_splits(folders, table, ("test",)) == folders[1:]
    with pytest.raises(MissingData):
        of_splits(folders, table, ("val",))
    table.write_text("scan\na\nb\n")
    assert of_splits(folders, table, ("test",)) == folders
