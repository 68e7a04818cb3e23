"""Ours against each kind of opponent."""

from __future__ import annotations

from typing import Any

from evaluation.policy_ratio import OPPONENTS, escalation_ratio


def row(policy: str, found: float, false: float, rois: float, sent: float) -> dict[str, Any]:
    """What the ratio looks at."""
    return {
        "policy": policy,
        "sensitivity": found,
        "false_positives_per_scan": false,
        "rois_per_scan": rois,
        "bytes_per_scan": sent,
    }


ROWS = [
    row("ours", 0.95, 2.0, 4.0, 400.0),
    row("ours, verdicts only", 0.95, 2.0, 2.0, 200.0),
    row("fixed threshold", 0.97, 2.0, 8.0, 1000.0),
    row("fixed threshold, in hindsight", 0.95, 1.0, 5.0, 500.0),
    row("fixed pair", 0.94, 2.0, 1.0, 100.0),
    row("edge only, tuned", 0.95, 2.0, 0.0, 0.0),
    row("Sedna entropy", 0.95, 2.1, 1.0, 100.0),
]


def test_ours_is_held_against_each_kind() -> None:
    """Regions and bytes, whatever the opponent reaches on the test; that is told beside it."""
    ratio = escalation_ratio({"fibre": ROWS, "dsl": ROWS[:3]})
    asked = ratio["described"]["fibre"]
    assert {key: one["rois"] for key, one in asked.items()} == {
        "single": 0.5, "pair": 4.0, "cut": None, "sedna": 4.0, "hindsight": 0.8}  # fmt: skip
    assert asked["single"]["bytes"] == 0.4
    assert [key for key, one in asked.items() if one["met"]] == ["single"]
    assert [key for key, one in asked.items() if one["as_good"]] == ["single", "cut", "hindsight"]
    assert ratio["verdicts"]["fibre"]["hindsight"]["met"]


def test_the_bar_wants_both() -> None:
    """Half of the regions with more than half of the bytes is not enough."""
    rows = [row("ours", 0.95, 2.0, 4.0, 501.0), *ROWS[1:]]
    ratio = escalation_ratio({"fibre": rows})
    assert not ratio["described"]["fibre"]["single"]["met"]
    assert ratio["verdicts"]["fibre"]["single"]["met"]


def test_what_asks_nothing_is_told_apart_from_what_is_not_there() -> None:
    """There is no ratio in either case, and the bar is met in neither."""
    ratio = escalation_ratio({"dead": ROWS})
    told = ratio["described"]["dead"]["cut"]
    assert (ratio["trace"], told["rois"], told["asks"], told["ours_asks"]) == (
        "dead", None, False, True)  # fmt: skip
    assert (told["as_good"], told["met"]) == (True, False)
    alone = escalation_ratio({"dead": ROWS[:1]})
    assert alone["described"]["dead"] == dict.fromkeys(OPPONENTS)
    assert alone["verdicts"]["dead"] == dict.fromkeys(OPPONENTS)
