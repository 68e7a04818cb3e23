import pytest

from edge.budget import Budget, LedgerEntry
from protos.deadline import Deadline
from tests.edge.builders import HandClock


def test_the_ledger_so_far_has_the_running_stage() -> None:
    clock = HandClock()
    budget = Budget(Deadline.after(10.0, clock))
    with budget.stage("draw"):
        clock.sleep(2.0)
    with budget.stage("report"):
        clock.sleep(0.5)
        so_far = budget.ledger_so_far
        clock.sleep(1.0)
    drawn = LedgerEntry("draw", 10.0, 2.0)
    assert so_far == (drawn, LedgerEntry("report", 8.0, 0.5))
    assert budget.ledger == budget.ledger_so_far == (drawn, LedgerEntry("report", 8.0, 1.5))


def test_stage_that_raises_is_entered_and_raises_on() -> None:
    clock = HandClock()
    budget = Budget(Deadline.after(3.0, clock))

    def fail() -> None:
        with budget.stage("read"):
            clock.sleep(1.0)
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        fail()
    assert budget.ledger == (LedgerEntry("read", 3.0, 1.0),)


def test_a_wait_is_the_first_stage_and_comes_off_the_deadline() -> None:
    """What is left begins at the moment since when the study waited, and is never negative."""
    clock = HandClock()
    for waited_s, left_s in ((4.0, 6.0), (0.0, 10.0), (-1.0, 10.0), (25.0, 0.0)):
        budget = Budget(Deadline.after(10.0, clock))
        budget.backdate(clock() - waited_s)
        with budget.stage("read"):
            clock.sleep(1.0)
        wait = LedgerEntry("wait", 10.0, max(0.0, waited_s))
        assert budget.ledger == (wait, LedgerEntry("read", left_s, 1.0))
        assert budget.left_s() == max(0.0, left_s - 1.0)


def test_a_stage_is_given_what_is_left_less_the_reserve() -> None:
    clock = HandClock()
    budget = Budget(Deadline.after(10.0, clock))
    with budget.stage("escalate", reserve_s=2.0):
        clock.sleep(9.0)
    with budget.stage("merge"):
        clock.sleep(0.5)
    with budget.stage("escalate", reserve_s=2.0):
        pass
    assert [entry.budget_s for entry in budget.ledger] == [8.0, 1.0, 0.0]


def test_on_stage_gets_each_name_as_it_begins() -> None:
    heard: list[str] = []
    budget = Budget(Deadline.after(3.0), heard.append)
    with budget.stage("read"):
        assert heard == ["read"]
    with budget.stage("screen"):
        assert heard == ["read", "screen"]
