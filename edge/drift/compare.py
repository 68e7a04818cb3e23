"""Compare the studies of the last time with the first ones that the current model read.

The stability index (PSI) and differences of shares say how large a change is. A permutation test
says how often chance alone makes one as large: whole studies change sides, because the candidates
of one study are alike. Only a change that is both large and beyond chance is an alarm. The index
and its limits are those of credit scoring (Siddiqi, Credit Risk Scorecards, 2006, chapter 9).

Of the images, a few studies tell: how many lie outside the range of the first ones. So a site with
and without contrast medium, of several scanners and kernels, has a wide range and no alarm. A wrong
HU scale then shows in the air, which contrast medium does not change.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from edge.drift.observe import BINS, Observation, bin_of

BASELINE, RECENT = 100, 100
"""Studies of the baseline, and the most of the last time."""
MIN_RECENT = 30
"""The fewest studies of the last time, after the baseline, that are compared."""

PERMUTATIONS = 1999
NAMES = ("scores", "uncertain", "changed", "with_findings", "air", "blood", "noise", "kernel",
         "thickness")  # fmt: skip
CHANCE = 0.02 / len(NAMES)
"""A change that chance makes more often is none: 2 % for all measures together."""

STRONG = 0.1
"""Candidates of this score and more are counted for people."""

PSI_WATCH, PSI_ALARM = 0.1, 0.25
SHARE_WATCH, SHARE_ALARM = 0.1, 0.2
_MIN_SHARE = 0.05  # of the baseline in each bin of an index
_COUNT_QUANTILES = (0.2, 0.4, 0.6, 0.8)

LAST_IMAGES = 10
"""Studies of the last time whose images are compared."""
OUTSIDE_WATCH, OUTSIDE_ALARM = 0.3, 0.5
_RANGE = (0.02, 0.98)  # one or two odd studies do not widen it
_BEYOND_HU = {"air": 10.0, "blood": 25.0, "noise": 5.0}
"""How far outside the range of the first studies counts. Of ten scans of two makers, air lies
between -1019 and -991 HU, and with an offset of 50 HU between -973 and -949."""

PROMISED = {"sent": 30.0, "listed": 3.0, "findings": 1.0}
"""False candidates a scan that the fit of the thresholds allows: `models.calibration.fit` has them
as REGIONS, FALSE_LISTED and FALSE_FINDINGS."""

Floats = npt.NDArray[np.float64]


class Level(Enum):
    """How large a change is; the value is that of the metric."""

    STEADY = 0
    WATCH = 1
    ALARM = 2


@dataclass(frozen=True)
class Measure:
    """One comparison.

    Attributes:
        name: as the metric has it.
        baseline, recent: the two values.
        effect: the stability index, the difference of two shares, or the share of studies outside.
        watch, alarm: limits of ``effect``.
        chance: probability of such an effect by chance alone.
    """

    name: str
    baseline: float
    recent: float
    effect: float
    watch: float
    alarm: float
    chance: float

    @property
    def level(self) -> Level:
        """Steady unless the change is beyond chance and large enough."""
        if self.chance > CHANCE or self.effect < self.watch:
            return Level.STEADY
        return Level.ALARM if self.effect >= self.alarm else Level.WATCH


@dataclass(frozen=True)
class Drift:
    """What is known of drift: the two groups of studies, and their comparison.

    ``measures`` is empty until there are `BASELINE` studies and `MIN_RECENT` after them.
    """

    model: str
    baseline: tuple[Observation, ...]
    recent: tuple[Observation, ...]
    measures: tuple[Measure, ...] = ()

    @property
    def level(self) -> Level:
        """The highest level of all measures."""
        return max((one.level for one in self.measures), key=lambda x: x.value,
                   default=Level.STEADY)  # fmt: skip

    @property
    def is_complete(self) -> bool:
        """Whether there are enough studies to compare."""
        return bool(self.measures)


def compare(model: str, baseline: Sequence[Observation], recent: Sequence[Observation]) -> Drift:
    """Compare the two groups of studies; the result is the same for the same studies.

    The images are those of the last few.
    """
    images = _of_images(baseline, recent[-LAST_IMAGES:])
    measures = (*_of_candidates(baseline, recent), *images)
    return Drift(model, tuple(baseline), tuple(recent), measures)


def _of_candidates(baseline: Sequence[Observation], recent: Sequence[Observation]) -> list[Measure]:
    if len(baseline) < BASELINE or len(recent) < MIN_RECENT:
        return []
    every, count = [*baseline, *recent], len(baseline)
    scores = np.array([one.scores for one in every], dtype=np.float64)
    uncertain = np.array([one.uncertain for one in every])
    # a row a study, a column for each thing that is counted; first the parts and wholes for people
    ones = [1] * len(every)
    shares = {
        "scores": (scores[:, bin_of(STRONG) :].sum(axis=1), ones),
        "uncertain": (uncertain, ones),
        "changed": ([one.changed for one in every], [one.read_again for one in every]),
        "with_findings": ([one.findings > 0 for one in every], ones),
    }
    bins = {"scores": _merged(scores, count), "uncertain": _one_hot(uncertain, count)}
    sides = _sides(count, len(recent))
    measures = []
    for name, columns in shares.items():
        pairs = np.column_stack(columns).astype(np.float64)
        before, now = (float(_share(group.sum(0))) for group in (pairs[:count], pairs[count:]))
        if name in bins:
            table, statistic, limits = bins[name], _psi, (PSI_WATCH, PSI_ALARM)
        else:
            table, statistic, limits = pairs, _apart, (SHARE_WATCH, SHARE_ALARM)
        recents = sides @ table
        effects = statistic(table.sum(0) - recents, recents)
        chance = float((effects >= effects[0] - 1e-12).mean())  # the first is how they really are
        measures.append(Measure(name, before, now, float(effects[0]), *limits, chance))
    return measures


def _of_images(first: Sequence[Observation], last: Sequence[Observation]) -> list[Measure]:
    if len(first) < BASELINE or len(last) < LAST_IMAGES:
        return []
    every, sides = [*first, *last], _sides(BASELINE, LAST_IMAGES)
    order, measures = sides.argsort(axis=1, kind="stable"), []  # first studies, then the last
    for name, beyond in _BEYOND_HU.items():
        hu = np.array([getattr(one, f"{name}_hu") for one in every], dtype=np.float64)
        if np.isfinite(hu[:BASELINE]).sum() >= BASELINE / 2:
            hu = np.where(np.isfinite(hu), hu, np.nanmedian(hu[:BASELINE]))
            before, now = hu[order[:, :BASELINE]], hu[order[:, BASELINE:]]
            low, high = np.quantile(before, _RANGE, axis=1, keepdims=True)
            outside = ((now < low - beyond) | (now > high + beyond)).mean(axis=1)
            measures.append(_outside(name, np.median(before[0]), np.median(now[0]), outside))
    stated = {
        "kernel": [one.kernel for one in every],
        "thickness": [f"{one.thickness_mm:.1f}" for one in every],
    }
    for name, values in stated.items():
        table = np.array(values)[:, None] == np.unique(values)
        recents = sides @ table
        outside = np.where(recents == table.sum(0), recents, 0).sum(axis=1) / LAST_IMAGES
        measures.append(_outside(name, 0.0, outside[0], outside))
    return measures


def _outside(name: str, before: float, now: float, outside: Floats) -> Measure:
    chance = float((outside >= outside[0] - 1e-12).mean())
    effect, limits = float(outside[0]), (OUTSIDE_WATCH, OUTSIDE_ALARM)
    return Measure(name, float(before), float(now), effect, *limits, chance)


def _sides(baseline: int, recent: int) -> Floats:
    """Return a row for each way to choose the recent studies: as it is, then at random."""
    chance = np.random.default_rng(0)  # the same studies give the same alarm
    count = baseline + recent
    order = chance.random((PERMUTATIONS, count)).argsort(axis=1)
    sides = np.zeros((PERMUTATIONS + 1, count))
    sides[0, baseline:] = 1
    np.put_along_axis(sides[1:], order[:, :recent], 1, axis=1)
    return sides


def _psi(before: Floats, now: Floats) -> Floats:
    """Return the stability index of counts by bin, ``(n, bins)`` each; an empty bin counts half."""
    half = 0.5
    p, q = ((x + half) / (x + half).sum(axis=1, keepdims=True) for x in (before, now))
    return np.asarray(((q - p) * np.log(q / p)).sum(axis=1))


def _apart(before: Floats, now: Floats) -> Floats:
    """Return how far two shares are apart; each column pair is a part and its whole."""
    return np.abs(_share(now) - _share(before))


def _share(counts: Floats) -> Floats:
    return np.asarray(counts[..., 0] / np.maximum(counts[..., 1], 1))


def _merged(scores: Floats, baseline: int) -> Floats:
    """Join neighbouring bins until each has `_MIN_SHARE` of the baseline."""
    total = scores[:baseline].sum(0)
    least, starts, held = _MIN_SHARE * total.sum(), [0], 0.0
    for number in range(BINS):
        if held >= least and total[number:].sum() >= least:
            starts.append(number)
            held = 0.0
        held += total[number]
    return np.asarray(np.add.reduceat(scores, starts, axis=1))


def _one_hot(values: npt.NDArray[np.int_], baseline: int) -> Floats:
    """Count studies by how many they have, between quantiles of the baseline."""
    limits = np.unique(np.quantile(values[:baseline], _COUNT_QUANTILES))
    table = np.zeros((len(values), len(limits) + 1))
    table[np.arange(len(values)), np.searchsorted(limits, values)] = 1
    return table


@dataclass(frozen=True)
class Rate:
    """A number a study, as the fit promises it of false candidates, and as it is here of all.

    ``before`` and ``now`` are None where no study tells it.
    """

    what: str
    promised: float
    before: float | None
    now: float | None


def rates(drift: Drift) -> tuple[Rate, ...]:
    """Return what is seen beside what the thresholds were fitted for."""
    both = drift.baseline, drift.recent
    again = [[one for one in group if one.is_read_again] for group in both]
    alone = [[one for one in group if not one.is_read_again] for group in both]
    rows = (
        ("candidates that the edge does not dismiss", "sent", both, lambda x: x.kept),
        ("findings and possible findings, after a complete second reading", "listed", again,
         lambda x: x.findings + x.possible),
        ("findings, after a complete second reading", "findings", again, lambda x: x.findings),
        ("findings of the edge alone", "findings", alone, lambda x: x.findings),
    )  # fmt: skip
    return tuple(
        Rate(what, PROMISED[name], *(_per_study(group, count) for group in groups))
        for what, name, groups, count in rows
    )


def _per_study(group: Sequence[Observation], count: Callable[[Observation], int]) -> float | None:
    return sum(map(count, group)) / len(group) if group else None
