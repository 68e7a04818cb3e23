"""What is chosen, and by which rule."""

from __future__ import annotations

import itertools

import pytest

from evaluation.policy_fit import Choice, Reached, best, filters, reach
from evaluation.policy_routes import band, cloud_only
from evaluation.policy_studies import studies_of
from tests.evaluation.made_cases import THRESHOLDS, made_cases
from tests.evaluation.test_policy_routes import STUDY

AIM = Reached(0.9, 2.0, 0.0)


def choice(sensitivity: float, false: float, rois: float) -> Choice:
    """One of which only what it reached matters."""
    return Choice(cloud_only(), {}, Reached(sensitivity, false, rois))


def test_what_a_routing_reaches_is_counted() -> None:
    """Two of four nodules, of which one was never proposed; one alarm taken away, one left."""
    reached = reach(band(0.3, 0.95), [STUDY], THRESHOLDS.final)
    assert reached == Reached(0.5, 0.0, 3.0)
    assert reach(band(0.05, 0.05), [STUDY], THRESHOLDS.final) == Reached(0.75, 2.0, 0.0)


def test_the_one_that_asks_least_of_those_that_do_is_best() -> None:
    """One that finds less, or raises more alarms, does not count."""
    able, dear, deaf, loud = (
        choice(0.9, 2, 6), choice(0.95, 1, 9), choice(0.89, 2, 1), choice(0.99, 2.1, 2)
    )  # fmt: skip
    assert best([dear, deaf, loud, able], AIM) is able
    assert not deaf.as_json(AIM)["fitted"]["fulfils"]


def test_where_none_does_the_nearest_is_best() -> None:
    """Within the false alarms if one is, else of all."""
    deaf, loud = choice(0.89, 2, 1), choice(0.99, 2.1, 2)
    assert best([deaf, loud], AIM) is deaf
    assert best([loud], AIM) is loud


def test_filters_are_tried_wherever_it_makes_a_difference() -> None:
    """Sedna's thresholds from nothing to everything, each asking more than the one before."""
    studies = studies_of(made_cases(), "val", rounds=1, seed=0)
    most = reach(cloud_only(), studies, 0.5).rois_per_scan
    tried = filters(studies, THRESHOLDS.final, THRESHOLDS.alone)
    for choices in tried.values():
        asked = [one.reached.rois_per_scan for one in choices]
        assert all(a < b for a, b in itertools.pairwise(asked))
        assert (asked[0], asked[-1]) == (0.0, pytest.approx(most))
    scores = {score for study in studies for score in study.scores.tolist()}
    assert len(tried["entropy"]) == len(scores) + 1
