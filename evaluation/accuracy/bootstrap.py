"""Confidence intervals: bootstrap over patients and scans, never over single nodules.

Nodules of one patient resemble each other, so whole patients are drawn with replacement, and
whole scans for the false positives (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13: percentile intervals). Nodules and false positives of the same scans are drawn
together.

Where all patients are alike, as at 0 and 100 %, every resample is the same. Such an interval would
have no width; exact limits take its place (`widened`, `widened_rate`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evaluation.accuracy.froc import (
    RATES,
    TARGETS,
    Curve,
    Scored,
    false_positives_at,
    froc,
    sensitivity_at,
    weighted_froc,
)
from evaluation.common.tables import rate_name
from imaging.volume import FloatArray
from models.calibration.fit import poisson_limit
from models.markdown import Rows, percents, points
from models.markdown import interval as interval_text

RESAMPLES = 1000

TAIL = (1 - 0.95) / 2
"""The probability outside an interval, on each side."""

_ROUNDING = 1e-9

OnStep = Callable[[int, int], None]
"""Called with (done, all) after every resample."""


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval; ``inf`` where it cannot be reached."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """Return ``value``, ``low`` and ``high`` for JSON."""
        return {name: finite(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Figures:
    """The figures of one FROC, each with its interval.

    ``sensitivity`` follows `RATES`, ``false_positives`` follows `TARGETS`.
    """

    sensitivity: tuple[Interval, ...]
    cpm: Interval
    false_positives: tuple[Interval, ...]

    def points(self, thresholds: FloatArray | None = None) -> list[dict[str, Any]]:
        """Return the sensitivity at each of `RATES` for JSON, with the threshold if given."""
        found: list[dict[str, Any]] = [
            {"false_positives_per_scan": rate, **value.as_dict()}
            for rate, value in zip(RATES, self.sensitivity, strict=True)
        ]
        for point, threshold in zip(found, () if thresholds is None else thresholds, strict=False):
            point["threshold"] = finite(threshold)
        return found

    def costs(self, thresholds: FloatArray | None = None) -> dict[str, dict[str, Any]]:
        """Return the false positives a scan at each of `TARGETS`, in %, as `points` does."""
        found = {
            f"{100 * target:g}": dict(value.as_dict())
            for target, value in zip(TARGETS, self.false_positives, strict=True)
        }
        for cost, threshold in zip(
            found.values(), () if thresholds is None else thresholds, strict=False
        ):
            cost["threshold"] = finite(threshold)
        return found


@dataclass(frozen=True)
class Gain:
    """The difference of two readers on the same nodules and scans: at `RATES`, and of the CPM."""

    sensitivity: tuple[Interval, ...]
    cpm: Interval

    def as_dict(self) -> dict[str, Any]:
        """Return both for JSON."""
        points = zip(RATES, self.sensitivity, strict=True)
        return {
            "sensitivity": [
                {"false_positives_per_scan": rate, **value.as_dict()} for rate, value in points
            ],
            "cpm": self.cpm.as_dict(),
        }


def figures(
    scored: Scored, *, resamples: int = RESAMPLES, seed: int = 0, on_step: OnStep | None = None
) -> Figures:
    """Return the figures of ``scored`` with percentile intervals of ``resamples`` resamples."""
    drawn = [
        _numbers(weighted_froc(scored, *weights))
        for weights in _draws(scored, resamples, seed, on_step)
    ]
    intervals = _percentiles(_numbers(froc(scored)), np.stack(drawn))
    n, patients = len(RATES), len(np.unique(scored.nodule_group))
    # a CPM is at least the sensitivity at the first rate, so the limit of that is one of the CPM
    shares = [widened(one, patients) for one in intervals[: n + 1]]
    rates = (widened_rate(one, scored.scans) for one in intervals[n + 1 :])
    return Figures(tuple(shares[:n]), shares[n], tuple(rates))


def difference(first: Scored, second: Scored, *, resamples: int = RESAMPLES, seed: int = 0) -> Gain:
    """Return ``second`` minus ``first``, paired: each resample draws the same for both.

    Raises:
        ValueError: they are not of the same nodules and scans.
    """
    same = np.array_equal(first.nodule_group, second.nodule_group)
    if not same or (first.scans, first.paired) != (second.scans, second.paired):
        raise ValueError("a paired difference needs the same nodules and scans")
    drawn = [
        _sensitivities(weighted_froc(second, *weights))
        - _sensitivities(weighted_froc(first, *weights))
        for weights in _draws(first, resamples, seed)
    ]
    value = _sensitivities(froc(second)) - _sensitivities(froc(first))
    patients = len(np.unique(first.nodule_group))
    *points, cpm = (widened(one, patients, -1) for one in _percentiles(value, np.stack(drawn)))
    return Gain(tuple(points), cpm)


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
    count = round(rate.value * scans)
    low = poisson_limit(count - 1, TAIL) / scans if count else 0.0
    high = poisson_limit(count, 1 - TAIL) / scans
    return Interval(rate.value, min(rate.low, low), max(rate.high, high))


def _draws(
    scored: Scored, resamples: int, seed: int, on_step: OnStep | None = None
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield the weights of nodules and of scans in each resample."""
    rng, done = np.random.default_rng(seed), 0
    while done < resamples:
        scan_weight = draw(scored.scans, rng)
        group_weight = scan_weight if scored.paired else draw(scored.groups, rng)
        nodule_weight = group_weight[scored.nodule_group]
        if not nodule_weight.any():
            continue  # without a single nodule there is no sensitivity: draw again
        yield nodule_weight, scan_weight
        done += 1
        if on_step is not None:
            on_step(done, resamples)


def operating_point(
    counts: FloatArray, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Interval | None, Interval]:
    """Return sensitivity and false positives a scan, by bootstrap over scans.

    ``counts`` ``(scans, 3)`` are lesions, those found, and false positives. Without a lesion there
    is no sensitivity.
    """
    n, rng = len(counts), np.random.default_rng(seed)
    lesions, found, false = counts.sum(axis=0)
    drawn = np.stack([draw(n, rng) for _ in range(resamples)]) @ counts
    rate = widened_rate(interval(false / n, drawn[:, 2] / n), n)
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


def froc_table(figures: Figures, title: str) -> Rows:
    """Return the sensitivity at the seven rates, and the CPM."""
    pairs = zip(RATES, figures.sensitivity, strict=True)
    cells = [[rate_name(rate), *percent_cells(value)] for rate, value in pairs]
    cpm = ["CPM (their mean)", f"{figures.cpm.value:.4f}", span(figures.cpm, "{:.3f}")]
    heads = ["false positives a scan", "sensitivity", "95 % interval"]
    return Rows(heads, [*cells, cpm], title)


def cost_table(figures: Figures) -> Rows:
    """Return the false positives a scan at the sensitivities of `TARGETS`."""
    cells = [
        [f"{100 * target:g} %", format_value(value.value, "{:.2f}"), span(value, "{:.2f}")]
        for target, value in zip(TARGETS, figures.false_positives, strict=True)
    ]
    return Rows(["sensitivity", "false positives a scan", "95 % interval"], cells)


def stages_table(
    stages: Mapping[str, Mapping[str, Any]], gain: Mapping[str, Any] | None, title: str
) -> Rows:
    """Return the sensitivity at the seven rates and the CPM, a column for each of ``stages``.

    The last column is the ``gain`` in points, if there is one.
    """
    columns = [
        [*(percents(point) for point in one["sensitivity"]), interval_text(one["cpm"])]
        for one in stages.values()
    ]
    if gain is not None:
        columns.append(_gain_cells(gain))
    heads = ["false positives a scan", *stages, *(["difference, points"] if gain else [])]
    return Rows(heads, [list(row) for row in zip(_rate_cells(), *columns, strict=True)], title)


def gain_table(gain: Mapping[str, Any], title: str) -> Rows:
    """Return the difference of two readers in points, at the seven rates and of the CPM."""
    cells = zip(_rate_cells(), _gain_cells(gain), strict=True)
    return Rows(["false positives a scan", "difference, points"], list(cells), title)


def _rate_cells() -> list[str]:
    return [*map(rate_name, RATES), "CPM (their mean)"]


def _gain_cells(gain: Mapping[str, Any]) -> list[str]:
    shares = [*gain["sensitivity"], gain["cpm"]]
    hundred = ({key: 100 * one[key] for key in ("value", "low", "high")} for one in shares)
    return [points(one) for one in hundred]


def percent_cells(value: Interval) -> tuple[str, str]:
    """Return the value in % and its interval, as two table cells."""
    shown = Interval(100 * value.value, 100 * value.low, 100 * value.high)
    return format_value(shown.value, "{:.1f} %"), span(shown, "{:.1f}")


def span(value: Interval, form: str) -> str:
    """Return the interval as text: low to high."""
    return f"{format_value(value.low, form)} to {format_value(value.high, form)}"


def format_value(value: float, form: str) -> str:
    """Return the value as text; an infinite one was not reached."""
    return "not reached" if abs(value) == float("inf") else form.format(value)
