"""Deadlines: monotonic inside, remaining seconds outside."""

from protos.deadline import Deadline


def test_remaining_counts_down_and_stops_at_zero_and_the_earlier_deadline_counts() -> None:
    now_s = 100.0
    deadline = Deadline.after(2.0, lambda: now_s)
    assert deadline.capped(0.5).remaining_s == 0.5
    assert deadline.capped(60.0) is deadline
    now_s += 0.5
    assert (deadline.remaining_s, deadline.passed) == (1.5, False)
    now_s += 10.0
    assert (deadline.remaining_s, deadline.passed) == (0.0, True)
    late, early = Deadline(9.0), Deadline(3.0)
    assert sorted([late, early]) == [early, late]
