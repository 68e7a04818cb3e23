"""What is measured on one stream."""

from __future__ import annotations

import pytest

from edge.conversation import Conversation
from edge.exchange import cut_rois
from protos.messages import Verdict
from tests.edge.cases import SHAPE, HandClock, box, plan_of

ROI = 48**3


def conversation(clock: HandClock, *, held: bool = False) -> Conversation:
    """One about three regions."""
    return Conversation(cut_rois(plan_of(0.5, 0.45, 0.4), box(), SHAPE), clock, held=held)


@pytest.mark.parametrize(("held", "after_s"), [(True, 1.0), (False, 3.0)])
def test_the_wait_for_a_busy_cloud_is_no_slow_wire(held: bool, after_s: float) -> None:
    """Where regions were held for 2 s their time begins then; else with the stream."""
    clock = HandClock()
    one = conversation(clock, held=held)
    clock.sleep(2.0)
    one.heard(one.after_s)
    clock.sleep(1.0)
    verdict = Verdict(0, 0.9, 8.0, "m", 0.0, 0.1)
    one.arrived(verdict, one.came(verdict, 100))
    assert one.heard_s == 2.0
    assert (one.sending_s, one.arrivals[0].after_s) == (after_s, after_s)


def test_the_sign_of_the_cloud_is_older_than_the_certainty() -> None:
    """The round trip ends with the sign; what was held goes when it is certain."""
    clock = HandClock()
    one = conversation(clock, held=True)
    clock.sleep(2.0)
    one.heard(1.5)
    assert (one.heard_s, one.sending_s) == (1.5, 0.0)


def test_what_was_sent_up_to_the_first_region_without_an_answer() -> None:
    """The second of three: two regions; none where all were answered."""
    one = conversation(HandClock())
    assert one.up_to_first({2, 1}) == (2, 2 * ROI)
    assert one.up_to_first(set()) == (0, 0)
