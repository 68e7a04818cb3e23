"""Select which candidates are sent, and in what size, to maximise the total value.

`edge.decide` offers each uncertain candidate in several sizes. Here a size has a value and a number
of bytes, and a test tells how many ROIs of how many bytes still fit. Scores and links are unknown.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

Shape = tuple[int, int, int]
"""Voxels (z, y, x)."""


class Size(Enum):
    """How much of a candidate's surroundings is sent; the cloud mirrors the rest."""

    FULL = "full"
    REDUCED = "reduced"  # a cube of two thirds of the side
    SLAB = "slab"  # 2.5D: of that cube the middle half of the slices

    def shape_of(self, full: Shape) -> Shape:
        """Return the ROI's shape where the full one is ``full``."""
        z, y, x = full
        match self:
            case Size.FULL:
                return full
            case Size.REDUCED:
                return 2 * z // 3, 2 * y // 3, 2 * x // 3
            case Size.SLAB:
                return z // 3, 2 * y // 3, 2 * x // 3


@dataclass(frozen=True)
class SelectionPolicy:
    """How the latency budget is spent.

    Attributes:
        full, reduced, slab: value of a second reading in that size, as a share of the full one's.
            It is 2 AUC - 1 on the validation nodules and the edge's false positives beside them
            (docs/experiments.md).
        confidence: share of the escalations that must end within the budget.
        fill: an ROI may be smaller than full if the nodule takes at most this share of its
            shortest side.
        characterize: whether the cloud also gives diameter, type and outline of what the edge
            reports, where that fits beside all uncertain candidates.
    """

    full: float = 1.0
    reduced: float = 0.94
    slab: float = 0.88
    confidence: float = 0.95
    fill: float = 0.75
    characterize: bool = True

    def share(self, size: Size) -> float:
        """Return the value of a second reading in that size, as a share of the full one's."""
        return {Size.FULL: self.full, Size.REDUCED: self.reduced, Size.SLAB: self.slab}[size]

    def sizes_for(self, diameter_mm: float, full: Shape) -> tuple[Size, ...]:
        """Return the sizes in which a candidate may be sent, at 1 mm a voxel."""
        smaller = (Size.REDUCED, Size.SLAB)
        fits = (s for s in smaller if diameter_mm <= self.fill * min(s.shape_of(full)))
        return (*fits, Size.FULL)


SELECTION_POLICY = SelectionPolicy()

Fits = Callable[[int, int], bool]
"""Whether that many ROIs with that many bytes in all fit. More of either never fits better."""


@dataclass(frozen=True)
class Option:
    """One size of a candidate: its value and its bytes."""

    size: Size
    value: float
    sent_bytes: int


@dataclass(frozen=True)
class Pick:
    """The candidate at index ``offer`` of the offers, sent as ``option``."""

    offer: int
    option: Option


Ladder = Sequence[Option]
"""The options of one candidate that are worth considering, the smallest first (`efficient`)."""


def choose(offers: Sequence[Iterable[Option]], most: int, fits: Fits) -> tuple[Pick, ...]:
    """Return the most valuable picks that fit, the most valuable candidate first.

    This is a knapsack with two limits: a number of ROIs, and a number of bytes that depends on it.
    The result is exact where all candidates have the same sizes and at most two of them are
    efficient. Otherwise it is close to exact.

    Args:
        offers: for each candidate its options, at least one.
        most: the largest number of picks.
        fits: the limit on what is sent.
    """
    ladders = {i: efficient(options) for i, options in enumerate(offers)}
    able = [i for i, ladder in ladders.items() if fits(1, ladder[0].sent_bytes)]

    # Where reading takes the time, an ROI costs the same in every size: rank by value. Where
    # sending takes the time, bytes cost: rank by value per byte. Both rankings are tried, since
    # the link's limit mixes the two.
    by_value = sorted(able, key=lambda i: -ladders[i][-1].value)
    by_gain = sorted(by_value, key=lambda i: -ladders[i][0].value / ladders[i][0].sent_bytes)
    rankings = [by_value] if by_gain == by_value else [by_value, by_gain]

    # For each number of ROIs, from the largest: take the best of the ranking at their smallest,
    # and let the free bytes enlarge them.
    best: tuple[Pick, ...] = ()
    for ranking in rankings:
        for count in range(min(len(ranking), most), 0, -1):
            taken = {i: ladders[i] for i in ranking[:count]}
            if sum(ladder[-1].value for ladder in taken.values()) <= _value(best):
                break  # even at full size, that few are not worth more than the best so far
            if fits(count, sum(ladder[0].sent_bytes for ladder in taken.values())):
                best = max(best, _enlarged(taken, fits), key=_value)
    return tuple(sorted(best, key=lambda pick: by_value.index(pick.offer)))


def smallest(offers: Sequence[Iterable[Option]]) -> tuple[Pick, ...]:
    """Return the most valuable candidate at its smallest; nothing without offers."""
    ladders = [efficient(options) for options in offers]
    best = max(range(len(ladders)), key=lambda i: ladders[i][-1].value, default=None)
    return () if best is None else (Pick(best, ladders[best][0]),)


def efficient(options: Iterable[Option]) -> tuple[Option, ...]:
    """Return the upper convex hull of value over bytes.

    Each step adds less value per byte than the step before.

    An option below the hull is never the best use of its bytes.
    """
    ladder: list[Option] = []
    for option in sorted(options, key=lambda o: (o.sent_bytes, -o.value)):
        if ladder and option.value <= ladder[-1].value:
            continue  # more bytes for no more value
        # The step to the new option gains as much a byte as the step before it: the option
        # between them lies on or below the line from its neighbours, and goes.
        while len(ladder) > 1 and _gain(ladder[-2], ladder[-1]) <= _gain(ladder[-1], option):
            ladder.pop()
        ladder.append(option)
    return tuple(ladder)


def _enlarged(taken: Mapping[int, Ladder], fits: Fits) -> tuple[Pick, ...]:
    """Return a pick for each candidate in ``taken``, enlarged as far as the bytes allow."""
    sent_bytes = sum(ladder[0].sent_bytes for ladder in taken.values())

    # The most bytes that this number of ROIs may have. `fits` never turns true again, so it is
    # found by bisection, up to all of them at full size.
    largest = sum(ladder[-1].sent_bytes for ladder in taken.values())
    limit = bisect_left(range(largest), True, key=lambda b: not fits(len(taken), b + 1))

    # Greedy: the steps up the ladders, those that gain most a byte first. A ladder's own steps
    # come in their order, because each gains less than that before it. If one does not fit, those
    # above it are skipped as well.
    level = dict.fromkeys(taken, 0)
    steps = [(i, k) for i, ladder in taken.items() for k in range(1, len(ladder))]
    for i, k in sorted(steps, key=lambda step: -_gain(*taken[step[0]][step[1] - 1 : step[1] + 1])):
        more = taken[i][k].sent_bytes - taken[i][k - 1].sent_bytes
        if level[i] == k - 1 and sent_bytes + more <= limit:
            level[i], sent_bytes = k, sent_bytes + more
    return tuple(Pick(i, ladder[level[i]]) for i, ladder in taken.items())


def _gain(small: Option, large: Option) -> float:
    """Return the value that each further byte of the larger option adds."""
    return (large.value - small.value) / (large.sent_bytes - small.sent_bytes)


def _value(picks: Iterable[Pick]) -> float:
    return sum(pick.option.value for pick in picks)
