"""Whole scans with every nodule marked, as the agent reads them, by the rules of LUNA16.

A scan without any nodule counts: whatever is found in it is false. A scan that is refused misses
all its nodules. Decisions are those of the agent's own code at the shipped thresholds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edge.findings import Finding
from edge.report.compose import Assessment
from evaluation.accuracy.bootstrap import finite
from evaluation.accuracy.froc import Scored
from evaluation.accuracy.readers import Agent, BoxReading, Stage
from evaluation.accuracy.truth import ScanScores, Truth, scan_name, score_scan
from imaging.errors import StudyError
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.volume import Triple, Volume
from models.runtime.detection import Candidate

OUTSIDE = "outside of the scan"
"""A nodule there is missed: its coordinates are not those of the scan."""


class Counts(NamedTuple):
    """Counts of one report: nodules, and what is false by the rules.

    ``found`` are the nodules among the findings, ``listed`` those among findings and possible
    findings. ``false`` are false findings, the false positives; ``false_possible`` are false
    possible findings.
    """

    nodules: int
    found: int
    listed: int
    false: int
    false_possible: int


@dataclass(frozen=True, eq=False)
class WholeScan:
    """One scan as the agent read it.

    ``ranked`` has the candidates of each stage with the score that counts. A scan that was
    ``refused``, which says why, has no ``reading``. ``outside`` are the numbers of nodules that lie
    outside of its volume.
    """

    name: str
    truth: Truth
    reading: BoxReading | None = None
    ranked: Mapping[Stage, Sequence[Candidate]] = field(default_factory=dict)
    refused: str = ""
    outside: frozenset[int] = frozenset()

    def scores(self, stage: Stage) -> ScanScores:
        """Return the scores of the nodules and of the false positives."""
        return self._matched([(one.centre_mm, one.score) for one in self.ranked.get(stage, ())])

    def report(self, stage: Stage) -> Assessment | None:
        """Return the report of that stage at the shipped thresholds; None if there is none."""
        if self.reading is None:
            return None
        return self.reading.both if stage is Stage.BOTH else self.reading.alone

    def counts(self, stage: Stage) -> Counts:
        """Return what the report of that stage has of the nodules, and what is false in it."""
        report = self.report(stage)
        findings = () if report is None else report.merged.findings
        possible = () if report is None else report.merged.possible
        in_findings, in_possible, in_either = (
            self._matched([(one.centre_mm, one.probability) for one in listed])
            for listed in (findings, possible, (*findings, *possible))
        )
        false, false_possible = in_findings.false_score.size, in_possible.false_score.size
        nodules = len(self.truth.lesions)
        return Counts(nodules, in_findings.found, in_either.found, false, false_possible)

    def uncertain(self) -> int:
        """Return how many candidates are between the thresholds of the edge."""
        return 0 if self.reading is None else len(self.reading.alone.plan.uncertain)

    def sent(self) -> int:
        """Return how many regions the edge sends, those for characterization included."""
        both = self.report(Stage.BOTH)
        return 0 if both is None else len(both.plan.send)

    def changes(self) -> Iterator[bool | None]:
        """Yield whether each decision is right that the cloud's verdicts changed.

        They add a candidate to the findings of the edge alone, or keep one out. It is None on a
        place that does not count.
        """
        alone, both = self.report(Stage.EDGE), self.report(Stage.BOTH)
        if alone is None or both is None:
            return
        before, after = reported(alone), reported(both)
        for number in sorted(before.keys() ^ after.keys()):
            one = both.plan.decisions[number].candidate
            hit = any(lesion.hit_by(one.centre_mm) for lesion in self.truth.lesions)
            counts = hit or self.truth.is_false(one.centre_mm, 0.0)
            yield (number in after) is hit if counts else None

    def _matched(self, detections: Sequence[tuple[Triple, float]]) -> ScanScores:
        return score_scan(detections, self.truth, rim_mm=0.0)


def read_whole(folder: Path, truth: Truth, agent: Agent, stage: Stage) -> WholeScan:
    """Read a scan from its files, as the agent does."""
    name = scan_name(folder)
    try:
        volume = read_study(folder).volume
        box = preprocess(volume, folder)
    except StudyError as error:
        return WholeScan(name, truth, refused=f"{error.kind}: {error.reason}")
    outside = {
        number
        for number, lesion in enumerate(truth.lesions)
        if not _is_inside(volume, lesion.centre_mm)
    }
    return replace(read_box(name, truth, box, agent, stage), outside=frozenset(outside))


def _is_inside(volume: Volume, point_mm: Triple) -> bool:
    """Return whether the volume has a voxel there; beyond its last voxels, within one of them."""
    index = volume.geometry.to_index(point_mm)
    return bool((index >= -1).all() and (index <= np.array(volume.hu.shape)).all())


def read_box(name: str, truth: Truth, box: Preprocessed, agent: Agent, stage: Stage) -> WholeScan:
    """Read the lung box of a scan with what ``stage`` needs."""
    reading = agent.read(box, stage)
    ranked: dict[Stage, Sequence[Candidate]] = {Stage.EDGE: reading.candidates}
    if stage is Stage.BOTH:
        ranked[stage] = agent.ranked(reading, box)
    return WholeScan(name, truth, reading, ranked)


def scored(scans: Sequence[WholeScan], stage: Stage) -> Scored:
    """Return the input of the FROC: nodules and false positives by scan.

    Raises:
        ValueError: there is no nodule.
    """
    of = [scan.scores(stage) for scan in scans]
    numbers = np.repeat(np.arange(len(scans)), [one.lesion_score.size for one in of])
    nodules = np.concatenate([one.lesion_score for one in of])
    return Scored.of(nodules, numbers, [one.false_score for one in of], paired=True)


def reported(report: Assessment) -> dict[int, Finding]:
    """Return the findings of a report by the number of their candidate."""
    return {report.plan.index_of(finding): finding for finding in report.merged.findings}


def nodule_row(scan: WholeScan, number: int, stage: Stage) -> dict[str, Any]:
    """Return the score of a nodule by each stage, and what the reports make of it."""
    lesion = scan.truth.lesions[number]
    return {
        "scan": scan.name,
        "role": scan.truth.role or None,
        "centre_mm": list(lesion.centre_mm),
        "diameter_mm": lesion.diameter_mm if lesion.known else None,
        "edge": _score(scan, number, Stage.EDGE),
        "score": _score(scan, number, stage),
        "by_edge": _fate(scan, number, Stage.EDGE),
        "by_stage": _fate(scan, number, stage),
    }


def _score(scan: WholeScan, number: int, stage: Stage) -> float | None:
    return finite(float(scan.scores(stage).lesion_score[number]))


def _fate(scan: WholeScan, number: int, stage: Stage) -> str:
    """Return what the report of that stage makes of a nodule."""
    report, lesion = scan.report(stage), scan.truth.lesions[number]
    if number in scan.outside or report is None:
        return OUTSIDE if number in scan.outside else "refused"
    for name, listed in (("found", report.merged.findings), ("possible", report.merged.possible)):
        if any(lesion.hit_by(one.centre_mm) for one in listed):
            return name
    return "missed"


def scan_row(scan: WholeScan, stage: Stage) -> dict[str, Any]:
    """Return one scan: what is found and false at the shipped thresholds, and its regions."""
    changes, edge, own = list(scan.changes()), scan.counts(Stage.EDGE), scan.counts(stage)
    return {
        "scan": scan.name,
        "role": scan.truth.role or None,
        "refused": scan.refused or None,
        "nodules": own.nodules,
        "found": own.found,
        "possible": own.listed - own.found,
        "false_of_edge": edge.false,
        "false": own.false,
        "false_possible": own.false_possible,
        "uncertain": scan.uncertain(),
        "sent": scan.sent(),
        "changed": len(changes),
        "changed_rightly": changes.count(True),
    }
