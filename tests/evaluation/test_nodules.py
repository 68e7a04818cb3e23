"""Nodules against false positives, with a reader whose every answer is written down here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evaluation.bootstrap import figures
from evaluation.cubes import Cube
from evaluation.froc import froc, sensitivity_at
from evaluation.nodules import NoduleScores, as_json, read_all, read_cube, read_scan, surrounded
from evaluation.scan import ScanScores, score_scan
from evaluation.truth import Lesion
from imaging.preprocess import Preprocessed
from models.runtime.detection import Candidate


class Scripted:
    """A reader that answers by the first voxel of the box: places (z, y, x) and scores."""

    def __init__(self, answers: dict[int, list[tuple[tuple[float, float, float], float]]]) -> None:
        self.answers = answers

    def __call__(self, box: Preprocessed) -> list[Candidate]:
        """What is written for this box."""
        found = self.answers.get(int(box.voxels[0, 0, 0]), [])
        return [
            Candidate((place[2], place[1], place[0]), place, 5.0, score) for place, score in found
        ]


def cube(number: int, patient: str, diameter_mm: float = 8.0) -> Cube:
    """A cube that is known by its voxels' value; its nodule is at (10, 11, 12)."""
    voxels = np.full((20, 20, 20), number, np.uint8)
    return Cube(f"val/{number}", patient, voxels, (10.0, 11.0, 12.0), diameter_mm)


def test_best_hit_of_a_cube_counts() -> None:
    """Marks beside the nodule do not count, however high; without a hit there is no score."""
    reads = Scripted(
        {
            1: [((10, 11, 12), 0.4), ((10, 11, 15.9), 0.6), ((10, 11, 16), 0.9)],
            2: [((2, 2, 2), 0.9)],
        }
    )
    assert read_cube(cube(1, "p"), reads) == 0.6
    assert read_cube(cube(2, "p"), reads) == -np.inf


def scores() -> NoduleScores:
    """Four nodules of three patients, two scans with three false positives and one lesion."""
    lesion = Lesion((0.0, 0.0, 0.0), 10.0)
    first = score_scan(
        "first", [((0, 0, 0), 0.85), ((50, 0, 0), 0.8), ((90, 0, 0), 0.3)], (lesion,)
    )
    second = score_scan("second", [((50, 0, 0), 0.5)], ())
    found = np.array([0.9, 0.7, 0.4, -np.inf])
    return NoduleScores(found, ("p", "p", "q", "r"), (first, second))


def test_froc_by_hand() -> None:
    """.9 N, .8 F, .7 N, .5 F, .4 N, .3 F: 1/4 for nothing, 1/2 for 1/2, 3/4 for 1 a scan."""
    curve = froc(scores().scored)
    assert sensitivity_at(curve).tolist() == [0.25, 0.25, 0.5, 0.75, 0.75, 0.75, 0.75]


def test_json_has_every_figure() -> None:
    """Sensitivities, CPM, costs, and each scan's false positives at the same thresholds."""
    said = as_json(scores(), figures(scores().scored, resamples=20))
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
    without = as_json(scores(), figures(scores().scored, resamples=20))["without"]
    assert [one["scan"] for one in without] == ["first", "second"]
    assert list(without[0]["sensitivity"].values()) == [0.5, 0.5, 0.5, 0.75, 0.75, 0.75, 0.75]
    assert without[0]["cpm"] == pytest.approx(4.5 / 7)


def test_patients_are_drawn_whole() -> None:
    """The groups of the bootstrap are patients for nodules and scans for false positives."""
    scored = scores().scored
    assert scored.nodule_group.tolist() == [0, 0, 1, 2]
    assert scored.false_scan.tolist() == [0, 0, 1]
    assert (scored.groups, scored.scans, scored.paired) == (3, 2, False)


def test_scan_without_marks_still_counts() -> None:
    """A silent scan lowers the false positives a scan of all."""
    silent = ScanScores("silent", np.zeros(0), (), np.zeros(0))
    both = NoduleScores(scores().nodule_score, scores().patients, (*scores().scans, silent))
    assert froc(both.scored).false_per_scan[-1] == 1.0


def test_real_slab_is_read_from_its_files(shared_data: Path) -> None:
    """A scan goes through reader and preprocessing, and marks are judged in patient mm."""
    folder = shared_data / "ct" / "lidc_slabs" / "LIDC-IDRI-0001"
    lesion = Lesion((57.24, 84.94, -115.62), 32.76)
    seen: list[Preprocessed] = []

    def reads(box: Preprocessed) -> list[Candidate]:
        seen.append(box)
        place = box.geometry.to_index(lesion.centre_mm)
        index = (float(place[0]), float(place[1]), float(place[2]))
        return [
            Candidate(lesion.centre_mm, index, 30.0, 0.8),
            Candidate((-60.0, 80.0, -115.0), (0, 0, 0), 5.0, 0.9),
        ]

    found = read_scan(folder, (lesion,), reads)
    assert found.name == "LIDC-IDRI-0001"
    assert found.lesion_score.tolist() == [0.8]
    assert found.false_score.tolist() == [0.9]
    z, y, x = (round(v) for v in seen[0].geometry.to_index(lesion.centre_mm))
    assert seen[0].voxels[z, y, x] > 150  # the middle of a solid nodule is soft tissue


def test_read_all_keeps_the_order() -> None:
    """Nodules stay beside their patients."""
    reads = Scripted({1: [((10, 11, 12), 0.3)], 2: [((10, 11, 12), 0.2)]})
    found = read_all([cube(2, "q"), cube(1, "p")], [], reads)
    assert found.nodule_score.tolist() == [0.2, 0.3]
    assert found.patients == ("q", "p")


def test_a_cube_can_be_read_in_larger_surroundings() -> None:
    """Mirrored into a box of 30 voxels, the nodule lies 5 voxels further, at the same voxels."""
    one = cube(3, "p")
    wide = surrounded(one, 30)
    assert wide.voxels.shape == (30, 30, 30)
    assert wide.centre_zyx == (15.0, 16.0, 17.0)
    assert surrounded(one, 20).voxels.shape == surrounded(one, 0).voxels.shape == (20, 20, 20)
    reads = Scripted({3: [((15, 16, 17), 0.7)]})
    assert read_cube(one, reads, 30) == 0.7
    assert read_cube(one, reads) == -np.inf
