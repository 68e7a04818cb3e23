from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.assemble import build_pipeline
from edge.escalation.client import NoSecondReader
from edge.selection import Size
from edge.settings.core import EdgeSettings
from evaluation.accuracy.truth import Lesion, Truth
from evaluation.errors import MissingData
from evaluation.policies.cases import (
    Cases,
    Readers,
    Sources,
    key_of,
    load,
    read_cases,
    remeasured,
    save,
)
from imaging.dicom.writer import write_series
from imaging.preprocess import Preprocessed
from imaging.volume import UInt8Array, triple
from models.runtime.detection import Candidate
from models.runtime.second_reader import Readings
from tests.evaluation.made_cases import made_cases
from tests.evaluation.plain_chest import LUNGS, RADIUS_MM, chest, in_lung, nodule
from tests.evaluation.scripted_screen import ScriptedScreening
from tests.plain_readings import plain

NODULE, FALSE, DOUBTFUL, BESIDE = in_lung(1), in_lung(1, 20.0), in_lung(1, -20.0), in_lung(1, 7.0)
PLACES = [(NODULE, 0.95), (FALSE, 0.4), (DOUBTFUL, 0.35), (BESIDE, 0.3), (in_lung(1, 28.0), 0.01)]


class Screening(ScriptedScreening):
    """Proposes `PLACES`, and what is dense within the lungs."""

    def screen(self, box: Preprocessed) -> list[Candidate]:
        found = super().screen(box)
        dense = np.argwhere(box.voxels > 150)
        points = box.geometry.to_world(dense)
        middles = (in_lung(side) for side in range(len(LUNGS)))
        away = np.min([np.linalg.norm(points - one, axis=1) for one in middles], axis=0)
        if (inside := away < RADIUS_MM - 2).any():
            centre, index = points[inside].mean(0), dense[inside].mean(0)
            found.insert(1, Candidate(triple(centre), triple(index), 6.0, 0.7))
        return found


class Bright:
    roi_shape = (48, 48, 48)

    def read(self, batch: UInt8Array) -> Readings:
        return plain(batch.mean(axis=(1, 2, 3)) / 255, [6.0] * len(batch))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """A scan and a nodule of another patient for val and for test, and a scan of role train."""
    folder = tmp_path_factory.mktemp("sources")
    cube, votes = nodule()
    rows = ["split,row,patient,z,y,x,diameter_mm"]
    for split in ("val", "test"):
        np.savez(folder / f"{split}.npz", ct=cube.voxels[None], votes=votes[None])
        rows.append(f"{split},0,patient of {split},25,24,25,10")
        write_series(chest(), folder / split, seed=0)
    (folder / "index.csv").write_text("\n".join(rows) + "\n")
    truth = Truth((Lesion(NODULE, 10.0),), (Lesion(DOUBTFUL, -1.0),))
    known = {name: replace(truth, role=name) for name in ("val", "test", "train")}
    scans = tuple(folder / name for name in known)
    return Sources(scans, known, folder, together=2, limit=0, seed=0)


@pytest.fixture
def readers() -> Readers:
    pipeline = build_pipeline(EdgeSettings(deadline_s=60), Screening(PLACES), NoSecondReader())
    return Readers(pipeline, Bright(), "bright 1 (none)", 0.05)


@pytest.fixture(scope="module")
def read(sources: Sources) -> tuple[Cases, Sequence[Cases]]:
    pipeline = build_pipeline(EdgeSettings(deadline_s=60), Screening(PLACES), NoSecondReader())
    kept: list[Cases] = []
    cases = read_cases(sources, Readers(pipeline, Bright(), "bright 1 (none)", 0.05), kept.append)
    return cases, kept


def test_every_study_is_a_whole_scan_of_val_or_test(read: tuple[Cases, Sequence[Cases]]) -> None:
    """Each real scan once, and a copy with the other patient's nodule; none of role train."""
    cases, _ = read
    assert [(one.name, one.split, one.host) for one in cases.studies] == [
        ("val", "val", ""), ("val with 1", "val", "val"),
        ("test", "test", ""), ("test with 1", "test", "test")]  # fmt: skip
    assert (cases.complete, cases.not_placed) == (True, ())
    assert cases.models == ("scripted 1 (none)", "bright 1 (none)")
    assert {n for n, _ in cases.batches} == {1, 2, 4, 8}


def test_a_real_scan_counts_all_its_marks(read: tuple[Cases, Sequence[Cases]]) -> None:
    """A candidate beside the nodule is false, as LUNA16 counts; one on a doubtful place is not."""
    scan = read[0].studies[0]
    assert scan.nodules == {"val/0": "val"}
    assert [(one.score, one.nodule, one.is_false) for one in scan.sightings] == [
        (0.95, "val/0", False), (0.4, "", True), (0.35, "", False), (0.3, "", True)]  # fmt: skip
    assert scan.before_s > 0
    assert scan.after_s > 0


def test_false_positives_of_a_host_do_not_count_in_its_copies(
    read: tuple[Cases, Sequence[Cases]],
) -> None:
    """The inserted nodule is found in the copy, and has the times of the scan."""
    real, copy = read[0].of("test")
    assert copy.nodules == {"test/0": "patient of test"}
    assert [(one.score, one.nodule) for one in copy.sightings if not one.ignored] == [
        (0.7, "test/0")
    ]
    assert [one.score for one in copy.sightings] == [0.95, 0.7, 0.4, 0.35, 0.3]
    assert (copy.before_s, copy.after_s) == (real.before_s, real.after_s)


def test_uncertain_candidates_are_read_in_every_size(read: tuple[Cases, Sequence[Cases]]) -> None:
    sure, unsure = read[0].studies[0].sightings[:2]
    assert set(sure.cloud) == {Size.FULL}
    assert set(unsure.cloud) == set(Size)


def test_a_run_that_was_cut_off_goes_on_from_the_studies_it_kept(
    sources: Sources, readers: Readers, read: tuple[Cases, Sequence[Cases]]
) -> None:
    cases, kept = read
    assert [len(one.studies) for one in kept] == [1, 2, 3, 4, 4]
    rest: list[Cases] = []
    assert read_cases(sources, readers, rest.append, kept[2]) == cases
    assert [len(one.studies) for one in rest] == [4, 4]


def test_each_split_needs_a_scan(sources: Sources, readers: Readers) -> None:
    only_val = replace(sources, scans=sources.scans[:1])
    with pytest.raises(MissingData, match="no scan of role 'test'"):
        read_cases(only_val, readers, lambda _: None)


def test_times_are_measured_again_without_the_scores(
    sources: Sources, readers: Readers, read: tuple[Cases, Sequence[Cases]]
) -> None:
    cases, _ = read
    slow = [replace(one, before_s=99.0) for one in cases.studies]
    again = remeasured(replace(cases, studies=tuple(slow), batches=((1, 99.0),)), sources, readers)
    assert all(0 < one.before_s < 99 for one in again.studies)
    assert len(again.batches) == len(cases.batches)
    assert [one.sightings for one in again.studies] == [one.sightings for one in cases.studies]


def test_cases_are_read_as_they_were_saved(tmp_path: Path) -> None:
    path, cases = tmp_path / "new" / "cases.json", made_cases()
    save(cases, path)
    assert load(path) == cases
    assert [file.name for file in path.parent.iterdir()] == ["cases.json"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cases.json"
    path.write_text('{"studies": 3}')
    with pytest.raises(MissingData, match=r"cases\.json: .* delete it to read them again"):
        load(path)


def test_the_key_changes_with_what_is_described() -> None:
    assert key_of(a=1, b="x") == key_of(b="x", a=1)
    assert key_of(a=1, b="x") != key_of(a=2, b="x")
