"""Confidence intervals: bootstrap over patients and scans, never over single nodules.

Nodules of one patient resemble each other, so whole patients are drawn with replacement, and
whole scans for the false positives (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13: percentile intervals). Nodules and false positives of the same scans are drawn
together.
"""

from collections.abc import Callable
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
from models.markdown import Rows

RESAMPLES = 1000

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


def figures(
    scored: Scored, *, resamples: int = RESAMPLES, seed: int = 0, on_step: OnStep | None = None
) -> Figures:
    """Return the figures of ``scored`` with percentile intervals of ``resamples`` resamples."""
    rng = np.random.default_rng(seed)
    drawn: list[FloatArray] = []
    while len(drawn) < resamples:
        scan_weight = draw(scored.scans, rng)
        group_weight = scan_weight if scored.paired else draw(scored.groups, rng)
        nodule_weight = group_weight[scored.nodule_group]
        if not nodule_weight.any():
            continue  # without a single nodule there is no sensitivity: draw again
        drawn.append(_numbers(weighted_froc(scored, nodule_weight, scan_weight)))
        if on_step is not None:
            on_step(len(drawn), resamples)
    intervals = _percentiles(_numbers(froc(scored)), np.stack(drawn))
    n = len(RATES)
    return Figures(intervals[:n], intervals[n], intervals[n + 1 :])


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
    sensitivity = sensitivity_at(curve, RATES)
    rates = false_positives_at(curve, TARGETS)
    return np.concatenate([sensitivity, [sensitivity.mean()], rates])


def _percentiles(value: FloatArray, drawn: FloatArray) -> tuple[Interval, ...]:
    # "nearest" keeps inf (unreachable) a value like others; interpolation would make it NaN.
    tail = (1 - 0.95) / 2  # outside the interval, on each side
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0, method="nearest")
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
