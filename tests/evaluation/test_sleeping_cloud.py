"""Other orders than the cloud's own know no priority and no site, and refuse nothing early."""

import pytest

from cloud.scheduling.scheduler import Rules
from evaluation.sleeping_cloud import ORDERS, EarliestDeadline, FirstCome
from protos.errors import Overloaded
from tests.cloud.scheduling.builders import NOW_S, STAT, due, timing


@pytest.mark.parametrize(
    ("kind", "expected", "first"),
    [(FirstCome, [0, 1, 2, 3, 4], 4), (EarliestDeadline, [1, 2, 4, 0, 3], 3)],
)
def test_an_order_for_comparison(kind: type[FirstCome], expected: list[int], first: int) -> None:
    """The first batch is full, or as the deadlines allow."""
    scheduler = kind(Rules(max_queued=5), timing(), lambda: NOW_S)
    rois = [due(90.0), due(55.5), due(70.0, STAT), due(99.0, site="a"), due(80.0, site="a")]
    for roi in rois:
        assert scheduler.admit([roi]) == []
        scheduler.put(roi)
    with pytest.raises(Overloaded):
        scheduler.admit([due(99.0)])
    assert [rois.index(one) for one in scheduler.order(rois, NOW_S)] == expected
    assert len(scheduler.take()) == first
    assert ORDERS["fifo"] is FirstCome
