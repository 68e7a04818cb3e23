"""The charts of the drift page: shapes in the units of an SVG, without any text of a study.

The template writes them as attributes, so that the page needs neither script nor inline style.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edge.drift.compare import Drift
from edge.drift.observe import BINS, EDGES, Observation

WIDTH, HEIGHT = 640.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 10.0, 12.0, 34.0
BLOCK = 10
"""Studies in each point of a line."""
MOST_BARS = 16


@dataclass(frozen=True)
class Bar:
    """A bar of the recent studies, and the height of the baseline above the same place."""

    x: float
    width: float
    y: float
    height: float
    before_y: float
    label: str
    text: str


@dataclass(frozen=True)
class Tick:
    """A line of the scale, with its number."""

    y: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A histogram (``bars``) or two lines (``before``, ``now``: points of an SVG polyline)."""

    ticks: tuple[Tick, ...]
    bars: tuple[Bar, ...] = ()
    before: str = ""
    now: str = ""
    split: float = 0.0


def of(drift: Drift) -> dict[str, Chart]:
    """Return the charts by the name of their measure; none while nothing was observed."""
    if not drift.baseline:
        return {}
    return {
        "scores": _histogram(_scores(drift.baseline), _scores(drift.recent), _labels()),
        "uncertain": _counts(drift),
        "changed": _line(drift, _changed_share),
        "with_findings": _line(drift, _found_share),
    }


def _scores(group: Sequence[Observation]) -> list[float]:
    """Return the share of candidates in each bin."""
    total = np.array([one.scores for one in group], dtype=np.float64).reshape(-1, BINS).sum(0)
    return [float(value) for value in total / max(total.sum(), 1)]


def _labels() -> list[str]:
    limits = [f"{edge:g}" for edge in EDGES]
    return [f"below {limits[0]}", *limits]


def _counts(drift: Drift) -> Chart:
    """Return how many studies have how many uncertain candidates."""
    most = max(one.uncertain for one in (*drift.baseline, *drift.recent))
    step = max(1, -(-(most + 1) // MOST_BARS))
    bins = most // step + 1
    shares = [
        [sum(one.uncertain // step == b for one in group) / max(len(group), 1) for b in range(bins)]
        for group in (drift.baseline, drift.recent)
    ]
    labels = [f"{b * step}" if step == 1 else f"{b * step} to {b * step + step - 1}"
              for b in range(bins)]  # fmt: skip
    return _histogram(shares[0], shares[1], labels)


def _histogram(before: Sequence[float], now: Sequence[float], labels: Sequence[str]) -> Chart:
    top = _top(max((*before, *now), default=0.0))
    slot = (WIDTH - LEFT - RIGHT) / max(len(labels), 1)
    bars = []
    for number, (was, is_, label) in enumerate(zip(before, now, labels, strict=True)):
        height = (HEIGHT - TOP - BOTTOM) * is_ / top
        bars.append(
            Bar(
                x=round(LEFT + number * slot + 1, 1),
                width=round(slot - 2, 1),
                y=round(HEIGHT - BOTTOM - height, 1),
                height=round(height, 1),
                before_y=round(_y(was, top), 1),
                label="0" if label.startswith("below") else label.split(" ")[0],
                text=f"{label}: {100 * is_:.1f} % now, {100 * was:.1f} % before",
            )
        )
    return Chart(_ticks(top), tuple(bars))


def _line(drift: Drift, share: Callable[[Sequence[Observation]], float | None]) -> Chart:
    """Return a share in blocks of `BLOCK` studies, of the baseline and then of the last time."""
    groups = [
        [share(group[i : i + BLOCK]) for i in range(0, len(group) - BLOCK + 1, BLOCK)]
        for group in (drift.baseline, drift.recent)
    ]
    known = [value for group in groups for value in group if value is not None]
    top = _top(max(known, default=0.0))
    slot = (WIDTH - LEFT - RIGHT) / max(sum(map(len, groups)), 1)
    texts, at = [], 0
    for group in groups:
        points = [
            (LEFT + (at + i + 0.5) * slot, _y(value, top))
            for i, value in enumerate(group)
            if value is not None
        ]
        texts.append(" ".join(f"{x:.1f},{y:.1f}" for x, y in points))
        at += len(group)
    split = LEFT + len(groups[0]) * slot
    return Chart(_ticks(top), before=texts[0], now=texts[1], split=round(split, 1))


def _changed_share(group: Sequence[Observation]) -> float | None:
    read = sum(one.read_again for one in group)
    return sum(one.changed for one in group) / read if read else None


def _found_share(group: Sequence[Observation]) -> float | None:
    return sum(one.findings > 0 for one in group) / len(group) if group else None


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top


def _top(value: float) -> float:
    """Return the end of a scale of shares: a round number that is not below the value."""
    return next((end for end in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8) if value <= end), 1.0)


def _ticks(top: float) -> tuple[Tick, ...]:
    return tuple(
        Tick(round(_y(top * part, top), 1), f"{100 * top * part:g} %") for part in (0, 0.5, 1)
    )
