"""The hybrid network as the cloud uses it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.runtime.artifacts import find
from models.runtime.second_reader import SecondReader
from models.runtime.session import open_session


def reader(weights: Path) -> SecondReader:
    """One whose logit is the region's mean brightness."""
    return SecondReader(open_session(find("bright-hybrid", weights), engine="onnxruntime"))


def test_each_region_gets_a_probability_and_a_diameter(weights: Path) -> None:
    """Probability is the sigmoid of the calibrated logit, the diameter is in mm."""
    batch = np.stack([np.zeros((8, 8, 8)), np.full((8, 8, 8), 255)]).astype(np.uint8)
    chance, diameter = reader(weights).read(batch)
    np.testing.assert_allclose(chance, [0.5, 1 / (1 + np.exp(-1))], rtol=1e-5)
    np.testing.assert_allclose(diameter, [5, 5], rtol=1e-5)


def test_a_region_of_another_shape_is_refused(weights: Path) -> None:
    """The error gives the shape that came and the one that is taken."""
    with pytest.raises(ValueError, match=r"\(4, 8, 8\).*\(8, 8, 8\)"):
        reader(weights).read(np.zeros((1, 4, 8, 8), np.uint8))
