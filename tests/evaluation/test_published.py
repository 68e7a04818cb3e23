"""The published claims beside our figures."""

from __future__ import annotations

import json
from pathlib import Path

from evaluation.published import CLAIMS, published_section
from evaluation.rounding_page import rounding_section

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def found() -> dict[str, object]:
    """The results that are kept beside the page."""
    return {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}


def test_every_claim_has_a_row_and_unmeasured_ones_say_so() -> None:
    """With nothing measured, nothing is claimed."""
    section = published_section({})
    assert section.count("not measured") == len(CLAIMS)


def test_each_claim_that_was_measured_names_its_command() -> None:
    """A figure stands with the command that printed it."""
    rows = published_section(found()).splitlines()[4:]
    assert len(rows) == len(CLAIMS)
    for row in rows:
        assert "not measured" in row or "`overread-" in row or "`python -m" in row


def test_the_loss_by_rounding_is_the_difference_of_the_tables() -> None:
    """Points of each rate, FP32 less INT8."""

    def result(values: list[float], cpm: float) -> dict[str, object]:
        points = [{"false_positives_per_scan": r, "value": v} for r, v in enumerate(values)]
        return {"sensitivity": points, "cpm": {"value": cpm}, "command": "c"}

    section = rounding_section(
        {
            "nodules_edge_fp32": result([0.9, 0.95], 0.9),
            "nodules_edge_int8": result([0.896, 0.955], 0.89),
        }
    )
    assert "| edge, INT8 | +0.4 | -0.5 | +0.010 |" in section
