import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from evaluation.__main__ import app
from evaluation.accuracy.guarantee import (
    GuaranteeSpec,
    carried,
    carried_alpha,
    cost,
    draw_patients,
    examine,
    level,
    served,
    split_patients,
)
from evaluation.accuracy.scores import Scores
from models.calibration.guarantee import Target, guaranteed_settings
from models.calibration.risk_control import (
    Bound,
    ScoredNodules,
    ThresholdPath,
    straight_path,
    upper_bound,
)

SPEC = GuaranteeSpec(straight_path(steps=120), report=0.97, alpha=0.06)
WHOLE_SPEC = GuaranteeSpec(straight_path(0.1, steps=120), report=0.97)
AT = ThresholdPath(np.array([0.3]), np.array([0.5]))
FITTED = {"dismiss": 0.1, "report": 0.97, "alone": 0.3, "possible": 0.6, "final": 0.7}


def patients(count: int, seed: int, missed: float = 0.03) -> Scores:
    """Patients of one to three nodules, a share of them never proposed, and 40 false candidates."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(count), rng.integers(1, 4, count))
    logit = 3.0 + rng.normal(0, 1, count)[owner]
    edge, merged = (1 / (1 + np.exp(-logit - rng.normal(0, 0.7, owner.size))) for _ in range(2))
    edge[rng.random(owner.size) < missed] = -np.inf
    false = rng.beta(1, 4, (2, 40))
    return Scores(ScoredNodules(edge, merged, owner), false[0], false[1], 10.0, patients_known=True)


@pytest.mark.parametrize("bound", [Bound.BINOMIAL, Bound.HOEFFDING_BENTKUS])
def test_guarantees_hold_in_nine_of_ten_sets(bound: Bound) -> None:
    spec = GuaranteeSpec(SPEC.path, SPEC.report, SPEC.alpha, bound=bound)
    nodules, rng = patients(600, 0, missed=0.004).nodules, np.random.default_rng(0)
    for experiment in (split_patients, draw_patients):
        reached = experiment(nodules, spec, 1000, rng)
        assert reached.guaranteed.mean() > 0.9
        assert reached.kept >= 0.9
        assert np.nanmin(reached.miss_rate) > 0


def test_splits_count_on_patients_not_calibrated_on() -> None:
    """Two patients, one lost at every threshold: one calibrates, the other is counted."""
    nodules = ScoredNodules(np.array([0.9, -np.inf]), np.array([0.9, 0.0]), np.arange(2))
    spec = GuaranteeSpec(straight_path(steps=3), report=0.95, alpha=0.95, delta=0.2)
    reached = split_patients(nodules, spec, 50, np.random.default_rng(0))
    assert 0 < reached.guaranteed.mean() < 1
    assert set(reached.miss_rate[reached.guaranteed]) == {1.0}
    assert reached.kept == pytest.approx(1 - reached.guaranteed.mean())
    assert reached.worst == 1.0


def test_the_worst_that_any_set_could_have_had_stands_beside() -> None:
    """One patient of four is lost whatever is tried: half of two, and a quarter of them all."""
    edge = np.array([0.9, 0.9, 0.9, -np.inf])
    nodules, rng = ScoredNodules(edge, edge.clip(0), np.arange(4)), np.random.default_rng(0)
    spec = GuaranteeSpec(straight_path(steps=3), report=0.8, alpha=0.9, delta=0.2)
    for experiment, worst in ((split_patients, 0.5), (draw_patients, 0.25)):
        found = experiment(nodules, spec, 20, rng).as_dict()
        assert found["worst"] == pytest.approx(worst)
        assert found["kept"] == 1.0
        assert found["can_fail"] is False
    never = split_patients(nodules, replace(spec, alpha=0.01), 20, rng).as_dict()
    assert never["guaranteed"] == 0.0
    assert never["can_fail"] is False


def test_level_on_test_patients_by_hand() -> None:
    """Of three patients one loses one of two nodules: a sixth over patients, a quarter pooled."""
    edge, merged = np.array([0.2, 0.6, 0.6, 0.99]), np.array([0.9, 0.9, 0.9, 0.1])
    nodules = ScoredNodules(edge, merged, np.array(["a", "a", "b", "c"]))
    spec = GuaranteeSpec(SPEC.path, 0.97, 0.2)
    found = level(nodules, spec, AT, holds=True)
    assert (found["patients"], found["nodules"], found["lost"]) == (3, 4, 1)
    assert found["miss_rate"] == pytest.approx(1 / 6)
    assert found["pooled"] == pytest.approx(1 / 4)
    assert found["kept"]
    assert found["miss_rate_upper"] > 0.5


def test_cost_by_hand() -> None:
    """Of four false candidates in two scans two are escalated, and two are reported."""
    none = ScoredNodules(np.ones(1), np.ones(1), np.ones(1))
    false = np.array([0.1, 0.5, 0.6, 0.99]), np.array([0.9, 0.2, 0.8, 0.0])
    found = cost(Scores(none, *false, 2.0, True), 0.97, AT)
    assert found == {"escalated_per_scan": 1.0, "false_in_lists_per_scan": 1.0}


def test_the_same_seed_gives_the_same_result() -> None:
    scores = patients(80, 1)
    one, two, three = (
        examine(scores, patients(50, 2), SPEC, resamples=40, seed=s) for s in (5, 5, 6)
    )
    assert one == two
    assert one["splits"] != three["splits"]
    assert one["test"]["patients"] == 50


def _cases(path: Path, count: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    nodule = np.arange(2 * count) < count
    logits = rng.normal(0, 0.6, (2, 2 * count)) + np.where(nodule, 3.0, -3.0)
    owner = np.array([f"{seed}-{number}" for number in range(2 * count)])
    np.savez(path, edge=logits[0], cloud=logits[1], nodule=nodule, missed=1, scans=5.0,
             patient=owner, missed_patient=np.array(["m"]))  # fmt: skip
    return path


def test_the_command_states_the_guarantee(tmp_path: Path) -> None:
    files = ["guarantee", "--cases", str(_cases(tmp_path / "val.npz", 300, 1))]
    files += ["--test", str(_cases(tmp_path / "test.npz", 200, 2)), "--resamples", "50"]
    said = json.loads(CliRunner().invoke(app, [*files, "--json"]).stdout)
    assert (said["patients"], said["nodules"]) == (301, 301)
    assert said["holds"]
    assert said["guarantee"].startswith("with 90 % confidence at most 2.8 % of nodules are missed")
    assert said["test"]["kept"]
    assert said["splits"]["resamples"] == 50
    assert said["carried"]["splits"]["kept"] >= 0.9
    assert said["served"]["guarantee"]["holds"]
    assert said["served"]["test"]["kept"]
    shown = CliRunner().invoke(app, files, env={"COLUMNS": "160"}).stdout
    assert "50 draws, as served" in shown
    assert "where it holds" in " ".join(shown.split())
    assert "200 of test" in shown or "201 of test" in shown


def test_the_command_wants_one_source(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["guarantee"]).exit_code == 2
    both = ["--cases", str(tmp_path / "a.npz"), "--data", str(tmp_path)]
    assert CliRunner().invoke(app, ["guarantee", *both]).exit_code == 2


def test_what_few_patients_carry_is_kept_in_nine_of_ten_sets() -> None:
    """62 patients cannot guarantee 2.8 %; what nearly all halves of them can is kept."""
    nodules = patients(62, 0).nodules
    found = carried(nodules, WHOLE_SPEC, 1000, np.random.default_rng(0))
    assert found["alpha"] > WHOLE_SPEC.alpha
    for name in ("splits", "draws"):
        assert found[name]["guaranteed"] >= 0.9
        assert found[name]["kept"] >= 0.9
        assert found[name]["miss_rate_mean"] > 0


def test_what_is_carried_can_be_broken_although_the_edge_is_sure_of_all() -> None:
    """With the report cut no threshold would lose a nodule; without it the path ends at a loss."""
    nodules = patients(62, 7).nodules
    sure = ScoredNodules(np.maximum(nodules.edge, 0.98), nodules.merged, nodules.patient)
    found = carried(sure, WHOLE_SPEC, 1000, np.random.default_rng(0))
    for name in ("splits", "draws"):
        assert found[name]["worst"] == 1.0
        assert found[name]["can_fail"]
        assert found[name]["miss_rate_mean"] > 0
        assert found[name]["kept"] >= 0.9


def as_served(scores: Scores, test: Scores | None, resamples: int) -> dict[str, Any]:
    """How far the settings that these patients give keep their guarantee."""
    terms = guaranteed_settings(scores.nodules, FITTED, Target(), [0.0, 1.0, 1.0])
    found = served(scores, test, WHOLE_SPEC, terms, resamples, np.random.default_rng(0))
    assert found["guarantee"] == terms["guarantee"]
    return found


def test_a_row_that_cannot_fail_shows_itself() -> None:
    """One patient of 62 loses a nodule: the unluckiest rest loses less than the luckiest states."""
    edge = np.where(np.arange(62) == 0, -np.inf, 0.99)
    nodules, none = ScoredNodules(edge, edge.clip(0), np.arange(62)), np.zeros(0)
    scores = Scores(nodules, none, none, 0.0, True)
    found = as_served(scores, None, 20)
    assert found["test"] is None
    assert found["splits"]["worst"] == pytest.approx(1 / 31)
    assert found["draws"]["worst"] == pytest.approx(1 / 62)
    assert not found["splits"]["can_fail"]
    assert not found["draws"]["can_fail"]


def test_the_requested_level_is_carried_where_it_can_be() -> None:
    """Many patients carry less than a generous alpha, and that is what is tried."""
    nodules = patients(600, 1, missed=0.0).nodules
    found = carried(nodules, replace(WHOLE_SPEC, alpha=0.2), 50, np.random.default_rng(0))
    assert found["alpha"] == 0.2


def test_the_carried_alpha_is_the_bound_of_an_unlucky_half() -> None:
    """Without any loss it is that of the rule of all sound, in whole percent."""
    sound = ScoredNodules(np.full(80, 0.9), np.full(80, 0.9), np.arange(80))
    alpha = carried_alpha(sound, WHOLE_SPEC, 20, np.random.default_rng(0))
    exact = upper_bound(0.0, 40, 0.1, Bound.BINOMIAL)
    assert alpha == pytest.approx(0.06)
    assert exact <= alpha < exact + 0.01


def test_the_level_that_each_set_states_is_kept_as_often_as_guaranteed() -> None:
    """In splits and draws, and on test patients of the same kind."""
    found = as_served(patients(120, 2), patients(300, 3), 1000)
    assert found["splits"]["kept"] >= 0.9
    assert found["draws"]["kept"] >= 0.9
    assert found["splits"]["can_fail"]
    assert found["splits"]["alpha_mean"] > found["draws"]["alpha_mean"] > 0.03
    assert found["test"]["kept"]
    assert found["test"]["miss_rate"] <= found["guarantee"]["alpha"]
    assert found["cost"]["escalated_per_scan"] > 0


def test_test_patients_may_break_the_guarantee() -> None:
    found = as_served(patients(200, 4, missed=0.0), patients(100, 5, missed=0.5), 5)
    assert found["test"]["kept"] is False
    assert found["test"]["miss_rate"] > found["guarantee"]["alpha"]
