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


def test_on_stage_gets_each_name_as_it_begins() -> None:
    heard: list[str] = []
    budget = Budget(Deadline.after(3.0), heard.append)
    with budget.stage("read"):
        assert heard == ["read"]
    with budget.stage("screen"):
        assert heard == ["read", "screen"]
