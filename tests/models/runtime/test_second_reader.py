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
    readings = reader(weights).read(batch)
    np.testing.assert_allclose(readings.probability, [0.5, 1 / (1 + np.exp(-1))], rtol=1e-5)
    np.testing.assert_allclose(readings.diameter_mm, [5, 5], rtol=1e-5)
    np.testing.assert_allclose(readings.malignancy, readings.probability, rtol=1e-5)
    assert readings[1].texture == "part-solid"


def test_the_mask_lies_where_the_region_has_the_nodule(weights: Path) -> None:
    """Views are mirrored back before they are averaged; only the piece in the middle is kept."""
    region = np.zeros((8, 8, 8), np.uint8)
    region[2:4, 3:6, 4] = 200
    region[7, 7, 7] = 200
    mask = reader(weights).read(region[None]).mask[0]
    truth = np.zeros((8, 8, 8), bool)
    truth[2:4, 3:6, 4] = True
    np.testing.assert_array_equal(mask, truth)


def test_a_region_of_another_shape_is_refused(weights: Path) -> None:
    """The error gives the shape that came and the one that is taken."""
    with pytest.raises(ValueError, match=r"\(4, 8, 8\).*\(8, 8, 8\)"):
        reader(weights).read(np.zeros((1, 4, 8, 8), np.uint8))
