"""Whether promises of the miss rate are kept, on generated patients."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from evaluation.accuracy.guarantee import (
    GuaranteeSpec,
    cost,
    draw_patients,
    examine,
    level,
    split_patients,
)
from evaluation.accuracy.guarantee_command import guarantee_command
from evaluation.accuracy.scores import Scores
from models.calibration.risk_control import (
    Bound,
    Controlled,
    Guarantee,
    ScoredNodules,
    straight_path,
)

SPEC = GuaranteeSpec(straight_path(steps=120), report=0.97, alpha=0.06)


def patients(count: int, seed: int) -> Scores:
    """Patients of one to three nodules, and 40 alarms in 10 scans."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(count), rng.integers(1, 4, count))
    logit = 3.0 + rng.normal(0, 1, count)[owner]
    edge, merged = (_sigmoid(logit + rng.normal(0, 0.7, owner.size)) for _ in range(2))
    edge[rng.random(owner.size) < 0.004] = -np.inf
    alarms = _sigmoid(rng.normal(-2, 1.5, (2, 40)))
    return Scores(
        ScoredNodules(edge, merged, owner), alarms[0], alarms[1], 10.0, patients_known=True
    )


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logit)))


@pytest.mark.parametrize("bound", list(Bound))
def test_promises_are_kept_in_nine_of_ten_sets(bound: Bound) -> None:
    """On half of the patients, and on a population that the sets are drawn from."""
    spec = GuaranteeSpec(SPEC.path, SPEC.report, SPEC.alpha, bound=bound)
    nodules, rng = patients(600, 0).nodules, np.random.default_rng(0)
    for experiment in (split_patients, draw_patients):
        reached = experiment(nodules, spec, 1000, rng)
        assert reached.promised.mean() > 0.9
        assert reached.kept >= 0.9
        assert np.nanmin(reached.miss_rate) > 0


def test_splits_count_on_patients_not_calibrated_on() -> None:
    """Two patients, one lost at every threshold: whoever is calibrated on, the other is counted."""
    nodules = ScoredNodules(np.array([0.9, -np.inf]), np.array([0.9, 0.0]), np.arange(2))
    spec = GuaranteeSpec(straight_path(steps=3), report=0.95, alpha=0.95, delta=0.2)
    reached = split_patients(nodules, spec, 50, np.random.default_rng(0))
    assert 0 < reached.promised.mean() < 1
    assert set(reached.miss_rate[reached.promised]) == {1.0}
    assert reached.kept == pytest.approx(1 - reached.promised.mean())
    assert reached.worst == 1.0


def test_the_worst_that_any_set_could_have_had_stands_beside() -> None:
    """One patient of four is lost whatever is tried: half of two, and a quarter of them all."""
    edge = np.array([0.9, 0.9, 0.9, -np.inf])
    nodules, rng = ScoredNodules(edge, edge.clip(0), np.arange(4)), np.random.default_rng(0)
    spec = GuaranteeSpec(straight_path(steps=3), report=0.8, alpha=0.9, delta=0.2)
    for experiment, worst in ((split_patients, 0.5), (draw_patients, 0.25)):
        told = experiment(nodules, spec, 20, rng).as_dict()
        assert told["worst"] == pytest.approx(worst)
        assert told["kept"] == 1.0
        assert told["can_fail"] is False
    never = split_patients(nodules, replace(spec, alpha=0.01), 20, rng).as_dict()
    assert never["promised"] == 0.0
    assert never["can_fail"] is False


def test_level_on_test_patients_by_hand() -> None:
    """Of three patients one loses one of two nodules: a sixth over patients, a quarter pooled."""
    edge, merged = np.array([0.2, 0.6, 0.6, 0.99]), np.array([0.9, 0.9, 0.9, 0.1])
    nodules = ScoredNodules(edge, merged, np.array(["a", "a", "b", "c"]))
    given = Guarantee(0.2, 0.1, 9, "0", True, "", 9)
    found = level(
        nodules, GuaranteeSpec(SPEC.path, 0.97, 0.2), Controlled(0.3, 0.5, given, 0.2, 0.1)
    )
    assert (found["patients"], found["nodules"], found["lost"]) == (3, 4, 1)
    assert found["miss_rate"] == pytest.approx(1 / 6)
    assert found["pooled"] == pytest.approx(1 / 4)
    assert found["kept"]
    assert found["miss_rate_upper"] > 0.5


def test_cost_by_hand() -> None:
    """Of four alarms in two scans two are asked about, one of these and a sure one are reported."""
    none = ScoredNodules(np.ones(1), np.ones(1), np.ones(1))
    alarms = np.array([0.1, 0.5, 0.6, 0.99]), np.array([0.9, 0.2, 0.8, 0.0])
    given = Controlled(0.3, 0.5, Guarantee(0.2, 0.1, 9, "0", True, "", 9), 0.2, 0.1)
    assert cost(Scores(none, *alarms, 2.0, True), SPEC, given) == {
        "escalated_per_scan": 1.0,
        "false_positives_per_scan": 1.0,
    }


def test_the_same_seed_gives_the_same_result() -> None:
    """And another one another."""
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


def test_the_command_says_what_is_promised(tmp_path: Path) -> None:
    """Cases in, guarantee and both experiments out, as JSON and as tables."""
    app = typer.Typer()
    app.command()(guarantee_command)
    files = ["--cases", str(_cases(tmp_path / "val.npz", 300, 1))]
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
    """Neither cases nor cubes, or both, is a mistake of the caller."""
    app = typer.Typer()
    app.command()(guarantee_command)
    assert CliRunner().invoke(app, []).exit_code == 2
    both = ["--cases", str(tmp_path / "a.npz"), "--data", str(tmp_path)]
    assert CliRunner().invoke(app, both).exit_code == 2
