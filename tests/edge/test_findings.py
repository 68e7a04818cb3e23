"""Findings: which are marked as small, and where an outline lies."""

import math
from dataclasses import replace

import numpy as np
import pytest

from edge.findings import DecidedBy, Finding, Outline, Route
from protos.messages import Verdict


def finding(diameter_mm: float, malignancy: float | None) -> Finding:
    verdict = Verdict(0, 0.9, diameter_mm, "m", 0.0, 0.0, malignancy)
    place = (1.0, 2.0, 3.0)
    return Finding(
        place, diameter_mm, 0.9, 0.5, DecidedBy.CLOUD, "", place, Route.ESCALATE, verdict
    )


@pytest.mark.parametrize(
    ("diameter_mm", "malignancy", "small"),
    [(5.9, 0.2, True), (5.9, None, True), (5.9, 0.9, True), (6.0, 0.2, False), (30, None, False)],
)
def test_below_6_mm_is_small_whatever_the_malignancy_score(
    diameter_mm: float, malignancy: float | None, small: bool
) -> None:
    assert finding(diameter_mm, malignancy).small is small


@pytest.mark.parametrize(
    ("edge", "cloud", "told"),
    [
        (1.0, 0.36, "edge 1.00, cloud 0.36"),
        (0.25, 0.75, "edge 0.25, cloud 0.75"),
        (0.9, 0.41, ""),
        (0.9, None, ""),
        (math.nan, 0.1, ""),
    ],
)
def test_readers_disagree_from_half_of_the_scale_on(
    edge: float, cloud: float | None, told: str
) -> None:
    """Whatever the merged probability is; a reader that did not read does not disagree."""
    one = finding(9.0, None)
    verdict = None if cloud is None else replace(one.verdict, probability=cloud)
    assert replace(one, edge_score=edge, verdict=verdict).disagreement == told


def test_centre_and_volume_of_an_outline() -> None:
    mask = np.zeros((4, 4, 4), bool)
    mask[1, 1, 1] = mask[1, 1, 3] = True
    outline = Outline(mask, (10, -2, 30), voxel_mm3=0.5)
    assert outline.centre_zyx == (11.0, -1.0, 32.0)
    assert outline.volume_mm3 == 1.0
