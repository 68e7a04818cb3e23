"""The area under the ROC curve."""

import numpy as np
import numpy.typing as npt

from imaging.volume import FloatArray


def auc(score: FloatArray, positive: npt.NDArray[np.bool_]) -> float:
    """Return the probability that a positive scores above a negative, ties half; NaN if none.

    It is Mann and Whitney's U, equal to scikit-learn's ``roc_auc_score``, whose argument checks
    would take most of the time of a bootstrap.
    """
    high, low = score[positive], np.sort(score[~positive])
    if not (high.size and low.size):
        return float("nan")
    below = np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")
    return float(below.mean() / (2 * low.size))
