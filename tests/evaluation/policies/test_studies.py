from dataclasses import replace

import numpy as np
import pytest

from edge.selection import Size
from evaluation.errors import EvaluationError
from evaluation.policies.studies import real_scans, repeated
from tests.evaluation.made_cases import made_cases, sighting, study

STUDIES = made_cases(patients=4, false_positives=5).of("test")


def test_every_study_comes_once_a_round_in_an_order_that_the_seed_draws() -> None:
    studies = repeated(STUDIES, rounds=2, seed=0)
    assert len({one.name for one in studies}) == 2 * len(STUDIES) == 12
    assert {one.name for one in studies[:6]} == {f"0 {one.name}" for one in STUDIES}
    orders = [[one.name for one in repeated(STUDIES, rounds=1, seed=i)] for i in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_candidates_fall_and_know_their_place() -> None:
    one = STUDIES[0]
    assert (one.scores[:-1] >= one.scores[1:]).all()
    assert [candidate.index_zyx[0] for candidate in one.candidates] == list(range(6))
    assert one.merged[3] == one.merged_at(3, Size.FULL)
    assert one.found(range(6)) == set(one.nodules)
    assert (one.false(range(6)), one.false([0])) == (5, 0)


def test_a_nodule_has_its_best_score_of_the_edge() -> None:
    twice = study(sighting(0.9, 0.9, "b"), sighting(0.5, 0.9, "b"), nodules="ab")
    assert twice.best.tolist() == [-np.inf, 0.9]


def test_false_positives_need_a_real_scan() -> None:
    assert real_scans(STUDIES) == 2
    with pytest.raises(EvaluationError, match="4 studies without a real scan"):
        real_scans(STUDIES[2:])


def test_a_size_that_was_not_read_is_an_error() -> None:
    one = replace(STUDIES[0].sightings[0], cloud={Size.FULL: 0.5})
    with pytest.raises(EvaluationError, match="slab: read them again"):
        replace(STUDIES[0], sightings=(one,)).merged_at(0, Size.SLAB)
