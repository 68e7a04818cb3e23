"""Which regions are sent, and at what size, so that the sum of their values is greatest.

It knows nothing of scores or links: a region has a value at each size, and a test tells how many
regions of how many bytes still fit.

How large a region may be sent, and what a second reading of it is worth.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

Shape = tuple[int, int, int]
"""Voxels (z, y, x)."""


class Size(Enum):
    """What of a candidate's surroundings is sent; the cloud mirrors the rest."""

    FULL = "full"
    REDUCED = "reduced"  # a cube of two thirds of the side
    SLAB = "slab"  # 2.5D: of that cube the middle half of the slices

    def shape_of(self, full: Shape) -> Shape:
        """The region's shape where that of the full one is ``full``."""
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
        full, reduced, slab: what a reading of that size is worth, as a share of the full one's: of
            its 2 AUC - 1, on the validation nodules and what the edge takes for nodules beside
            them (``overread-eval sizes``).
        confidence: the share of escalations that must end within the budget.
        fill: a region may be smaller than full if the nodule takes at most this share of its
            shortest side.
        characterize: whether the cloud is also asked for size, kind and outline of what is reported
            anyway, where there is room for it after all that is uncertain.
    """

    full: float = 1.0
    reduced: float = 0.94
    slab: float = 0.88
    confidence: float = 0.95
    fill: float = 0.75
    characterize: bool = True

    def share(self, size: Size) -> float:
        """What a reading of that size is worth."""
        return {Size.FULL: self.full, Size.REDUCED: self.reduced, Size.SLAB: self.slab}[size]

    def sizes_for(self, diameter_mm: float, full: Shape) -> tuple[Size, ...]:
        """The sizes in which a candidate may be sent; 1 mm a voxel."""
        smaller = (Size.REDUCED, Size.SLAB)
        fits = (s for s in smaller if diameter_mm <= self.fill * min(s.shape_of(full)))
        return (*fits, Size.FULL)


SELECTION_POLICY = SelectionPolicy()

Fits = Callable[[int, int], bool]
"""Whether that many regions with that many bytes together fit; more of either never fit better."""


@dataclass(frozen=True)
class Option:
    """One way to send a region: what it is worth and what it costs."""

    size: Size
    value: float
    sent_bytes: int

    @property
    def value_a_byte(self) -> float:
        """What it is worth for its size."""
        return self.value / self.sent_bytes


@dataclass(frozen=True)
class Pick:
    """The region ``place`` of those that were offered, sent as ``option``."""

    place: int
    option: Option


def choose(offers: Sequence[Iterable[Option]], most: int, fits: Fits) -> tuple[Pick, ...]:
    """The most valuable picks that fit, the most valuable region first.

    For each number of regions the best are taken at their smallest, and what room is left goes
    to the larger sizes that gain most a byte. Best are those of most value, where reading takes
    the time, or of most value a byte, where sending does: both are tried. Exact where all
    regions have the same sizes and no more than two of these are worth considering, near it
    otherwise.

    Args:
        offers: for each region the ways to send it, at least one.
        most: regions that are sent at most.
        fits: the limit on what is sent.
    """
    ladders = {place: efficient(options) for place, options in enumerate(offers)}
    able = [place for place, ladder in ladders.items() if fits(1, ladder[0].sent_bytes)]
    by_value = sorted(able, key=lambda place: -ladders[place][-1].value)
    by_gain = sorted(by_value, key=lambda place: -ladders[place][0].value_a_byte)
    rankings = [by_value] if by_gain == by_value else [by_value, by_gain]
    best: tuple[Pick, ...] = ()
    for ranked in rankings:
        for count in range(min(len(ranked), most), 0, -1):
            taken = {place: ladders[place] for place in ranked[:count]}
            if sum(ladder[-1].value for ladder in taken.values()) <= _value(best):
                break  # so few cannot be worth as much
            if fits(count, sum(ladder[0].sent_bytes for ladder in taken.values())):
                best = max(best, _filled(taken, fits), key=_value)
    return tuple(sorted(best, key=lambda pick: by_value.index(pick.place)))


def least(offers: Sequence[Iterable[Option]]) -> tuple[Pick, ...]:
    """The most valuable region at its smallest; none of none."""
    ladders = [efficient(options) for options in offers]
    best = max(range(len(ladders)), key=lambda place: ladders[place][-1].value, default=None)
    return () if best is None else (Pick(best, ladders[best][0]),)


def efficient(options: Iterable[Option]) -> tuple[Option, ...]:
    """The options worth considering, by size, each step gaining less a byte than that before."""
    ladder: list[Option] = []
    for option in sorted(options, key=lambda o: (o.sent_bytes, -o.value)):
        if ladder and option.value <= ladder[-1].value:
            continue
        while len(ladder) > 1 and _gain(ladder[-2], ladder[-1]) <= _gain(ladder[-1], option):
            ladder.pop()
        ladder.append(option)
    return tuple(ladder)


def _filled(taken: Mapping[int, Sequence[Option]], fits: Fits) -> tuple[Pick, ...]:
    """All of ``taken``, as large as fits, the steps that gain most a byte first."""
    level = dict.fromkeys(taken, 0)
    sent_bytes = sum(ladder[0].sent_bytes for ladder in taken.values())
    largest = sum(ladder[-1].sent_bytes for ladder in taken.values())
    room = bisect_left(range(largest), True, key=lambda b: not fits(len(taken), b + 1))
    steps = [(place, k) for place, ladder in taken.items() for k in range(1, len(ladder))]
    for place, k in sorted(steps, key=lambda s: -_gain(*taken[s[0]][s[1] - 1 : s[1] + 1])):
        more = taken[place][k].sent_bytes - taken[place][k - 1].sent_bytes
        if level[place] == k - 1 and sent_bytes + more <= room:
            level[place], sent_bytes = k, sent_bytes + more
    return tuple(Pick(place, ladder[level[place]]) for place, ladder in taken.items())


def _gain(small: Option, large: Option) -> float:
    return (large.value - small.value) / (large.sent_bytes - small.sent_bytes)


def _value(picks: Iterable[Pick]) -> float:
    return sum(pick.option.value for pick in picks)
