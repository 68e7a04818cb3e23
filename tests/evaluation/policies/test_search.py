import itertools
import random

import pytest

from evaluation.errors import EvaluationError
from evaluation.policies.routing import band, cloud_only, edge_only
from evaluation.policies.search import NO_TOP, Choice, Reached, best, filters, reach, search
from tests.evaluation.made_cases import THRESHOLDS, made_cases, sighting, study
from tests.evaluation.policies.test_routing import STUDY

FINAL = THRESHOLDS.finding
STUDIES = made_cases(patients=6, false_positives=8).of("val")


def test_the_exact_search_agrees_with_running_each_pair() -> None:
    searched = search([*STUDIES, STUDY], FINAL)
    for i, low in enumerate(searched.ends):
        for j, high in enumerate(searched.ends[i:], i):
            shortcut = Reached(
                searched.sensitivity[i, j], searched.false[i, j], searched.escalated[i, j]
            )
            assert shortcut == reach(band(low, high), [*STUDIES, STUDY], FINAL)


@pytest.mark.parametrize("seed", range(20))
def test_random_thresholds_are_never_better(seed: int) -> None:
    rng = random.Random(seed)
    studies = made_cases(patients=8, seed=seed).of("val")
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
    """A cut from above 0.55 up to 0.9 does as well."""
    ones = (sighting(0.9, 0.9, "a"), sighting(0.8, 0.1), sighting(0.6, 0.1), sighting(0.55, 0.1))
    searched = search([study(*ones, nodules="a")], FINAL)
    cut = searched.cut(Reached(1.0, 2.0, 1.0))
    assert cut.settings == {"threshold": pytest.approx(0.725)}
    pair = searched.pair(Reached(1.0, 1.0, 1.0))
    assert pair.settings == {"low": pytest.approx(0.7), "high": pytest.approx(0.85)}
    assert searched.single(Reached(1.0, 0.0, 1.0)).settings == {"threshold": pytest.approx(0.85)}


def test_without_thresholds_that_fulfil_the_aim_the_nearest_are_chosen() -> None:
    searched = search([STUDY], FINAL)
    assert searched.cut(Reached(1.0, 0.0, 0.0)).reached == Reached(0.25, 0.0, 0.0)
    assert searched.single(Reached(1.0, 0.0, 0.0)).reached.sensitivity == 0.75
    assert searched.pair(Reached(1.0, -1.0, 0.0)).reached.sensitivity == 0.75


def test_pairs_that_do_as_well_with_less_are_counted() -> None:
    """Any pair around one of five candidates sends one; none sends less."""
    searched = search([STUDY], FINAL)
    reached = reach(band(0.15, 0.85), [STUDY], FINAL)
    as_good = [
        (low, high)
        for i, low in enumerate(searched.ends)
        for high in searched.ends[i:]
        if (one := reach(band(low, high), [STUDY], FINAL)).fulfils(reached)
        and 0 < one.rois_per_scan < reached.rois_per_scan
    ]
    assert searched.dominating(reached) == len(as_good)
    assert searched.dominating(Reached(0.0, 9.0, 2.0)) == 5
    assert searched.dominating(Reached(0.0, 9.0, 1.0)) == 0


def test_a_sweep_rises_from_below_all_scores_to_its_top() -> None:
    swept = search([STUDY], FINAL).sweep(0.3, 2)
    assert [one.settings["threshold"] for one in swept] == pytest.approx([0.05, 0.15])
    assert len(search([STUDY], FINAL).sweep(0.31, 9)) == 3


def test_without_a_candidate_nothing_can_be_chosen() -> None:
    with pytest.raises(EvaluationError, match="without a candidate"):
        search([study()], FINAL)


AIM = Reached(0.9, 2.0, 0.0)


def choice(sensitivity: float, false: float, rois: float) -> Choice:
    return Choice(cloud_only(), {}, Reached(sensitivity, false, rois))


def test_what_a_routing_reaches_is_counted() -> None:
    """Two of four nodules, of which one has no candidate; one false positive removed, one left."""
    reached = reach(band(0.3, 0.95), [STUDY], THRESHOLDS.finding)
    assert reached == Reached(0.5, 0.0, 3.0)
    assert reach(band(0.05, 0.05), [STUDY], THRESHOLDS.finding) == Reached(0.75, 2.0, 0.0)


def test_the_best_fulfils_the_aim_and_escalates_least() -> None:
    """Where none fulfils it, the best is the nearest."""
    able, dear, deaf, loud = (
        choice(0.9, 2, 6), choice(0.95, 1, 9), choice(0.89, 2, 1), choice(0.99, 2.1, 2)
    )  # fmt: skip
    assert best([dear, deaf, loud, able], AIM) is able
    assert not deaf.as_dict(AIM)["fitted"]["fulfils"]
    assert best([deaf, loud], AIM) is deaf
    assert best([loud], AIM) is loud


def test_filters_are_tried_wherever_it_makes_a_difference() -> None:
    studies = made_cases().of("val")
    most = reach(cloud_only(), studies, 0.5).rois_per_scan
    tried = filters(studies, THRESHOLDS.finding, THRESHOLDS.finding)
    for choices in tried.values():
        asked = [one.reached.rois_per_scan for one in choices]
        assert all(a < b for a, b in itertools.pairwise(asked))
        assert (asked[0], asked[-1]) == (0.0, pytest.approx(most))
    scores = {score for one in studies for score in one.scores.tolist()}
    assert len(tried["entropy"]) == len(scores) + 1
