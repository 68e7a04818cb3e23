from dataclasses import replace

import pytest

from edge.selection import Size
from evaluation.errors import EvaluationError
from evaluation.policies.studies import studies_of
from tests.evaluation.made_cases import made_cases

CASES = made_cases(patients=4, false_positives=5)


def test_every_patient_comes_once_a_round_over_the_scans_in_turn() -> None:
    """Two rounds of four patients, each with two nodules and one scan's five false positives.

    The scan's own lesion is left out.
    """
    studies = studies_of(CASES, "test", rounds=2, seed=0)
    assert len(studies) == len({study.name for study in studies}) == 8
    assert [len(study.sightings) for study in studies] == [7] * 8
    assert [len(study.nodules) for study in studies] == [2] * 8
    assert len({study.nodules for study in studies}) == 4
    assert studies[0].before_s == 0.8
    assert [s.patient for s in studies].count("test patient 0") == 2
    assert not any("lesion" in one.nodule for study in studies for one in study.sightings)
    with pytest.raises(EvaluationError, match="train"):
        studies_of(CASES, "train", rounds=1, seed=0)


def test_the_seed_orders_the_patients() -> None:
    names = [[s.name for s in studies_of(CASES, "test", rounds=1, seed=i)] for i in (1, 1, 2)]
    assert names[0] == names[1] != names[2]


def test_candidates_fall_and_know_their_place() -> None:
    study = studies_of(CASES, "test", rounds=1, seed=0)[0]
    assert (study.scores[:-1] >= study.scores[1:]).all()
    assert [one.index_zyx[0] for one in study.candidates] == list(range(7))
    assert study.merged[3] == study.merged_at(3, Size.FULL)
    found = [i for i, one in enumerate(study.sightings) if one.nodule]
    assert study.found(range(7)) == set(study.nodules)
    assert study.false(range(7)) == 5
    assert study.false(found) == 0


def test_a_size_that_was_not_read_is_an_error() -> None:
    study = studies_of(CASES, "test", rounds=1, seed=0)[0]
    one = replace(study.sightings[0], cloud={Size.FULL: 0.5})
    with pytest.raises(EvaluationError, match="slab: read them again"):
        replace(study, sightings=(one,)).merged_at(0, Size.SLAB)
