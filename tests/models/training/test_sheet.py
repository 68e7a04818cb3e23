"""The sheet of samples: a row for each composition, circles where the nodules are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from models.training.sheet import NODULE, draw_samples, save_samples
from tests.models.training.test_compose import composer


def test_the_sheet_shows_every_composition_with_its_nodules(tmp_path: Path) -> None:
    """Three rows of tiles, nodules circled, the same picture for the same seed."""
    sheet = draw_samples(composer(), columns=2, seed=1)
    assert sheet.shape == (3 * 194, 2 * 194, 3)
    for row in np.split(sheet, 3):
        assert (row == NODULE).all(-1).any()
    np.testing.assert_array_equal(sheet, draw_samples(composer(), columns=2, seed=1))
    save_samples(tmp_path / "sheet.png", sheet)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "sheet.png")), sheet)
