"""Trained networks compared on validation, nodule by nodule, with intervals of the difference."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from imaging.volume import FloatArray
from models.training.screening import RATES, hits

RESAMPLES = 2000


def ranks(found: FloatArray, false: FloatArray, scans: int) -> list[int]:
    """Return at how many of `RATES` each nodule is found, by logits as `hits` takes them.

    A rate finds all that a lower one finds.
    """
    each: list[int] = hits(found, false, scans).sum(1).astype(int).tolist()
    return each


def cpm(of: npt.NDArray[np.int64]) -> float:
    """Return the CPM of ranks."""
    return float(np.mean(of)) / len(RATES)


def gained(
    more: npt.NDArray[np.int64], less: npt.NDArray[np.int64], patients: Sequence[str]
) -> dict[str, float]:
    """Return the points of CPM that ranks ``(seeds, nodules)`` are above others, see `points`."""
    return points((more - less) / len(RATES), patients)


def points(change: FloatArray, patients: Sequence[str]) -> dict[str, float]:
    """Return the mean of ``change`` (seeds, nodules) in points of a hundred, and its 95 % interval.

    Each resample draws seeds, and the ``patients`` of the nodules, with replacement. The false
    positives of the few scans are not resampled.
    """
    rng, owner = np.random.default_rng(0), np.unique(patients, return_inverse=True)[1]
    count = int(owner.max()) + 1
    # a patient that is drawn twice has nodules of twice the weight
    weight = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)[:, owner]
    each = weight @ change.T / weight.sum(1, keepdims=True)  # (resamples, seeds)
    seeds = rng.integers(len(change), size=each.shape)
    means = np.take_along_axis(each, seeds, 1).mean(1)
    value, (low, high) = float(change.mean()), np.quantile(means, [0.025, 0.975])
    if high - low < 1e-9:  # all patients are alike: at most as many differ as of 0 of n (exact)
        unlike = 1 - 0.025 ** (1 / count)
        low, high = value - unlike, value + unlike
    return {"value": 100 * value, "low": 100 * float(low), "high": 100 * float(high)}
