"""What the screening network is asked to say."""

from __future__ import annotations

import numpy as np

from models.runtime.detection import find_peaks
from models.training.piece import Piece
from models.training.targets import make_targets


def sample(nodules: list[list[float]], ignored: list[list[float]] | None = None) -> Piece:
    """A dark sample of 48^3 with the given marks."""
    dark = np.zeros((48, 48, 48), np.uint8)
    marks = [np.array(m or [], float).reshape(-1, 4) for m in (nodules, ignored)]
    return Piece(dark, dark, marks[0], marks[1])


def test_decoding_the_targets_gives_the_nodules_back() -> None:
    """Maps made of the targets decode to the marked places and diameters."""
    nodules = [[12.3, 20.8, 33.1, 5.0], [30.0, 35.5, 10.2, 18.0]]
    targets = make_targets(sample(nodules))
    heat = np.log(np.clip(targets.heat, 1e-4, 1 - 1e-4) / (1 - np.clip(targets.heat, 1e-4, 0.9999)))
    maps = np.concatenate([heat[None], targets.box]).astype(np.float32)
    peaks = find_peaks(maps, least_logit=5, most=9)
    order = np.argsort(peaks.diameter_mm)
    np.testing.assert_allclose(peaks.index_zyx[order], np.array(nodules)[:, :3], atol=0.01)
    np.testing.assert_allclose(peaks.diameter_mm[order], [5, 18], rtol=1e-4)


def test_ignored_marks_weigh_nothing_but_a_nodule_does() -> None:
    """Around an ignored mark the weight is 0; a nodule inside it still counts."""
    targets = make_targets(sample([[22.0, 22, 22, 6]], [[22.0, 22, 22, 20]]))
    assert targets.weight[5, 5, 5] == 1
    assert targets.weight[5, 5, 7] == 0
    assert targets.weight[0, 0, 0] == 1


def test_the_share_is_the_part_of_the_cell_that_is_nodule() -> None:
    """A mask that fills half a cell gives a share of one half."""
    piece = sample([[10.0, 10, 10, 6]])
    mask = piece.mask.copy()
    mask[8:10, 8:12, 8:12] = 255
    share = make_targets(Piece(piece.voxels, mask, piece.nodules, piece.ignored)).share
    assert share[2, 2, 2] == 0.5
    assert share.sum() == 0.5
