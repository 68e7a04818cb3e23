import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest

from cloud.settings import CloudSettings
from edge.decide import Plan, Thresholds
from edge.settings import EdgeSettings
from evaluation.errors import MissingData
from evaluation.links.trace import find_trace
from evaluation.policies.compare import (
    OPPONENTS,
    by_patient,
    compare,
    escalation_ratio,
    evidence,
    false_positives,
)
from evaluation.policies.plots import PLOTS, draw, save_fronts
from evaluation.policies.simulate import Outcome, World
from tests.evaluation.made_cases import THRESHOLDS, made_cases
from tests.evaluation.policies.test_routing import STUDY


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    world = World(made_cases(), EdgeSettings(), CloudSettings(), every_s=20.0, seed=0)
    return compare(world, [find_trace(name) for name in ("fibre", "dead")], rounds=1)


def by_name(result: dict[str, Any], trace: str) -> dict[str, dict[str, Any]]:
    rows = next(one["policies"] for one in result["traces"] if one["trace"] == trace)
    return {row["policy"]: row for row in rows}


def test_every_policy_has_its_figures_over_every_trace(result: dict[str, Any]) -> None:
    json.dumps(result, allow_nan=False)
    rows = by_name(result, "fibre")
    assert set(rows) == set(by_name(result, "dead")) == set(result["policies"])
    assert {"edge only", "edge only, tuned", "cloud only", "fixed threshold", "fixed pair",
            "fixed threshold, in hindsight", "Sedna threshold", "Sedna entropy",
            "ours", "ours, verdicts only", "oracle"} <= set(rows)  # fmt: skip
    assert (rows["ours"]["studies"], rows["ours"]["nodules"]) == (12, 24)
    assert result["escalation_ratio"]["trace"] == "fibre"


def test_the_ends_and_the_oracle_frame_the_others(result: dict[str, Any]) -> None:
    rows = by_name(result, "fibre")
    assert rows["edge only"]["bytes_per_scan"] == 0
    assert rows["cloud only"]["escalated_share"] == 1.0
    assert rows["oracle"]["sensitivity"] >= rows["ours"]["sensitivity"]
    assert rows["oracle"]["rois_per_scan"] < rows["ours"]["rois_per_scan"]
    hindsight, fitted = rows["fixed threshold, in hindsight"], rows["ours"]
    assert hindsight["sensitivity"] >= fitted["sensitivity"]
    assert rows["edge only, tuned"]["bytes_per_scan"] == 0
    low, high = fitted["sensitivity_interval"]
    assert low < fitted["sensitivity"] < high


def test_over_a_dead_link_only_policies_without_deadline_are_late(result: dict[str, Any]) -> None:
    rows = by_name(result, "dead")
    late = {name for name, row in rows.items() if row["missed"]}
    assert late <= {"cloud only", "Sedna threshold", "Sedna entropy"}
    assert rows["cloud only"]["missed"] == 12
    assert rows["ours"]["sensitivity"] == rows["edge only"]["sensitivity"]


def test_plots_have_a_panel_for_each_trace_that_differs(
    result: dict[str, Any], tmp_path: Path
) -> None:
    save_fronts(result, tmp_path / "plots")
    for name in PLOTS:
        picture = cv2.imread(str(tmp_path / "plots" / f"policies_{name}.png"))
        assert picture is not None
        assert picture.shape == (470, 1260, 3)
        drawn = [axes.axison for axes in draw(result, name).axes]
        assert drawn == [True, name == "p95", False]
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(MissingData):
        save_fronts(result, file)


def row(policy: str, *figures: float) -> dict[str, Any]:
    """Sensitivity, false positives, ROIs and bytes of a policy."""
    names = ("sensitivity", "false_positives_per_scan", "rois_per_scan", "bytes_per_scan")
    return {"policy": policy, **dict(zip(names, figures, strict=True))}


ROWS = [
    row("ours", 0.95, 2.0, 4.0, 400.0),
    row("ours, verdicts only", 0.95, 2.0, 2.0, 200.0),
    row("fixed threshold", 0.97, 2.0, 8.0, 1000.0),
    row("fixed threshold, in hindsight", 0.95, 1.0, 5.0, 500.0),
    row("fixed pair", 0.94, 2.0, 1.0, 100.0),
    row("edge only, tuned", 0.95, 2.0, 0.0, 0.0),
    row("Sedna entropy", 0.95, 2.1, 1.0, 100.0),
]


def test_ours_is_compared_with_each_kind() -> None:
    """The limit holds for ROIs and bytes."""
    ratio = escalation_ratio({"fibre": ROWS, "dsl": ROWS[:3]})
    asked = ratio["characterized"]["fibre"]
    assert {key: one["rois"] for key, one in asked.items()} == {
        "single": 0.5, "pair": 4.0, "cut": None, "sedna": 4.0, "hindsight": 0.8}  # fmt: skip
    assert asked["single"]["bytes"] == 0.4
    assert [key for key, one in asked.items() if one["met"]] == ["single"]
    assert [key for key, one in asked.items() if one["as_good"]] == ["single", "cut", "hindsight"]
    assert ratio["verdicts"]["fibre"]["hindsight"]["met"]
    over = escalation_ratio({"fibre": [row("ours", 0.95, 2.0, 4.0, 501.0), *ROWS[1:]]})
    assert not over["characterized"]["fibre"]["single"]["met"]
    assert over["verdicts"]["fibre"]["single"]["met"]


def test_an_opponent_that_sends_nothing_differs_from_one_that_was_not_run() -> None:
    ratio = escalation_ratio({"dead": ROWS})
    told = ratio["characterized"]["dead"]["cut"]
    assert (ratio["trace"], told["rois"], told["escalates"], told["ours_escalates"]) == (
        "dead", None, False, True)  # fmt: skip
    assert (told["as_good"], told["met"]) == (True, False)
    alone = escalation_ratio({"dead": ROWS[:1]})
    assert alone["characterized"]["dead"] == dict.fromkeys(OPPONENTS)
    assert alone["verdicts"]["dead"] == dict.fromkeys(OPPONENTS)


def test_evidence_counts_what_verdicts_change() -> None:
    """At 0.3 alone one false positive goes and one nodule comes; escalated are 0.2 to 0.5."""
    told = evidence([STUDY], THRESHOLDS)
    assert told["escalated"] == {
        "nodules": {"candidates": 2, "taken_away": 0, "brought_back": 1},
        "false": {"candidates": 1, "taken_away": 1, "brought_back": 0},
    }
    assert (told["auc_edge"], told["auc_both"]) == (4 / 6, 1.0)
    narrow = Thresholds(0.45, 0.55, 0.45, 0.5)
    assert evidence([STUDY], narrow)["escalated"]["nodules"]["candidates"] == 0


def test_false_positives_are_those_of_the_scan_itself() -> None:
    cases = made_cases()
    told = false_positives(cases, "test")
    assert set(told) == {"test scan 0", "test scan 1"}
    scan = cases.of("test")[0]
    expected = [one for one in scan.sightings if one.score >= 0.3 and not one.nodule]
    assert told["test scan 0"] == len(expected) > 0
    quiet = replace(scan, sightings=tuple(replace(one, ignored=True) for one in scan.sightings))
    assert false_positives(replace(cases, pieces=(quiet,)), "test") == {"test scan 0": 0}


def told(patient: str, found: set[str]) -> Outcome:
    study = replace(STUDY, patient=patient)
    return Outcome(study, Plan(()), 1.0, {}, found, 0, rois=0, sent_bytes=0)


def test_patients_are_drawn_not_nodules() -> None:
    """More of them narrow the interval: half of twenty found is about 0.5 +- 0.22."""
    alone = by_patient([told("a", {"a", "b"})] * 3)
    assert (alone.value, alone.low, alone.high) == (0.5, 0.5, 0.5)
    both = by_patient([told("a", {"a", "b", "c", "never proposed"}), told("b", set())])
    assert (both.value, both.low, both.high) == (0.5, 0.0, 1.0)
    many = by_patient([told(str(i), set(STUDY.nodules) if i % 2 else set()) for i in range(20)])
    assert (many.low, many.high) == (pytest.approx(0.28, abs=0.04), pytest.approx(0.72, abs=0.04))
