from dataclasses import replace

import numpy as np
import pytest
import torch

from models.runtime.detection import Peaks, find_peaks
from models.training.compose import Composer
from models.training.data import Piece
from models.training.screening import (
    ScreeningTask,
    apart,
    heat_loss,
    make_targets,
    peaks_of,
    peaks_of_each,
    screening_loss,
)
from tests.models.training.test_data import ball
from tests.models.training.test_hybrid import NOISE, BrightHeat, lung


def task(scan: Piece) -> ScreeningTask:
    cube = ball((50, 50, 50), (24.5, 24.5, 24.5), 12.0)
    composer = Composer([cube], [scan], side=64, noise=NOISE)
    return ScreeningTask(composer, [cube], [scan], BrightHeat(), workers=0)


def marked() -> Piece:
    """A lung with four lumps, one of which is a nodule."""
    return replace(lung(), nodules=np.array([[22.5, 32.5, 42.5, 6.0]]), name="lung")


def test_figures_are_of_equal_context() -> None:
    """The cube's nodule ranks behind the three lumps that are none."""
    figures = task(marked()).evaluate(BrightHeat())
    assert figures["at_2"] == 0
    assert figures["at_4"] == 1
    assert figures["cpm"] == pytest.approx(2 / 7)


def test_false_positives_are_mined_where_no_nodule_is() -> None:
    learning = task(marked())
    learning.refresh(BrightHeat())
    (hard,) = learning.composer.hard
    assert sorted(np.rint(hard[:, 0] / 20).astype(int).tolist()) == [2, 3, 4]


def test_locations_at_annotations_are_no_false_positives() -> None:
    """Neither at a nodule nor at an ignored mark, and only from 4 mm beyond their rim on."""
    voxels = np.zeros((8, 8, 8), np.uint8)
    piece = Piece(voxels, voxels, np.array([[20.0, 20, 20, 10]]), np.array([[60.0, 60, 60, 6]]))
    places = np.array([[20.0, 20, 28.5], [20, 20, 29.5], [60, 60, 66.5], [60, 60, 67.5]])
    peaks = Peaks(np.arange(4.0), places, np.full(4, 5.0))
    assert apart(peaks, piece, 4).logit.tolist() == [1, 3]
    assert apart(peaks, piece, 4, above=1).logit.tolist() == [3]


def test_peaks_come_in_the_order_of_their_boxes() -> None:
    """Boxes of several shapes among each other, too."""
    rng = np.random.default_rng(0)
    boxes = []
    for side in (16, 24, 16, 16, 24):
        box = np.full((side, 32, 32), 40, np.uint8)
        z, y, x = rng.integers(0, np.array(box.shape) - 7)
        box[z : z + 7, y : y + 7, x : x + 7] = 230
        boxes.append(box)
    for found, box in zip(peaks_of_each(BrightHeat(), boxes, batch=3), boxes, strict=True):
        alone = peaks_of(BrightHeat(), box)
        assert len(alone.logit)
        np.testing.assert_array_equal(found.index_zyx, alone.index_zyx)
        np.testing.assert_array_equal(found.logit, alone.logit)


def test_one_sample_of_a_batch_comes_again_cut_out() -> None:
    """Its voxels are those of the sample before it, inside of a box, and air outside."""
    batch = next(task(marked()).batches(seed=0))
    assert batch["cut"].tolist() == [False, True, False, False]
    whole, cut = batch["voxels"][:2].numpy()
    inside = cut > 0
    assert 0 < inside.mean() < 1
    np.testing.assert_array_equal(cut[inside], whole[inside])


def sample(nodules: list[list[float]], ignored: list[list[float]] | None = None) -> Piece:
    """A dark sample of 48^3 with the given marks."""
    dark = np.zeros((48, 48, 48), np.uint8)
    marks = [np.array(m or [], float).reshape(-1, 4) for m in (nodules, ignored)]
    return Piece(dark, dark, marks[0], marks[1])


def test_decoding_the_targets_gives_the_nodules_back() -> None:
    nodules = [[12.3, 20.8, 33.1, 5.0], [30.0, 35.5, 10.2, 18.0]]
    targets = make_targets(sample(nodules))
    heat = torch.logit(targets["heat"], 1e-4)
    maps = torch.cat([heat[None], targets["box"]]).numpy()
    peaks = find_peaks(maps, least_logit=5, most=9)
    order = np.argsort(peaks.diameter_mm)
    np.testing.assert_allclose(peaks.index_zyx[order], np.array(nodules)[:, :3], atol=0.01)
    np.testing.assert_allclose(peaks.diameter_mm[order], [5, 18], rtol=1e-4)


def test_ignored_marks_weigh_nothing_but_a_nodule_does() -> None:
    """Around an ignored mark the weight is 0; a nodule inside it still counts."""
    targets = make_targets(sample([[22.0, 22, 22, 6]], [[22.0, 22, 22, 20]]))
    assert targets["weight"][5, 5, 5] == 1
    assert targets["weight"][5, 5, 7] == 0
    assert targets["weight"][0, 0, 0] == 1


def test_the_share_is_the_part_of_the_cell_that_is_nodule() -> None:
    piece = sample([[10.0, 10, 10, 6]])
    mask = piece.mask.copy()
    mask[8:10, 8:12, 8:12] = 255
    share = make_targets(Piece(piece.voxels, mask, piece.nodules, piece.ignored))["share"]
    assert share[2, 2, 2] == pytest.approx(0.5, abs=1 / 255)
    assert share.sum() == share[2, 2, 2]


def heat() -> torch.Tensor:
    """One sample of ``(1, 6, 6, 6)`` with one centre and a neighbour of 0.6."""
    found = torch.zeros(1, 6, 6, 6)
    found[0, 2, 3, 4], found[0, 2, 3, 3] = 1.0, 0.6
    return found


def targets_of(truth: torch.Tensor) -> dict[str, torch.Tensor]:
    """All of the loss, where every cell weighs and boxes and shares are 0."""
    return {
        "heat": truth,
        "weight": torch.ones_like(truth),
        "near": (truth >= 1).float(),
        "box": torch.zeros(len(truth), 4, 6, 6, 6),
        "share": torch.zeros_like(truth),
    }


def sure(found: torch.Tensor, logit: float = 12.0) -> torch.Tensor:
    """Logits of a network that is sure of every cell, and right where ``found`` is 1."""
    return torch.where(found >= 1, logit, -logit)


def test_heat_is_cheap_when_right_and_dear_when_wrong() -> None:
    """A false positive beside a centre costs less than one elsewhere."""
    truth, all_count = heat(), torch.ones(1, 6, 6, 6)
    perfect = heat_loss(sure(truth), truth, all_count)
    assert 0 <= perfect < 1e-4
    false_positive = sure(truth)
    false_positive[0, 0, 0, 0] = 4.0
    missed = sure(truth)
    missed[0, 2, 3, 4] = -4.0
    assert heat_loss(false_positive, truth, all_count) > 3
    assert heat_loss(missed, truth, all_count) > 3
    near = sure(truth)
    near[0, 2, 3, 3] = 4.0
    assert heat_loss(near, truth, all_count) < 0.05 * heat_loss(false_positive, truth, all_count)


def test_cells_of_no_weight_are_ignored() -> None:
    truth, weight = heat(), torch.ones(1, 6, 6, 6)
    weight[0, 5, 5] = 0
    logit = sure(truth)
    logit[0, 5, 5] = 9.0
    logit.requires_grad_()
    loss = heat_loss(logit, truth, weight)
    loss.backward()
    assert loss < 1e-4
    assert logit.grad is not None
    assert (logit.grad[0, 5, 5] == 0).all()


def test_box_is_learnt_near_nodules_only() -> None:
    targets = targets_of(heat())
    maps = torch.zeros(1, 6, 6, 6, 6)
    maps[0, 1:5, 0, 0, 0] = 7.0
    assert screening_loss(maps, targets)["box"] == 0
    maps[0, 1:5, 2, 3, 4] = 7.0
    assert screening_loss(maps, targets)["box"] > 1


def test_a_nodule_must_score_the_same_when_it_is_cut_out() -> None:
    """The difference counts where both samples have the nodule, and only there."""
    targets = targets_of(heat().repeat(2, 1, 1, 1)) | {"cut": torch.tensor([False, True])}
    maps = torch.zeros(2, 6, 6, 6, 6)
    maps[1, 0] = 2.0 * (targets["near"][1] == 0)  # elsewhere they may differ
    assert screening_loss(maps, targets)["context"] == 0
    maps[1, 0] = -2.0
    assert screening_loss(maps, targets)["context"] > 0.4
