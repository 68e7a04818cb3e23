import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from edge.settings.core import load_settings
from evaluation.accuracy.readers import Agent
from evaluation.accuracy.truth import Lesion, Truth
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
    Studies,
    against,
    bars,
    compare,
    more_than_edge,
    read_studies,
    run,
    search,
)
from tests.evaluation.plain_chest import chest, in_lung
from tests.evaluation.scripted_screen import ScriptedScreening, ScriptedSecond

LIMITS = DISMISS, FINAL, REPORT = 0.15, 0.5, 0.85
Row = tuple[float, float, int]
"""Score of the edge, merged score, and number of the nodule in its study: -1 none, -2 ignored."""


def studies(*each: tuple[Sequence[Row], str, bool]) -> Studies:
    """Studies of rows, the patient of each nodule as a letter, and whether they are real."""
    rows, patients, home = [], list[str](), list[int]()
    for number, (own, owners, real) in enumerate(each):
        for edge, both, nodule in own:
            hit = len(patients) + nodule if nodule >= 0 else -1
            rows.append((number, edge, both, hit, real and nodule == -1))
        patients += owners
        home += [number] * len(owners)
    study, edge, both, nodule, false = np.array(rows, float).reshape(-1, 5).T
    return Studies(
        study.astype(int), edge, both, nodule.astype(int), false > 0, tuple(patients),
        np.array(home, int), np.array([real for _, _, real in each]),
    )  # fmt: skip


ROWS = ((0.9, 0.95, 0), (0.5, 0.3, -1), (0.45, 0.6, 1), (0.25, 0.7, 2), (0.1, 0.2, -1))
FOUR = studies((ROWS, "abcd", True))
"""Four nodules, one of them without a candidate, and two false candidates."""


def made(copies: int = 12, false: int = 20, seed: int = 0) -> Studies:
    """Two scans with a nodule each, and copies with two nodules of a patient; all drawn."""
    rng = random.Random(seed)
    found: list[tuple[Sequence[Row], str, bool]] = []
    for i in range(2):
        rows = [(rng.uniform(0.05, 0.6), rng.uniform(0.0, 0.5), -1) for _ in range(false)]
        found.append(((*rows, (0.9, 0.95, 0)), f"{i}", True))
    for i in range(copies):
        pair = [(rng.random(), rng.uniform(0.4, 1.0), n) for n in range(2)]
        found.append((pair, chr(65 + i) * 2, False))
    return studies(*found)


def figures(policy: Policy, of: Studies = FOUR) -> tuple[int, int, int]:
    """Nodules found, false positives and ROIs."""
    one = run(policy, of, FINAL)
    return int(one.found.sum()), one.false, one.rois


def aim(found: int, false: int, rois: int = 0) -> Outcome:
    return Outcome(np.ones(found, bool), false, rois)


def test_what_a_policy_reaches_is_counted() -> None:
    """Of four nodules one has no candidate; one false positive is removed by the cloud."""
    assert figures(Policy(0.3, 0.95)) == (2, 0, 3)
    assert figures(Policy(0.05, 0.05)) == (3, 2, 0)
    assert figures(Policy(0.3, 0.48, characterize=True)) == (2, 1, 3)


def test_the_exact_search_agrees_with_running_each_pair() -> None:
    of = made(copies=6, false=8)
    searched = search(of, FINAL)
    ends = np.append((searched.bounds[:-2] + searched.bounds[1:-1]) / 2, NO_TOP)
    for i, low in enumerate(ends):
        for j, high in enumerate(ends[i:], i):
            shortcut = searched.found[i, j], searched.false[i, j], searched.rois[i, j]
            assert figures(Policy(low, high), of) == shortcut


@pytest.mark.parametrize("seed", range(10))
def test_random_thresholds_are_never_better(seed: int) -> None:
    rng, of = random.Random(seed), made(copies=8, seed=seed)
    searched = search(of, FINAL)
    for _ in range(10):
        low, high = sorted((rng.random(), rng.random()))
        own, single = (run(Policy(low, top), of, FINAL) for top in (high, NO_TOP))
        if own.rois:
            found, false, rois = figures(searched.pair(own), of)
            assert found >= own.found.sum()
            assert (false <= own.false, rois <= own.rois) == (True, True)
        assert figures(searched.single(single), of)[2] <= single.rois
        assert figures(searched.cut(run(Policy(low, low), of, FINAL)), of)[2] == 0


def test_ties_go_to_the_middle_of_the_widest_range() -> None:
    """A cut from above 0.55 up to 0.9 does as well."""
    rows = ((0.9, 0.9, 0), (0.8, 0.1, -1), (0.6, 0.1, -1), (0.55, 0.1, -1))
    searched = search(studies((rows, "a", True)), FINAL)
    assert searched.cut(aim(1, 2)).low == pytest.approx(0.725)
    pair = searched.pair(aim(1, 1))
    assert (pair.low, pair.high) == pytest.approx((0.7, 0.85))
    single = searched.single(aim(1, 0))
    assert (single.low, single.high) == (pytest.approx(0.85), NO_TOP)


def test_without_thresholds_that_reach_the_aim_the_nearest_are_chosen() -> None:
    searched = search(FOUR, FINAL)
    assert figures(searched.cut(aim(4, 0))) == (1, 0, 0)
    assert figures(searched.single(aim(4, 0)))[0] == 3
    assert figures(searched.pair(aim(4, -1)))[0] == 3


def test_pairs_that_do_as_well_with_less_are_counted() -> None:
    """Any pair around one of five candidates sends one; none sends less."""
    searched = search(FOUR, FINAL)
    assert searched.better(aim(0, 9, 2))[0] == 5
    assert searched.better(aim(0, 9, 1))[0] == 0


def test_without_a_candidate_nothing_can_be_chosen() -> None:
    with pytest.raises(EvaluationError, match="no candidate"):
        search(studies(((), "", True)), FINAL)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    found = compare(made(seed=1), made(), LIMITS, 48**3)
    return dict(json.loads(json.dumps(found, allow_nan=False)))


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
    for name in ("policies", "against"):
        assert lesion_insertion.table(name).of(result).cells
    of = made()  # the false positives of two real scans count once, however many copies there are
    alone = (of.false & (of.edge >= FINAL)).sum() / 2
    assert rows[EDGE]["false_positives_per_scan"] == alone > 0


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


@pytest.mark.parametrize(("false", "edge"), [(0, 0.25), (1, 0.75), (2, 0.75)])
def test_the_edge_is_compared_at_as_many_false_positives(false: int, edge: float) -> None:
    """The edge ranks a, false, b, c, false: with no false positive it finds one of four."""
    found = Outcome(np.array([True, True, True, False]), false, 0)
    gain = more_than_edge(found, FOUR)
    assert (gain["edge"], gain["value"]) == (edge, 0.75 - edge)


def test_studies_are_read_by_edge_and_cloud() -> None:
    """In a copy nothing is false; a study has no more candidates than ROIs may be sent."""
    places = [(in_lung(0), 0.95), (in_lung(1), 0.4), (in_lung(1, 20.0), 0.3), (in_lung(1), 0.001)]
    settings = load_settings(cloud__max_rois=2)
    agent = Agent(ScriptedScreening(places), ScriptedSecond(), settings)
    truth = Truth((Lesion(in_lung(1), 8.0),), role="test")
    scans = [(chest(), truth.lesions, ["a"], truth), (chest(), truth.lesions, ["b"], None)]
    found = read_studies(scans, 2, agent)
    assert found.edge.tolist() == [0.95, 0.4] * 2
    assert found.study.tolist() == [0, 0, 1, 1]
    assert found.nodule.tolist() == [-1, 0, -1, 1]
    assert found.false.tolist() == [True, False, False, False]
    assert (found.patients, found.home.tolist()) == (("a", "b"), [0, 1])
    assert found.real.tolist() == [True, False]
    lung = 150 / 1400  # the second reader sees lung of -850 HU everywhere
    assert found.both[0] == pytest.approx(agent.weights.merged(0.95, lung, 6.0), abs=0.01)
