"""Confidence intervals: bootstrap over patients and scans, never over single nodules.

Nodules of one patient resemble each other, so whole patients are drawn with replacement, and
whole scans for the false positives (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13: percentile intervals). Nodules and false positives of the same scans are drawn
together. The draws have a fixed seed, so that a result can be measured again.

Where all patients are alike, as at 0 and 100 %, every resample is the same. Such an interval would
have no width; exact limits take its place (`widened`, `widened_rate`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.accuracy.froc import (
    RATES,
    TARGETS,
    Curve,
    Scored,
    false_positives_at,
    froc,
    rate_name,
    sensitivity_at,
    weighted_froc,
)
from evaluation.run import POINTS
from imaging.volume import FloatArray
from models.calibration.statistics import poisson_limit

RESAMPLES = 1000
"""Draws of each interval."""

TAIL = (1 - 0.95) / 2
"""The probability outside an interval, on each side."""

_ROUNDING = 1e-9

RATE_COLUMNS: dict[str, tuple[str, str]] = {
    **{f"sensitivity.{i}": (rate_name(rate), POINTS) for i, rate in enumerate(RATES)},
    "cpm": ("CPM", "{:.3f}"),
}
"""Columns of a table: the sensitivity in % at each of `RATES`, and their mean."""


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval; ``inf`` where it cannot be reached."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """Return ``value``, ``low`` and ``high`` for JSON."""
        return {name: finite(value) for name, value in asdict(self).items()}


def figures(scored: Scored) -> dict[str, Any]:
    """Return the figures of one FROC for JSON, with percentile intervals.

    They are ``sensitivity`` at `RATES` and their mean ``cpm``, as `RATE_COLUMNS` show them, and
    ``fp_at``: the false positives a scan at a sensitivity of each of `TARGETS`.
    """
    drawn = [_numbers(weighted_froc(scored, *weights)) for weights in _draws(scored)]
    intervals = _percentiles(_numbers(froc(scored)), np.stack(drawn))
    n, patients = len(RATES), len(np.unique(scored.nodule_group))
    # a CPM is at least the sensitivity at the first rate, so the limit of that is one of the CPM
    shares = [widened(one, patients) for one in intervals[: n + 1]]
    read = scored.scans - len(scored.refused)
    costs = [
        {"sensitivity": target, **widened_rate(interval, read).as_dict()}
        for target, interval in zip(TARGETS, intervals[n + 1 :], strict=True)
    ]
    return {**_of_rates(shares), "fp_at": costs}


def _of_rates(shares: Sequence[Interval]) -> dict[str, Any]:
    """Return the sensitivities at `RATES` and their mean, which is the last."""
    points = [
        {"false_positives_per_scan": rate, **value.as_dict()}
        for rate, value in zip(RATES, shares, strict=False)
    ]
    return {"sensitivity": points, "cpm": shares[-1].as_dict()}


def difference(first: Scored, second: Scored) -> dict[str, Any]:
    """Return the sensitivities and CPM of ``second`` minus ``first``, as `figures` does.

    They are paired: each resample draws the same for both.
    """
    same = np.array_equal(first.nodule_group, second.nodule_group)
    if not same or (first.scans, first.paired) != (second.scans, second.paired):
        raise ValueError("a paired difference needs the same nodules and scans")
    drawn = [
        _sensitivities(weighted_froc(second, *weights))
        - _sensitivities(weighted_froc(first, *weights))
        for weights in _draws(first)
    ]
    value = _sensitivities(froc(second)) - _sensitivities(froc(first))
    patients = len(np.unique(first.nodule_group))
    return _of_rates([widened(one, patients, -1) for one in _percentiles(value, np.stack(drawn))])


def by_patient(
    patients: Sequence[str], statistics: Callable[[npt.NDArray[np.int64]], Sequence[float]]
) -> list[Interval]:
    """Return each statistic of the nodules of ``patients`` ``(n,)`` with its interval.

    ``statistics`` gets the numbers of nodules; those of a patient come together, and several times
    if the patient was drawn so. A statistic may be NaN of a draw, which then does not count.
    """
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    of = [np.flatnonzero(owner == i) for i in range(len(names))]
    rng = np.random.default_rng(0)
    drawn = np.array([
        statistics(np.concatenate([of[i] for i in rng.integers(len(names), size=len(names))]))
        for _ in range(RESAMPLES)
    ])  # fmt: skip
    found = []
    for value, column in zip(statistics(np.arange(len(owner))), drawn.T, strict=True):
        known = column[np.isfinite(column)]
        found.append(interval(value, known) if known.size else Interval(value, np.inf, np.inf))
    return found


def widened(share: Interval, patients: int, least: float = 0.0) -> Interval:
    """Return the interval of a share between ``least`` and 1, with exact limits where needed.

    They are needed at the ends, and where all ``patients`` are alike. The share of patients that
    are not like these is then at most that of 0 of n (Clopper and Pearson, Biometrika 26:404, 1934)
    and can be anywhere in the range. At 100 % the lower limit is that of n of n patients.
    """
    if share.high - share.low > _ROUNDING and least < share.value < 1:
        return share
    value, unlike = share.value, 1 - TAIL ** (1 / patients)
    low, high = value - unlike * (value - least), value + unlike * (1 - value)
    return Interval(value, min(share.low, low), max(share.high, high))


def widened_rate(rate: Interval, scans: int) -> Interval:
    """Return the interval of a count a scan, exact (Poisson) at 0 and where all scans are alike."""
    wide = rate.high - rate.low > _ROUNDING and rate.value > 0
    if wide or not np.isfinite(rate.value):
        return rate
    exact = poisson(round(rate.value * scans), scans)
    return Interval(rate.value, min(rate.low, exact.low), max(rate.high, exact.high))


def poisson(count: int, scans: int) -> Interval:
    """Return a rate a scan with its exact interval (Garwood, Biometrika 28, 1936)."""
    low = poisson_limit(count - 1, TAIL) if count else 0.0
    return Interval(count / scans, low / scans, poisson_limit(count, 1 - TAIL) / scans)


def operating_point(counts: FloatArray) -> tuple[Interval | None, Interval | None]:
    """Return sensitivity and false positives a scan, by bootstrap over scans.

    ``counts`` ``(scans, 4)`` are lesions, those found, false positives, and 1 if the scan was read:
    one that was refused misses its lesions, and does not count in the rate. Without a lesion there
    is no sensitivity, and if all scans were refused no rate.
    """
    n, rng = len(counts), np.random.default_rng(0)
    lesions, found, false, read = counts.sum(axis=0)
    drawn = np.stack([draw(n, rng) for _ in range(RESAMPLES)]) @ counts
    by_scan = drawn[drawn[:, 3] > 0]
    rates = by_scan[:, 2] / by_scan[:, 3]
    rate = widened_rate(interval(false / read, rates), int(read)) if read else None
    if not lesions:
        return None, rate
    some = drawn[drawn[:, 0] > 0]  # a draw without a lesion has no sensitivity
    share = interval(found / lesions, some[:, 1] / some[:, 0])
    return widened(share, int((counts[:, 0] > 0).sum())), rate


def finite(value: float) -> float | None:
    """Return the value for JSON, None where it is infinite or unknown."""
    return float(value) if np.isfinite(value) else None


def interval(value: float, drawn: FloatArray) -> Interval:
    """Return the percentile interval of ``drawn`` ``(resamples,)`` around ``value``."""
    return _percentiles(np.array([value]), drawn[:, None])[0]


def draw(groups: int, rng: np.random.Generator) -> FloatArray:
    """Draw as many groups with replacement as there are; return each one's count ``(groups,)``."""
    return rng.multinomial(groups, np.full(groups, 1 / groups)).astype(np.float64)


def _draws(scored: Scored) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield the weights of nodules and of scans in each resample."""
    rng, done = np.random.default_rng(0), 0
    while done < RESAMPLES:
        scan_weight = draw(scored.scans, rng)
        group_weight = scan_weight if scored.paired else draw(scored.groups, rng)
        nodule_weight = group_weight[scored.nodule_group]
        # without a single nodule there is no sensitivity: draw again
        if nodule_weight.any():
            yield nodule_weight, scan_weight
            done += 1


def _numbers(curve: Curve) -> FloatArray:
    return np.concatenate([_sensitivities(curve), false_positives_at(curve, TARGETS)])


def _sensitivities(curve: Curve) -> FloatArray:
    """Return the sensitivity at each of `RATES`, and their mean."""
    sensitivity = sensitivity_at(curve, RATES)
    return np.append(sensitivity, sensitivity.mean())


def _percentiles(value: FloatArray, drawn: FloatArray) -> tuple[Interval, ...]:
    # "nearest" keeps inf (unreachable) a value like others; interpolation would make it NaN.
    low, high = np.quantile(drawn, [TAIL, 1 - TAIL], axis=0, method="nearest")
    return tuple(map(Interval, value.tolist(), low.tolist(), high.tolist()))
