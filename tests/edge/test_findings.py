"""Findings: which are marked as small, and where two readers disagree."""

import math
from dataclasses import replace

import pytest

from tests.edge.report.reports import FINDING, VERDICT


@pytest.mark.parametrize(
    ("diameter_mm", "malignancy", "small"),
    [(5.9, 0.2, True), (5.9, None, True), (5.9, 0.9, True), (6.0, 0.2, False), (30, None, False),
     (5.94, None, True), (5.96, None, False)],
)  # fmt: skip
def test_below_6_mm_is_small_whatever_the_malignancy_score(
    diameter_mm: float, malignancy: float | None, small: bool
) -> None:
    verdict = replace(VERDICT, malignancy=malignancy)
    assert replace(FINDING, diameter_mm=diameter_mm, verdict=verdict).small is small


@pytest.mark.parametrize(
    ("edge", "cloud", "told"),
    [(1.0, 0.36, "edge 1.00, cloud 0.36"), (0.25, 0.75, "edge 0.25, cloud 0.75"),
     (0.9, 0.41, ""), (0.9, None, ""), (math.nan, 0.1, "")],
)  # fmt: skip
def test_readers_disagree_from_half_of_the_scale_on(
    edge: float, cloud: float | None, told: str
) -> None:
    """Whatever the merged probability is; a reader that did not read does not disagree."""
    verdict = None if cloud is None else replace(VERDICT, probability=cloud)
    assert replace(FINDING, edge_score=edge, verdict=verdict).disagreement == told
