"""The page's section on the guarantee."""

from __future__ import annotations

import copy
from typing import Any

from evaluation.guarantee_page import guarantee_section

SETS = {"resamples": 1000, "kept": 0.95, "miss_rate_mean": 0.045, "miss_rate_p90": 0.1,
        "worst": 1.0, "can_fail": True}  # fmt: skip
RESULT: dict[str, Any] = {
    "command": "overread-eval guarantee --data DATA/nodules",
    "carried": {"alpha": 0.21, "delta": 0.1, "splits": SETS, "draws": SETS},
    "served": {
        "guarantee": {
            "alpha": 0.125,
            "delta": 0.1,
            "patients": 62,
            "calibration": "8cdc008a",
            "asked_alpha": 0.028,
            "confidence": 0.4,
            "holds": False,
        },
        "splits": {**SETS, "alpha_mean": 0.17},
        "draws": {**SETS, "alpha_mean": 0.12, "kept": 0.99, "worst": 0.06, "can_fail": False},
        "test": {
            "nodules": 115,
            "patients": 56,
            "lost": 5,
            "miss_rate": 0.031,
            "miss_rate_upper": 0.1,
            "kept": True,
        },
    },
}


def test_the_section_says_what_is_promised_and_whether_it_is_kept() -> None:
    """Terms, what was asked for, both experiments, the test patients and the command."""
    text = guarantee_section(RESULT)
    for words in (
        "Of 62 validation patients (calibration `8cdc008a`)",
        "with 90.0 % confidence, that at most 12.5 % of nodules are missed",
        "Asked for was 2.8 %: that these patients promise not even with 50 %.",
        "| splits, a level that the sample carries | 21.0 % | 1000 | 95.0 % | 4.5 % | 10.0 % "
        "| 100.0 % | yes |",
        "| draws, as it is served: each states its own, mean | 12.0 % | 1000 | 99.0 % | 4.5 % "
        "| 10.0 % | 6.0 % | no |",
        "Calibration and merger were fitted on these same patients",
        "Of 115 nodules of 56 test patients 5 are missed: 3.1 % on average",
        "The promised 12.5 % holds there.",
        "    overread-eval guarantee --data DATA/nodules",
    ):
        assert words in text


def test_a_broken_promise_is_called_one() -> None:
    """And one that meets what was asked needs no excuse."""
    result = copy.deepcopy(RESULT)
    result["served"]["test"]["kept"] = False
    result["served"]["guarantee"]["holds"] = True
    text = guarantee_section(result)
    assert "does not hold there" in text
    assert "Asked for" not in text


def test_without_test_patients_the_section_says_so() -> None:
    """No figure is made up."""
    result = copy.deepcopy(RESULT)
    result["served"]["test"] = None
    assert "No test patients were read." in guarantee_section(result)
