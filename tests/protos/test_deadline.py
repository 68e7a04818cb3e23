"""Deadlines: monotonic inside, remaining seconds outside."""

from dataclasses import dataclass

from protos.deadline import Deadline


@dataclass
class HandClock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_remaining_counts_down_and_stops_at_zero() -> None:
    clock = HandClock()
    deadline = Deadline.after(2.0, clock)
    clock.now_s += 0.5
    assert deadline.remaining_s == 1.5
    assert not deadline.passed
    clock.now_s += 10.0
    assert deadline.remaining_s == 0.0
    assert deadline.passed


def test_capped_takes_the_earlier_of_two() -> None:
    deadline = Deadline.after(2.0, HandClock())
    assert deadline.capped(0.5).remaining_s == 0.5
    assert deadline.capped(60.0) is deadline


def test_earlier_deadlines_sort_first() -> None:
    late, early = Deadline(9.0), Deadline(3.0)
    assert sorted([late, early]) == [early, late]
