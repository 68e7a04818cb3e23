from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.accuracy.data import read_cubes
from evaluation.accuracy.froc import Scored
from evaluation.accuracy.truth import Lesion, Truth
from evaluation.lesion_insertion import donors as module
from evaluation.lesion_insertion.donors import (
    GROUPINGS,
    UNKNOWN,
    Traits,
    by_subgroup,
    cut_lesions,
    donor_of,
    masks,
    only,
    read_donors,
    traits_of,
)
from imaging.preprocess import preprocess
from tests.evaluation.plain_chest import chest, donor, host, in_lung, nodule


def test_the_wall_stays_behind() -> None:
    found = donor()
    assert found.cover[25, 24, 25] == pytest.approx(1.0)
    assert found.cover[25, 24, 8] == 0
    assert found.lung_hu == pytest.approx(-900, abs=6)
    assert found.reach_mm == pytest.approx(5.0, abs=0.3)
    assert found.attached == 0


def test_a_nodule_at_the_wall_says_so() -> None:
    cube = nodule(10.0)
    voxels = cube.voxels.copy()
    voxels[:, :, :19] = 189
    found = donor_of(replace(cube, voxels=voxels))
    assert found is not None
    assert 0.1 < found.attached < 0.5
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


def scored() -> Scored:
    """Four nodules of three patients and four false positives of two scans."""
    return Scored(
        nodule_score=np.array([0.9, 0.7, 0.4, -np.inf]),
        nodule_group=np.array([0, 0, 1, 2]),
        false_score=np.array([0.8, 0.6, 0.5, 0.3]),
        false_scan=np.array([0, 1, 0, 1]),
        scans=2,
        paired=False,
    )


FOUND = {(one["by"], one["subgroup"]): one for one in by_subgroup(scored(), traits([5, 7, 9, 20]))}


def test_a_subgroup_begins_at_its_edge() -> None:
    """6.0 mm belongs to 6 to 8 mm, 15 mm to 15 to 30 mm; what is empty is left out."""
    found = masks("diameter", np.array([3.9, 6.0, 7.9, 15.0, 44.0]))
    assert {name: mask.tolist().index(True) for name, mask in found.items()} == {
        "below 4 mm": 0, "6 to 8 mm": 1, "15 to 30 mm": 3, "from 30 mm": 4
    }  # fmt: skip
    assert found["6 to 8 mm"].sum() == 2


def test_what_is_not_known_has_a_subgroup_of_its_own() -> None:
    unknown = FOUND["texture", UNKNOWN]
    assert (unknown["nodules"], unknown["patients"]) == (4, 3)
    assert [by for by, _ in FOUND].count("texture") == 1


def test_every_subgroup_meets_all_false_positives() -> None:
    """At one a scan the threshold lies above .5: .9 and .7 are found, .4 and the rest are not."""
    found = {name: one for (by, name), one in FOUND.items() if by == "diameter"}
    at_one = {name: subgroup["sensitivity"][3]["value"] for name, subgroup in found.items()}
    assert at_one == {"4 to 6 mm": 1, "6 to 8 mm": 1, "8 to 15 mm": 0, "15 to 30 mm": 0}
    assert found["8 to 15 mm"]["sensitivity"][4]["value"] == 1  # .4 for two a scan


def test_only_renumbers_patients() -> None:
    part = only(scored(), np.array([False, False, True, True]))
    assert part.nodule_group.tolist() == [0, 1]
    assert part.groups == 2
    with pytest.raises(ValueError, match="at least one"):
        only(scored(), np.zeros(4, bool))


def test_index_may_lack_columns_and_values() -> None:
    """A column, a value or a word for none are not known; a doubtful match hides the ratings."""
    lines = [
        {"texture_mean": "4.5", "match_mm": "0.5", "slice_spacing": "2.5"},
        {"texture_mean": "2.0", "match_mm": "9.0", "slice_spacing": "1.0"},
        {"texture_mean": "3.0", "match_mm": "", "slice_spacing": "n/a"},
    ]
    found = traits_of([replace(nodule(6.0 + i), row=line) for i, line in enumerate(lines)])
    assert found["diameter"].tolist() == [6, 7, 8]
    assert np.isnan(found["subtlety"]).all()
    assert found["texture"][[0, 2]].tolist() == [4.5, 3.0]
    assert np.isnan(found["texture"][1])
    assert found["slice spacing"][:2].tolist() == [2.5, 1.0]
    assert np.isnan(found["slice spacing"][2])


def test_real_subgroups_add_up(shared_data: Path) -> None:
    cubes = read_cubes(shared_data / "nodules", ("val",))
    for name, value in traits_of(cubes).items():
        assert sum(int(mask.sum()) for mask in masks(name, value).values()) == len(cubes) == 129
