"""The promise that is served, on generated patients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evaluation.accuracy.guarantee import GuaranteeSpec, carried, carried_alpha, served
from evaluation.accuracy.scores import Scores
from models.calibration.promise import DISMISS_SHARE, Target, promise
from models.calibration.risk_control import Bound, ScoredNodules, straight_path, upper_bound

FITTED = {"dismiss": 0.1, "report": 0.97, "alone": 0.3, "final": 0.6}
SPEC = GuaranteeSpec(straight_path(DISMISS_SHARE, steps=120), report=0.97)


def patients(count: int, seed: int, missed: float = 0.03) -> Scores:
    """Patients of one to three nodules, of which ``missed`` are never proposed, and 40 alarms."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(count), rng.integers(1, 4, count))
    logit = 3.0 + rng.normal(0, 1, count)[owner]
    edge, merged = (1 / (1 + np.exp(-logit - rng.normal(0, 0.7, owner.size))) for _ in range(2))
    edge[rng.random(owner.size) < missed] = -np.inf
    alarms = rng.beta(1, 4, (2, 40))
    return Scores(
        ScoredNodules(edge, merged, owner), alarms[0], alarms[1], 10.0, patients_known=True
    )


def test_what_few_patients_carry_is_kept_in_nine_of_ten_sets() -> None:
    """62 patients cannot promise 2.8 %; what nearly all halves of them can is kept."""
    nodules = patients(62, 0).nodules
    found = carried(nodules, SPEC, 1000, np.random.default_rng(0))
    assert found["alpha"] > SPEC.alpha
    for name in ("splits", "draws"):
        assert found[name]["promised"] >= 0.9
        assert found[name]["kept"] >= 0.9
        assert found[name]["miss_rate_mean"] > 0


def test_what_is_carried_can_be_broken_although_the_edge_is_sure_of_all() -> None:
    """With the report cut no threshold would lose a nodule; without it the path ends at a loss."""
    nodules = patients(62, 7).nodules
    sure = ScoredNodules(np.maximum(nodules.edge, 0.98), nodules.merged, nodules.patient)
    found = carried(sure, SPEC, 1000, np.random.default_rng(0))
    for name in ("splits", "draws"):
        assert found[name]["worst"] == 1.0
        assert found[name]["can_fail"]
        assert found[name]["miss_rate_mean"] > 0
        assert found[name]["kept"] >= 0.9


def test_a_row_that_cannot_fail_shows_itself() -> None:
    """One patient of 62 loses a nodule: the unluckiest rest loses less than the luckiest states."""
    edge = np.where(np.arange(62) == 0, -np.inf, 0.99)
    scores = Scores(
        ScoredNodules(edge, edge.clip(0), np.arange(62)), np.zeros(0), np.zeros(0), 0.0, True
    )
    terms = promise(scores.nodules, FITTED, Target(), [0.0, 1.0, 1.0])
    found = served(scores, None, SPEC, terms, 20, np.random.default_rng(0))
    assert found["splits"]["worst"] == pytest.approx(1 / 31)
    assert found["draws"]["worst"] == pytest.approx(1 / 62)
    assert not found["splits"]["can_fail"]
    assert not found["draws"]["can_fail"]


def test_what_is_asked_for_is_carried_where_it_can_be() -> None:
    """Many patients carry less than a generous alpha, and that is what is tried."""
    nodules = patients(600, 1, missed=0.0).nodules
    found = carried(nodules, replace(SPEC, alpha=0.2), 50, np.random.default_rng(0))
    assert found["alpha"] == 0.2


def test_the_carried_alpha_is_the_bound_of_an_unlucky_half() -> None:
    """Without any loss it is that of the rule of all sound, in whole percent."""
    sound = ScoredNodules(np.full(80, 0.9), np.full(80, 0.9), np.arange(80))
    alpha = carried_alpha(sound, SPEC, 20, np.random.default_rng(0))
    exact = upper_bound(0.0, 40, 0.1, Bound.BINOMIAL)
    assert alpha == pytest.approx(0.06)
    assert exact <= alpha < exact + 0.01


def test_the_level_that_each_set_states_is_kept_as_often_as_promised() -> None:
    """In splits and draws, and on test patients of the same kind."""
    scores = patients(120, 2)
    terms = promise(scores.nodules, FITTED, Target(), [0.0, 1.0, 1.0])
    rng = np.random.default_rng(0)
    found = served(scores, patients(300, 3), SPEC, terms, 1000, rng)
    assert found["guarantee"] == terms["guarantee"]
    assert found["splits"]["kept"] >= 0.9
    assert found["draws"]["kept"] >= 0.9
    assert found["splits"]["can_fail"]
    assert found["splits"]["alpha_mean"] > found["draws"]["alpha_mean"] > 0.03
    assert found["test"]["kept"]
    assert found["test"]["miss_rate"] <= terms["guarantee"]["alpha"]
    assert found["cost"]["escalated_per_scan"] > 0


def test_a_promise_that_test_patients_break_is_told() -> None:
    """Patients of another kind lose more than was promised."""
    scores = patients(200, 4, missed=0.0)
    terms = promise(scores.nodules, FITTED, Target(), [0.0, 1.0, 1.0])
    worse = patients(100, 5, missed=0.5)
    found = served(scores, worse, SPEC, terms, 5, np.random.default_rng(0))
    assert found["test"]["kept"] is False
    assert found["test"]["miss_rate"] > terms["guarantee"]["alpha"]


def test_without_test_patients_there_is_no_level() -> None:
    """None, and no claim."""
    scores = patients(50, 6)
    terms = promise(scores.nodules, FITTED, Target(), [0.0, 1.0, 1.0])
    assert served(scores, None, SPEC, terms, 5, np.random.default_rng(0))["test"] is None
