import json
from typing import Any

import numpy as np
import pytest

from evaluation.accuracy.readers import Stage
from evaluation.accuracy.truth import Lesion, Truth
from evaluation.lesion_insertion.command import as_dict, lesion_insertion
from evaluation.lesion_insertion.scans import PreparedHost, prepare_host, read_synthetic, scored
from imaging.preprocess import Preprocessed
from models.insertion.insert import APART_MM, Insertion, Occupied, SyntheticScan
from models.runtime.detection import Candidate
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
    read = [synthetic(untouched, shift) for shift in (0.0, 10.0)]
    found = [one for scan in read for one in read_synthetic(scan, reads)]
    whole = scored(found, [untouched], Stage.EDGE)
    assert whole.false_score.tolist() == [0.6]
    assert whole.scans == 1
    assert whole.nodule_score.tolist() == [pytest.approx(0.54), pytest.approx(0.64)]


def result(untouched: PreparedHost, stage: Stage = Stage.EDGE) -> dict[str, Any]:
    """Two nodules found, one of them below the false positive, and a mass."""
    scans = [synthetic(untouched, 0.0), synthetic(untouched, 10.0)]
    scans.append(synthetic(untouched, 0.0, masses=True))
    read = [one for scan in scans for one in read_synthetic(scan, reads)]
    one = np.array([10.0])
    traits = {"diameter": one, "texture": one / 2, "subtlety": one / 2, "slice spacing": one / 10}
    found = as_dict(read, [untouched], traits, stage, 0.55)
    said: dict[str, Any] = json.loads(json.dumps(found, allow_nan=False))
    return {"reader": stage.value, **said}


def test_nodules_large_ones_and_masses_have_their_figures(untouched: PreparedHost) -> None:
    """One of two nodules is above the false positive; the mass is found."""
    said = result(untouched)
    nodules, large, masses = said["curves"]
    assert [point["value"] for point in nodules["sensitivity"]] == [0.5] * 3 + [1.0] * 4
    assert (large["lesions"], large["nodules"]) == ("nodules of 5 mm and more", 2)
    assert (masses["lesions"], masses["nodules"]) == ("masses of 30 to 60 mm", 1)
    by = {(one["by"], one["subgroup"]): one["nodules"] for one in said["subgroups"]}
    assert by["diameter", "8 to 15 mm"] == 2
    assert (said["shipped"][1]["found"], said["shipped"][1]["nodules"]) == (1, 2)
    assert said["shipped"][1]["false_positives_per_scan"]["value"] == 1.0


def test_both_is_read_on_the_same_insertions(untouched: PreparedHost) -> None:
    """Both gives the false positive 0.1: the nodule of 0.54 is found at 1/8 a scan too."""
    said = result(untouched, Stage.BOTH)
    edge, both = (one["cpm"]["value"] for one in said["curves"][:2])
    assert both - edge == pytest.approx(1.5 / 7)
    assert {one["reader"] for one in said["shipped"]} == {"edge", "edge and cloud"}
    for name in ("curves", "shipped", "subgroups"):
        assert lesion_insertion.table(name).of(said).cells


def test_marks_of_a_host_are_avoided_and_no_false_positives() -> None:
    """An ignored place of LIDC is neither a place for an insertion nor a false positive."""
    marked = prepare_host(host(Truth(ignored=(Lesion(FALSE_MM, -1.0),))), reads)
    assert marked.scores[Stage.EDGE].false_score.size == 0
    assert Occupied(FALSE_MM, 5.0 + APART_MM) in marked.occupied
