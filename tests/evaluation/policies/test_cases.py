from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.selection import Size
from evaluation.accuracy.truth import marks_in
from evaluation.errors import MissingData
from evaluation.policies.cases import Readers, Sources, key_of, load, read_cases, remeasured, save
from imaging.preprocess import Preprocessed
from imaging.volume import Geometry, Study, UInt8Array, Volume
from models.runtime.second_reader import Readings
from tests.evaluation.made_cases import made_cases
from tests.evaluation.scripted_screen import scripted_pipeline
from tests.plain_readings import plain

PLACES = [((25.0, 25.0, 25.0), 0.95), ((40.0, 40.0, 40.0), 0.4), ((10.0, 10.0, 10.0), 0.3),
          ((1.0, 1, 1), 0.01)]  # fmt: skip
"""A nodule, a false one, one at a mark, and one that is dismissed."""


class Bright:
    roi_shape = (48, 48, 48)

    def read(self, batch: UInt8Array) -> Readings:
        return plain(batch.mean(axis=(1, 2, 3)) / 255, [6.0] * len(batch))


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    folder = tmp_path
    cubes = np.full((1, 50, 50, 50), 51, np.uint8)
    for split in ("val", "test"):
        np.savez(folder / f"{split}.npz", ct=cubes)
    head = "split,row,patient,z,y,x,diameter_mm"
    rows = [f"{split},0,patient {split},25,25,25,8" for split in ("val", "test")]
    (folder / "index.csv").write_text("\n".join([head, *rows]) + "\n")
    marks = [f"{split},0,10,10,10,-1" for split in ("val", "test")]
    (folder / "marks.csv").write_text("\n".join(["split,row,z,y,x,diameter_mm", *marks]) + "\n")
    scans = ["scan,role,x,y,z,diameter_mm", "a,train,,,,", "b,val,25,25,25,8", "c,test,25,25,25,8"]
    (folder / "scans.csv").write_text("\n".join(scans) + "\n")
    return Sources(folder, folder, folder / "scans.csv")


@pytest.fixture
def readers() -> Readers:
    def read(folder: Path) -> Study:
        return Study(Volume(np.zeros((4, 4, 4), np.int16), Geometry()), folder)

    def preprocess(_volume: Volume, _folder: Path) -> Preprocessed:
        return Preprocessed(np.full((60, 60, 60), 102, np.uint8), Geometry())

    line = replace(scripted_pipeline(PLACES), read=read, preprocess=preprocess)
    return Readers(line, Bright(), "bright 1 (none)", 0.05)


def test_scans_and_cubes_become_pieces(sources: Sources, readers: Readers) -> None:
    """Uncertain candidates are read in every size, the others in full."""
    cases = read_cases(sources, readers)
    names = [(piece.name, piece.split, piece.whole) for piece in cases.pieces]
    assert names == [("b", "val", True), ("c", "test", True),
                     ("val/0", "val", False), ("test/0", "test", False)]  # fmt: skip
    scan, cube = cases.pieces[0], cases.pieces[2]
    assert [one.score for one in scan.sightings] == [0.95, 0.4, 0.3]
    assert [one.nodule for one in scan.sightings] == ["b/0", "", ""]
    assert scan.nodules == ("b/0",)
    assert scan.before_s > 0
    assert scan.after_s > 0
    assert [(one.nodule, one.ignored) for one in cube.sightings] == [
        ("val/0", True), ("", False), ("", True)]  # fmt: skip
    assert cube.patient == "patient val"
    assert cases.models == ("scripted 1 (none)", "bright 1 (none)")
    assert {n for n, _ in cases.batches} == {1, 2, 4, 8}
    sure, unsure = scan.sightings[:2]
    assert set(sure.cloud) == {Size.FULL}
    assert unsure.cloud == pytest.approx(dict.fromkeys(Size, 0.4))


def test_marks_say_which_candidates_are_nodules_and_which_count_neither_way(
    sources: Sources, readers: Readers
) -> None:
    """A doubtful place is ignored, and the roles are those of the list beside the marks."""
    (chests := sources.scans / "chests").mkdir()
    (chests / "scans.csv").write_text("scan,role\na,train\nb,val\nc,test\n")
    doubtful = PLACES[1][0]
    rows = ["scan,kind,x,y,z,diameter_mm", "b,lesion,25,25,25,8"]
    rows += [f"{scan},doubtful,{','.join(map(str, doubtful))},-1" for scan in "bc"]
    (chests / "marks.csv").write_text("\n".join(rows) + "\n")
    marked = replace(sources, scans=chests, truth=marks_in(chests))
    first, second = read_cases(marked, readers).pieces[:2]
    assert [(one.nodule, one.ignored) for one in first.sightings] == [
        ("b/0", False), ("", True), ("", False)]  # fmt: skip
    assert second.nodules == ()
    assert [one.ignored for one in second.sightings] == [False, True, False]


def test_a_split_needs_a_scan(sources: Sources, readers: Readers) -> None:
    sources.truth.write_text("scan,role,x,y,z,diameter_mm\nb,val,,,,\n")
    with pytest.raises(MissingData, match="no scan of role test"):
        read_cases(sources, readers)


def test_times_are_measured_again_without_the_scores(sources: Sources, readers: Readers) -> None:
    cases = read_cases(sources, readers)
    slow = [replace(one, before_s=99.0) if one.whole else one for one in cases.pieces]
    again = remeasured(replace(cases, pieces=tuple(slow), batches=((1, 99.0),)), sources, readers)
    assert all(0 < one.before_s < 99 for one in again.pieces if one.whole)
    assert len(again.batches) == len(cases.batches)
    assert [one.sightings for one in again.pieces] == [one.sightings for one in cases.pieces]


def test_cases_are_read_as_they_were_saved(tmp_path: Path) -> None:
    path, cases = tmp_path / "new" / "cases.json", made_cases()
    save(cases, path)
    assert load(path) == cases
    assert [file.name for file in path.parent.iterdir()] == ["cases.json"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cases.json"
    path.write_text('{"pieces": 3}')
    with pytest.raises(MissingData, match=r"cases\.json: .* delete it to read them again"):
        load(path)


def test_the_key_changes_with_what_is_described() -> None:
    assert key_of(a=1, b="x") == key_of(b="x", a=1)
    assert key_of(a=1, b="x") != key_of(a=2, b="x")


def test_pieces_differ_by_split_and_kind() -> None:
    pieces = made_cases(patients=3).of("test")
    assert {piece.split for piece in pieces} == {"test"}
    assert [piece.whole for piece in pieces] == [True] * 2 + [False] * 6
