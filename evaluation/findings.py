"""What final reports are worth: sensitivity and false positives a scan, as a reader gets them.

No threshold is moved here: what counts, for and against, is all that the report lists, the small
nodules that it lists apart among it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.bootstrap import RESAMPLES, Interval, draw, interval
from evaluation.scan import ScanScores
from imaging.volume import FloatArray

PERCENTILE = 95.0


@dataclass(frozen=True, eq=False)
class StudyResult:
    """One study's report: its findings sorted by truth, and the time of each stage.

    Attributes:
        scores: false positives and hits among all that it lists; None where no truth is known.
        findings: how many the report lists, small nodules left out.
        small: how many small nodules it lists apart.
        stages_s: seconds by stage, in the order of the line.
        second_reading: complete, partial or missing.
        refused: why the study was not read, empty if it was.
    """

    name: str
    scores: ScanScores | None
    findings: int
    stages_s: Mapping[str, float]
    second_reading: str
    refused: str = ""
    small: int = 0

    @property
    def lesions(self) -> int:
        """How many lesions count in this study."""
        return 0 if self.scores is None else self.scores.lesion_score.size

    @property
    def found(self) -> int:
        """How many of them the report has."""
        return 0 if self.scores is None else int(np.isfinite(self.scores.lesion_score).sum())

    @property
    def false(self) -> int:
        """How many places in the report are false."""
        return 0 if self.scores is None else self.scores.false_score.size


@dataclass(frozen=True)
class OperatingPoint:
    """Where the final reports stand; sensitivity is None when no study has a known lesion."""

    sensitivity: Interval | None
    false_per_scan: Interval
    studies: int
    lesions: int
    found: int
    false: int


def operating_point(results: Sequence[StudyResult], *, seed: int = 0) -> OperatingPoint:
    """The operating point of all studies with known truth, intervals by bootstrap over studies.

    A study that was refused counts: its lesions are missed.

    Raises:
        ValueError: no study has known truth.
    """
    known = [result for result in results if result.scores is not None]
    if not known:
        raise ValueError("no study has known truth")
    table = np.array([(r.lesions, r.found, r.false) for r in known], dtype=float)
    rng = np.random.default_rng(seed)
    drawn = np.stack([draw(len(known), rng) for _ in range(RESAMPLES)]) @ table
    lesions, found, false = (int(n) for n in table.sum(axis=0))
    return OperatingPoint(
        sensitivity=_sensitivity(found, lesions, drawn),
        false_per_scan=interval(false / len(known), drawn[:, 2] / len(known)),
        studies=len(known),
        lesions=lesions,
        found=found,
        false=false,
    )


def _sensitivity(found: int, lesions: int, drawn: FloatArray) -> Interval | None:
    if lesions == 0:
        return None
    some = drawn[drawn[:, 0] > 0]  # a draw without a lesion has no sensitivity
    return interval(found / lesions, some[:, 1] / some[:, 0])


def stage_times(ledgers: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of each stage over `ledgers`, and of their ``total``, last."""
    stages = dict.fromkeys(name for ledger in ledgers for name in ledger)
    times = {name: [ledger[name] for ledger in ledgers if name in ledger] for name in stages}
    if ledgers:
        times["total"] = [sum(ledger.values()) for ledger in ledgers]
    return {
        name: {
            "median_s": float(np.median(seconds)),
            "p95_s": float(np.percentile(seconds, PERCENTILE)),
        }
        for name, seconds in times.items()
    }


def as_json(results: Sequence[StudyResult], point: OperatingPoint | None) -> dict[str, Any]:
    """The result for machines."""
    read = [result.stages_s for result in results if not result.refused]
    return {
        "sensitivity": point.sensitivity.as_json() if point and point.sensitivity else None,
        "false_positives_per_scan": point.false_per_scan.as_json() if point else None,
        "studies": len(results),
        "studies_with_truth": point.studies if point else 0,
        "lesions": point.lesions if point else 0,
        "found": point.found if point else 0,
        "false_positives": point.false if point else 0,
        "stages": stage_times(read),
        "per_study": [_study_json(result) for result in results],
    }


def _study_json(result: StudyResult) -> dict[str, Any]:
    return {
        "study": result.name,
        "findings": result.findings,
        "small_nodules": result.small,
        "lesions": result.lesions if result.scores else None,
        "found": result.found if result.scores else None,
        "false_positives": result.false if result.scores else None,
        "second_reading": result.second_reading,
        "total_s": sum(result.stages_s.values()),
        "refused": result.refused or None,
    }
