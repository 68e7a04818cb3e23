"""From a logit to a probability."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from models.runtime.sigmoid import sigmoid


def test_sigmoid_equals_that_of_scipy() -> None:
    logit = np.linspace(-30, 30, 61).reshape(1, 61)
    np.testing.assert_allclose(sigmoid(logit), expit(logit), rtol=1e-14)
    assert float(sigmoid(0.0)) == 0.5


def test_extreme_logits_neither_warn_nor_fail() -> None:
    assert sigmoid(np.array([-1000.0, 1000.0])) == pytest.approx([0.0, 1.0])
