"""Figures of a network on the validation regions, and confidence intervals of differences."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from imaging.volume import FloatArray
from models.auc import auc
from models.training.screening import sensitivity_at

RATES = (0.5, 1.0, 2.0, 4.0)
"""False positives a scan."""

Indices = npt.NDArray[np.int64]


class Scores(NamedTuple):
    """Logits of one network: of nodules, of false positives in scans, and of those in cubes."""

    nodules: FloatArray
    scan_false_positives: FloatArray
    cube_false_positives: FloatArray


def figures(scores: Scores, scans: int) -> dict[str, float]:
    """Return sensitivity at `RATES`, its mean, and the AUC against all false positives."""
    at = {
        f"at_{rate:g}": sensitivity_at(scores.nodules, scores.scan_false_positives, rate * scans)
        for rate in RATES
    }
    ranked = np.concatenate(
        [scores.nodules, scores.scan_false_positives, scores.cube_false_positives]
    )
    area = auc(ranked, np.arange(len(ranked)) < len(scores.nodules))
    return {**at, "mean": float(np.mean(list(at.values()))), "auc": area}


def points_gained(
    arm: Sequence[Scores], base: Sequence[Scores], patients: Indices, scans: int,
    *, resamples: int = 1000,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Return the points that ``arm`` gains over ``base`` in each figure, with 95 % intervals.

    Both hold one network a seed, in the same order. Each resample draws seeds, patients and false
    positives with replacement, the same for both.
    """
    rng = np.random.default_rng(0)
    everything = [np.arange(len(part)) for part in base[0]]
    value = _gain(arm, base, range(len(arm)), everything, scans)
    drawn = []
    for _ in range(resamples):
        seeds = rng.integers(len(arm), size=len(arm))
        drawn.append(_gain(arm, base, seeds.tolist(), _draw(base[0], patients, rng), scans))
    low, high = np.quantile([list(one.values()) for one in drawn], [0.025, 0.975], axis=0)
    return {
        name: {"points": gain, "low": float(a), "high": float(b)}
        for (name, gain), a, b in zip(value.items(), low, high, strict=True)
    }


def _gain(
    arm: Sequence[Scores], base: Sequence[Scores], seeds: Sequence[int],
    cases: Sequence[Indices], scans: int,
) -> dict[str, float]:  # fmt: skip
    gains = []
    for seed in seeds:
        ours, theirs = (
            figures(Scores(*map(np.take, readers[seed], cases)), scans) for readers in (arm, base)
        )
        gains.append({name: 100 * (ours[name] - theirs[name]) for name in ours})
    return {name: float(np.mean([gain[name] for gain in gains])) for name in gains[0]}


def _draw(scores: Scores, patients: Indices, rng: np.random.Generator) -> list[Indices]:
    count = int(patients.max()) + 1
    times = rng.multinomial(count, np.full(count, 1 / count))[patients]
    nodules = np.repeat(np.arange(len(patients)), times)
    counts = [len(part) for part in scores[1:]]
    return [nodules, *(rng.integers(max(count, 1), size=count) for count in counts)]
