import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.accuracy.readers import Stage
from evaluation.accuracy.subgroups import Traits
from evaluation.accuracy.truth import Lesion, Truth
from evaluation.errors import MissingData
from evaluation.lesion_insertion.command import draw_sheet, save_sheet, tables
from evaluation.lesion_insertion.hosts import PreparedHost
from evaluation.lesion_insertion.scans import (
    as_dict,
    least_score,
    prepare_host,
    read_synthetic,
    scored,
)
from imaging.preprocess import Preprocessed
from models.insertion.insert import APART_MM, Insertion, SyntheticScan
from models.insertion.space import Occupied
from models.markdown import Rows
from models.runtime.detection import Candidate
from tests.evaluation.accuracy.test_froc import make
from tests.evaluation.plain_chest import LUNG_HU, bright, donor, host, in_lung

FALSE_MM = in_lung(1, 20.0)


def reads(box: Preprocessed) -> dict[Stage, list[Candidate]]:
    """Candidates where it is bright, and one that is always false, but less so for both."""
    z, y, x = (float(v) for v in box.geometry.to_index(FALSE_MM))
    return {
        stage: [*bright(box), Candidate(FALSE_MM, (z, y, x), 5.0, score)]
        for stage, score in ((Stage.EDGE, 0.6), (Stage.BOTH, 0.1))
    }


@pytest.fixture(scope="module")
def untouched() -> PreparedHost:
    return prepare_host(host(), reads)


def synthetic(untouched: PreparedHost, *shifts_mm: float, masses: bool = False) -> SyntheticScan:
    """A scan with nodules of 10 mm inserted into the right lung at these places."""
    insertions = [
        Insertion(
            0, donor(), 3.0 if masses else 1.0, masses, centre_mm=in_lung(0, shift), lung_hu=LUNG_HU
        )
        for shift in shifts_mm
    ]
    return SyntheticScan(untouched, tuple(insertions))


def test_false_positives_are_those_of_the_host(untouched: PreparedHost) -> None:
    """However many synthetic scans are read, the host's false positive counts once."""
    read = [read_synthetic(synthetic(untouched, shift), reads) for shift in (0.0, 10.0)]
    found = [one for each in read for one in each[Stage.EDGE].insertions]
    whole = scored(found, [untouched], Stage.EDGE)
    assert whole.false_score.tolist() == [0.6]
    assert whole.scans == 1
    assert [one.score for one in found] == [pytest.approx(0.54), pytest.approx(0.64)]
    assert [each[Stage.EDGE].extra for each in read] == [(), ()]


def test_extra_detections_are_counted_apart(untouched: PreparedHost) -> None:
    """A detection beside the insertion, and away from the host's, is caused by it."""

    def nervous(box: Preprocessed) -> dict[Stage, list[Candidate]]:
        found = reads(box)[Stage.EDGE]
        extra = in_lung(0, -30.0)
        z, y, x = (float(v) for v in box.geometry.to_index(extra))
        return {Stage.EDGE: [*found, Candidate(extra, (z, y, x), 5.0, 0.9)]}

    assert read_synthetic(synthetic(untouched, 10.0), nervous)[Stage.EDGE].extra == (0.9,)


def result(untouched: PreparedHost, stage: Stage = Stage.EDGE) -> dict[str, Any]:
    """Two nodules found, one of them below the false positive, and a mass."""
    scans = [synthetic(untouched, 0.0), synthetic(untouched, 10.0)]
    scans.append(synthetic(untouched, 0.0, masses=True))
    read = [read_synthetic(scan, reads) for scan in scans]
    one = np.array([10.0])
    traits = Traits(one, one / 2, one / 2, one / 10)
    found = as_dict(read, [untouched], traits, stage, 0.55, resamples=20, seed=0)
    return {"stage": stage.value, "split": "test", "not_placed": ["a, 60 mm, patients"], **found}


def test_json_has_figures_subgroups_and_masses(untouched: PreparedHost) -> None:
    """One of two nodules is above the false positive; the mass is found; all is plain JSON."""
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
    shipped = group["shipped"]["edge"]["5 mm and more"]
    assert (shipped["found"], shipped["nodules"]) == (1, 2)
    assert shipped["false_positives_per_scan"]["value"] == 1.0


def test_both_is_compared_with_the_edge_on_the_same_insertions(untouched: PreparedHost) -> None:
    """Both gives the false positive 0.1: the nodule of 0.54 is found at 1/8 a scan too."""
    said = result(untouched, Stage.BOTH)
    group = said["groups"]["patients"]
    gain = group["minus_edge"]
    assert [one["value"] for one in gain["sensitivity"]] == [0.5] * 3 + [0.0] * 4
    assert gain["cpm"]["value"] == pytest.approx(1.5 / 7)
    assert group["minus_edge_from_5_mm"] == gain
    assert result(untouched)["groups"]["patients"]["minus_edge"] is None
    titles = [str(t.title) for t in tables(said) if isinstance(t, Rows)]
    assert any("edge and cloud minus edge, paired: all nodules" in t for t in titles)


def test_marks_of_a_host_are_avoided_and_no_false_positives() -> None:
    """An ignored place of LIDC is neither a place for an insertion nor a false positive."""
    marked = prepare_host(host(Truth(ignored=(Lesion(FALSE_MM, -1.0),))), reads)
    assert marked.scores[Stage.EDGE].false_score.size == 0
    assert Occupied(FALSE_MM, 5.0 + APART_MM) in marked.occupied


def test_operating_point_is_the_lowest_threshold_allowed() -> None:
    """One a scan on two scans leaves two of three; where all are allowed there is no threshold."""
    of = make([0.1], [0.5, 0.9, 0.7], [0, 1, 1], 2)
    assert 0.5 < least_score(of, 1.0) < 0.5 + 1e-9
    assert least_score(of, 2.0) == -np.inf


def test_every_table_says_what_it_is(untouched: PreparedHost) -> None:
    said = result(untouched)
    shown = tables(said)
    assert all("emi-synthetic" in str(t.title) for t in shown if isinstance(t, Rows))
    assert any("a, 60 mm" in str(t) for t in shown)


def test_sheet_shows_before_and_after(untouched: PreparedHost, tmp_path: Path) -> None:
    sheet = draw_sheet([synthetic(untouched, 0.0, 15.0)])
    assert sheet.ndim == 2
    tile = sheet.shape[0] // 2
    assert sheet[tile:].max() > 150
    save_sheet(tmp_path / "sheet.png", sheet)
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    with pytest.raises(MissingData):
        save_sheet(tmp_path / "none" / "sheet.png", sheet)
