"""The picture of an FROC curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from evaluation.errors import MissingData
from evaluation.froc import Curve, Scored, froc
from evaluation.plot import draw_curve, save_curve


def curve(nodules: list[float], false: list[float]) -> Curve:
    """One scan, each nodule a patient."""
    group, scan = np.arange(len(nodules)), np.zeros(len(false), np.int64)
    return froc(Scored(np.array(nodules), group, np.array(false, float), scan, 1, False))


def height_of_line(figure: Any, rate: float) -> float:
    """Sensitivity at which the curve crosses so many false positives per scan."""
    (line,) = figure.axes[0].lines
    assert line.get_drawstyle() == "steps-post"
    rates, sensitivity = line.get_data()
    return float(sensitivity[np.searchsorted(rates, rate, side="right") - 1])


def test_line_runs_at_the_sensitivity_of_the_rate() -> None:
    """Left of 1 false positive a scan half is found, right of it all."""
    figure = draw_curve(curve([0.9, 0.5], [0.7]), "two nodules")
    assert height_of_line(figure, 0.9) == 0.5
    assert height_of_line(figure, 1.1) == 1.0


def test_curve_ends_at_the_right_rim() -> None:
    """A reader with few false positives keeps its sensitivity, one with many is cut off."""
    few = draw_curve(curve([0.9, -np.inf], []), "few")
    many = draw_curve(curve([0.9, 0.01], [0.5] * 20), "many")
    assert height_of_line(few, 8.0) == 0.5
    assert height_of_line(many, 8.0) == 0.5
    assert few.axes[0].get_xlim() == many.axes[0].get_xlim() == (0.125, 8.0)


def test_picture_is_saved(tmp_path: Path) -> None:
    """A PNG that can be opened, or a typed refusal."""
    save_curve(tmp_path / "froc.png", curve([0.9], [0.1]), "one")
    opened = cv2.imread(str(tmp_path / "froc.png"))
    assert opened is not None
    assert opened.shape == (640, 900, 3)
    with pytest.raises(MissingData, match="cannot be written"):
        save_curve(tmp_path / "nowhere" / "froc.png", curve([0.9], [0.1]), "one")
