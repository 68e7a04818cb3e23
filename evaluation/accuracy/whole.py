"""Whole scans with every nodule marked, as the agent reads them, by the rules of LUNA16.

A scan without any nodule counts: whatever is found in it is false. A scan that is refused misses
all its nodules. Decisions are those of the agent's own code at the shipped thresholds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edge.findings import DecidedBy, Finding, Route
from edge.report.compose import Assessment
from evaluation.accuracy.bootstrap import difference, figures, finite, operating_point
from evaluation.accuracy.froc import Scored, froc, match_scan, threshold_within
from evaluation.accuracy.readers import Agent, BoxReading, Stage, rescored
from evaluation.accuracy.truth import Lesion, Truth, scan_name
from imaging.errors import StudyError
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.volume import FloatArray, Triple, Volume
from models.runtime.detection import Candidate

INDEPENDENT = "independent marks"
"""The scans that nobody marked by eye among the networks' candidates."""

TOGETHER = "all"
"""The group of all scans, beside those of each role."""


class Fate(Enum):
    """The decision on a nodule, and who made it."""

    EDGE = "reported by the edge"
    KEPT = "reported by edge and cloud"
    RESCUED = "rescued by the cloud"
    POSSIBLE = "possible finding"
    REMOVED = "removed by the cloud"
    NOT_CONFIRMED = "not confirmed by the cloud"
    DISMISSED = "dismissed by the edge"
    UNCERTAIN = "too uncertain for the edge alone"
    MOVED = "reported too far away"
    NOT_PROPOSED = "not proposed"
    OUTSIDE = "outside of the scan"
    REFUSED = "scan refused"

    @property
    def found(self) -> bool:
        """Return whether the nodule is a finding."""
        return self in (Fate.EDGE, Fate.KEPT, Fate.RESCUED)


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

    ``ranked`` has the candidates of each stage with the score that counts. ``cloud`` and ``merged``
    ``(k,)`` are those of every candidate of the edge, NaN without a cloud. A scan that was
    ``refused``, which says why, has no ``reading``. ``outside`` are the numbers of nodules that lie
    outside of its volume.
    """

    name: str
    truth: Truth
    reading: BoxReading | None = None
    cloud: FloatArray = field(default_factory=lambda: np.zeros(0))
    merged: FloatArray = field(default_factory=lambda: np.zeros(0))
    ranked: dict[Stage, Sequence[Candidate]] = field(default_factory=dict)
    refused: str = ""
    outside: frozenset[int] = frozenset()

    def scores(self, stage: Stage) -> tuple[FloatArray, FloatArray]:
        """Return the scores of the nodules, ``-inf`` if missed, and of the false positives."""
        rows = [(*one.centre_mm, one.score) for one in self.ranked.get(stage, ())]
        return self._matched(rows)

    def report(self, stage: Stage) -> Assessment | None:
        """Return the report of that stage at the shipped thresholds; None if there is none.

        The cloud alone makes no report: the edge's stands for it.
        """
        if self.reading is None:
            return None
        return self.reading.both if stage is Stage.BOTH else self.reading.alone

    def counts(self, stage: Stage) -> Counts:
        """Return what the report of that stage has of the nodules, and what is false in it."""
        report = self.report(stage)
        findings = () if report is None else report.merged.findings
        possible = () if report is None else report.merged.possible
        (best, false), (_, false_possible), (either, _) = (
            self._matched([(*one.centre_mm, one.probability) for one in listed])
            for listed in (findings, possible, (*findings, *possible))
        )
        found, listed = int(np.isfinite(best).sum()), int(np.isfinite(either).sum())
        return Counts(best.size, found, listed, false.size, false_possible.size)

    def _matched(self, rows: Sequence[tuple[float, ...]]) -> tuple[FloatArray, FloatArray]:
        found = np.array(rows, np.float64).reshape(-1, 4)
        best, false, _, _ = match_scan(found, *self.truth.spheres(0.0))
        return best, false


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
    edge = reading.candidates
    ranked: dict[Stage, Sequence[Candidate]] = {Stage.EDGE: edge}
    if stage is Stage.EDGE:
        nothing = np.full(len(edge), np.nan)
        return WholeScan(name, truth, reading, nothing, nothing, ranked)
    cloud = agent.second_scores(edge, box)
    pairs = zip(edge, cloud.tolist(), strict=True)
    merged = np.array(
        [agent.weights.merged(one.score, chance, one.diameter_mm) for one, chance in pairs]
    )
    ranked[Stage.CLOUD] = rescored(edge, cloud)
    if stage is Stage.BOTH:
        ranked[Stage.BOTH] = agent.ranked(reading, box)
    return WholeScan(name, truth, reading, cloud, merged, ranked)


def scored(scans: Sequence[WholeScan], stage: Stage) -> Scored:
    """Return the input of the FROC: nodules and false positives by scan.

    Raises:
        ValueError: there is no nodule.
    """
    pairs = [scan.scores(stage) for scan in scans]
    numbers = np.repeat(np.arange(len(scans)), [nodules.size for nodules, _ in pairs])
    nodules = np.concatenate([nodules for nodules, _ in pairs])
    return Scored.of(nodules, numbers, [false for _, false in pairs], paired=True)


def groups_of(scans: Sequence[WholeScan]) -> dict[str, list[WholeScan]]:
    """Return the scans by role, test first and validation next; all together if there are more.

    Before the first come those of its scans without any mark by eye, if that is a part of them.
    """
    order = ("test", "val")
    roles = sorted({scan.truth.role for scan in scans})
    roles.sort(key=lambda role: order.index(role) if role in order else len(order))
    if len(roles) < 2:
        groups = {(roles[0] if roles else "") or TOGETHER: list(scans)}
    else:
        groups = {role or "no role": [s for s in scans if s.truth.role == role] for role in roles}
        groups[TOGETHER] = list(scans)
    first, of = next(iter(groups.items()))
    independent = [scan for scan in of if not scan.truth.by_eye]
    if 0 < len(independent) < len(of):
        return {f"{first}, {INDEPENDENT}": independent, **groups}
    return groups


def group_json(
    scans: Sequence[WholeScan], stages: Sequence[Stage], *, resamples: int, seed: int
) -> dict[str, Any]:
    """Return all figures of a group of scans; without a nodule there is no sensitivity."""
    nodules = sum(len(scan.truth.lesions) for scan in scans)
    found: dict[str, Any] = {}
    gain = None
    if nodules:
        of = {stage: scored(scans, stage) for stage in stages}
        for stage, one in of.items():
            value = figures(one, resamples=resamples, seed=seed)
            points = value.points(threshold_within(froc(one)))
            cpm, costs = value.cpm.as_dict(), value.costs()
            found[stage.value] = {"sensitivity": points, "cpm": cpm, "fp_at": costs}
        if Stage.BOTH in of:
            pair = of[Stage.EDGE], of[Stage.BOTH]
            gain = difference(*pair, resamples=resamples, seed=seed).as_dict()
    reports = [stage for stage in stages if stage is not Stage.CLOUD]
    shipped = {stage.value: _shipped(scans, stage, resamples, seed) for stage in reports}
    changes = [change for scan in scans for change in changes_of(scan)]
    return {
        "scans": len(scans),
        "nodules": nodules,
        "refused": [scan.name for scan in scans if scan.refused],
        "stages": found,
        "both_minus_edge": gain,
        "shipped": shipped,
        "uncertain_per_scan": float(np.mean([_uncertain(scan) for scan in scans])),
        "sent_per_scan": float(np.mean([_sent(scan) for scan in scans])),
        "verdicts": {
            "changed": len(changes),
            "right": sum(change.right is True for change in changes),
            "wrong": sum(change.right is False for change in changes),
            "on_ignored_places": sum(change.right is None for change in changes),
        }
        if Stage.BOTH in stages
        else None,
    }


def _shipped(scans: Sequence[WholeScan], stage: Stage, resamples: int, seed: int) -> dict[str, Any]:
    counts = [scan.counts(stage) for scan in scans]
    share, false = _operating_point(
        [(one.nodules, one.found, one.false) for one in counts], resamples, seed
    )
    either, false_possible = _operating_point(
        [(one.nodules, one.listed, one.false_possible) for one in counts], resamples, seed
    )
    return {
        "found": sum(one.found for one in counts),
        "found_in_either_list": sum(one.listed for one in counts),
        "false_positives": sum(one.false for one in counts),
        "false_possible": sum(one.false_possible for one in counts),
        "sensitivity": share,
        "sensitivity_of_either_list": either,
        "false_positives_per_scan": false,
        "false_possible_per_scan": false_possible,
    }


def _operating_point(
    counts: Sequence[tuple[int, int, int]], resamples: int, seed: int
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Return the sensitivity, None without a nodule, and what is false a scan, for JSON."""
    share, false = operating_point(np.array(counts, np.float64), resamples=resamples, seed=seed)
    return None if share is None else share.as_dict(), false.as_dict()


@dataclass(frozen=True)
class Change:
    """A candidate that the cloud's verdict made a finding, or kept out of the findings.

    ``right`` is None on a place that does not count.
    """

    candidate: Candidate
    added: bool
    right: bool | None


def changes_of(scan: WholeScan) -> Iterator[Change]:
    """Yield the decisions of the edge alone that the cloud changed."""
    alone, both = scan.report(Stage.EDGE), scan.report(Stage.BOTH)
    if alone is None or both is None:
        return
    before, after = reported(alone), reported(both)
    for number in sorted(before.keys() ^ after.keys()):
        one = both.plan.decisions[number].candidate
        hit = any(lesion.hit_by(one.centre_mm) for lesion in scan.truth.lesions)
        added = number in after
        counts = hit or scan.truth.is_false(one.centre_mm, 0.0)
        yield Change(one, added, added is hit if counts else None)


def reported(report: Assessment) -> dict[int, Finding]:
    """Return the findings of a report by the number of their candidate."""
    return _by_candidate(report, report.merged.findings)


def possible_in(report: Assessment) -> dict[int, Finding]:
    """Return the possible findings of a report by the number of their candidate."""
    return _by_candidate(report, report.merged.possible)


def _by_candidate(report: Assessment, listed: Sequence[Finding]) -> dict[int, Finding]:
    return {report.plan.index_of(finding): finding for finding in listed}


def nodule_json(scan: WholeScan, number: int, stage: Stage) -> dict[str, Any]:
    """Return the scores of a nodule, and the decision on it at the shipped thresholds."""
    lesion = scan.truth.lesions[number]
    candidates = () if scan.reading is None else scan.reading.candidates
    hits = [i for i, one in enumerate(candidates) if lesion.hit_by(one.centre_mm)]
    fate = Fate.OUTSIDE if number in scan.outside else fate_of(scan, lesion, hits, stage)
    return {
        "centre_mm": list(lesion.centre_mm),
        "diameter_mm": lesion.diameter_mm if lesion.known else None,
        "edge": finite(max((candidates[i].score for i in hits), default=-np.inf)),
        "cloud": finite(max(scan.cloud[hits].tolist(), default=-np.inf)),
        "merged": finite(max(scan.merged[hits].tolist(), default=-np.inf)),
        "found": fate.found,
        "possible": fate is Fate.POSSIBLE,
        "decision": fate.value,
    }


def fate_of(scan: WholeScan, lesion: Lesion, hits: Sequence[int], stage: Stage) -> Fate:
    """Return the decision on a nodule that the candidates ``hits`` hit."""
    alone = scan.report(Stage.EDGE)
    report = scan.report(stage)
    if alone is None or report is None:
        return Fate.REFUSED
    before, after = reported(alone), reported(report)
    found = {i: one for i, one in after.items() if lesion.hit_by(one.centre_mm)}
    if found:
        if any(one.decided_by is not DecidedBy.CLOUD for one in found.values()):
            return Fate.EDGE
        return Fate.KEPT if found.keys() & before.keys() else Fate.RESCUED
    if any(lesion.hit_by(one.centre_mm) for one in possible_in(report).values()):
        return Fate.POSSIBLE
    if not hits:
        return Fate.NOT_PROPOSED
    if set(hits) & (after.keys() | possible_in(report).keys()):
        return Fate.MOVED
    if set(hits) & before.keys():
        return Fate.REMOVED
    if set(hits) & report.answers.verdicts.keys():
        return Fate.NOT_CONFIRMED
    routes = {report.plan.decisions[i].route for i in hits}
    return Fate.UNCERTAIN if Route.ESCALATE in routes else Fate.DISMISSED


def scan_json(scan: WholeScan, stage: Stage) -> dict[str, Any]:
    """Return one scan: its nodules, what is false at the shipped thresholds, its regions."""
    report = scan.report(stage)
    changes = list(changes_of(scan))
    stages = (Stage.EDGE, Stage.BOTH) if stage is Stage.BOTH else (Stage.EDGE,)
    return {
        "scan": scan.name,
        "role": scan.truth.role or None,
        "refused": scan.refused or None,
        "nodules": [nodule_json(scan, i, stage) for i in range(len(scan.truth.lesions))],
        "false_positives": {one.value: scan.counts(one).false for one in stages},
        "false_possible": {one.value: scan.counts(one).false_possible for one in stages},
        "false_findings": [] if report is None else list(_false(scan, reported(report))),
        "false_possible_findings": (
            [] if report is None else list(_false(scan, possible_in(report)))
        ),
        "uncertain": _uncertain(scan),
        "sent": _sent(scan),
        "changed": len(changes),
        "changed_rightly": sum(change.right is True for change in changes),
    }


def _false(scan: WholeScan, listed: Mapping[int, Finding]) -> Iterator[dict[str, Any]]:
    """Yield the findings by candidate that are false positives."""
    for number, one in listed.items():
        if scan.truth.is_false(one.centre_mm, 0.0):
            yield {
                "centre_mm": [round(v, 1) for v in one.centre_mm],
                "diameter_mm": round(one.diameter_mm, 1),
                "edge": one.edge_score,
                "cloud": finite(scan.cloud[number]),
                "probability": one.probability,
                "decided_by": one.decided_by.value,
            }


def _uncertain(scan: WholeScan) -> int:
    """Return how many candidates are between the thresholds of the edge."""
    return 0 if scan.reading is None else len(scan.reading.alone.plan.uncertain)


def _sent(scan: WholeScan) -> int:
    """Return how many regions the edge sends, those for characterization included."""
    both = scan.report(Stage.BOTH)
    return 0 if both is None else len(both.plan.send)
