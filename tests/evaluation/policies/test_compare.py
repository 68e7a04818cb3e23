import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cloud.settings import CloudSettings
from edge.decide import Plan
from edge.settings.core import EdgeSettings
from evaluation.errors import MissingData
from evaluation.links.trace import find_trace
from evaluation.policies.compare import (
    OPPONENTS,
    OURS,
    VERDICTS,
    by_patient,
    collaboration,
    compare,
    described,
    more_than_edge,
    ratios,
)
from evaluation.policies.plots import PLOTS, draw, save_fronts
from evaluation.policies.simulate import Outcome, World
from tests.evaluation.made_cases import THRESHOLDS, made_cases, sighting, study
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
            "fixed pair, in hindsight", "Sedna threshold", "Sedna entropy",
            "ours", "ours, verdicts only", "oracle"} <= set(rows)  # fmt: skip
    assert (rows["ours"]["studies"], rows["ours"]["nodules"]) == (14, 26)
    assert (rows["ours"]["real"]["nodules"], rows["ours"]["semi_synthetic"]["nodules"]) == (2, 24)
    assert result["escalation_ratio"]["trace"] == "fibre"


def test_false_positives_of_a_scan_count_once(result: dict[str, Any]) -> None:
    """However many copies there are: those of the edge alone are those of the two real scans."""
    alone = sum(result["sets"]["test"]["false_positives"].values()) / 2
    assert by_name(result, "fibre")["edge only"]["false_positives_per_scan"] == alone > 0


def test_the_ends_and_the_oracle_frame_the_others(result: dict[str, Any]) -> None:
    rows = by_name(result, "fibre")
    assert rows["edge only"]["bytes_per_scan"] == 0
    assert rows["cloud only"]["escalated_share"] == 1.0
    assert rows["oracle"]["sensitivity"] >= rows["ours"]["sensitivity"]
    assert rows["oracle"]["rois_per_scan"] < rows["ours"]["rois_per_scan"]
    hindsight, fitted = rows["fixed pair, in hindsight"], rows["ours"]
    assert hindsight["sensitivity"] >= fitted["sensitivity"]
    assert rows["edge only, tuned"]["bytes_per_scan"] == 0
    low, high = fitted["sensitivity_interval"]
    assert low < fitted["sensitivity"] < high


def test_over_a_dead_link_only_policies_without_deadline_are_late(result: dict[str, Any]) -> None:
    rows = by_name(result, "dead")
    late = {name for name, row in rows.items() if row["missed"]}
    assert late <= {"cloud only", "Sedna threshold", "Sedna entropy"}
    assert rows["cloud only"]["missed"] == 14
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


ROWS = {
    one["policy"]: one
    for one in (
        row("ours", 0.95, 2.0, 4.0, 400.0),
        row("ours, verdicts only", 0.95, 2.0, 2.0, 200.0),
        row("cloud only", 0.95, 3.0, 20.0, 2000.0),
        row("fixed threshold", 0.97, 2.0, 8.0, 1000.0),
        row("fixed pair, in hindsight", 0.95, 1.0, 5.0, 500.0),
        row("fixed pair", 0.94, 2.0, 1.0, 100.0),
        row("edge only, tuned", 0.95, 2.0, 0.0, 0.0),
        row("Sedna entropy", 0.95, 2.1, 1.0, 100.0),
    )
}


def test_ours_is_compared_with_each_kind() -> None:
    """The limit holds for ROIs and bytes."""
    asked = ratios({"fibre": ROWS}, OURS)["fibre"]
    assert {key: one["rois"] for key, one in asked.items()} == {
        "cloud": 0.2, "single": 0.5, "pair": 4.0, "cut": None, "sedna": 4.0, "hindsight": 0.8
    }  # fmt: skip
    assert asked["single"]["bytes"] == 0.4
    assert [key for key, one in asked.items() if one["met"]] == ["cloud", "single"]
    assert [key for key, one in asked.items() if one["as_good"]] == ["single", "cut", "hindsight"]
    assert ratios({"fibre": ROWS}, VERDICTS)["fibre"]["hindsight"]["met"]
    over = ratios({"fibre": ROWS | {"ours": row("ours", 0.95, 2.0, 4.0, 501.0)}}, OURS)
    assert not over["fibre"]["single"]["met"]


@pytest.mark.parametrize(
    ("found", "sent", "met"), [(0.95, 700.0, True), (0.94, 700.0, False), (0.96, 701.0, False)]
)
def test_ours_must_find_what_cloud_only_finds_with_a_third_of_its_bytes(
    found: float, sent: float, met: bool
) -> None:
    of = ratios({"fibre": ROWS | {"ours": row("ours", found, 2.0, 4.0, sent)}}, OURS)
    assert (of["fibre"]["cloud"]["met"], of["fibre"]["cloud"]["at_least"]) == (met, found >= 0.95)


def test_an_opponent_that_sends_nothing_differs_from_one_that_was_not_run() -> None:
    told = ratios({"dead": ROWS}, OURS)["dead"]["cut"]
    assert (told["rois"], told["escalates"], told["ours_escalates"]) == (None, False, True)
    assert (told["as_good"], told["met"]) == (True, False)
    alone = {"dead": {"ours": ROWS["ours"]}}
    assert ratios(alone, OURS)["dead"] == dict.fromkeys(OPPONENTS)


def test_what_verdicts_change_is_counted_and_judged() -> None:
    """At 0.5 one false positive goes and two nodules come; uncertain are 0.2 to 0.5.

    An ignored candidate is uncertain, and is neither right nor wrong.
    """
    told = collaboration([STUDY], THRESHOLDS)
    assert told == {
        "uncertain_per_scan": 3.0,
        "changed": 3,
        "right": 3,
        "nodules": {"uncertain": 2, "removed": 0, "added": 2},
        "false": {"uncertain": 1, "removed": 1, "added": 0},
    }
    wrong = study(
        sighting(0.55, 0.05, "a"), sighting(0.25, 0.99), sighting(0.5, 0.01, ignored=True),
        nodules="a",
    )  # fmt: skip
    told = collaboration([STUDY, wrong], THRESHOLDS)
    assert (told["uncertain_per_scan"], told["changed"], told["right"]) == (3.0, 5, 3)
    assert collaboration([], THRESHOLDS)["uncertain_per_scan"] is None


def test_a_split_is_described_by_its_real_scans_and_what_was_inserted() -> None:
    studies = made_cases().of("test")
    told = described(studies, THRESHOLDS)
    assert told["scans"] == ["test scan 0", "test scan 1"]
    assert (told["nodules"], told["semi_synthetic_scans"], told["inserted"]) == (2, 12, 24)
    assert told["patients"] == 12
    scan = studies[0]
    expected = [one for one in scan.sightings if one.score >= 0.5 and one.is_false]
    assert told["false_positives"]["test scan 0"] == len(expected) > 0
    assert told["semi_synthetic"]["false"]["uncertain"] == 0
    assert told["auc_both"] > told["auc_edge"] > 0.5


def told(patient: str, found: set[str], false: int = 0) -> Outcome:
    one = replace(STUDY, nodules=dict.fromkeys(STUDY.nodules, patient))
    return Outcome(one, Plan(()), 1.0, {}, found, false, rois=0, sent_bytes=0)


def share_of(outcomes: list[Outcome]) -> tuple[float, float, float]:
    found = [float(name in one.found) for one in outcomes for name in one.study.nodules]
    share = by_patient(outcomes, np.array(found))
    return share.value, share.low, share.high


def test_patients_are_drawn_not_nodules() -> None:
    """More of them narrow the interval: half of twenty found is about 0.5 +- 0.22.

    One patient says little: the limits are those of one of one.
    """
    assert share_of([told("a", {"a", "b"})] * 3) == pytest.approx((0.5, 0.0125, 0.9875))
    every = set(STUDY.nodules)
    assert share_of([told("a", every), told("b", set())]) == (0.5, 0.0, 1.0)
    _, low, high = share_of([told(str(i), every if i % 2 else set()) for i in range(20)])
    assert (low, high) == (pytest.approx(0.28, abs=0.04), pytest.approx(0.72, abs=0.04))


@pytest.mark.parametrize(
    ("false", "edge"), [(0, 0.25), (1, 0.75), (2, 0.75), (9, 0.75)], ids=["0", "1", "2", "all"]
)
def test_the_edge_is_compared_at_as_many_false_positives(false: int, edge: float) -> None:
    """The edge ranks a, false, b, c, false: with no false positive it finds one of four."""
    gain = more_than_edge([told("p", {"a", "b", "c"}, false)])
    assert (gain["edge"], gain["value"]) == (edge, 0.75 - edge)


def test_between_two_thresholds_the_edge_is_interpolated() -> None:
    """The same false positive in two runs counts twice; ours has one, so half of the gain."""
    gain = more_than_edge([told("p", {"a", "b", "c"}, 1), told("p", {"a", "b", "c"}, 0)])
    assert gain["edge"] == 0.5
