import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.decide import Thresholds
from evaluation.accuracy.froc import Scored
from evaluation.accuracy.readers import STAGES, Stage
from evaluation.accuracy.truth import Lesion, Truth
from evaluation.lesion_insertion import scans as module
from evaluation.lesion_insertion.command import (
    DECIDED,
    GAIN,
    OWN,
    THICK,
    THICK_LESS,
    as_dict,
    lesion_insertion,
)
from evaluation.lesion_insertion.scans import (
    GROUPINGS,
    UNKNOWN,
    PreparedHost,
    Traits,
    by_subgroup,
    cut_lesions,
    donor_of,
    masks,
    prepare_host,
    read_donors,
    read_synthetic,
    scored,
    thickened,
    traits_of,
)
from imaging.preprocess import Preprocessed, preprocess
from models.data.cubes import read_cubes
from models.insertion.insert import APART_MM, Insertion, Occupied, SyntheticScan
from models.runtime.detection import Candidate
from tests.evaluation.plain_chest import LUNG_HU, bright, chest, donor, host, in_lung, nodule

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


LIMITS = Thresholds(possible=0.5, finding=0.55, dismiss=0.6, report=0.9)


def test_false_positives_are_those_of_the_host(untouched: PreparedHost) -> None:
    """However many synthetic scans are read, the host's false positive counts once."""
    read = [synthetic(untouched, shift) for shift in (0.0, 10.0)]
    found = [one for scan in read for one in read_synthetic(scan, reads, LIMITS)]
    whole = scored(found, [untouched], Stage.EDGE)
    assert whole.false_score.tolist() == [0.6]
    assert whole.scans == 1
    assert whole.nodule_score.tolist() == [pytest.approx(0.54), pytest.approx(0.64)]


def result(untouched: PreparedHost, stage: Stage = Stage.EDGE) -> dict[str, Any]:
    """Two nodules found, one of them below the false positive, and a mass.

    The edge dismisses the first nodule, of 0.54; slices of 8 mm hide the other.
    """
    scans = [synthetic(untouched, 0.0), synthetic(untouched, 10.0)]
    scans.append(synthetic(untouched, 0.0, masses=True))
    read = [one for scan in scans for one in read_synthetic(scan, reads, LIMITS)]
    thick = [replace(one, kept=False, score=dict.fromkeys(Stage, 0.05)) for one in read[:2]]
    one = np.array([10.0])
    traits = {"diameter": one, "texture": one / 2, "subtlety": one / 2, "slice spacing": one / 10}
    found = as_dict(read, thick, [untouched], traits, stage, LIMITS)
    said: dict[str, Any] = json.loads(json.dumps(found, allow_nan=False))
    return {"reader": STAGES[stage], "split": "val", "nodules": 1, "placements": 2, **said}


def test_nodules_large_ones_and_masses_have_their_figures(untouched: PreparedHost) -> None:
    """One of two nodules is above the false positive; the mass is found."""
    said = result(untouched)
    nodules, large, masses = said["curves"]
    assert [point["value"] for point in nodules["sensitivity"]] == [0.5] * 3 + [1.0] * 4
    assert (large["lesions"], large["nodules"]) == ("nodules of 5 mm and more", 2)
    assert (masses["lesions"], masses["nodules"]) == ("masses of 30 to 60 mm", 1)
    by = {(one["by"], one["subgroup"]): one["nodules"] for one in said["subgroups"]}
    assert by["diameter", "8 to 15 mm"] == 2


def test_both_is_read_on_the_same_insertions(untouched: PreparedHost) -> None:
    """Both gives the false positive 0.1: the nodule of 0.54 is found at 1/8 a scan too."""
    said = result(untouched, Stage.BOTH)
    edge, both, gain = (one["cpm"]["value"] for one in said["curves"][:3])
    assert both - edge == pytest.approx(1.5 / 7) == gain
    assert said["curves"][2]["reader"] == GAIN
    for name in ("curves", "reports", "subgroups"):
        assert lesion_insertion.table(name).of(said).cells


def test_reports_say_what_the_edge_keeps_and_what_thick_slices_lose(
    untouched: PreparedHost,
) -> None:
    """Of two nodules the edge keeps one, a finding; thick slices lose it. All are solid."""
    said = result(untouched)
    of = {(one["lesions"], one["slices"]): one for one in said["reports"]}
    assert {name for name, _ in of} == {"nodules", "nodules of 5 mm and more", "solid"}
    for name, share in ((OWN, 0.5), (THICK, 0.0), (THICK_LESS, -0.5)):
        assert [of["solid", name][key]["value"] for key in DECIDED] == [share] * 3
    met = {one.what: one.met for one in lesion_insertion.bars(said)}
    assert met == {
        "inserted val nodules: proposed and not dismissed": False,
        "inserted val nodules: findings lost in slices of 5 mm": False,
        "inserted val nodules of 5 mm and more: found at 1 false positive a scan": True,
    }
    with_cloud = result(untouched, Stage.BOTH)
    for split, end in (("val", ""), ("test", ", lower end")):
        *_, gain, _ = lesion_insertion.bars({**with_cloud, "split": split})
        assert gain.what == f"inserted {split} nodules: CPM, {GAIN}{end}"
        assert gain.met == (split == "val")


def test_thick_slices_are_means_of_thin_ones_at_their_places() -> None:
    """Two slices of 2 mm and a half make one of 5 mm; what lies between stays where it is."""
    volume = chest((2.0, 1.5, 1.5))
    volume.hu[:5, 0, 0] = 0, 100, 200, 300, 400
    thick = thickened(volume, 5.0)
    assert thick.hu[:2, 0, 0].tolist() == [80, 320]
    assert (thick.extent_mm, thick.geometry.spacing_mm) == (volume.extent_mm, (5.0, 1.5, 1.5))
    assert thick.geometry.to_world((-0.5, 0, 0)) == pytest.approx(
        volume.geometry.to_world((-0.5, 0, 0))
    )
    assert thickened(volume, 2.0) is thickened(volume, 0.0) is volume


def test_marks_of_a_host_are_avoided_and_no_false_positives() -> None:
    """An ignored place of LIDC is neither a place for an insertion nor a false positive."""
    marked = prepare_host(host(Truth(ignored=(Lesion(FALSE_MM, -1.0),))), reads)
    assert marked.false_score[Stage.EDGE].size == 0
    assert Occupied(FALSE_MM, 5.0 + APART_MM) in marked.occupied


def test_the_wall_stays_behind() -> None:
    found = donor()
    assert found.cover[25, 24, 25] == pytest.approx(1.0)
    assert found.cover[25, 24, 8] == 0
    assert found.lung_hu == pytest.approx(-900, abs=6)
    assert found.reach_mm == pytest.approx(5.0, abs=0.3)


def test_a_wall_beside_a_nodule_is_no_part_of_it() -> None:
    cube = nodule(10.0)
    voxels = cube.voxels.copy()
    voxels[:, :, :19] = 189
    found = donor_of(replace(cube, voxels=voxels))
    assert found is not None
    assert found.cover[25, 24, 17] < 0.02


def test_an_outline_elsewhere_is_no_donor() -> None:
    cube = nodule(6.0)
    assert donor_of(replace(cube, votes=np.roll(cube.votes, 12, axis=0))) is None
    assert donor_of(replace(cube, votes=cube.votes * 0)) is None


def test_a_lesion_of_a_scan_is_cut_at_its_size() -> None:
    """A ball of 20 mm in the lung gives a donor of 20 mm, whatever the marked diameter."""
    volume = chest((1.0, 1.0, 1.0))
    point = in_lung(0)
    z, y, x = (round(float(v)) for v in volume.geometry.to_index(point))
    grid = np.ogrid[tuple(slice(n) for n in volume.shape)]
    ball = sum((g - c) ** 2 for g, c in zip(grid, (z, y, x), strict=True)) <= 100
    volume.hu[np.asarray(ball)] = 30
    marked = replace(host(Truth((Lesion(point, 22.0),))), volume=volume)
    (found,) = cut_lesions(marked, preprocess(volume))
    assert found.diameter_mm == pytest.approx(20.0, abs=1.0)
    assert found.patient == "chest"


def test_real_nodules_are_cut(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Almost every nodule of test has an outline at its centre; traits stay beside donors."""
    monkeypatch.setattr(module, "read_cubes", lambda *given: read_cubes(*given)[:6])
    donors, traits = read_donors(shared_data / "nodules", ("test",))
    assert len(donors) == len(traits["diameter"]) == 6
    assert traits["diameter"].tolist() == [donor.diameter_mm for donor in donors]
    assert all(-970 < donor.lung_hu < -600 for donor in donors)


def traits(diameter: list[float]) -> Traits:
    return {
        **dict.fromkeys(GROUPINGS, np.full(len(diameter), np.nan)),
        "diameter": np.array(diameter),
    }


def four() -> Scored:
    """Four nodules of three patients and four false positives of two scans."""
    return Scored(
        nodule_score=np.array([0.9, 0.7, 0.4, -np.inf]),
        nodule_group=np.array([0, 0, 1, 2]),
        false_score=np.array([0.8, 0.6, 0.5, 0.3]),
        false_scan=np.array([0, 1, 0, 1]),
        scans=2,
        paired=False,
    )


FOUND = {(one["by"], one["subgroup"]): one for one in by_subgroup(four(), traits([5, 7, 9, 20]))}


def test_a_subgroup_begins_at_its_edge() -> None:
    """6.0 mm belongs to 6 to 8 mm, 15 mm to 15 to 30 mm; what is empty is left out."""
    found = masks("diameter", np.array([3.9, 6.0, 7.9, 15.0, 44.0]))
    assert {name: mask.tolist().index(True) for name, mask in found.items()} == {
        "below 4 mm": 0, "6 to 8 mm": 1, "15 to 30 mm": 3, "from 30 mm": 4
    }  # fmt: skip
    assert found["6 to 8 mm"].sum() == 2


def test_every_subgroup_meets_all_false_positives() -> None:
    """At one a scan the threshold lies above .5: .9 and .7 are found, .4 and the rest are not."""
    unknown = FOUND["texture", UNKNOWN]
    assert (unknown["nodules"], unknown["patients"]) == (4, 3)
    assert [by for by, _ in FOUND].count("texture") == 1
    found = {name: one for (by, name), one in FOUND.items() if by == "diameter"}
    at_one = {name: subgroup["sensitivity"][3]["value"] for name, subgroup in found.items()}
    assert at_one == {"4 to 6 mm": 1, "6 to 8 mm": 1, "8 to 15 mm": 0, "15 to 30 mm": 0}
    assert found["8 to 15 mm"]["sensitivity"][4]["value"] == 1  # .4 for two a scan


def test_index_may_lack_columns_and_values() -> None:
    """A column or a value that is not there is not known; a doubtful match hides the ratings."""
    lines = [
        {"texture_mean": 4.5, "match_mm": 0.5, "slice_spacing": 2.5},
        {"texture_mean": 2.0, "match_mm": 9.0, "slice_spacing": 1.0},
        {"texture_mean": 3.0, "match_mm": np.nan, "slice_spacing": np.nan},
    ]
    found = traits_of([replace(nodule(6.0 + i), known=line) for i, line in enumerate(lines)])
    assert found["diameter"].tolist() == [6, 7, 8]
    assert np.isnan(found["subtlety"]).all()
    np.testing.assert_equal(found["texture"], [4.5, np.nan, 3.0])
    np.testing.assert_equal(found["slice spacing"], [2.5, 1.0, np.nan])
