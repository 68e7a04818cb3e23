"""Who asks about what."""

from __future__ import annotations

import numpy as np

from evaluation.policies.routing import (
    Routing,
    band,
    cloud_only,
    edge_only,
    entropy_filter,
    oracle,
    threshold_filter,
)
from evaluation.policies.studies import Study
from tests.evaluation.made_cases import THRESHOLDS, WEIGHTS, sighting

STUDY = Study(
    "one",
    (
        sighting(0.9, 0.9, "a"),
        sighting(0.5, 0.05),
        sighting(0.4, 0.9, "b"),
        sighting(0.2, 0.9, "c"),
        sighting(0.1, 0.1),
    ),
    ("a", "b", "c", "never proposed"),
    WEIGHTS,
    1.0,
    0.1,
)


def said(routing: Routing, study: Study = STUDY) -> tuple[list[int], list[int]]:
    """Places that are asked about, and places that are reported unasked."""
    routes = routing(study)
    return np.flatnonzero(routes.asked).tolist(), np.flatnonzero(routes.reported).tolist()


def test_edge_only_and_cloud_only_are_the_two_ends() -> None:
    """Nothing, or everything."""
    assert said(edge_only(0.3)) == ([], [0, 1, 2])
    assert said(cloud_only()) == ([0, 1, 2, 3, 4], [])


def test_a_band_asks_between_its_ends() -> None:
    """The lower end belongs to it, the upper is reported."""
    assert said(band(0.2, 0.5)) == ([2, 3], [0, 1])


def test_sedna_s_threshold_judges_the_study_by_its_mean() -> None:
    """A mean of 0.42 is hard below 0.5: everything goes, or nothing."""
    assert said(threshold_filter(0.5, 0.3)) == ([0, 1, 2, 3, 4], [])
    assert said(threshold_filter(0.4, 0.3)) == ([], [0, 1, 2])
    empty = Study("empty", (), (), WEIGHTS, 1.0, 0.1)
    assert said(threshold_filter(1.0, 0.3), empty) == ([], [])


def test_sedna_s_entropy_judges_each_candidate() -> None:
    """One half leaves no certainty at all; 0.9 and 0.1 leave 0.53, 0.4 0.03 and 0.2 0.28."""
    assert said(entropy_filter(0.01, 0.3)) == ([1], [0, 2])
    assert said(entropy_filter(0.3, 0.3)) == ([1, 2, 3], [0])
    assert said(entropy_filter(0.54, 0.3)) == ([0, 1, 2, 3, 4], [])


def test_the_oracle_asks_where_it_helps() -> None:
    """For a false alarm that the cloud takes away, and a nodule that it brings back."""
    assert said(oracle(THRESHOLDS)) == ([1, 3], [0, 2])
