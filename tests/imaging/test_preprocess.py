"""Resampling to 1 mm, and the lung box."""

from dataclasses import replace

import numpy as np
import pytest

from imaging.errors import IrregularGeometry
from imaging.preprocess import Preprocessed, preprocess, resample
from imaging.volume import Geometry
from tests.evaluation.plain_chest import chest
from tests.imaging.volumes import ramp, to_window


def test_resampling_keeps_a_linear_picture_linear_at_its_place() -> None:
    volume = ramp(Geometry((2.5, 0.7, 0.8), (-20.0, 10.0, 30.0)), (20, 60, 70))
    voxels, geometry = resample(volume.hu, volume.geometry)
    np.testing.assert_allclose(geometry.spacing_mm, 1.0, rtol=0.02)
    expected = to_window(ramp(geometry, voxels.shape).hu)
    inner = (slice(2, -2),) * 3
    difference = voxels[inner].astype(int) - expected[inner].astype(int)
    assert np.abs(difference).max() <= 2


def test_without_lungs_given_everything_is_inside() -> None:
    box = Preprocessed(np.zeros((4, 4, 4), np.uint8), Geometry())
    assert box.inside(np.array([[0.0, 0, 0], [3, 3, 3]])).all()


def test_lungs_larger_than_any_are_refused_before_they_are_resampled() -> None:
    """Slices that are stated too far apart: 75 s went into lungs of five metres."""
    volume = chest()
    wrong = replace(volume.geometry, spacing_mm=(18.0, *volume.geometry.spacing_mm[1:]))
    with pytest.raises(IrregularGeometry, match=r"its lungs would be 7\d\d x"):
        preprocess(replace(volume, geometry=wrong), "a study")
