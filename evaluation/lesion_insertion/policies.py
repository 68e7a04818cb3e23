"""Our policy against fixed thresholds, on whole scans over a link that answers everything.

A *real* study is a scan with all that is marked in it. A *semi-synthetic* one is a copy of a real
scan with nodules of its split inserted. It gives only the sensitivity to these nodules: the false
positives of its scan are counted once, in the real study.

Each policy is a band of the edge's scores: what lies in it is sent, and what lies above is
reported. Ours is the band of `edge.decide` where everything is answered in time. A fixed *single*
threshold has no upper end. A *cut* on the edge's own score has a band without width, which sends
nothing. Fixed thresholds are chosen on validation studies, the figures are those of test.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.accuracy.bootstrap import Interval, by_patient, widened
from evaluation.accuracy.readers import Agent, Stage
from evaluation.accuracy.truth import Lesion, Truth, scan_name
from evaluation.errors import EvaluationError
from evaluation.lesion_insertion.scans import PreparedHost, load_host, prepare_host, read_donors
from evaluation.run import SHARE, Bar, Result, Table, each
from imaging.preprocess import preprocess
from imaging.volume import FloatArray, Volume
from models.insertion.insert import Insertion, SyntheticScan, insert, plan_nodules

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

VAL, TEST = "val", "test"
EDGE, CLOUD = "edge only", "cloud only"
FIXED, PAIR, TUNED = "fixed threshold", "fixed pair", "edge only, tuned"
"""Chosen on validation to find as much as ours with no more false positives."""

VERDICTS, OURS = "ours, verdicts only", "ours"
"""The agent without characterization, which fixed thresholds do not request, and as it is set."""

LIMIT, CLOUD_LIMIT = 0.5, 0.35
"""Required: the largest share of the ROIs and bytes of fixed thresholds, and of cloud only."""

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
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Studies:
    """The candidates ``(n,)`` and the nodules ``(m,)`` of some studies ``(k,)``.

    ``edge`` and ``both`` are the scores of each candidate, ``study`` its study, ``nodule`` the
    number of the nodule that it hits, or -1, and ``false`` whether a finding there would be a false
    positive. ``patients`` and ``home`` are patient and study of each nodule; ``real`` are the
    studies without insertions.
    """

    study: IntArray
    edge: FloatArray
    both: FloatArray
    nodule: IntArray
    false: BoolArray
    patients: tuple[str, ...]
    home: IntArray
    real: BoolArray


@dataclass(frozen=True)
class Policy:
    """Sends scores in [``low``, ``high``), and reports those from ``high`` on.

    What is reported may be sent too, to ``characterize`` it.
    """

    low: float
    high: float
    characterize: bool = False


@dataclass(frozen=True, eq=False)
class Outcome:
    """The nodules that a policy finds ``(m,)``, and counts of all studies."""

    found: BoolArray
    false: int
    rois: int


def run(policy: Policy, of: Studies, final: float) -> Outcome:
    """Return the outcome where everything that is sent is answered."""
    confirmed = (of.edge >= policy.low) & (of.both >= final)
    findings = (of.edge >= policy.high) | confirmed
    found = np.isin(np.arange(len(of.patients)), of.nodule[findings])
    sent = (of.edge >= policy.low) & ((of.edge < policy.high) | policy.characterize)
    return Outcome(found, int((findings & of.false).sum()), int(sent.sum()))


def compare_policies(
    data: Path, folders: Sequence[Path], known: Mapping[str, Truth], agent: Agent, together: int
) -> dict[str, Any]:
    """Read the studies of val and test, and return all figures of the policies on test."""
    studies, not_placed = dict[str, Studies](), list[str]()
    for number, split in enumerate((VAL, TEST)):
        of = [one for one in folders if known[scan_name(one)].role == split]
        reads = agent.reads(Stage.EDGE)
        hosts = [prepare_host(load_host(one, known), reads) for one in each(of, f"{split} scans")]
        donors, _ = read_donors(data, (split,))
        rng = np.random.default_rng([0, number])
        planned, rest = plan_nodules(hosts, donors, together, rng)
        studies[split] = read_studies(_scans(hosts, planned), len(hosts) + len(planned), agent)
        not_placed += [one.donor.name for one in rest]
    limits = agent.thresholds.dismiss, agent.thresholds.finding, agent.thresholds.report
    return {
        "not_placed": ", ".join(not_placed) or "none",
        **compare(studies[VAL], studies[TEST], limits, agent.roi_side**3),
    }


Scan = tuple[Volume, Sequence[Lesion | Insertion], Sequence[str], Truth | None]
"""A scan, its nodules with their patients, and the truth of a real scan."""


def _scans(
    hosts: Sequence[PreparedHost], copies: Sequence[SyntheticScan[PreparedHost]]
) -> Iterator[Scan]:
    """Yield the real scans, then the copies; one is in memory at a time."""
    for host in hosts:
        one = host.host
        yield one.volume, one.truth.lesions, [one.name] * len(one.truth.lesions), one.truth
    for copy in copies:
        patients = [one.donor.patient for one in copy.insertions]
        yield insert(copy.host.host.volume, copy.insertions), copy.insertions, patients, None


def read_studies(scans: Iterable[Scan], count: int, agent: Agent) -> Studies:
    """Read each scan by edge and cloud; of a study as many candidates count as may be sent."""
    rows, reals = list[tuple[int, float, float, int, bool]](), list[bool]()
    patients, home = list[str](), list[int]()
    for number, (volume, nodules, owners, truth) in enumerate(each(scans, "studies", count)):
        box = preprocess(volume)
        found = agent.reads(Stage.EDGE)(box)[Stage.EDGE]
        found = sorted(found, key=lambda one: -one.score)[: agent.max_rois]
        for candidate, chance in zip(found, agent.second_scores(found, box).tolist(), strict=True):
            hits = [known.hit_by(candidate.centre_mm) for known in nodules]
            nodule = len(patients) + hits.index(True) if any(hits) else -1
            both = agent.weights.merged(candidate.score, chance, candidate.diameter_mm)
            false = truth is not None and truth.is_false(candidate.centre_mm)
            rows.append((number, candidate.score, both, nodule, false))
        reals.append(truth is not None)
        patients += owners
        home += [number] * len(owners)
    table = np.array(rows, float).reshape(-1, 5)
    study, hit = (table[:, i].astype(np.int64) for i in (0, 3))
    return Studies(study, table[:, 1], table[:, 2], hit, table[:, 4] > 0, tuple(patients),
                   np.array(home, np.int64), np.array(reals))  # fmt: skip


@dataclass(frozen=True, eq=False)
class Search:
    """The figures of all bands if everything is answered, ``(lower ends, upper ends)``.

    Nothing changes while an end moves between two neighbouring scores, so one between each two of
    ``bounds`` is all there are. A lower end above the upper one means nothing.
    """

    bounds: FloatArray
    found: FloatArray
    false: FloatArray
    rois: FloatArray

    def single(self, aim: Outcome) -> Policy:
        """Choose a single threshold, from which everything is sent."""
        allowed = np.zeros(self.rois.shape, bool)
        allowed[:, -1] = True
        return Policy(self._middle(np.nonzero(self._best(allowed, aim))[0]), NO_TOP)

    def cut(self, aim: Outcome) -> Policy:
        """Choose a single threshold on the edge's score, which sends nothing."""
        cut = self._middle(np.nonzero(self._best(np.eye(len(self.rois), dtype=bool), aim))[0])
        return Policy(cut, cut)

    def pair(self, aim: Outcome) -> Policy:
        """Choose both ends: of equally good ones those farthest from any score."""
        lows, highs = np.nonzero(self._best(np.triu(self.rois > 0), aim))
        gaps = np.append(np.diff(self.bounds)[:-1] / 2, np.inf)
        ends = np.append((self.bounds[:-2] + self.bounds[1:-1]) / 2, NO_TOP)
        widest = int(np.argmax(np.minimum(gaps[lows], gaps[highs])))
        return Policy(float(ends[lows[widest]]), float(ends[highs[widest]]))

    def better(self, than: Outcome) -> tuple[int, int]:
        """Count the pairs that do as well with fewer ROIs, and all that send something."""
        as_good = (self.found >= than.found.sum()) & (self.false <= than.false)
        pairs = np.triu(self.rois > 0)
        return int((pairs & as_good & (self.rois < than.rois)).sum()), int(pairs.sum())

    def _best(self, allowed: BoolArray, aim: Outcome) -> BoolArray:
        """Select the best of the ``allowed`` choices, with all ties.

        Of those that reach the aim take the ones that send least; if there is none, the ones that
        find most within its false positives.
        """
        quiet = allowed & (self.false <= aim.false)
        pool = quiet & (self.found >= aim.found.sum())
        if not pool.any():
            pool = quiet if quiet.any() else allowed
            pool = pool & (self.found == self.found[pool].max())
        return np.asarray(pool & (self.rois == self.rois[pool].min()), bool)

    def _middle(self, ends: IntArray) -> float:
        """Return the middle of the widest run of neighbouring ends."""
        runs = np.split(ends, np.flatnonzero(np.diff(ends) > 1) + 1)
        spans = [(self.bounds[run[0]], self.bounds[run[-1] + 1]) for run in runs]
        low, high = max(spans, key=lambda span: span[1] - span[0])
        return float(low + high) / 2


def search(of: Studies, final: float) -> Search:
    """Count all bands at once, by ranks of scores."""
    scores, rank = np.unique(of.edge, return_inverse=True)
    if not scores.size:
        raise EvaluationError("no candidate: no threshold can be chosen")
    ends, confirmed = np.arange(scores.size + 1), of.both >= final
    # of each nodule the highest rank, and that among candidates which the cloud confirms
    best = np.full((2, len(of.patients)), -1)
    for row, those in enumerate((of.nodule >= 0, (of.nodule >= 0) & confirmed)):
        np.maximum.at(best[row], of.nodule[those], rank[those])
    # a nodule is missed if none of its candidates reaches the upper end, and none that the cloud
    # confirms reaches the lower one
    below_high, below_low = (one[:, None] < ends for one in best)
    sent, at_once = _from(rank, ends), _from(rank[of.false], ends)
    confirmed_false = _from(rank[of.false & confirmed], ends)
    return Search(
        bounds=np.concatenate([[0.0], scores, [NO_TOP]]),
        found=best.shape[1] - below_low.T.astype(float) @ below_high,
        false=at_once[None, :] + np.subtract.outer(confirmed_false, confirmed_false),
        rois=np.subtract.outer(sent, sent),
    )


def _from(ranks: IntArray, ends: IntArray) -> FloatArray:
    """Count the ranks at each end or above it."""
    return (ranks.size - np.searchsorted(np.sort(ranks), ends)).astype(float)


def compare(
    val: Studies, test: Studies, limits: tuple[float, float, float], roi_bytes: int
) -> dict[str, Any]:
    """Return all figures; ``limits`` are the thresholds ``dismiss``, ``finding`` and ``report``."""
    dismiss, final, report = limits
    ours = Policy(dismiss, report)
    aim, searched = run(ours, val, final), search(val, final)
    policies = {
        EDGE: Policy(final, final), CLOUD: Policy(-np.inf, np.inf), TUNED: searched.cut(aim),
        FIXED: searched.single(aim), PAIR: searched.pair(aim),
        VERDICTS: ours, OURS: Policy(dismiss, report, characterize=True),
    }  # fmt: skip
    outcomes = {name: run(policy, test, final) for name, policy in policies.items()}
    rows = {name: _row(name, one, test, roi_bytes) for name, one in outcomes.items()}
    better, tried = search(test, final).better(outcomes[VERDICTS])
    return {
        "policies": list(rows.values()),
        "against": [
            against(rows[name], rows[other])
            for other in (CLOUD, FIXED, PAIR, TUNED)
            for name in (VERDICTS, OURS)
        ],
        "more_than_edge": more_than_edge(outcomes[OURS], test),
        "pairs_better": better,
        "pairs_tried": tried,
    }


def _row(name: str, one: Outcome, of: Studies, roi_bytes: int) -> dict[str, Any]:
    known, rois_per_scan = one.found[of.real[of.home]], one.rois / of.real.size
    return {
        "policy": name,
        "sensitivity": _share(of.patients, one.found).as_dict(),
        "of_real": float(known.mean()) if known.size else None,
        "false_positives_per_scan": one.false / of.real.sum(),
        "escalated_share": one.rois / of.edge.size,
        "rois_per_scan": rois_per_scan,
        "kilobytes_per_scan": rois_per_scan * roi_bytes / 1000,
    }


def _share(patients: Sequence[str], value: npt.NDArray[Any], least: float = 0.0) -> Interval:
    """Return the mean ``value`` ``(m,)``, from ``least`` to 1, by bootstrap over patients."""
    (found,) = by_patient(patients, lambda chosen: [float(value[chosen].mean())])
    return widened(found, len(set(patients)), least)


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


def more_than_edge(one: Outcome, of: Studies) -> dict[str, Any]:
    """Return the sensitivity less that of the edge's score alone at equal false positives."""
    score = np.full(len(of.patients), -np.inf)
    np.maximum.at(score, of.nodule[of.nodule >= 0], of.edge[of.nodule >= 0])
    # a nodule is found if it scores above the first false positive that is one too many
    false = np.sort(of.edge[of.false])[::-1]
    edge = score > (false[one.false] if one.false < false.size else -np.inf)
    gain = _share(of.patients, one.found.astype(float) - edge, -1)
    return {"edge": float(edge.mean()), **gain.as_dict()}


def bars(result: Result) -> Iterator[Bar]:
    """Yield what is required of ours against the others."""
    for row in result.get("against", ()):
        what, ratio = f"ROIs and bytes sent, {row['ours']}, against {row['other']}", row["ratio"]
        if row["other"] == CLOUD:
            shown = "as much found" if row["at_least"] else "less found"
            value = ratio if row["at_least"] else None
            yield Bar(what, value, CLOUD_LIMIT, "{:.2f} times", shown=f"{ratio:.2f} times, {shown}")
        elif ratio is None:
            # what sends nothing cannot be beaten where it finds as much
            yield Bar(what, None if row["as_good"] else 0.0, LIMIT, shown="it sends nothing")
        else:
            yield Bar(what, ratio, LIMIT, "{:.2f} times")
    if "more_than_edge" in result:
        gain = 100 * result["more_than_edge"]["value"]
        what = "found, ours, against edge only at equal false positives"
        yield Bar(what, gain if gain > 0 else None, 0.0, "{:.1f} points more", least=True,
                  shown=f"{gain:+.1f} points")  # fmt: skip
