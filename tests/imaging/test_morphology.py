"""Balls by discs, and by distances."""

import numpy as np
import pytest

from imaging.morphology import dilate, erode, squared_distance


@pytest.mark.parametrize("shape", [(12, 11, 13), (2, 9, 9)])
def test_balls_by_distance_are_those_by_discs(shape: tuple[int, int, int]) -> None:
    mask = (np.random.default_rng(0).random(shape) > 0.96).astype(np.uint8)
    mask[0] = 0
    away, depth = squared_distance(mask, 4), squared_distance(1 - (ball := dilate(mask, 3.0)), 4)
    for radius in range(5):
        np.testing.assert_array_equal(away <= radius**2, dilate(mask, radius))
        np.testing.assert_array_equal(depth > radius**2, erode(ball, radius))
