from __future__ import annotations

from edge.backoff import LONGEST_LINK_S, LONGEST_REFUSED_S, Backoff
from tests.edge.cases import HandClock


def waited_s(backoff: Backoff, clock: HandClock, key: str) -> float:
    """Seconds until the debt is due, in steps of half a second."""
    began_s = clock()
    while not backoff.due(key):
        clock.sleep(0.5)
    return clock() - began_s


def test_pauses_of_the_link_double_up_to_five_minutes_for_all() -> None:
    """No debt is asked for while nobody answers, and the pause begins anew after an answer."""
    clock = HandClock()
    backoff = Backoff(5.0, clock, lambda _low, high: high)
    pauses = []
    for _ in range(9):
        backoff.unheard()
        pauses.append(waited_s(backoff, clock, "any"))
    assert pauses == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, *[LONGEST_LINK_S] * 3]
    backoff.heard()
    backoff.unheard()
    assert waited_s(backoff, clock, "any") == 5.0


def test_a_refused_study_waits_alone_and_up_to_an_hour() -> None:
    """The others are due at once; what is over waits for nothing."""
    clock = HandClock()
    backoff = Backoff(5.0, clock, lambda _low, high: high)
    for attempts, pause_s in ((1, 5.0), (2, 10.0), (5000, LONGEST_REFUSED_S)):
        backoff.refused("k", attempts)
        assert backoff.due("other")
        assert waited_s(backoff, clock, "k") == pause_s
    backoff.refused("k", 1)
    backoff.over("k")
    assert backoff.due("k")


def test_word_of_the_link_does_not_free_what_was_refused() -> None:
    """What the cloud itself refused waits on; what met nobody is due."""
    backoff = Backoff(5.0, HandClock(), lambda _low, high: high)
    backoff.refused("refused", 1)
    backoff.unheard()
    assert not backoff.due("other")
    backoff.heard()
    assert (backoff.due("other"), backoff.due("refused")) == (True, False)


def test_pauses_are_drawn_from_the_upper_half() -> None:
    """Agents that lost one cloud do not come back together."""
    drawn: list[tuple[float, float]] = []

    def jitter(low: float, high: float) -> float:
        drawn.append((low, high))
        return high

    backoff = Backoff(8.0, HandClock(), jitter)
    backoff.unheard()
    backoff.unheard()
    assert drawn == [(4.0, 8.0), (8.0, 16.0)]


def test_askings_in_vain_are_counted_over_all_debts_until_one_is_answered() -> None:
    """A refusal counts too; word of the link alone ends no row."""
    backoff = Backoff(5.0, HandClock(), lambda _low, high: high)
    assert backoff.in_vain == 0
    backoff.unheard()
    backoff.refused("k", 1)
    backoff.heard()
    assert backoff.in_vain == 2
    backoff.answered()
    assert backoff.in_vain == 0
