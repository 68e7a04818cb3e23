import numpy as np
import pytest

from models.training.compose import Composer
from models.training.data import Piece
from models.training.screening import ScreeningTask, peaks_of, peaks_of_each
from tests.models.training.test_data import ball
from tests.models.training.test_regions import NOISE, BrightHeat, lung


def task(scan: Piece) -> ScreeningTask:
    cube = ball((50, 50, 50), (24.5, 24.5, 24.5), 12.0)
    composer = Composer([cube], [scan], side=64, noise=NOISE)
    return ScreeningTask(composer, [cube], [scan], BrightHeat(), workers=0)


def marked() -> Piece:
    """A lung with four lumps, one of which is a nodule."""
    piece = lung()
    return Piece(piece.voxels, piece.mask, np.array([[22.5, 32.5, 42.5, 6.0]]), piece.ignored)


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
