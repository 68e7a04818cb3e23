import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edge.settings.core import EdgeSettings
from evaluation.accuracy.readers import Agent, Stage
from evaluation.accuracy.truth import Lesion, Truth
from evaluation.accuracy.whole import read_box
from evaluation.errors import EvaluationError
from evaluation.lesion_insertion.command import lesion_insertion
from evaluation.lesion_insertion.policies import (
    CLOUD,
    EDGE,
    FIXED,
    NO_TOP,
    OURS,
    PAIR,
    TUNED,
    VERDICTS,
    Outcome,
    Policy,
    Reached,
    Study,
    against,
    band,
    bars,
    collaboration,
    compare,
    more_than_edge,
    outcome,
    reach,
    search,
    study_of,
)
from imaging.preprocess import Preprocessed
from imaging.volume import Geometry, UInt8Array
from models.runtime.second_reader import Readings
from tests.evaluation.scripted_screen import ScriptedScreening
from tests.plain_readings import plain

LIMITS = DISMISS, FINAL, REPORT = 0.15, 0.5, 0.85
MOST = 64

Row = tuple[float, float, int]
"""Score of the edge, merged score, and number of the nodule: -1 none, -2 ignored."""


def study(*rows: Row, patients: str = "", real: bool = True) -> Study:
    """A study whose agent sends what is uncertain, and reports by the merged score."""
    edge, both = (np.array([row[i] for row in rows], float) for i in (0, 1))
    nodule = np.array([row[2] for row in rows], np.int64).reshape(-1)
    sent = (edge >= DISMISS) & (edge < REPORT)
    reported = (edge >= REPORT) | (sent & (both >= FINAL))
    return Study(
        real, tuple(patients), edge, both, np.where(nodule >= 0, nodule, -1),
        (nodule == -1) & real, reported, sent | (edge >= REPORT), sent, 48**3,
    )  # fmt: skip


STUDY = study(
    (0.9, 0.95, 0), (0.5, 0.3, -1), (0.45, 0.6, 1), (0.25, 0.7, 2), (0.1, 0.2, -1), patients="abcd"
)
"""Four nodules, one of them without a candidate, and two false candidates."""


def made(copies: int = 12, false: int = 20, seed: int = 0) -> list[Study]:
    """Two scans with a nodule each, and copies with two nodules of a patient; all drawn."""
    rng = random.Random(seed)
    studies = []
    for i in range(2):
        rows = [(rng.uniform(0.05, 0.6), rng.uniform(0.0, 0.5), -1) for _ in range(false)]
        studies.append(study((0.9, 0.95, 0), *sorted(rows, reverse=True), patients=f"{i}"))
    for i in range(copies):
        found = sorted(((rng.random(), rng.uniform(0.4, 1.0), n) for n in range(2)), reverse=True)
        studies.append(study(*found, patients=chr(65 + i) * 2, real=False))
    return studies


def run(policy: Policy, studies: Sequence[Study] = (STUDY,)) -> Reached:
    return reach([outcome(one, policy, FINAL, MOST) for one in studies])


def test_what_a_policy_reaches_is_counted() -> None:
    """Of four nodules one has no candidate; one false positive is removed by the cloud."""
    assert run(band(0.3, 0.95)) == Reached(0.5, 0.0, 3.0)
    assert run(band(0.05, 0.05)) == Reached(0.75, 2.0, 0.0)
    few = outcome(STUDY, band(0.0, NO_TOP), FINAL, 2)
    assert few.sent.tolist() == [True, True, False, False, False]
    assert few.findings.tolist() == [True, False, False, False, False]


STUDIES = [*made(copies=6, false=8), STUDY]


def test_the_exact_search_agrees_with_running_each_pair() -> None:
    searched = search(STUDIES, FINAL)
    ends = np.append((searched.bounds[:-2] + searched.bounds[1:-1]) / 2, NO_TOP)
    for i, low in enumerate(ends):
        for j, high in enumerate(ends[i:], i):
            shortcut = searched.sensitivity[i, j], searched.false[i, j], searched.rois[i, j]
            own = run(band(low, high), STUDIES)
            assert (own.sensitivity, own.false, own.rois) == pytest.approx(shortcut)


@pytest.mark.parametrize("seed", range(10))
def test_random_thresholds_are_never_better(seed: int) -> None:
    rng, studies = random.Random(seed), made(copies=8, seed=seed)
    searched = search(studies, FINAL)
    for _ in range(10):
        low, high = sorted((rng.random(), rng.random()))
        own, single = run(band(low, high), studies), run(band(low, NO_TOP), studies)
        if own.rois:
            chosen = run(searched.pair(own), studies)
            assert chosen.sensitivity >= own.sensitivity
            assert chosen.false <= own.false
            assert chosen.rois <= own.rois
        assert run(searched.single(single), studies).rois <= single.rois
        assert run(searched.cut(run(band(low, low), studies)), studies).rois == 0


def test_ties_go_to_the_middle_of_the_widest_range() -> None:
    """A cut from above 0.55 up to 0.9 does as well."""
    rows = ((0.9, 0.9, 0), (0.8, 0.1, -1), (0.6, 0.1, -1), (0.55, 0.1, -1))
    searched = search([study(*rows, patients="a")], FINAL)
    asked = np.linspace(0, 1, 401)
    probe = study(*((float(s), 1.0, -1) for s in asked[::-1]))

    def limits(policy: Policy) -> tuple[float, float]:
        """The lower and the upper threshold of a policy, from what it escalates and reports."""
        escalated, reported = policy(probe)
        either = probe.edge[escalated | reported]
        return float(either.min(initial=9)), float(probe.edge[reported].min(initial=9))

    assert limits(searched.cut(Reached(1.0, 2.0, 1.0)))[0] == pytest.approx(0.725, abs=0.003)
    assert limits(searched.pair(Reached(1.0, 1.0, 1.0))) == pytest.approx((0.7, 0.85), abs=0.003)
    single = limits(searched.single(Reached(1.0, 0.0, 1.0)))
    assert single == (pytest.approx(0.85, abs=0.003), 9)


def test_pairs_that_do_as_well_with_less_are_counted() -> None:
    """Any pair around one of five candidates sends one; none sends less."""
    searched = search([STUDY], FINAL)
    assert searched.better(Reached(0.0, 9.0, 2.0))[0] == 5
    assert searched.better(Reached(0.0, 9.0, 1.0))[0] == 0


def test_without_a_candidate_nothing_can_be_chosen() -> None:
    with pytest.raises(EvaluationError, match="no candidate"):
        search([study()], FINAL)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    found = compare(made(seed=1), made(), LIMITS, MOST)
    return {**json.loads(json.dumps(found, allow_nan=False)), "remark": "", "not_placed": "none"}


def test_every_policy_has_its_figures(result: dict[str, Any]) -> None:
    rows = {row["policy"]: row for row in result["policies"]}
    assert list(rows) == [EDGE, CLOUD, TUNED, FIXED, PAIR, VERDICTS, OURS]
    assert rows[EDGE]["rois_per_scan"] == rows[TUNED]["kilobytes_per_scan"] == 0
    assert rows[CLOUD]["escalated_share"] == 1.0
    assert rows[VERDICTS]["rois_per_scan"] < rows[OURS]["rois_per_scan"]
    assert rows[OURS]["kilobytes_per_scan"] == pytest.approx(
        rows[OURS]["rois_per_scan"] * 48**3 / 1000
    )
    share = rows[OURS]["sensitivity"]
    assert share["low"] < share["value"] < share["high"]
    for name in ("policies", "against", "sets"):
        assert lesion_insertion.table(name).of(result).cells


def test_false_positives_of_a_scan_count_once(result: dict[str, Any]) -> None:
    """However many copies there are: those of the edge alone are those of the two real scans."""
    real = [one for one in made() if one.real]
    alone = sum(int((one.false & (one.edge >= FINAL)).sum()) for one in real) / 2
    assert result["policies"][0]["false_positives_per_scan"] == alone > 0
    kinds = {one["scans"]: one for one in result["sets"]}
    assert (kinds["test, real"]["number"], kinds["test, semi-synthetic"]["nodules"]) == (2, 24)
    assert kinds["test, semi-synthetic"]["patients"] == 12
    assert kinds["val, semi-synthetic"]["false_removed"] == 0


def row(policy: str, found: float, false: float, rois: float) -> dict[str, Any]:
    return {"policy": policy, "sensitivity": {"value": found}, "false_positives_per_scan": false,
            "rois_per_scan": rois}  # fmt: skip


@pytest.mark.parametrize(
    ("other", "ratio", "met"),
    [
        (row(CLOUD, 0.95, 3.0, 20.0), 0.2, True),
        (row(CLOUD, 0.96, 3.0, 20.0), 0.2, False),
        (row(CLOUD, 0.95, 3.0, 11.0), 4 / 11, False),
        (row(FIXED, 0.97, 2.0, 8.0), 0.5, True),
        (row(PAIR, 0.95, 1.0, 5.0), 0.8, False),
        (row(TUNED, 0.95, 2.0, 0.0), None, False),
        (row(TUNED, 0.94, 2.0, 0.0), None, True),
    ],
)
def test_ours_is_held_to_a_bar_against_each(
    other: dict[str, Any], ratio: float | None, met: bool
) -> None:
    """Cloud only must be matched with a third of its bytes; what sends nothing must find less."""
    found = against(row(OURS, 0.95, 2.0, 4.0), other)
    assert found["ratio"] == ratio
    (bar,) = bars({"against": [found]})
    assert bar.met is met


def test_what_verdicts_change_is_counted_and_judged() -> None:
    """At 0.5 one false positive goes and two nodules come; uncertain are 0.15 to 0.85.

    An ignored candidate is uncertain, and is neither right nor wrong.
    """
    found = collaboration([STUDY], LIMITS)
    assert (found["uncertain_per_scan"], found["changed"], found["right"]) == (3.0, 3, 3)
    assert (found["nodules_added"], found["false_removed"]) == (2, 1)
    wrong = study((0.55, 0.2, 0), (0.5, 0.01, -2), (0.25, 0.99, -1), patients="a")
    found = collaboration([STUDY, wrong], LIMITS)
    assert (found["uncertain_per_scan"], found["changed"], found["right"]) == (3.0, 5, 3)


def told(*findings: int, false: bool = False) -> Outcome:
    """A report of the study with these nodules, and with its first false candidate."""
    listed = np.isin(STUDY.nodule, findings) | (np.arange(5) == 1) * false
    return Outcome(STUDY, np.asarray(listed, bool), np.zeros(5, bool))


@pytest.mark.parametrize(("false", "edge"), [(False, 0.25), (True, 0.75)])
def test_the_edge_is_compared_at_as_many_false_positives(false: bool, edge: float) -> None:
    """The edge ranks a, false, b, c, false: with no false positive it finds one of four."""
    gain = more_than_edge([told(0, 1, 2, false=false)])
    assert (gain["edge"], gain["value"]) == (edge, 0.75 - edge)


def test_between_two_thresholds_the_edge_is_interpolated() -> None:
    """The same false positive in two runs counts twice; ours has one, so half of the gain."""
    assert more_than_edge([told(0, 1, 2, false=True), told(0, 1, 2)])["edge"] == 0.5


class Second:
    """Reads the brightness in the middle of an ROI as the probability."""

    roi_shape = (48, 48, 48)

    def read(self, batch: UInt8Array) -> Readings:
        middle = batch[:, 22:27, 22:27, 22:27].max(axis=(1, 2, 3))
        return plain(middle / 255, [7.0] * len(batch))


def test_a_study_has_what_the_agent_sends_and_reports() -> None:
    """What the edge is sure of is sent for size and type, and not for a verdict."""
    places = [((20.0, 20.0, 20.0), 0.95), ((60.0, 20.0, 20.0), 0.4), ((20.0, 60.0, 20.0), 0.05)]
    box = Preprocessed(np.zeros((80, 80, 80), np.uint8), Geometry())
    box.voxels[20, 20, [20, 60]] = 250
    agent = Agent(ScriptedScreening(places), Second(), EdgeSettings())
    truth = Truth((Lesion(places[1][0], 8.0),), role="test")
    scan = read_box("scan", truth, box, agent, Stage.BOTH)
    found = study_of(scan, ["scan"], real=True, side=48)
    assert found.nodule.tolist() == [-1, 0, -1]
    assert found.false.tolist() == [True, False, True]
    assert found.reported.tolist() == [True, True, False]
    assert found.sent.tolist() == [True, True, False]
    assert found.asked.tolist() == [False, True, False]
    assert not study_of(scan, ["scan"], real=False, side=48).false.any()
    with pytest.raises(EvaluationError, match="refused"):
        study_of(replace(scan, reading=None, refused="NoLung: none"), [], real=True, side=48)
