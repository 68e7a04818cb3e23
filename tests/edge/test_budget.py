from edge.budget import Budget, LedgerEntry
from protos.deadline import Deadline
from tests.edge.builders import HandClock


def test_the_ledger_so_far_has_the_running_stage_whose_name_is_told_as_it_begins() -> None:
    clock, heard = HandClock(), list[str]()
    budget = Budget(Deadline.after(10.0, clock), heard.append)
    with budget.stage("draw"):
        assert heard == ["draw"]
        clock.sleep(2.0)
    with budget.stage("report"):
        assert heard == ["draw", "report"]
        clock.sleep(0.5)
        so_far = budget.ledger_so_far
        clock.sleep(1.0)
    drawn = LedgerEntry("draw", 10.0, 2.0)
    assert so_far == (drawn, LedgerEntry("report", 8.0, 0.5))
    assert budget.ledger == budget.ledger_so_far == (drawn, LedgerEntry("report", 8.0, 1.5))
