import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from evaluation.accuracy.calibration import (
    Settings,
    as_dict,
    bars,
    calibration,
    changed,
    kept_by_sets,
    listed,
    missed,
    reliability,
)
from models.calibration.cases import Cases
from models.calibration.fit import NODULES_PER_SCAN, fit_settings
from models.calibration.guarantee import stated
from tests.models.calibration.test_fit import made


def fitted(cases: Cases) -> Settings:
    edge, cloud = fit_settings(cases)
    return Settings({**edge, "guarantee": stated(cases, edge, cloud, 0.1)}, cloud)


CASES = made(2000, 8000, scans=80)
SETTINGS = fitted(CASES)


def test_probabilities_that_are_shares_are_seen_to_be() -> None:
    for score in SETTINGS.scores(CASES).values():
        rows = list(reliability(score, CASES))
        assert sum(row["nodules"] + row["false"] for row in rows) == CASES.edge.size
        for row in rows:
            assert row["from"] <= row["mean"] <= row["to"]
            assert row["share"] == pytest.approx(row["mean"], abs=0.2)


def test_a_probability_that_is_no_share_is_seen_too() -> None:
    """Nodules are as frequent as in whole scans: at 0.9 for all, one in 75 is a nodule."""
    (row,) = reliability(np.full(CASES.edge.size, 0.8), CASES)
    weight = NODULES_PER_SCAN * 80 * 2000 / CASES.nodules
    assert row["share"] == pytest.approx(weight / (weight + 8000))


def test_a_threshold_keeps_nodules_and_false_candidates_that_are_not_dismissed() -> None:
    score = SETTINGS.scores(CASES)["edge and cloud"]
    at = listed(score, CASES, SETTINGS, SETTINGS.limits["finding"])
    assert at["nodules"] == CASES.nodules > 2000
    assert 0.8 < at["sensitivity"] < 1
    assert at["false_per_scan"]["high"] > 1 >= at["false_per_scan"]["value"]


def test_findings_that_verdicts_add_and_remove_are_counted() -> None:
    moved = changed(CASES, SETTINGS)
    same = changed(replace(CASES, diameter_mm=np.full(CASES.edge.size, 40.0)), SETTINGS)
    assert moved["nodules_added"] > moved["nodules_removed"]
    assert set(same.values()) == {0}  # masses are left to the edge


def test_misses_stand_beside_the_guarantee() -> None:
    for row in missed(CASES, SETTINGS):
        assert row["number"] == 1000
        assert row["miss_rate"] < row["at_most"]
        assert row["within"]
    _, listed_ones = missed(replace(CASES, missed=CASES.missed * 10), SETTINGS)
    assert not listed_ones["within"]


def test_the_bound_of_drawn_sets_holds_as_often_as_it_says() -> None:
    shares = np.random.default_rng(0).choice([0.0, 0.5, 1.0], 100, p=[0.85, 0.05, 0.1])
    assert kept_by_sets(shares, 0.1, np.random.default_rng(1)) > 0.87


def parts(cases: Cases, *roles: str) -> dict[str, Cases]:
    """The nodules of some cases, and their false candidates as scans of these roles."""

    def of(chosen: Any, missed: tuple[str, ...], scans: int) -> Cases:
        names = ("edge", "cloud", "diameter_mm", "nodule", "owner")
        return Cases(*(getattr(cases, name)[chosen] for name in names), missed, scans)

    false = np.flatnonzero(~cases.nodule)
    split = np.array_split(false, len(roles))
    return {
        "nodules": of(cases.nodule, cases.missed, 0),
        **{role: of(some, (), 4) for role, some in zip(roles, split, strict=True)},
    }


@pytest.fixture(scope="module")
def read() -> dict[str, dict[str, Cases]]:
    return {
        "val": parts(replace(made(), scans=8), "val", "train"),
        "calibration": parts(made(seed=1), "val"),
        "test": parts(made(seed=2), "test"),
    }


def test_the_result_has_every_reader_role_and_list(read: dict[str, dict[str, Cases]]) -> None:
    found = json.loads(json.dumps(as_dict(read, SETTINGS), allow_nan=False))
    assert {one["cases"] for one in found["reliability"]} == {"fitted on", "test"}
    assert {(one["scans"], one["reader"]) for one in found["false_findings"]} == {
        (role, reader) for role in ("val", "train", "test") for reader in ("edge", "edge and cloud")
    }
    assert [one["patients"] for one in found["missed"]] == ["calibration"] * 2 + ["test"] * 2
    assert [one.what for one in bars(found)] == [
        "nodules of test patients missed, findings", "nodules of test patients missed, both lists"
    ]  # fmt: skip
    assert found["reach"]["reported"] == pytest.approx(SETTINGS.limits["finding"], abs=1e-4)
    assert found["reach"]["dismissed"] > found["limits"]["dismiss"]
    for name in ("thresholds", "false_findings", "verdicts", "reliability", "missed"):
        assert calibration.table(name).of(found).cells
