from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import typer

from edge.findings import READERS_MM
from evaluation.accuracy.readers import Agent, Stage
from evaluation.lesion_insertion import characterization as module
from evaluation.lesion_insertion.characterization import characterization as command
from imaging.preprocess import Preprocessed
from imaging.volume import UInt8Array, from_window
from models.runtime.errors import MissingData
from models.runtime.second_reader import Reading, Readings
from tests.evaluation.plain_chest import host
from tests.plain_readings import plain


def test_overlap_is_dice() -> None:
    """Two of three and two of two voxels shared: 4 of 5."""
    mask, truth = np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2), bool)
    mask[0, 0] = truth[0, 0] = True
    mask[1, 1, 1] = True
    assert module.overlap(Reading(0.5, 5.0, 0.5, "solid", mask), truth) == pytest.approx(0.8)


def characterization(predicted_malignancy: list[float]) -> module.Characterization:
    """Four nodules of three patients: two malignant, one not, one in between."""
    return module.Characterization(
        patients=("a", "a", "b", "c"),
        diameter_mm=np.array([5.0, 8, 10, 20]),
        malignancy=np.array([1.5, 3.0, 4.5, 5.0]),
        texture=np.array([5.0, 3.0, 5.0, np.nan]),
        predicted_diameter_mm=np.array([6.0, 8, 9, 20]),
        predicted_malignancy=np.array(predicted_malignancy),
        predicted_texture=np.array([2, 2, 2, 0]),
        dice=np.array([np.nan, 0.7, 0.8, 0.9]),
        consensus_mm3=np.array([np.nan, 300.0, 600.0, 5000.0]),
        reported_mm3=np.array([80.0, 330.0, 480.0, np.nan]),
        reported_mm=np.array([5.3, 8.6, 9.7, 21.2]),
    )


def test_figures_are_taken_from_what_readers_said() -> None:
    """The undecided rating, the unknown texture and the small nodule's outline are left out."""
    rows = module.measures(characterization([0.1, 0.9, 0.6, 0.7]))
    wider = [(6 * 300 / np.pi) ** (1 / 3) - 8.6, (6 * 600 / np.pi) ** (1 / 3) - 9.7]
    left = np.abs(np.array(wider) - READERS_MM)
    expected = {
        "malignancy, AUC": (1, "2 of 3"),
        # solid always, part-solid never
        "texture": (0.5, "0 ground glass, 1 part-solid, 2 solid"),
        "outline": (0.8, "3 nodules of 6 mm and more"),
        "volume in the report": (0.95, "2 nodules"),
        "diameter of those voxels": (np.mean(wider), "2 nodules"),
        "error of the diameter": (np.mean(left), "2 nodules"),
        "the same as a part": (0.7, "2 nodules"),
        "network's diameter against LUNA16's, mean error": (0.5, "all"),
        "network's diameter against LUNA16's, mean bias": (0, "all"),
    }
    for row, (start, (value, source)) in zip(rows, expected.items(), strict=True):
        assert row["measure"].startswith(start)
        assert row["figure"]["value"] == pytest.approx(value, abs=0.1 if "part" in start else 1e-9)
        assert row["from"] == source
        assert row["figure"]["low"] <= row["figure"]["value"] <= row["figure"]["high"]


class Bright:
    roi_shape = (8, 8, 8)

    def read(self, batch: UInt8Array) -> Readings:
        found = plain([0.5] * len(batch), [4.0] * len(batch), side=8)
        return Readings(
            found.probability, found.diameter_mm, found.malignancy, found.texture, batch > 100
        )


def test_every_nodule_is_read_at_its_centre(tmp_path: Path) -> None:
    """The outline is compared where the readers drew it; a doubtful match is not compared.

    Ratings of one kind alone are refused: all figures would be of nothing.
    """
    ct, votes = np.zeros((2, 3, 50, 50, 50), np.uint8)
    ct[:, 5:8, 5:8, 5:8] = 200
    votes[:, 5:8, 5:8, 5:8] = 4
    np.savez(tmp_path / "test.npz", ct=ct, votes=votes)
    head = "split,row,patient,z,y,x,diameter_mm,match_mm,malignancy_mean,texture_mean"
    known = enumerate(((0.5, 4), (9, 4), (0.5, 1)))
    rows = [f"test,{i},p{i},6,6,6,7,{match},{rating},5" for i, (match, rating) in known]
    (tmp_path / "index.csv").write_text("\n".join([head, *rows]) + "\n")
    found = module.read_characterization(tmp_path, ("test",), Bright())
    assert found.dice[0] == 1
    assert np.isnan(found.dice[1])
    assert np.isnan(found.malignancy[1])
    assert (found.consensus_mm3[0], found.reported_mm3[0]) == (27, 27)
    assert found.reported_mm[0] == pytest.approx((6 * 27 / np.pi) ** (1 / 3))
    assert np.isnan(found.consensus_mm3[1])
    (tmp_path / "index.csv").write_text("\n".join([head, *rows]).replace(",1,5", ",3,5"))
    with pytest.raises(MissingData, match="no nodule of test is rated malignant"):
        module.read_characterization(tmp_path, ("test",), Bright())


READ = replace(
    characterization([0.1, 0.9, 0.6, 0.7]),
    predicted_texture=np.array([2, 2, 1, 0]),
    reported_mm=np.array([12.0, 8.6, 9.7, 21.2]),
)
"""Of the benign nodule and two malignant ones, the first is larger than the second."""


def test_the_brock_model_gets_diameter_and_type() -> None:
    solid, _, part_solid, large = module.brock_scores(READ)
    assert solid < large
    scores = module.brock_scores(replace(READ, reported_mm=np.full(4, 9.7)))
    assert scores[2] > scores[0] > scores[3]  # part-solid, solid, ground glass
    assert part_solid == scores[2]


def test_malignancy_is_that_of_nodules_that_the_readers_are_sure_of() -> None:
    """The combination is fitted on one set, and measured on another."""
    weights = module.fit_both(READ)
    assert weights.shape == (3,)
    assert weights[1] > 0
    image, brock, both = module.malignancy(READ, weights)
    assert READ.rated.tolist() == [0, 2, 3]
    assert (image["auc"]["value"], image["minus_image"]) == (1, None)
    assert (brock["auc"]["value"], brock["minus_image"]["value"]) == (0.5, -0.5)
    assert brock["auc"]["low"] <= 0.5 <= brock["auc"]["high"]
    assert both["auc"]["value"] == 1


def test_what_is_measured_is_not_fitted_on() -> None:
    with pytest.raises(typer.BadParameter, match="fitted on val"):
        command.measure(Path(), "val,test", [], [])


@pytest.mark.parametrize("diameter_mm", [4.0, 10.0])
def test_a_sphere_has_its_volume_wherever_its_middle_lies(diameter_mm: float) -> None:
    found = module.sphere(diameter_mm, 30.0, np.array([0.5, -0.3, 0.1]))
    assert found.cover.sum() == pytest.approx(np.pi / 6 * diameter_mm**3, rel=0.03)
    index = np.indices(found.cover.shape).reshape(3, -1)
    middle = (index * found.cover.ravel()).sum(1) / found.cover.sum()
    np.testing.assert_allclose(middle, found.centre_zyx, atol=0.05)


class Dense:
    """Reports, as one finding, the sphere of all voxels of a box that are denser than its lung."""

    def read(self, box: Preprocessed, stage: Stage) -> Any:
        assert stage is Stage.BOTH
        inside = np.argwhere(from_window(box.voxels[8:-8, 8:-8, 8:-8]) > 0) + 8
        assert len(inside)
        none = SimpleNamespace(merged=SimpleNamespace(findings=(), possible=()))
        return SimpleNamespace(candidates=(), alone=none, both=None)


def test_spheres_that_are_not_found_count_as_not_measured() -> None:
    read = list(module.read_spheres(host(), cast(Agent, Dense()), np.random.default_rng(0)))
    assert {density for density, *_ in read} == {"solid", "part-solid", "ground glass"}
    rows = module.spheres_json(read)
    assert len(rows) == 21
    solid = {row["diameter_mm"]: row for row in rows if row["density"] == "solid"}
    assert (solid[10]["spheres"], solid[10]["measured"], solid[10]["bias_mm"]) == (1, 0, None)


def test_errors_are_medians_of_what_was_found() -> None:
    read = [
        ("solid", 10.0, 9.0, 10.5, True),
        ("solid", 10.0, np.nan, 9.5, True),
        ("solid", 10.0, 10.0, np.nan, False),
    ]
    (row,) = (one for one in module.spheres_json(read) if one["spheres"])
    assert (row["spheres"], row["measured"]) == (3, 2)
    assert (row["bias_mm"], row["error_mm"], row["edge_bias_mm"]) == (0.0, 0.5, -0.5)
    assert row["volume_error"] == pytest.approx((1.05**3 - 1 + 1 - 0.95**3) / 2, abs=1e-3)
