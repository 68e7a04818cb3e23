import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from edge.settings.core import EdgeSettings
from evaluation.__main__ import app
from evaluation.accuracy import whole as module
from evaluation.accuracy.readers import Agent, Stage
from evaluation.accuracy.truth import Lesion, Truth
from evaluation.accuracy.whole import (
    OUTSIDE,
    Counts,
    WholeScan,
    as_dict,
    groups_of,
    nodule_row,
    outside_row,
    read_box,
    scan_row,
    whole,
)
from imaging.preprocess import Preprocessed, preprocess
from imaging.volume import Geometry, Triple
from tests.evaluation.plain_chest import RADIUS_MM, chest, in_lung, write_nifti
from tests.evaluation.scripted_screen import ScriptedScreening, ScriptedSecond

# The thresholds of the scripted network: dismiss 0.1, report 0.9, alone 0.5, final 0.6. The merged
# logit is the mean of both.
PLACES: dict[str, tuple[Triple, float, float]] = {
    "reported": ((20, 20, 20), 0.95, 0.9),
    "rescued": ((60, 20, 20), 0.4, 0.98),
    "removed": ((100, 20, 20), 0.55, 0.05),
    "false, removed": ((20, 60, 20), 0.55, 0.05),
    "false, added": ((60, 60, 20), 0.4, 0.98),
    "dismissed": ((100, 60, 20), 0.05, 0.9),
    "kept": ((20, 100, 20), 0.55, 0.9),
    "not confirmed": ((60, 100, 20), 0.4, 0.3),
    "ignored, added": ((100, 100, 100), 0.4, 0.98),
}
"""Candidates ``(x, y, z)`` by what becomes of them, with the scores of edge and cloud."""

NODULES = ("reported", "rescued", "removed", "dismissed", "kept", "not confirmed")
NOT_PROPOSED: Triple = (100, 100, 20)


@pytest.fixture(scope="module")
def box() -> Preprocessed:
    voxels = np.zeros((120, 120, 120), np.uint8)
    for (x, y, z), _, cloud in PLACES.values():
        voxels[int(z), int(y), int(x)] = round(255 * cloud)
    return Preprocessed(voxels, Geometry())


@pytest.fixture(scope="module")
def agent() -> Agent:
    places = [(place, edge) for place, edge, _ in PLACES.values()]
    return Agent(ScriptedScreening(places), ScriptedSecond(), EdgeSettings())


TRUTH = Truth(
    tuple(Lesion(place, 10.0) for place in (*(PLACES[one][0] for one in NODULES), NOT_PROPOSED)),
    (Lesion(PLACES["ignored, added"][0], -1.0),),
    "test",
)


@pytest.fixture(scope="module")
def scan(box: Preprocessed, agent: Agent) -> WholeScan:
    return read_box("a", TRUTH, box, agent, Stage.BOTH)


def nodules_of(scan: WholeScan, stage: Stage) -> list[dict[str, Any]]:
    return [nodule_row(scan, i, stage) for i in range(len(scan.truth.lesions))]


def group_of(
    scans: list[WholeScan], stage: Stage
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Curves, report of ``stage``, and verdicts of one group."""
    found = as_dict({"test": scans}, stage)
    json.dumps(found, allow_nan=False)
    (verdicts,) = found["groups"]
    return found["curves"], found["shipped"][-1], verdicts


def test_every_nodule_has_its_fate_and_its_scores(scan: WholeScan) -> None:
    """A candidate that the edge dismisses keeps the edge's score."""
    nodules = nodules_of(scan, Stage.BOTH)
    for key, found in (
        ("by_stage", ("reported", "rescued", "kept")),
        ("by_edge", ("reported", "removed", "kept")),
    ):
        expected = ["found" if name in found else "missed" for name in (*NODULES, "")]
        assert [one[key] for one in nodules] == expected
    assert [one["edge"] for one in nodules] == [0.95, 0.4, 0.55, 0.05, 0.55, 0.4, None]
    assert nodules[3]["score"] == 0.05
    assert nodules[1]["score"] > 0.6 > nodules[2]["score"]
    assert nodules[-1]["score"] is None


def test_reports_are_those_of_the_shipped_thresholds(scan: WholeScan) -> None:
    """Of seven nodules each finds three, and one false positive; an ignored place is none.

    Of five decisions that verdicts change, two are right and two wrong.
    """
    for stage in (Stage.EDGE, Stage.BOTH):
        assert scan.counts(stage) == Counts(nodules=7, found=3, listed=3, false=1, false_possible=0)
    assert scan.scores(Stage.EDGE).false_score.tolist() == [0.55, 0.4]
    said = scan_row(scan, Stage.BOTH)
    assert (said["false_of_edge"], said["false"], said["uncertain"]) == (1, 1, 7)
    _, _, verdicts = group_of([scan], Stage.BOTH)
    assert [verdicts[key] for key in ("changed", "right", "wrong", "ignored")] == [5, 2, 2, 1]


def test_possible_findings_are_counted_apart(box: Preprocessed) -> None:
    """What is neither found nor dismissed is a possible finding from 0.15, for each stage."""
    places = [(place, edge) for place, edge, _ in PLACES.values()]
    listing = Agent(ScriptedScreening(places, possible=0.15), ScriptedSecond(), EdgeSettings())
    scan = read_box("a", TRUTH, box, listing, Stage.BOTH)
    for stage in (Stage.EDGE, Stage.BOTH):
        assert scan.counts(stage) == Counts(nodules=7, found=3, listed=5, false=1, false_possible=1)
    nodules, said = nodules_of(scan, Stage.BOTH), scan_row(scan, Stage.BOTH)
    assert [i for i, one in enumerate(nodules) if one["by_stage"] == "possible"] == [2, 5]
    assert (said["found"], said["possible"], said["false_possible"]) == (3, 2, 1)
    _, both, _ = group_of([scan], Stage.BOTH)
    assert (both["found"], both["found_in_either_list"]) == (3, 5)
    assert (both["false_positives"], both["false_possible"]) == (1, 1)
    assert both["sensitivity_of_either_list"]["value"] == 5 / 7
    assert both["false_possible_per_scan"]["value"] == 1


def test_a_refused_scan_misses_its_nodules_and_is_named(scan: WholeScan) -> None:
    """It has no false positive that could be counted, so no rate a scan falls by it."""
    refused = WholeScan("b", Truth((Lesion((0, 0, 0), 5.0),), role="test"), refused="NoLung: none")
    (curve,), edge, _ = group_of([scan, refused], Stage.EDGE)
    assert curve["nodules"] == 8
    assert edge["sensitivity"]["value"] == 3 / 8
    assert curve["sensitivity"][-1]["value"] == 6 / 8
    assert edge["false_positives_per_scan"]["value"] == 1
    _, _, verdicts = group_of([scan, refused], Stage.BOTH)
    assert verdicts["uncertain_per_scan"] == 7
    (curve,), alone, verdicts = group_of([refused], Stage.EDGE)
    assert (curve["cpm"]["value"], alone["sensitivity"]["value"]) == (0, 0)
    assert alone["false_positives_per_scan"] is verdicts["uncertain_per_scan"] is None
    assert not any(one.met for one in whole.bars({"groups": [verdicts]}))
    assert nodule_row(refused, 0, Stage.BOTH)["by_stage"] == "refused"
    assert scan_row(refused, Stage.BOTH)["refused"] == "NoLung: none"


def test_a_scan_without_nodules_counts_for_false_positives(
    scan: WholeScan, box: Preprocessed, agent: Agent
) -> None:
    """Alone it has no sensitivity; all that is found in it is false."""
    empty = read_box("empty", Truth(role="test"), box, agent, Stage.BOTH)
    curves, alone, verdicts = group_of([empty], Stage.BOTH)
    assert curves == []
    assert verdicts["both_minus_edge"] is None
    assert alone["sensitivity"] is None
    assert alone["false_positives_per_scan"]["value"] == 5
    curves, both, _ = group_of([scan, empty], Stage.BOTH)
    assert [one["reader"] for one in curves] == ["edge", "edge and cloud"]
    assert both["false_positives_per_scan"]["value"] == 3


def test_test_scans_come_first_and_roles_apart() -> None:
    roles = ("train", "val", "test", "test")
    scans = [WholeScan(str(i), Truth(role=role)) for i, role in enumerate(roles)]
    groups = groups_of(scans)
    assert {name: [one.name for one in of] for name, of in groups.items()} == {
        "test": ["2", "3"], "val": ["1"], "train": ["0"], "all": ["0", "1", "2", "3"]
    }  # fmt: skip
    assert list(groups) == ["test", "val", "train", "all"]
    assert list(groups_of(scans[2:])) == ["test"]
    assert list(groups_of([WholeScan("x", Truth())])) == ["all"]


def test_scans_with_independent_marks_are_the_headline() -> None:
    """Two of three test scans have marks of readers alone; the third has doubtful ones by eye."""
    eye = Truth(role="test", by_eye=("doubtful",))
    truths = [Truth(role="test"), eye, Truth(role="test"), Truth(role="val")]
    groups = groups_of([WholeScan(str(i), truth) for i, truth in enumerate(truths)])
    assert list(groups) == ["test, independent marks", "test", "val", "all"]
    assert [one.name for one in groups["test, independent marks"]] == ["0", "2"]
    assert len(groups["test"]) == 3
    assert list(groups_of([WholeScan("x", eye)])) == ["test"]


def test_files_and_marks_of_others_go_through_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NIfTI files: one with a nodule, one listed without any, and one that cannot be read."""
    for name in ("one", "none"):
        write_nifti(chest(), tmp_path / f"{name}.nii.gz")
    (tmp_path / "broken.nii.gz").write_bytes(b"no NIfTI")
    x, y, z = in_lung(0)
    head = "scan,kind,x,y,z,diameter_mm,by\n"
    lines = [f"one,nodule,{x},{y},{z},9,me", f"broken,nodule,{x},{y},{z},9,me"]
    lines.append(f"one,nodule,{x},{y},{-z},9,upside down")
    (tmp_path / "marks.csv").write_text(head + "\n".join(lines) + "\n")
    (tmp_path / "scans.csv").write_text("scan,scanner\none,A\nnone,B\n")
    places = [((x, y, z), 0.95), (in_lung(1), 0.92)]
    scripted = Agent(ScriptedScreening(places), None, EdgeSettings())
    monkeypatch.setattr(module, "open_agent", lambda *_: scripted)
    given = ["whole", "--scans", str(tmp_path), "--marks", str(tmp_path / "marks.csv")]
    given += ["--stage", "edge"]
    said = json.loads(CliRunner().invoke(app, [*given, "--json"]).stdout)
    (edge,) = said["shipped"]
    assert (edge["scans"], edge["number"], edge["nodules"]) == ("all", 3, 3)
    assert (edge["found"], edge["false_positives"]) == (1, 3)
    assert edge["false_positives_per_scan"]["value"] == 3 / 2
    scans, nodules = said["raw"]["scans"], said["raw"]["nodules"]
    assert [one["scan"] for one in scans] == ["broken", "none", "one"]
    assert [one["by_stage"] for one in nodules if one["scan"] == "one"] == ["found", OUTSIDE]
    shown = " ".join(CliRunner().invoke(app, given).stdout.split())
    assert "for RAS change the signs of x and y" in shown
    assert "Refused: broken. Their nodules are missed" in shown


def test_findings_outside_the_lungs_are_counted_also_in_scans_not_fully_marked() -> None:
    """A place 6 mm from lung may be a nodule of its wall; a small one 13 mm away is in no lung."""
    (x, y, z), (left, *_) = in_lung(0), in_lung(1)
    y += RADIUS_MM
    wall, beyond, marked = (x, y + 6.0, z), (x, y + 13.0, z), (left, y + 13.0, z)
    places = [(wall, 0.95), (beyond, 0.92), (marked, 0.93), (in_lung(1), 0.94)]
    scripted = Agent(ScriptedScreening(places), None, EdgeSettings())
    truth = Truth((Lesion(marked, 9.0),), by_eye=("nodule",))
    scan = read_box("a", truth, preprocess(chest()), scripted, Stage.EDGE)
    row = outside_row([scan, WholeScan("b", Truth(), refused="NoLung")], Stage.EDGE)
    at = ", ".join(f"{mm:.0f}" for mm in beyond)
    assert row == {"reader": "edge", "scans": 1, "findings": [f"a at {at}"], "possible": []}
    (bar,) = whole.bars({"groups": [], "outside_lungs": [row]})
    assert not bar.met
    report = scan.report(Stage.EDGE)
    assert report is not None
    masses = [replace(one, diameter_mm=36.0) for one in report.merged.findings]
    assert scan.outside_lungs(masses) == []  # a mass of that size reaches lung
