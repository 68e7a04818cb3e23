from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.settings.core import EdgeSettings
from evaluation.accuracy.bootstrap import figures
from evaluation.accuracy.data import Cube
from evaluation.accuracy.froc import Curve, Scored, froc
from evaluation.accuracy.nodules import (
    NoduleScores,
    ScanScores,
    as_dict,
    draw_curves,
    read_cube,
    read_scan,
    save_chart,
    score_scan,
    strongest_apart,
    tiled,
)
from evaluation.accuracy.readers import Agent, Reads, Stage
from evaluation.accuracy.truth import UNKNOWN, Lesion, Truth
from evaluation.errors import MissingData
from imaging.preprocess import Preprocessed
from imaging.roi import cut_roi
from imaging.volume import Geometry, Triple, UInt8Array, triple
from models.runtime.detection import Candidate
from models.runtime.second_reader import Readings
from tests.evaluation.scripted_screen import ScriptedScreening
from tests.plain_readings import plain


def scripted(answers: dict[int, list[tuple[Triple, float]]]) -> Reads:
    """A reader that answers by the first voxel of the box: places (z, y, x) and scores."""

    def read(box: Preprocessed) -> dict[Stage, list[Candidate]]:
        found = answers.get(int(box.voxels[0, 0, 0]), [])
        return {Stage.EDGE: [Candidate(place[::-1], place, 5.0, score) for place, score in found]}

    return read


def cube(number: int, patient: str, diameter_mm: float = 8.0) -> Cube:
    """A cube that is known by its voxels' value; its nodule is at (10, 11, 12)."""
    voxels = np.full((20, 20, 20), number, np.uint8)
    return Cube(f"val/{number}", patient, voxels, (10.0, 11.0, 12.0), diameter_mm)


def test_best_hit_of_a_cube_counts() -> None:
    hits = [((10, 11, 12), 0.4), ((10, 11, 15.9), 0.6), ((10, 11, 16), 0.9)]
    reads = scripted({1: hits, 2: [((2, 2, 2), 0.9)]})
    assert read_cube(cube(1, "p"), reads) == {Stage.EDGE: 0.6}
    assert read_cube(cube(2, "p"), reads) == {Stage.EDGE: -np.inf}


def scores() -> NoduleScores:
    """Four nodules of three patients, two scans with three false positives and one lesion."""
    lesion = Lesion((0.0, 0.0, 0.0), 10.0)
    first = score_scan(
        "first", [((0, 0, 0), 0.85), ((50, 0, 0), 0.8), ((90, 0, 0), 0.3)], Truth((lesion,))
    )
    second = score_scan("second", [((50, 0, 0), 0.5)], UNKNOWN)
    found = np.array([0.9, 0.7, 0.4, -np.inf])
    return NoduleScores(found, ("p", "p", "q", "r"), (first, second))


def test_json_has_every_figure() -> None:
    """.9 N, .8 F, .7 N, .5 F, .4 N, .3 F: 1/4 for nothing, 1/2 for 1/2, 3/4 for 1 a scan."""
    said = as_dict(scores(), figures(scores().scored, resamples=20))
    assert (said["nodules"], said["patients"], said["proposed"]) == (4, 3, 3)
    assert [at["value"] for at in said["sensitivity"]] == [0.25, 0.25, 0.5, 0.75, 0.75, 0.75, 0.75]
    assert said["sensitivity"][3]["threshold"] == 0.4
    assert said["cpm"]["value"] == pytest.approx(4.0 / 7)
    assert said["fp_at"]["90"]["value"] is None
    first, second = said["scans"]
    assert first["false_positives"] == {
        "0.125": 0, "0.25": 0, "0.5": 1, "1": 1, "2": 1, "4": 1, "8": 1
    }  # fmt: skip
    assert second["false_positives"]["1"] == 1
    assert first["lesion_score"] == 0.85
    assert first["lesions"][0]["false_positives_above"] == 0
    assert second["lesion_score"] is None
    assert first["false_positives_at"]["95"] is None


def test_each_scan_is_left_out_in_turn() -> None:
    """Without the first: .5 is the one false positive, above which two of four nodules lie."""
    without = as_dict(scores(), figures(scores().scored, resamples=20))["without"]
    assert [one["scan"] for one in without] == ["first", "second"]
    assert list(without[0]["sensitivity"].values()) == [0.5, 0.5, 0.5, 0.75, 0.75, 0.75, 0.75]
    assert without[0]["cpm"] == pytest.approx(4.5 / 7)


def test_scan_without_detections_still_counts() -> None:
    """Nodules are grouped by patient, false positives by scan."""
    silent = ScanScores("silent", np.zeros(0), (), np.zeros(0))
    both = NoduleScores(scores().nodule_score, scores().patients, (*scores().scans, silent)).scored
    assert froc(both).false_per_scan[-1] == 1.0
    assert both.nodule_group.tolist() == [0, 0, 1, 2]
    assert both.false_scan.tolist() == [0, 0, 1]
    assert (both.groups, both.scans, both.paired) == (3, 3, False)


def test_real_slab_is_read_from_its_files(shared_data: Path) -> None:
    """A scan goes through reader and preprocessing, and detections are evaluated in patient mm."""
    folder = shared_data / "ct" / "lidc_slabs" / "LIDC-IDRI-0001"
    lesion = Lesion((57.24, 84.94, -115.62), 32.76)
    seen: list[Preprocessed] = []

    def reads(box: Preprocessed) -> dict[Stage, list[Candidate]]:
        seen.append(box)
        place = box.geometry.to_index(lesion.centre_mm)
        index = (float(place[0]), float(place[1]), float(place[2]))
        found = [
            Candidate(lesion.centre_mm, index, 30.0, 0.8),
            Candidate((-60.0, 80.0, -115.0), (0, 0, 0), 5.0, 0.9),
        ]
        return {Stage.EDGE: found}

    found = read_scan(folder, Truth((lesion,)), reads)[Stage.EDGE]
    assert found.name == "LIDC-IDRI-0001"
    assert found.lesion_score.tolist() == [0.8]
    assert found.false_score.tolist() == [0.9]
    z, y, x = (round(v) for v in seen[0].geometry.to_index(lesion.centre_mm))
    assert seen[0].voxels[z, y, x] > 150  # the middle of a solid nodule is soft tissue


def curve(nodules: list[float], false: list[float]) -> Curve:
    group, scan = np.arange(len(nodules)), np.zeros(len(false), np.int64)
    return froc(Scored(np.array(nodules), group, np.array(false, float), scan, 1, False))


def height_of_line(figure: Any, rate: float) -> float:
    """Sensitivity at which the curve crosses that number of false positives per scan."""
    (line,) = figure.axes[0].lines
    assert line.get_drawstyle() == "steps-post"
    rates, sensitivity = line.get_data()
    return float(sensitivity[np.searchsorted(rates, rate, side="right") - 1])


def test_line_runs_at_the_sensitivity_of_the_rate() -> None:
    """Left of 1 false positive a scan half is found, right of it all."""
    figure = draw_curves({"": curve([0.9, 0.5], [0.7])}, "two nodules")
    assert height_of_line(figure, 0.9) == 0.5
    assert height_of_line(figure, 1.1) == 1.0


def test_curve_ends_at_the_right_rim() -> None:
    few = draw_curves({"": curve([0.9, -np.inf], [])}, "few")
    many = draw_curves({"": curve([0.9, 0.01], [0.5] * 20)}, "many")
    assert height_of_line(few, 8.0) == 0.5
    assert height_of_line(many, 8.0) == 0.5
    assert few.axes[0].get_xlim() == many.axes[0].get_xlim() == (0.125, 8.0)


def test_picture_is_saved(tmp_path: Path) -> None:
    save_chart(draw_curves({"": curve([0.9], [0.1])}, "one"), tmp_path / "froc.png")
    opened = cv2.imread(str(tmp_path / "froc.png"))
    assert opened is not None
    assert opened.shape == (640, 900, 3)
    with pytest.raises(MissingData, match="cannot be written"):
        save_chart(draw_curves({"": curve([0.9], [0.1])}, "one"), tmp_path / "nowhere" / "froc.png")


LESION = Lesion((0.0, 0.0, 0.0), 20.0)


def test_detections_are_sorted_into_hits_rim_and_false() -> None:
    """The best hit scores for the lesion, rim and ignored lesions count neither way."""
    detections = [
        ((9.0, 0.0, 0.0), 0.6),
        ((0.0, 9.0, 0.0), 0.7),
        ((12.0, 0.0, 0.0), 0.99),
        ((13.5, 0.0, 0.0), 0.5),
        ((99.0, 0.0, 0.0), 0.2),
    ]
    scores = score_scan("a", detections, Truth((LESION,)))
    assert scores.lesion_score.tolist() == [0.7]
    assert scores.false_score.tolist() == [0.5, 0.2]
    assert [scores.false_above(t) for t in (0.5, 0.51, 0.0)] == [1, 0, 2]
    without_rim = score_scan("a", detections[2:3], Truth((LESION,)), rim_mm=0.0)
    assert without_rim.lesion_score.tolist() == [-np.inf]
    assert without_rim.false_score.tolist() == [0.99]
    ignored = score_scan("a", [((1.0, 0.0, 0.0), 0.9)], Truth(ignored=(LESION,)))
    assert ignored.lesion_score.size == ignored.false_score.size == 0


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


class Outlining:
    """Calls every ROI a nodule that fills its last quarter, and remembers what it was shown."""

    roi_shape = (48, 48, 48)

    def __init__(self) -> None:
        self.seen: list[UInt8Array] = []

    def read(self, batch: UInt8Array) -> Readings:
        self.seen.extend(batch)
        mask = np.zeros(batch.shape, bool)
        mask[:, 24:30, 24:30, 24:30] = True
        return replace(plain([0.9] * len(batch), [7.0] * len(batch)), mask=mask)


def test_the_second_reader_sees_of_a_tile_what_it_sees_of_a_cube() -> None:
    """Its ROI of 48 mm ends with the tile: what lies beyond is mirrored, as at a cube's face."""
    voxels = np.arange(60 * 130 * 90, dtype=np.int64).reshape(60, 130, 90)
    voxels = (voxels * 2654435761 % 199).astype(np.uint8)
    second = Outlining()
    agent = Agent(Unsure([]), second, EdgeSettings())
    tiled(agent.reads(Stage.BOTH, outlined=False))(Preprocessed(voxels, Geometry()))
    seen = second.seen
    cube = voxels[:50, :50, :50]
    assert np.array_equal(seen[0], cut_roi(cube, (13.0, 36.0, 36.0), (48, 48, 48)))
    assert not np.array_equal(seen[0], cut_roi(voxels, (13.0, 36.0, 36.0), (48, 48, 48)))


def test_in_tiles_a_finding_stays_where_the_edge_found_it() -> None:
    """The centre of an outline that a tile cuts may lie in the core of another tile."""
    agent = Agent(Unsure([]), Outlining(), EdgeSettings())
    box = Preprocessed(np.zeros((60, 130, 90), np.uint8), Geometry())
    (moved,) = agent.reads(Stage.BOTH)(box)[Stage.BOTH]
    assert moved.index_zyx == (15.5, 38.5, 38.5)
    (kept,) = agent.reads(Stage.BOTH, outlined=False)(box)[Stage.BOTH]
    assert kept.index_zyx == (13.0, 36.0, 36.0)
    assert (13.0, 36.0, 36.0) in [
        one.index_zyx for one in tiled(agent.reads(Stage.BOTH, outlined=False))(box)[Stage.BOTH]
    ]
