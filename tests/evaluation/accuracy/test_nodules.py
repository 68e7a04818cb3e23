from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.settings.core import EdgeSettings
from evaluation.accuracy.nodules import at, joined, read_cube, read_scan, strongest_apart, tiled
from evaluation.accuracy.readers import Agent, Reads, Stage
from evaluation.accuracy.truth import Lesion, ScanScores, Truth
from imaging.preprocess import Preprocessed
from imaging.roi import cut_roi
from imaging.volume import Geometry, Triple, triple
from models.data.cubes import Cube
from models.runtime.detection import Candidate
from tests.evaluation.scripted_screen import ScriptedScreening, ScriptedSecond


def scripted(answers: dict[int, list[tuple[Triple, float]]]) -> Reads:
    """A reader that answers by the first voxel of the box: places (z, y, x) and scores."""

    def read(box: Preprocessed) -> dict[Stage, list[Candidate]]:
        found = answers.get(int(box.voxels[0, 0, 0]), [])
        return {Stage.EDGE: [Candidate(place[::-1], place, 5.0, score) for place, score in found]}

    return read


def cube(number: int, patient: str, diameter_mm: float = 8.0) -> Cube:
    """A cube that is known by its voxels' value; its nodule is at (10, 11, 12)."""
    voxels = np.full((20, 20, 20), number, np.uint8)
    return Cube(f"val/{number}", patient, voxels, (10.0, 11.0, 12.0), diameter_mm, voxels)


def test_best_hit_of_a_cube_counts() -> None:
    hits = [((10, 11, 12), 0.4), ((10, 11, 15.9), 0.6), ((10, 11, 16), 0.9)]
    reads = scripted({1: hits, 2: [((2, 2, 2), 0.9)]})
    assert read_cube(cube(1, "p"), reads) == {Stage.EDGE: 0.6}
    assert read_cube(cube(2, "p"), reads) == {Stage.EDGE: -np.inf}


def test_nodules_are_grouped_by_patient_and_false_positives_by_scan() -> None:
    cubes = [cube(i, patient) for i, patient in enumerate("ppqr")]
    by_cube = [{Stage.EDGE: score} for score in (0.9, 0.7, 0.4, -np.inf)]
    false = ([0.8, 0.3], [0.5], [])
    by_scan = [{Stage.EDGE: ScanScores(np.zeros(0), np.array(of, float))} for of in false]
    found = joined(cubes, by_cube, by_scan, Stage.EDGE)
    assert found.nodule_group.tolist() == [0, 0, 1, 2]
    assert found.false_scan.tolist() == [0, 0, 1]
    assert (found.groups, found.scans, found.paired) == (3, 3, False)
    assert at(found, 0.5) == {"nodules": 4, "found": 2, "false": 2}


def test_real_slab_is_read_from_its_files(shared_data: Path) -> None:
    """A scan goes through reader and preprocessing, and detections are evaluated in patient mm."""
    folder = shared_data / "ct" / "lidc_slabs" / "LIDC-IDRI-0001"
    lesion = Lesion((57.24, 84.94, -115.62), 32.76)
    bright: list[int] = []

    def reads(box: Preprocessed) -> dict[Stage, list[Candidate]]:
        places = [(lesion.centre_mm, 0.8), ((-60.0, 80.0, -115.0), 0.9)]
        found = []
        for place, score in places:
            index = box.geometry.to_index(place)
            z, y, x = (round(v) for v in index)
            if (index >= 0).all() and (index < np.array(box.voxels.shape) - 0.5).all():
                bright.append(int(box.voxels[z, y, x]))
                found.append(Candidate(place, triple(index), 5.0, score))
        return {Stage.EDGE: found}

    found = read_scan(folder, Truth((lesion,)), reads)[Stage.EDGE]
    assert found.lesion_score.tolist() == [0.8]
    assert found.false_score.tolist() == [0.9]
    assert max(bright) > 150  # the middle of a solid nodule is soft tissue


def brightest(box: Preprocessed) -> dict[Stage, list[Candidate]]:
    """A reader that proposes every white voxel; the score says how many voxels it saw."""
    places = [triple(one) for one in np.argwhere(box.voxels == 255)]
    score = 1 - box.voxels.size / 1e6
    found = [Candidate(triple(box.geometry.to_world(one)), one, 5.0, score) for one in places]
    return {Stage.EDGE: found, Stage.BOTH: [replace(one, score=score / 2) for one in found]}


def test_a_scan_in_tiles_is_read_in_cubes_of_50_voxels() -> None:
    """Each white voxel is proposed once, at its place in the scan, by a reader of one tile."""
    voxels = np.zeros((60, 130, 40), np.uint8)
    white = [(0, 0, 0), (37, 38, 20), (30, 64, 39), (59, 129, 5)]
    for place in white:
        voxels[place] = 255
    geometry = Geometry((1.0, 1.0, 1.0), (-50.0, 20.0, 100.0))
    found = tiled(brightest)(Preprocessed(voxels, geometry))
    assert sorted(one.index_zyx for one in found[Stage.EDGE]) == sorted(white)
    for stage, score in ((Stage.EDGE, 0.9), (Stage.BOTH, 0.45)):
        assert {one.score for one in found[stage]} == {score}  # 50 x 50 x 40 voxels were seen
        for one in found[stage]:
            assert geometry.to_world(one.index_zyx) == pytest.approx(one.centre_mm)


def test_of_two_tiles_that_propose_the_same_the_stronger_counts() -> None:
    """Nearer than half the diameter they are one candidate; a scan has 100 at most."""
    near = [Candidate((0, 0, 0), (10.0, 10.0, float(x)), 8.0, x / 100) for x in (20, 23, 29)]
    assert [one.index_zyx[2] for one in strongest_apart(near)] == [29, 23]
    many = [Candidate((0, 0, 0), (10.0, 9.0 * i, 0.0), 8.0, 0.5) for i in range(130)]
    assert len(strongest_apart(many)) == 100
    assert strongest_apart([]) == []


class Unsure(ScriptedScreening):
    """Proposes one uncertain candidate in the core of the first tile, near other tiles."""

    def screen(self, box: Preprocessed) -> list[Candidate]:
        place = (13.0, 36.0, 36.0)
        return [Candidate(triple(box.geometry.to_world(place)), place, 6.0, 0.4)]


def outlining() -> ScriptedSecond:
    """Calls every ROI a nodule that fills its last quarter."""
    return ScriptedSecond(lambda rois: [0.9] * len(rois), outlined=30)


def test_the_second_reader_sees_of_a_tile_what_it_sees_of_a_cube() -> None:
    """Its ROI of 48 mm ends with the tile: what lies beyond is mirrored, as at a cube's face."""
    voxels = np.arange(60 * 130 * 90, dtype=np.int64).reshape(60, 130, 90)
    voxels = (voxels * 2654435761 % 199).astype(np.uint8)
    second = outlining()
    agent = Agent(Unsure([]), second, EdgeSettings())
    tiled(agent.reads(Stage.BOTH, outlined=False))(Preprocessed(voxels, Geometry()))
    seen = np.concatenate(second.seen)
    cube = voxels[:50, :50, :50]
    assert np.array_equal(seen[0], cut_roi(cube, (13.0, 36.0, 36.0), (48, 48, 48)))
    assert not np.array_equal(seen[0], cut_roi(voxels, (13.0, 36.0, 36.0), (48, 48, 48)))


def test_in_tiles_a_finding_stays_where_the_edge_found_it() -> None:
    """The centre of an outline that a tile cuts may lie in the core of another tile."""
    agent = Agent(Unsure([]), outlining(), EdgeSettings())
    box = Preprocessed(np.zeros((60, 130, 90), np.uint8), Geometry())
    (moved,) = agent.reads(Stage.BOTH)(box)[Stage.BOTH]
    assert moved.index_zyx == (15.5, 38.5, 38.5)
    (kept,) = agent.reads(Stage.BOTH, outlined=False)(box)[Stage.BOTH]
    assert kept.index_zyx == (13.0, 36.0, 36.0)
    assert (13.0, 36.0, 36.0) in [
        one.index_zyx for one in tiled(agent.reads(Stage.BOTH, outlined=False))(box)[Stage.BOTH]
    ]
