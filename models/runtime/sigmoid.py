"""From a logit to a probability."""

import numpy as np
import numpy.typing as npt

from imaging.volume import FloatArray


def sigmoid(logit: npt.ArrayLike) -> FloatArray:
    """Return 1 / (1 + exp(-logit)), of any shape."""
    with np.errstate(over="ignore"):  # exp overflows to infinity below -709, and 0 is right there
        return np.asarray(1 / (1 + np.exp(-np.asarray(logit))))
