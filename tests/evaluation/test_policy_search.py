"""The exact search for fixed thresholds."""

from __future__ import annotations

import random

import pytest

from evaluation.errors import EvaluationError
from evaluation.policy_fit import NO_TOP, Reached, reach
from evaluation.policy_routes import band, edge_only
from evaluation.policy_search import search
from evaluation.policy_studies import Study, studies_of
from tests.evaluation.made_cases import THRESHOLDS, WEIGHTS, made_cases, sighting
from tests.evaluation.test_policy_routes import STUDY

FINAL = THRESHOLDS.final
STUDIES = studies_of(made_cases(patients=6, alarms=8), "val", rounds=1, seed=0)


def test_every_two_ends_are_counted_as_the_policies_themselves_would() -> None:
    """The shortcut over ranks says of each pair what going through the studies says."""
    searched = search([*STUDIES, STUDY], FINAL)
    for i, low in enumerate(searched.ends):
        for j, high in enumerate(searched.ends[i:], i):
            shortcut = Reached(
                searched.sensitivity[i, j], searched.false[i, j], searched.asked[i, j]
            )
            assert shortcut == reach(band(low, high), [*STUDIES, STUDY], FINAL)


@pytest.mark.parametrize("seed", range(20))
def test_the_agent_s_own_ends_are_never_better(seed: int) -> None:
    """Where it was fitted the chosen pair does what these do, and asks no more; a cut asks none."""
    rng = random.Random(seed)
    studies = studies_of(made_cases(patients=8, seed=seed), "val", rounds=1, seed=0)
    searched = search(studies, FINAL)
    for _ in range(20):
        low, high = sorted((rng.random(), rng.random()))
        own = reach(band(low, high), studies, FINAL)
        if own.rois_per_scan:
            chosen = searched.pair(own).reached
            assert chosen.fulfils(own)
            assert chosen.rois_per_scan <= own.rois_per_scan
        single = reach(band(low, NO_TOP), studies, FINAL)
        assert searched.single(single).reached.rois_per_scan <= single.rois_per_scan
        assert searched.cut(reach(edge_only(low), studies, FINAL)).reached.rois_per_scan == 0


def test_ties_go_to_the_middle_of_the_widest_range() -> None:
    """A cut from above .55 up to .9 does as well, and the pair that has most room is chosen."""
    ones = (sighting(0.9, 0.9, "a"), sighting(0.8, 0.1), sighting(0.6, 0.1), sighting(0.55, 0.1))
    searched = search([Study("one", ones, ("a",), WEIGHTS, 1.0, 0.1)], FINAL)
    cut = searched.cut(Reached(1.0, 2.0, 1.0))
    assert cut.settings == {"threshold": pytest.approx(0.725)}
    pair = searched.pair(Reached(1.0, 1.0, 1.0))
    assert pair.settings == {"low": pytest.approx(0.7), "high": pytest.approx(0.85)}
    assert searched.single(Reached(1.0, 0.0, 1.0)).settings == {"threshold": pytest.approx(0.85)}


def test_where_none_fulfils_the_nearest_is_chosen() -> None:
    """What finds most within the false alarms, else of all."""
    searched = search([STUDY], FINAL)
    assert searched.cut(Reached(1.0, 0.0, 0.0)).reached == Reached(0.25, 0.0, 0.0)
    assert searched.single(Reached(1.0, 0.0, 0.0)).reached.sensitivity == 0.75
    assert searched.pair(Reached(1.0, -1.0, 0.0)).reached.sensitivity == 0.75


def test_a_sweep_goes_from_below_all_scores_up_to_its_top() -> None:
    """At most as many as wanted."""
    swept = search([STUDY], FINAL).sweep(0.3, 2)
    assert [one.settings["threshold"] for one in swept] == pytest.approx([0.05, 0.15])
    assert len(search([STUDY], FINAL).sweep(0.31, 9)) == 3


def test_without_a_candidate_nothing_can_be_chosen() -> None:
    """The message says so."""
    with pytest.raises(EvaluationError, match="without a candidate"):
        search([Study("empty", (), (), WEIGHTS, 1.0, 0.1)], FINAL)
