"""Final reports against truth, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.bootstrap import Interval
from evaluation.findings import StudyResult, as_json, operating_point, stage_times
from evaluation.scan import ScanScores
from evaluation.truth import Lesion


def result(hits: list[bool], false: int, refused: str = "") -> StudyResult:
    """A study with these lesions hit or missed and so many false findings."""
    lesion = Lesion((0.0, 0.0, 0.0), 10.0)
    best = np.where(np.array(hits, bool), 0.9, -np.inf)
    scores = ScanScores("a", np.full(false, 0.5), (lesion,) * len(hits), best)
    stages_s = {} if refused else {"read": 1.0, "screen": 0.5}
    return StudyResult("a", scores, false + sum(hits), stages_s, "complete", refused)


UNKNOWN = StudyResult("b", None, 4, {"read": 3.0, "screen": 0.5}, "missing")


def test_operating_point_counts_studies_with_truth() -> None:
    """Three of four lesions, three false findings in two studies; the unknown study is left out."""
    point = operating_point([result([True, False], 1), result([True, True], 2), UNKNOWN])
    assert (point.studies, point.lesions, point.found, point.false) == (2, 4, 3, 3)
    assert point.sensitivity == Interval(0.75, 0.5, 1.0)
    assert point.false_per_scan == Interval(1.5, 1.0, 2.0)


def test_refused_study_misses_its_lesions() -> None:
    """What was not read was not found."""
    point = operating_point([result([True], 0), result([False], 0, "NotCt: ...")])
    assert point.sensitivity is not None
    assert point.sensitivity.value == 0.5


def test_without_lesions_there_is_no_sensitivity() -> None:
    """Healthy scans give false positives only."""
    point = operating_point([result([], 2), result([], 0)])
    assert point.sensitivity is None
    assert point.false_per_scan.value == 1.0


def test_without_truth_there_is_no_operating_point() -> None:
    """Nothing can be said of studies of which nothing is known."""
    with pytest.raises(ValueError, match="known truth"):
        operating_point([UNKNOWN])


def test_stage_times_are_median_and_p95() -> None:
    """Per stage and in all, in the order of the line; a stage may be absent from a ledger."""
    times = stage_times([{"read": 1.0, "screen": 0.5}, {"read": 3.0, "screen": 0.5}, {"read": 2.0}])
    assert list(times) == ["read", "screen", "total"]
    assert times["read"] == {"median_s": 2.0, "p95_s": pytest.approx(2.9)}
    assert times["total"]["median_s"] == 2.0
    assert stage_times([]) == {}


def test_json_says_what_is_not_known() -> None:
    """Unknown truth is null, and refused studies do not blur the times."""
    results = [result([True], 0), UNKNOWN, result([False], 0, "NotCt: MR")]
    said = as_json(results, operating_point(results))
    assert said["sensitivity"]["value"] == 0.5
    assert said["stages"]["read"]["median_s"] == 2.0
    assert said["per_study"][1]["found"] is None
    assert said["per_study"][2]["refused"] == "NotCt: MR"
