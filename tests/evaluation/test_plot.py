"""The picture of an FROC curve."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from evaluation.errors import MissingData
from evaluation.froc import Curve, Scored, froc
from evaluation.plot import draw_curve, save_curve

LINE = (180, 90, 20)


def curve(nodules: list[float], false: list[float]) -> Curve:
    """One scan, each nodule a patient."""
    group, scan = np.arange(len(nodules)), np.zeros(len(false), np.int64)
    return froc(Scored(np.array(nodules), group, np.array(false, float), scan, 1, False))


def height_of_line(picture: np.ndarray, x: int) -> float:
    """Sensitivity at which the curve crosses column x."""
    rows = np.flatnonzero((picture[:, x] == LINE).all(axis=1))
    return float((640 - 70 - rows.mean()) / (640 - 60 - 70))


def test_line_runs_at_the_sensitivity_of_the_rate() -> None:
    """Left of 1 false positive a scan half is found, right of it all."""
    picture = draw_curve(curve([0.9, 0.5], [0.7]), "two nodules")
    one = 80 + round((900 - 80 - 30) / 2)  # a false positive a scan is in the middle of 1/8..8
    assert height_of_line(picture, one - 20) == pytest.approx(0.5, abs=0.01)
    assert height_of_line(picture, one + 20) == pytest.approx(1.0, abs=0.01)


def test_curve_ends_at_the_right_rim() -> None:
    """A reader with few false positives keeps its sensitivity, one with many is cut off."""
    few = draw_curve(curve([0.9, -np.inf], []), "few")
    many = draw_curve(curve([0.9, 0.01], [0.5] * 20), "many")
    assert height_of_line(few, 860) == pytest.approx(0.5, abs=0.01)
    assert height_of_line(many, 860) == pytest.approx(0.5, abs=0.01)


def test_picture_is_saved(tmp_path: Path) -> None:
    """A PNG that can be opened, or a typed refusal."""
    save_curve(tmp_path / "froc.png", curve([0.9], [0.1]), "one")
    opened = cv2.imread(str(tmp_path / "froc.png"))
    assert opened is not None
    assert opened.shape == (640, 900, 3)
    with pytest.raises(MissingData, match="cannot be written"):
        save_curve(tmp_path / "nowhere" / "froc.png", curve([0.9], [0.1]), "one")
