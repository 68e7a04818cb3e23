from pathlib import Path

import numpy as np
import pytest

from evaluation.accuracy.truth import read_truth
from evaluation.stability.changes import Ball
from evaluation.stability.locations import (
    FALSE_POSITIVE,
    NODULE,
    Location,
    Sample,
    read_cube_samples,
    read_scan_sample,
    with_false_positives,
)
from imaging.dicom.writer import write_series
from imaging.volume import Triple
from models.runtime.detection import Candidate
from tests.evaluation.plain_chest import chest, in_lung
from tests.evaluation.stability.test_changes import MIDDLE, cube


def candidate(score: float, z: float, y: float = 25.0, x: float = 25.0) -> Candidate:
    return Candidate((x, y, z), (z, y, x), 5.0, score)


def sample(name: str, folder: Path | None = None) -> Sample:
    nodule = Location(MIDDLE, 6.0)
    excluded = (Ball((25.0, 25.0, 12.0), 4.0),)
    return Sample(name, name, cube(), (nodule,), excluded, (nodule,), folder)


def test_the_strongest_false_positives_are_taken_as_many_as_there_are_nodules() -> None:
    seen = [[candidate(0.9, 12), candidate(0.4, 14)], [candidate(0.3, 12), candidate(0.8, 38)]]
    first, second = with_false_positives([sample("a"), sample("b")], seen)
    assert [location.kind for location in first.locations] == [NODULE, FALSE_POSITIVE]
    assert first.locations[1].index_zyx == (12.0, 25.0, 25.0)
    assert second.locations[1].index_zyx == (38.0, 25.0, 25.0)
    few, none = with_false_positives([sample("a"), sample("b")], [seen[0], []])
    assert (len(few.locations), len(none.locations)) == (3, 1)


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        ((17.5, 25.0, 25.0), "within 5 mm of the nodule"),
        ((25.0, 25.0, 18.5), "within 5 mm of an excluded mark"),
        ((9.0, 25.0, 25.0), "near a face"),
        ((25.0, 40.5, 25.0), "near a face"),
    ],
)
def test_what_is_marked_or_cut_is_no_false_positive(at: Triple, reason: str) -> None:
    assert sample("a").false_positives([candidate(0.9, *at)]) == []
    in_a_scan = sample("a", Path("scan")).false_positives([candidate(0.9, *at)])
    assert bool(in_a_scan) is (reason == "near a face")


def write_cubes(folder: Path, marks: str) -> None:
    np.savez(folder / "val.npz", ct=np.zeros((3, 50, 50, 50), np.uint8))
    lines = [f"val,{row},p{row},25,25,25,6" for row in range(3)]
    head = "split,row,patient,z,y,x,diameter_mm"
    (folder / "index.csv").write_text("\n".join([head, *lines]) + "\n")
    (folder / "marks.csv").write_text(f"split,row,z,y,x,diameter_mm,kind\n{marks}")


def test_cubes_know_their_neighbours_by_kind(tmp_path: Path) -> None:
    """Only the nodule in the middle is a location."""
    write_cubes(tmp_path, "val,1,25,25,8,5,nodule\nval,1,9,9,9,-1,excluded\n")
    first, second, _ = read_cube_samples(tmp_path, ("val",), 0, 0)
    assert (first.nodules, first.excluded) == ((Location(MIDDLE, 6.0),), ())
    assert second.nodules == (Location(MIDDLE, 6.0), Ball((25.0, 25.0, 8.0), 5.0))
    assert second.excluded == (Ball((9.0, 9.0, 9.0), 10.0),)
    assert second.locations == (Location(MIDDLE, 6.0),)


def test_a_few_cubes_are_drawn_by_the_seed_in_their_order(tmp_path: Path) -> None:
    write_cubes(tmp_path, "")
    drawn = [
        tuple(one.name for one in read_cube_samples(tmp_path, ("val",), 2, seed))
        for seed in range(20)
    ]
    assert set(drawn) == {("val/0", "val/1"), ("val/0", "val/2"), ("val/1", "val/2")}


def test_nodules_and_lesions_of_a_scan_are_locations_and_doubtful_ones_are_not(
    tmp_path: Path,
) -> None:
    """A mark outside of the lung box cannot be read there."""
    table = tmp_path / "marks.csv"
    rows = [
        f"scan,{kind},{','.join(str(v) for v in point)},8"
        for kind, point in (
            ("nodule", in_lung(0)), ("lesion", in_lung(1)), ("doubtful", in_lung(0, 15.0)),
            ("nodule", (0.0, 0.0, 900.0)),
        )
    ]  # fmt: skip
    table.write_text("\n".join(["scan,kind,x,y,z,diameter_mm", *rows]) + "\n")
    write_series(chest(), tmp_path / "scan")
    found = read_scan_sample(tmp_path / "scan", read_truth(table)["scan"])
    assert [location.kind for location in found.locations] == [NODULE, NODULE]
    assert len(found.excluded) == 1
    points = [found.box.geometry.to_world(location.index_zyx) for location in found.locations]
    assert points == [pytest.approx(in_lung(0)), pytest.approx(in_lung(1))]
