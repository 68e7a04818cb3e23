"""Ours against the best fixed threshold."""

from __future__ import annotations

from typing import Any

from evaluation.policy_ratio import escalation_ratio


def row(policy: str, found: float, false: float, rois: float, sent: float) -> dict[str, Any]:
    """What the ratio looks at."""
    return {
        "policy": policy,
        "kind": policy if policy.startswith("ours") else "fixed threshold",
        "sensitivity": found,
        "false_positives_per_scan": false,
        "rois_per_scan": rois,
        "bytes_per_scan": sent,
    }


ROWS = [
    row("ours", 0.95, 2.0, 4.0, 400.0),
    row("ours, verdicts only", 0.95, 2.0, 2.0, 200.0),
    row("fixed threshold", 0.97, 2.0, 8.0, 1000.0),
    row("fixed threshold, single", 0.94, 2.0, 10.0, 1000.0),
    row("fixed, in hindsight", 0.95, 1.0, 5.0, 500.0),
    row("fixed, deaf", 0.94, 2.0, 3.0, 300.0),
    row("fixed, loud", 0.99, 2.1, 3.0, 300.0),
    row("fixed single, in hindsight", 0.95, 2.0, 16.0, 1600.0),
]


def test_ours_is_held_against_what_was_chosen_before() -> None:
    """Whatever it reaches on the test; that is told beside it."""
    ratio = escalation_ratio({"fibre": ROWS})
    asked = ratio["described"]
    assert (asked["rois"], asked["bytes"], asked["met"]) == (0.5, 0.4, True)
    assert ratio["verdicts"]["rois"] == 0.25
    told = asked["by_trace"]["fibre"]
    assert told["chosen"]["as_good"]
    assert (told["chosen_single"]["rois"], told["chosen_single"]["as_good"]) == (0.4, False)


def test_in_hindsight_the_best_is_what_asks_least_and_is_as_good() -> None:
    """What finds less, or raises more false alarms, is not compared with."""
    told = escalation_ratio({"fibre": ROWS})["described"]["by_trace"]["fibre"]
    assert (told["hindsight"]["against"], told["hindsight"]["rois"]) == ("fixed, in hindsight", 0.8)
    assert told["hindsight_single"]["rois"] == 0.25


def test_the_bar_wants_both() -> None:
    """Half of the regions with more than half of the bytes is not enough."""
    rows = [row("ours", 0.95, 2.0, 4.0, 501.0), *ROWS[1:]]
    ratio = escalation_ratio({"fibre": rows})
    assert (ratio["described"]["met"], ratio["verdicts"]["met"]) == (False, True)


def test_where_nothing_is_as_good_there_is_no_hindsight() -> None:
    """And without what was chosen the bar is not met; another trace stands for itself."""
    deaf = next(one for one in ROWS if one["policy"] == "fixed, deaf")
    ratio = escalation_ratio({"fibre": [ROWS[0], deaf], "dsl": ROWS})["described"]
    assert ratio["by_trace"]["fibre"]["hindsight"] is None
    assert (ratio["rois"], ratio["met"]) == (None, False)
    assert ratio["by_trace"]["dsl"]["chosen"]["rois"] == 0.5


def test_nothing_can_be_a_part_of_nothing() -> None:
    """Where the other asks nothing there is no ratio of what is asked."""
    rows = [ROWS[0], row("fixed threshold", 0.95, 2.0, 0.0, 0.0)]
    ratio = escalation_ratio({"dead": rows})
    asked = ratio["described"]
    assert (ratio["trace"], asked["rois"], asked["met"]) == ("dead", None, False)
