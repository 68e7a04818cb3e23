"""Our policy against fixed thresholds, on whole scans over a link that answers everything.

A *real* study is a scan with all that is marked in it. A *semi-synthetic* one is a copy of a real
scan with nodules of other patients of its split inserted. It gives only the sensitivity to these
nodules: the false positives of its scan are counted once, in the real study.

All policies share both readers, calibration, score fusion and the threshold of a finding. Ours is
the agent's own code. A fixed *single* threshold escalates from it on, and the cloud's score
decides. A *pair* escalates between its two thresholds and reports above. A *cut* on the edge's own
score escalates nothing. They are chosen on validation studies, the figures are those of test.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.findings import Route
from evaluation.accuracy.bootstrap import RESAMPLES, Interval, draw, interval, widened
from evaluation.accuracy.readers import Agent, Stage
from evaluation.accuracy.truth import Lesion, Truth, scan_name
from evaluation.accuracy.whole import WholeScan, read_box, reported
from evaluation.errors import EvaluationError
from evaluation.lesion_insertion.donors import read_donors
from evaluation.lesion_insertion.scans import PreparedHost, load_host, prepare_host
from evaluation.result import SHARE, Bar, Result, Table
from evaluation.run import each
from imaging.preprocess import preprocess
from imaging.volume import FloatArray
from models.insertion.donors import Donor
from models.insertion.insert import insert, plan_nodules

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

VAL, TEST = "val", "test"
EDGE, CLOUD = "edge only", "cloud only"
FIXED, PAIR, TUNED = "fixed threshold", "fixed pair", "edge only, tuned"
"""Chosen on validation to find as much as ours with no more false positives."""

VERDICTS, OURS = "ours, verdicts only", "ours"
"""The agent without characterization, which fixed thresholds do not request, and as it is set."""

PROPOSED = 0.002
"""Candidates below this score are left out: cloud only would send them too."""

LIMIT, CLOUD_LIMIT = 0.5, 0.35
"""Required: the largest share of the ROIs and bytes of fixed thresholds, and of cloud only."""

UNCERTAIN, RIGHT = 3.0, 0.75
"""Required: uncertain candidates a real scan, and the share of changed decisions that are right."""

NO_TOP = 1.01
"""A threshold above every score."""


TABLES = (
    Table("policies", {
        "policy": "policy", "sensitivity": ("found", SHARE),
        "of_real": ("found in real scans", SHARE),
        "false_positives_per_scan": ("false positives a scan", "{:.2f}"),
        "escalated_share": ("candidates sent", SHARE), "rois_per_scan": ("ROIs a scan", "{:.2f}"),
        "kilobytes_per_scan": ("kB a scan", "{:.0f}"),
    }, title="Policies on test studies"),
    Table("against", {
        "ours": "ours", "other": "against", "ratio": ("ROIs and bytes, of its", "{:.2f}"),
        "at_least": "ours finds at least as much", "as_good": "it does as well as ours",
    }, title="Ours against the others"),
    Table("sets", {
        "scans": "scans", "number": "number", "nodules": "nodules", "patients": "patients",
        "uncertain_per_scan": ("uncertain candidates a scan", "{:.1f}"),
        "changed": "decisions changed", "right": "of them right", "nodules_added": "nodules added",
        "nodules_removed": "nodules removed", "false_added": "false positives added",
        "false_removed": "false positives removed",
    }, title="What verdicts change"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Study:
    """One whole scan after the edge's screening, by falling score; ``real`` without insertions.

    ``edge`` and ``both`` are the scores of the candidates ``(n,)``, ``nodule`` the number of the
    nodule that each hits, or -1, and ``false`` whether a finding there would be a false positive.
    ``patients`` has the patient of each nodule. ``reported`` are the findings of the agent;
    ``sent`` and ``asked`` are the candidates that it sends, for any reason and for a verdict.
    """

    real: bool
    patients: tuple[str, ...]
    edge: FloatArray
    both: FloatArray
    nodule: IntArray
    false: BoolArray
    reported: BoolArray
    sent: BoolArray
    asked: BoolArray
    roi_bytes: int


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a policy makes of a study: its findings, and the candidates that it sends."""

    study: Study
    findings: BoolArray
    sent: BoolArray

    @cached_property
    def found(self) -> BoolArray:
        """Whether each nodule is among the findings."""
        hits = self.study.nodule[self.findings]
        return np.isin(np.arange(len(self.study.patients)), hits)

    @property
    def false(self) -> int:
        """Return the number of false positives."""
        return int((self.findings & self.study.false).sum())


Policy = Callable[[Study], tuple[BoolArray, BoolArray]]
"""Returns what it escalates, and what it reports at once, of the candidates ``(n,)``."""


def band(low: float, high: float) -> Policy:
    """Escalate scores in [``low``, ``high``), and report those from ``high`` on."""
    return lambda study: ((study.edge >= low) & (study.edge < high), study.edge >= high)


def outcome(study: Study, policy: Policy, final: float, most: int) -> Outcome:
    """Return the outcome where at most ``most`` ROIs are sent, and all of these are answered.

    A candidate for which there is no room is decided by the edge's score.
    """
    escalated, report = policy(study)
    sent = escalated & (np.cumsum(escalated) <= most)
    unsent = escalated & ~sent & (study.edge >= final)
    return Outcome(study, report | unsent | (sent & (study.both >= final)), sent)


def study_of(scan: WholeScan, patients: Sequence[str], *, real: bool, side: int) -> Study:
    """Return the study of a scan that edge and cloud have read."""
    report = scan.report(Stage.BOTH)
    if scan.reading is None or report is None:
        raise EvaluationError(f"{scan.name}: refused ({scan.refused})")
    kept = [i for i, one in enumerate(scan.reading.candidates) if one.score >= PROPOSED]
    points = [scan.reading.candidates[i].centre_mm for i in kept]
    hits = [[lesion.hit_by(at) for lesion in scan.truth.lesions] for at in points]
    plan, in_report = report.plan, reported(report)
    send, count = set(plan.send), len(kept)
    asked = [plan.decisions[i].route is Route.ESCALATE and i in send for i in kept]
    return Study(
        real=real,
        patients=tuple(patients),
        edge=np.array([scan.reading.candidates[i].score for i in kept], float),
        both=scan.merged[kept],
        nodule=np.array([row.index(True) if any(row) else -1 for row in hits], np.int64),
        false=np.array([real and scan.truth.is_false(at, 0.0) for at in points], bool),
        reported=np.fromiter((i in in_report for i in kept), bool, count),
        sent=np.fromiter((i in send for i in kept), bool, count),
        asked=np.array(asked, bool),
        roi_bytes=side**3,
    )


def read_studies(
    hosts: Sequence[PreparedHost],
    donors: Sequence[Donor],
    agent: Agent,
    together: int,
    rng: np.random.Generator,
) -> tuple[list[Study], list[str]]:
    """Read scans, and copies of them with inserted nodules; name the nodules without room."""
    planned, rest = plan_nodules(hosts, donors, together, rng)
    studies = list[Study]()
    for host in each(hosts, "scans, by edge and cloud"):
        one, patients = host.host, [host.host.name] * len(host.host.truth.lesions)
        scan = read_box(one.name, one.truth, preprocess(one.volume, one.name), agent, Stage.BOTH)
        studies.append(study_of(scan, patients, real=True, side=agent.roi_side))
    for copy in each(planned, "scans with insertions"):
        one = copy.host.host
        box = preprocess(insert(one.volume, copy.insertions), one.name)
        truth = Truth(tuple(Lesion(i.centre_mm, i.diameter_mm) for i in copy.insertions))
        scan = read_box(one.name, truth, box, agent, Stage.BOTH)
        patients = [i.donor.patient for i in copy.insertions]
        studies.append(study_of(scan, patients, real=False, side=agent.roi_side))
    return studies, [one.donor.name for one in rest]


def compare_policies(
    data: Path,
    folders: Sequence[Path],
    known: Mapping[str, Truth],
    agent: Agent,
    together: int,
    limit: int,
    seed: int,
) -> dict[str, Any]:
    """Read the studies of val and test, and return all figures of the policies on test."""
    studies, not_placed = dict[str, list[Study]](), list[str]()
    for number, split in enumerate((VAL, TEST)):
        of = [one for one in folders if known[scan_name(one)].role == split]
        reads = agent.reads(Stage.EDGE)
        hosts = [prepare_host(load_host(one, known), reads) for one in each(of, f"{split} scans")]
        donors, _ = read_donors(data, (split,), most=limit or None)
        rng = np.random.default_rng([seed, number])
        studies[split], rest = read_studies(hosts, donors, agent, together, rng)
        not_placed += rest
    limits = agent.thresholds.dismiss, agent.thresholds.finding, agent.thresholds.report
    return {
        "not_placed": ", ".join(not_placed) or "none",
        **compare(studies[VAL], studies[TEST], limits, agent.max_rois),
    }


@dataclass(frozen=True)
class Reached:
    """What is found, false positives a real scan, and ROIs a study."""

    sensitivity: float
    false: float
    rois: float


def reach(outcomes: Sequence[Outcome]) -> Reached:
    """Return the figures of all outcomes together."""
    found = np.concatenate([one.found for one in outcomes])
    real = sum(one.study.real for one in outcomes)
    rois = sum(int(one.sent.sum()) for one in outcomes)
    return Reached(found.mean(), sum(one.false for one in outcomes) / real, rois / len(outcomes))


@dataclass(frozen=True, eq=False)
class Search:
    """The figures of all pairs of thresholds if every ROI is answered.

    Nothing changes while a threshold moves between two neighbouring scores, so one between each two
    of ``bounds`` is all there are. The figures are ``(lower, upper thresholds)``; a lower threshold
    above the upper one means nothing.
    """

    bounds: FloatArray
    sensitivity: FloatArray
    false: FloatArray
    rois: FloatArray

    def single(self, aim: Reached) -> Policy:
        """Choose a single threshold, from which everything is escalated."""
        allowed = np.zeros(self.rois.shape, bool)
        allowed[:, -1] = True
        return band(self._middle(np.nonzero(self._best(allowed, aim))[0]), NO_TOP)

    def cut(self, aim: Reached) -> Policy:
        """Choose a single threshold on the edge's score, without escalating anything."""
        cut = self._middle(np.nonzero(self._best(np.eye(len(self.rois), dtype=bool), aim))[0])
        return band(cut, cut)

    def pair(self, aim: Reached) -> Policy:
        """Choose two thresholds: of equally good ones those farthest from any score."""
        lows, highs = np.nonzero(self._best(np.triu(self.rois > 0), aim))
        gaps = np.append(np.diff(self.bounds)[:-1] / 2, np.inf)
        ends = np.append((self.bounds[:-2] + self.bounds[1:-1]) / 2, NO_TOP)
        widest = int(np.argmax(np.minimum(gaps[lows], gaps[highs])))
        return band(float(ends[lows[widest]]), float(ends[highs[widest]]))

    def better(self, than: Reached) -> tuple[int, int]:
        """Count the pairs that do as well with fewer ROIs, and all that escalate something."""
        as_good = (self.sensitivity >= than.sensitivity) & (self.false <= than.false)
        pairs = np.triu(self.rois > 0)
        return int((pairs & as_good & (self.rois < than.rois)).sum()), int(pairs.sum())

    def _best(self, allowed: BoolArray, aim: Reached) -> BoolArray:
        """Select the best of the ``allowed`` choices, with all ties.

        Of those that reach the aim take the ones that escalate least; if there is none, the ones
        that find most within its false positives.
        """
        quiet = allowed & (self.false <= aim.false)
        pool = quiet & (self.sensitivity >= aim.sensitivity)
        if not pool.any():
            pool = quiet if quiet.any() else allowed
            pool = pool & (self.sensitivity == self.sensitivity[pool].max())
        return np.asarray(pool & (self.rois == self.rois[pool].min()), bool)

    def _middle(self, ends: IntArray) -> float:
        """Return the middle of the widest run of neighbouring thresholds."""
        runs = np.split(ends, np.flatnonzero(np.diff(ends) > 1) + 1)
        spans = [(self.bounds[run[0]], self.bounds[run[-1] + 1]) for run in runs]
        low, high = max(spans, key=lambda span: span[1] - span[0])
        return float(low + high) / 2


def search(studies: Sequence[Study], final: float) -> Search:
    """Count all pairs of thresholds at once, by ranks of scores.

    Raises:
        EvaluationError: the studies have no candidate.
    """
    scores = np.unique(np.concatenate([one.edge for one in studies]))
    if not scores.size:
        raise EvaluationError("no candidate: no threshold can be chosen")
    ends = np.arange(scores.size + 1)
    # of each nodule the highest rank, and that among candidates which the cloud confirms
    best, confirmed = list[int](), list[int]()
    every, false, false_confirmed = list[IntArray](), list[IntArray](), list[IntArray]()
    for one in studies:
        rank, yes = np.searchsorted(scores, one.edge), one.both >= final
        every.append(rank)
        false.append(rank[one.false])
        false_confirmed.append(rank[one.false & yes])
        for number in range(len(one.patients)):
            best.append(int(rank[one.nodule == number].max(initial=-1)))
            confirmed.append(int(rank[(one.nodule == number) & yes].max(initial=-1)))
    # a nodule is missed if none of its candidates reaches the upper threshold, and none that the
    # cloud confirms reaches the lower one
    below_high = (np.array(best)[:, None] < ends).astype(float)
    below_low = (np.array(confirmed)[:, None] < ends).astype(float)
    at_once, between = _from(false, ends)[None, :], _between(false_confirmed, ends)
    return Search(
        bounds=np.concatenate([[0.0], scores, [NO_TOP]]),
        sensitivity=(len(best) - below_low.T @ below_high) / max(len(best), 1),
        false=(at_once + between) / sum(one.real for one in studies),
        rois=_between(every, ends) / len(studies),
    )


def _from(ranks: Sequence[IntArray], ends: IntArray) -> IntArray:
    """Count the ranks at each threshold or above it."""
    joined = np.sort(np.concatenate(ranks))
    return joined.size - np.searchsorted(joined, ends)


def _between(ranks: Sequence[IntArray], ends: IntArray) -> IntArray:
    """Count the ranks from each lower threshold to below each upper one, ``(lower, upper)``."""
    above = _from(ranks, ends)
    return above[:, None] - above[None, :]


def compare(
    val: Sequence[Study], test: Sequence[Study], limits: tuple[float, float, float], most: int
) -> dict[str, Any]:
    """Return all figures; ``limits`` are the thresholds ``dismiss``, ``finding`` and ``report``."""
    dismiss, final, report = limits
    aim = reach([outcome(one, band(dismiss, report), final, most) for one in val])
    searched = search(val, final)
    fixed = {
        EDGE: band(final, final), CLOUD: band(-np.inf, np.inf), TUNED: searched.cut(aim),
        FIXED: searched.single(aim), PAIR: searched.pair(aim),
    }  # fmt: skip
    run = {
        name: [outcome(one, policy, final, most) for one in test] for name, policy in fixed.items()
    }
    run[VERDICTS] = [Outcome(one, one.reported, one.asked) for one in test]
    run[OURS] = [Outcome(one, one.reported, one.sent) for one in test]
    rows = {name: _row(name, of) for name, of in run.items()}
    better, tried = search(test, final).better(
        reach([outcome(one, band(dismiss, report), final, most) for one in test])
    )
    return {
        "policies": list(rows.values()),
        "against": [
            against(rows[name], rows[other])
            for other in (CLOUD, FIXED, PAIR, TUNED)
            for name in (VERDICTS, OURS)
        ],
        "more_than_edge": more_than_edge(run[OURS]),
        "pairs_better": better,
        "pairs_tried": tried,
        "sets": [
            {"scans": f"{split}, {kind}", **collaboration(of, limits)}
            for split, studies in ((TEST, test), (VAL, val))
            for kind, real in (("real", True), ("semi-synthetic", False))
            if (of := [one for one in studies if one.real is real])
        ],
    }


def _row(name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    found = np.concatenate([one.found for one in outcomes]).astype(float)
    real = [one for one in outcomes if one.study.real]
    sent = sum(int(one.sent.sum()) for one in outcomes)
    known = np.concatenate([one.found for one in real])
    return {
        "policy": name,
        "sensitivity": _by_patient(outcomes, found).as_dict(),
        "of_real": float(known.mean()) if known.size else None,
        "false_positives_per_scan": sum(one.false for one in real) / len(real),
        "escalated_share": sent / sum(one.sent.size for one in outcomes),
        "rois_per_scan": sent / len(outcomes),
        "kilobytes_per_scan": sent * outcomes[0].study.roi_bytes / len(outcomes) / 1000,
    }


def _by_patient(outcomes: Sequence[Outcome], value: FloatArray, least: float = 0.0) -> Interval:
    """Return the mean ``value`` ``(nodules,)``, from ``least`` to 1, by bootstrap over patients.

    All policies have the same draws, so that their intervals can be compared.
    """
    of = [patient for one in outcomes for patient in one.study.patients]
    _, patients = np.unique(of, return_inverse=True)
    total, nodules = np.bincount(patients, value), np.bincount(patients)
    rng = np.random.default_rng(0)
    drawn = np.array([draw(len(nodules), rng) for _ in range(RESAMPLES)])
    found = interval(float(value.mean()), (drawn @ total) / (drawn @ nodules))
    return widened(found, len(nodules), least)


def against(ours: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ratio of the ROIs, None where the other sends nothing, and who finds as much."""
    own, its = ours["sensitivity"]["value"], other["sensitivity"]["value"]
    quiet = other["false_positives_per_scan"] <= ours["false_positives_per_scan"]
    sent = other["rois_per_scan"]
    return {
        "ours": ours["policy"],
        "other": other["policy"],
        "ratio": ours["rois_per_scan"] / sent if sent else None,
        "at_least": bool(own >= its),
        "as_good": bool(its >= own and quiet),
    }


def more_than_edge(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the sensitivity less that of the edge's score alone at equal false positives.

    Between two thresholds of the edge with fewer and with more false positives it is interpolated.
    """
    found = np.concatenate([one.found for one in outcomes]).astype(float)
    score = np.array([
        one.study.edge[one.study.nodule == number].max(initial=-np.inf)
        for one in outcomes
        for number in range(len(one.study.patients))
    ])  # fmt: skip
    false = np.concatenate([one.study.edge[one.study.false] for one in outcomes])
    # a nodule is found if it scores above the false positive at which the report ends
    ends = np.array([*np.unique(false)[::-1], -np.inf])
    counts = np.array([(false > end).sum() for end in ends])
    allowed = sum(one.false for one in outcomes)
    after = min(int(np.searchsorted(counts, allowed)), ends.size - 1)
    before = max(after - 1, 0)
    share = np.interp(allowed, counts[[before, after]], (0.0, 1.0))
    edge = (1 - share) * (score > ends[before]) + share * (score > ends[after])
    return {"edge": float(edge.mean()), **_by_patient(outcomes, found - edge, -1).as_dict()}


def collaboration(studies: Sequence[Study], limits: tuple[float, float, float]) -> dict[str, Any]:
    """Return how much is uncertain, and what verdicts change, where all of them arrive.

    A verdict on an uncertain candidate may remove it from the findings of the edge alone, or add
    it. To remove a false positive and to add a nodule is ``right``.
    """
    dismiss, final, report = limits
    edge, both, false, nodule = (
        np.concatenate([getattr(one, name) for one in studies])
        for name in ("edge", "both", "false", "nodule")
    )
    uncertain = (edge >= dismiss) & (edge < report)
    alone, after = edge >= final, both >= final
    moved = {
        f"{kind}_{what}": int((uncertain & of & change).sum())
        for kind, of in (("nodules", nodule >= 0), ("false", false))
        for what, change in (("added", ~alone & after), ("removed", alone & ~after))
    }
    return {
        "number": len(studies),
        "nodules": sum(len(one.patients) for one in studies),
        "patients": len({patient for one in studies for patient in one.patients}),
        "uncertain_per_scan": float(uncertain.sum() / len(studies)),
        "changed": sum(moved.values()),
        "right": moved["nodules_added"] + moved["false_removed"],
        **moved,
    }


def bars(result: Result) -> Iterator[Bar]:
    """Yield what is required of ours against the others, and of the second readings."""
    for one in result.get("against", ()):
        what, ratio = f"ROIs and bytes sent, {one['ours']}, against {one['other']}", one["ratio"]
        if one["other"] == CLOUD:
            shown = "as much found" if one["at_least"] else "less found"
            value = ratio if one["at_least"] else None
            yield Bar(what, value, CLOUD_LIMIT, "{:.2f} times", shown=f"{ratio:.2f} times, {shown}")
        elif ratio is None:
            # what sends nothing cannot be beaten where it finds as much
            yield Bar(what, None if one["as_good"] else 0.0, LIMIT, shown="it sends nothing")
        else:
            yield Bar(what, ratio, LIMIT, "{:.2f} times")
    if "more_than_edge" in result:
        gain = 100 * result["more_than_edge"]["value"]
        what = "found, ours, against edge only at equal false positives"
        yield Bar(what, gain if gain > 0 else None, 0.0, "{:.1f} points more", least=True,
                  shown=f"{gain:+.1f} points")  # fmt: skip
    for one in result.get("sets", ()):
        if one["scans"] == f"{TEST}, real":
            what = "uncertain candidates a scan, real test scans"
            yield Bar(what, one["uncertain_per_scan"], UNCERTAIN, "{:.1f}", least=True)
            share = one["right"] / one["changed"] if one["changed"] else None
            yield Bar("decisions changed by verdicts that are right, real test scans", share, RIGHT,
                      SHARE, least=True, shown=f"{one['right']} of {one['changed']}")  # fmt: skip
