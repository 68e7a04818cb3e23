"""The running cost model."""

import pytest

from cloud.scheduling.cost import CostModel


def learnt(*batches: tuple[int, float]) -> CostModel:
    """A cost model that saw these batches: size and seconds."""
    cost = CostModel()
    for n, took_s in batches:
        cost.observe(n, took_s)
    return cost


def line(fixed_s: float, each_s: float, sizes: tuple[int, ...] = (1, 8, 1, 8)) -> CostModel:
    """A cost model that saw batches of ``sizes`` that cost a fixed time and one for each ROI."""
    return learnt(*((n, fixed_s + each_s * n) for n in sizes))


def test_nothing_is_known_before_the_first_batch() -> None:
    """The estimate is then 0: nothing is rejected on a guess."""
    assert CostModel().estimate_s(8) == 0.0


def test_a_straight_line_is_found() -> None:
    cost = line(0.03, 0.01, (1, 8, 4, 2, 8))
    assert cost.estimate_s(1) == pytest.approx(0.04)
    assert cost.estimate_s(16) == pytest.approx(0.19)


def test_old_batches_are_forgotten() -> None:
    """A machine that became four times slower is estimated so after some sixty batches."""
    cost = learnt(*[(4, 0.1)] * 200, *[(4, 0.4)] * 60)
    assert cost.estimate_s(4) == pytest.approx(0.4, rel=0.05)


@pytest.mark.parametrize("times", [(0.2, 0.1), (0.01, 0.5)])
def test_no_estimate_is_negative(times: tuple[float, float]) -> None:
    cost = learnt((1, times[0]), (8, times[1]))
    assert all(cost.estimate_s(n) >= 0.0 for n in range(20))


@pytest.mark.parametrize(
    ("fixed_s", "each_s", "size"), [(0.0, 1.0, 1), (1.0, 0.0, 8), (20.0, 5.0, 7), (0.2, 1.0, 2)]
)
def test_a_batch_is_as_large_as_is_efficient(fixed_s: float, each_s: float, size: int) -> None:
    """The smallest in which an ROI costs at most a tenth more than in a batch of eight."""
    assert line(fixed_s, each_s).efficient_size(8) == size


def test_each_size_has_a_time_of_its_own() -> None:
    """An engine that runs batches of 1, 2, 4 and 8 well reads three ROIs as four."""
    padded = {1: 1.0, 2: 2.0, 3: 4.0, 4: 4.0, 8: 8.0}
    cost = learnt(*list(padded.items()) * 3)
    assert [cost.estimate_s(n) for n in padded] == pytest.approx(list(padded.values()), rel=0.15)
    dear = learnt(*[(1, 2.0), (2, 2.5), (4, 8.0), (8, 15.0)] * 3)
    assert dear.efficient_size(8) == 2


def test_a_size_that_was_not_seen_of_late_follows_the_line() -> None:
    cost = learnt((1, 1.9), *[(2, 2.0), (8, 8.0)] * 40)
    assert cost.estimate_s(1) == pytest.approx(1.0, rel=0.1)


def test_another_size_is_tried_once_in_a_while() -> None:
    """With one size seen of late another is tried, and the efficient size found again."""
    for usual, other in ((1, 8), (8, 4)):
        cost = line(0.0, 1.0)
        for _ in range(80):
            cost.observe(usual, float(usual))
        assert cost.efficient_size(8) == other
        cost.observe(other, float(other))
        assert cost.efficient_size(8) == 1


def test_the_bound_grows_with_overruns_up_to_twice_the_estimate() -> None:
    """Batches that sometimes take twice as long leave a margin of at most that."""
    cost = learnt(*[(4, 2.0), *[(4, 1.0)] * 5] * 10)
    assert 1.3 < cost.bound_s(4) / cost.estimate_s(4) <= 2.0
    cost.observe(4, 100.0)
    assert cost.bound_s(4) == pytest.approx(2 * cost.estimate_s(4))


def test_a_stall_is_capped() -> None:
    """A batch of 20 s counts as a few times its estimate."""
    cost = line(0.002, 0.014, (1, 8, 1, 8, *[4] * 40))
    cost.observe(4, 20.0)
    assert cost.bound_s(1) < 0.1


def test_a_tenfold_slowdown_is_learnt_in_a_few_batches() -> None:
    """The cap on one measurement does not hide a machine that has become slow."""
    cost = line(0.0, 1.0, (1, 8, 1, 8, *[4] * 40))
    for _ in range(30):
        cost.observe(4, 40.0)
    assert cost.estimate_s(4) > 25.0
