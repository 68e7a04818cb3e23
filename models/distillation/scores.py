"""Figures of a student on validation, and confidence intervals of differences."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from imaging.volume import FloatArray
from models.training.screening import summary

Indices = npt.NDArray[np.int64]


class Scores(NamedTuple):
    """Logits of one student in equal context.

    ``nodules`` are those in cubes, ``false_positives`` those of scans in tiles cut as the cubes
    are.
    """

    nodules: FloatArray
    false_positives: FloatArray


def figures(scores: Scores, scans: int) -> dict[str, float]:
    """Return CPM and sensitivities in equal context."""
    return summary(*scores, scans)


def points_gained(
    arm: Sequence[Scores], base: Sequence[Scores], patients: Indices, scans: int,
    *, resamples: int = 1000,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Return the points that ``arm`` gains over ``base`` in each figure, with 95 % intervals.

    Both hold one student a seed, in the same order. Each resample draws seeds and patients with
    replacement, the same for both; the false positives of the few scans are not resampled.
    """
    rng = np.random.default_rng(0)
    value = _gain(arm, base, range(len(arm)), np.arange(len(patients)), scans)
    drawn = []
    for _ in range(resamples):
        seeds = rng.integers(len(arm), size=len(arm))
        drawn.append(_gain(arm, base, seeds.tolist(), _draw(patients, rng), scans))
    low, high = np.quantile([list(one.values()) for one in drawn], [0.025, 0.975], axis=0)
    return {
        name: {"points": gain, "low": float(a), "high": float(b)}
        for (name, gain), a, b in zip(value.items(), low, high, strict=True)
    }


def _gain(
    arm: Sequence[Scores], base: Sequence[Scores], seeds: Sequence[int],
    cubes: Indices, scans: int,
) -> dict[str, float]:  # fmt: skip
    gains = []
    for seed in seeds:
        ours, theirs = (
            figures(of[seed]._replace(nodules=of[seed].nodules[cubes]), scans) for of in (arm, base)
        )
        gains.append({name: 100 * (ours[name] - theirs[name]) for name in ours})
    return {name: float(np.mean([gain[name] for gain in gains])) for name in gains[0]}


def _draw(patients: Indices, rng: np.random.Generator) -> Indices:
    """Draw patients with replacement and return the indices of their nodules."""
    count = int(patients.max()) + 1
    times = rng.multinomial(count, np.full(count, 1 / count))[patients]
    return np.repeat(np.arange(len(patients)), times)
