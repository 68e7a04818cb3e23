"""The comparison from cases to JSON, plots and page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import pytest

from cloud.settings import CloudSettings
from edge.settings import EdgeSettings
from evaluation.errors import MissingData
from evaluation.policies import compare, line_up
from evaluation.policy_plot import PLOTS, draw, save_fronts
from evaluation.policy_world import World
from evaluation.trace import find_trace
from tests.evaluation.made_cases import made_cases


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """A comparison on made cases, over a good link and a dead one."""
    world = World(made_cases(), EdgeSettings(), CloudSettings(), every_s=20.0, seed=0)
    field, traces = line_up(world, rounds=1), [find_trace(name) for name in ("fibre", "dead")]
    return compare(world, field, traces, [(t, p) for t in traces for p in field.policies])


def by_name(result: dict[str, Any], trace: str) -> dict[str, dict[str, Any]]:
    """The rows of one trace."""
    rows = next(one["policies"] for one in result["traces"] if one["trace"] == trace)
    return {row["policy"]: row for row in rows}


def test_every_policy_has_its_figures_over_every_trace(result: dict[str, Any]) -> None:
    """And they can be told as JSON."""
    json.dumps(result, allow_nan=False)
    rows = by_name(result, "fibre")
    assert set(rows) == set(by_name(result, "dead")) == set(result["policies"])
    assert {"edge only", "edge only, tuned", "cloud only", "fixed threshold", "fixed pair",
            "fixed threshold, in hindsight", "Sedna threshold", "Sedna entropy",
            "ours", "ours, verdicts only", "oracle"} <= set(rows)  # fmt: skip
    assert (rows["ours"]["studies"], rows["ours"]["nodules"]) == (12, 24)
    assert result["escalation_ratio"]["trace"] == "fibre"


def test_the_ends_and_the_oracle_frame_the_others(result: dict[str, Any]) -> None:
    """Nothing asks less than the edge alone, or finds more for less than who knows the truth."""
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


def test_over_a_dead_link_only_the_patient_are_late(result: dict[str, Any]) -> None:
    """Whatever they find is the edge's own word."""
    rows = by_name(result, "dead")
    late = {name for name, row in rows.items() if row["missed"]}
    assert late <= {"cloud only", "Sedna threshold", "Sedna entropy"}
    assert rows["cloud only"]["missed"] == 12
    assert rows["ours"]["sensitivity"] == rows["edge only"]["sensitivity"]


def test_plots_have_a_panel_for_each_trace_that_differs(
    result: dict[str, Any], tmp_path: Path
) -> None:
    """Over a dead link nobody's regions arrive: it has a panel only where answers are late."""
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
