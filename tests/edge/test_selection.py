import itertools
import math

import numpy as np
import pytest

from edge.link.estimate import LinkEstimate, Pace
from edge.selection import SELECTION_POLICY, Fits, Option, Size, choose, efficient

KB = 1000


def options(value: float, *, small: bool = True, slab_share: float = 0.7) -> list[Option]:
    """The ways to send a region of this value; only whole where it cannot be ``small``."""
    full = Option(Size.FULL, value, 110 * KB)
    reduced = Option(Size.REDUCED, 0.85 * value, 33 * KB)
    slab = Option(Size.SLAB, slab_share * value, 37 * KB)
    return [full, reduced, slab] if small else [full]


def link_of(draw: np.random.Generator) -> LinkEstimate:
    """Any link between 0.1 and 10 MB/s, with a cloud of 1 to 100 ms a region."""
    bytes_per_s, roi_s = 10 ** draw.uniform(5, 7), 10 ** draw.uniform(-3, -1)
    middle = Pace(0.05, bytes_per_s, 1e7, 0.01, roi_s)
    return LinkEstimate(middle=middle, slow=Pace(0.1, bytes_per_s / 2, 1e7, 0.02, roi_s * 2))


def fits_in(link: LinkEstimate, budget_s: float) -> Fits:
    return lambda rois, sent_bytes: link.completion_s(rois, sent_bytes) <= budget_s


def best_by_force(offers: list[list[Option]], most: int, fits: Fits) -> float:
    best = 0.0
    for ways in itertools.product(*([None, *ways] for ways in offers)):
        picks = [way for way in ways if way is not None]
        if len(picks) <= most and (not picks or fits(len(picks), sum(p.sent_bytes for p in picks))):
            best = max(best, sum(pick.value for pick in picks))
    return best


def value_of(offers: list[list[Option]], most: int, fits: Fits) -> float:
    picks = choose(offers, most, fits)
    assert len(picks) <= most
    assert all(pick.option in offers[pick.offer] for pick in picks)
    assert not picks or fits(len(picks), sum(pick.option.sent_bytes for pick in picks))
    return sum(pick.option.value for pick in picks)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_best_where_all_rois_have_the_same_sizes(seed: int) -> None:
    """Against all ways to send four or five regions, over any link and budget."""
    draw = np.random.default_rng(seed)
    offers = [options(value) for value in draw.uniform(0.01, 0.25, size=draw.integers(4, 6))]
    fits = fits_in(link_of(draw), draw.uniform(0.1, 2.0))
    assert value_of(offers, 4, fits) == pytest.approx(best_by_force(offers, 4, fits))


def test_it_is_near_the_best_where_sizes_differ() -> None:
    """Some regions can only be sent whole, and slabs are worth it too: 97 % in the mean of 40."""
    draw = np.random.default_rng(7)
    shares = []
    for _ in range(40):
        values, small = draw.uniform(0.01, 0.25, size=4), draw.random(4) < 0.7
        offers = [
            options(v, small=bool(s), slab_share=0.9) for v, s in zip(values, small, strict=True)
        ]
        fits = fits_in(link_of(draw), draw.uniform(0.1, 2.0))
        if (best := best_by_force(offers, 4, fits)) > 0:
            shares.append(value_of(offers, 4, fits) / best)
    assert len(shares) > 20
    assert np.mean(shares) >= 0.97


def test_room_that_is_left_makes_the_most_valuable_larger() -> None:
    picks = choose([options(0.1), options(0.2), options(0.15)], 9, lambda _, b: b <= 180 * KB)
    expected = [(1, Size.FULL), (2, Size.REDUCED), (0, Size.REDUCED)]
    assert [(p.offer, p.option.size) for p in picks] == expected


def test_fewer_and_larger_may_be_worth_more() -> None:
    """With room for one full region or two small ones of which one is worth nothing: the full."""
    picks = choose([options(0.2), options(0.001)], 9, lambda _, b: b <= 112 * KB)
    assert [(p.offer, p.option.size) for p in picks] == [(0, Size.FULL)]


FULL = (48, 48, 48)


def test_each_size_is_worth_sending_somewhere() -> None:
    """None is both larger and worth less than another: as the link gets thinner all have a turn."""
    options = [Option(s, SELECTION_POLICY.share(s), math.prod(s.shape_of(FULL))) for s in Size]
    assert [one.size for one in efficient(options)] == [Size.SLAB, Size.REDUCED, Size.FULL]


@pytest.mark.parametrize(
    ("diameter_mm", "sizes"),
    [(12.0, {*Size}), (24.0, {Size.REDUCED, Size.FULL}), (24.1, {Size.FULL}), (60.0, {Size.FULL})],
)
def test_a_large_nodule_is_not_cut(diameter_mm: float, sizes: set[Size]) -> None:
    """A nodule goes into a smaller region if it takes three quarters of its side at most."""
    assert {*SELECTION_POLICY.sizes_for(diameter_mm, FULL)} == sizes
