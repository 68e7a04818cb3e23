"""What the page says in sentences."""

from __future__ import annotations

from typing import Any

import pytest

from evaluation.policy_ratio import escalation_ratio
from evaluation.policy_words import against, outcome, shows, terms
from tests.evaluation.test_policy_ratio import ROWS, row

RESULT: dict[str, Any] = {
    "alarms": {"val": {"calm": 0}, "test": {"so so": 4, "rough": 13}},
    "aim": {"false_positives_per_scan": 0.24, "rois_per_scan": 0.29},
    "evidence": {
        "auc_edge": 0.981,
        "auc_both": 0.98,
        "asked": {
            "nodules": {"candidates": 9, "taken_away": 3, "brought_back": 0},
            "false": {"candidates": 363, "taken_away": 12, "brought_back": 0},
        },
    },
    "thresholds": {"dismiss": 0.4, "alone": 0.4},
    "policies": {"fixed pair": {"fitted": {"rois_per_scan": 0.02}}},
    "escalation_ratio": escalation_ratio({"fibre": ROWS}),
    "traces": [{"trace": "fibre", "policies": [*ROWS, row("edge only", 0.98, 2.5, 0.0, 0.0)]}],
}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "0.29, 0.30"),
        ({"as_good": False}, "0.29, 0.30 *"),
        ({"asks": False}, "asks nothing, as good"),
        ({"asks": False, "as_good": False}, "asks nothing *"),
        ({"asks": False, "ours_asks": False}, "neither asks"),
    ],
)
def test_no_ratio_is_told_in_words(changed: dict[str, Any], words: str) -> None:
    """Why there is none, and whether what asks nothing is as good."""
    one = {"rois": 0.29, "bytes": 0.3, "as_good": True, "asks": True, "ours_asks": True}
    assert against(one | changed) == words
    assert against(None) == "there is none"


def test_bar_and_outcome_are_told_for_each_kind() -> None:
    """What is met and what is not, for verdicts alone and with descriptions."""
    told = outcome(RESULT)
    assert (
        "| (a) fixed threshold | 97.0 % | 2.00 | 8.00 | 1 | 0.25, 0.20: met | 0.50, 0.40: met |"
        in told
    )
    assert "asks nothing, as good: not met" in told
    assert (
        "Verdicts alone the bar is met against (a) fixed threshold, (a) in hindsight; not met "
        "against (b) fixed pair, (c) edge only, tuned, Sedna entropy."
    ) in told
    assert "With descriptions the bar is met against (a) fixed threshold; not met" in told
    assert "did not do on these test studies" not in told


def test_a_threshold_that_finds_less_on_the_test_is_no_proof() -> None:
    """The bar is told to hold in hindsight alone."""
    rows = [row("fixed threshold", 0.94, 2.0, 8.0, 1000.0) if one["policy"] == "fixed threshold"
            else one for one in ROWS]  # fmt: skip
    told = outcome(RESULT | {"escalation_ratio": escalation_ratio({"fibre": rows})})
    assert "did not do on these test studies" in told


def test_what_the_data_show_is_computed() -> None:
    """Every number is of the result, and a sentence that does not hold is not said."""
    told = shows(RESULT)
    assert "ranks candidates as well as edge and cloud together" in told
    assert "0.981 and 0.980): the edge only finds 98.0 %, ours 95.0 %" in told
    assert "can only take a place away" in told
    assert "took 3 away and brought 0 back, of 363 false alarms they took 12 away" in told
    assert "0.29 ROIs a scan against 0.02" in told
    better = RESULT["evidence"] | {"auc_both": 0.99}
    other = shows(RESULT | {"evidence": better, "thresholds": {"dismiss": 0.2, "alone": 0.4}})
    assert "ranks candidates worse than" in other
    assert "can only" not in other


def test_terms_say_why_test_studies_have_more_false_alarms() -> None:
    """Which scan they are of."""
    told = terms(RESULT)
    assert "Validation studies have 0.24 false alarms a scan, test studies 2.00" in told
    assert "0 in `calm`, 4 in `so so`, 13 in `rough` (validation: `calm`). `rough` has many" in told
