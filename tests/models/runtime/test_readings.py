"""Readings: one of many, and the piece of a mask that is the nodule."""

from __future__ import annotations

import numpy as np
import pytest

from models.runtime.readings import nearest_piece
from tests.plain_readings import plain


def test_one_of_many_has_its_own_values() -> None:
    """In plain Python numbers and words."""
    reading = plain([0.25, 0.5], [6.0, 7.0])[1]
    assert (reading.probability, reading.diameter_mm) == (0.5, 7.0)
    assert (reading.malignancy, reading.texture) == (0.0, "solid")
    assert reading.mask.shape == (4, 4, 4)


def test_the_piece_in_the_middle_is_kept() -> None:
    """Touching by a corner is one piece; what lies apart goes, be it larger."""
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, 5] = mask[5, 5, 6] = True
    mask[:2] = True
    kept = nearest_piece(mask)
    np.testing.assert_array_equal(np.argwhere(kept), [[4, 4, 5], [5, 5, 6]])


def test_of_nothing_nothing_is_kept() -> None:
    """An empty mask stays empty."""
    assert not nearest_piece(np.zeros((4, 4, 4), bool)).any()


def test_a_number_that_is_not_there_is_an_error() -> None:
    """As in every sequence."""
    with pytest.raises(IndexError):
        plain([0.5], [5.0])[1]
