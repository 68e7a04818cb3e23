"""The comparison of policies on the same whole scans over the same links.

Thresholds are chosen on validation studies, with a link that delivers everything; the figures are
those of test studies. The readings are real, the time is simulated.

"Fixed threshold" has three meanings. A *single* one escalates from it on, and the cloud's score
decides. A *pair* escalates between its two thresholds and reports above. A *cut* on the edge's own
score escalates nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import numpy as np

from edge.decide import Thresholds
from evaluation.accuracy.bootstrap import RESAMPLES, Interval, draw, finite, interval, widened
from evaluation.common.cli import each
from evaluation.links.link import TOLERANCE_S
from evaluation.links.trace import Trace
from evaluation.policies.cases import SPLITS, TEST, VAL
from evaluation.policies.routing import (
    BoolArray,
    Policy,
    band,
    cloud_only,
    edge_only,
    oracle,
    ours,
    routed,
)
from evaluation.policies.search import Choice, Reached, best, filters, reach, search
from evaluation.policies.simulate import Outcome, World, run
from evaluation.policies.studies import Study, real_scans, repeated
from evaluation.timing.latency import percentiles_ms
from imaging.volume import FloatArray
from models.auc import auc

EDGE, CLOUD = "edge only", "cloud only"

FIXED, PAIR, TUNED = "fixed threshold", "fixed pair", "edge only, tuned"
"""Chosen on validation to find as much as ours with no more false positives."""

HINDSIGHT = "fixed pair, in hindsight"
"""The pair of thresholds that is chosen on the test studies themselves: the limit of every pair."""

SEDNA, ENTROPY = "Sedna threshold", "Sedna entropy"

OURS, VERDICTS = "ours", "ours, verdicts only"
"""The agent as it is set, and the agent without characterization: fixed thresholds request verdicts
and nothing else."""

OPPONENTS = {
    "cloud": CLOUD, "single": FIXED, "pair": PAIR, "cut": TUNED, "sedna": ENTROPY,
    "hindsight": HINDSIGHT,
}  # fmt: skip
"""The policies with which ours is compared; the first is the headline."""

HEADLINE = "fibre"
"""The trace of a good link, for the headline."""

LIMIT = 0.5
"""Required: at most this share of the ROIs and of the bytes of fixed thresholds."""

CLOUD_LIMIT = 0.35
"""Required: at most this share of the bytes of cloud only, with at least as many nodules found."""

SWEEP = 6
"""Number of single thresholds that are run beside the chosen one, for the plots."""

CAVEAT = (
    "Scores and verdicts are real, time is simulated. Studies are real whole scans, and copies of "
    "them with real nodules of other patients inserted. Inserted nodules lie free in the lung. "
    "False positives are those of the real scans, which are few."
)

Row = Mapping[str, Any]


def line_up(
    world: World, test: Sequence[Study]
) -> tuple[tuple[Policy, ...], Reached, dict[str, Any]]:
    """Return the policies, the aim of those chosen on validation, and the limit of every pair.

    The limit counts the pairs that do as well as ours on the test studies, and escalate less.
    """
    val = world.cases.of(VAL)
    limits, most = world.cases.thresholds, world.edge.max_rois
    ours_band = band(limits.dismiss, limits.report)
    aim = reach(ours_band, val, limits.finding)
    searched = search(val, limits.finding)
    single = searched.single(aim)
    test_aim = reach(ours_band, test, limits.finding)
    every_pair = search(test, limits.finding)
    pairs = {
        "tried": int(np.triu(every_pair.escalated > 0).sum()),
        "better": every_pair.dominating(test_aim),
        "ours": asdict(test_aim),
    }
    filtered = filters(val, limits.finding, limits.finding)

    def fitted(name: str, kind: str, choice: Choice, *, goal: Reached = aim, **how: bool) -> Policy:
        return routed(name, kind, choice.routing, most, **how, **choice.as_dict(goal))

    def sedna(name: str, key: str) -> Policy:
        return fitted(name, name, best(filtered[key], aim), without_deadline=True)

    policies = (
        routed(EDGE, EDGE, edge_only(limits.finding), most),
        routed(CLOUD, CLOUD, cloud_only(), most, without_deadline=True),
        fitted(TUNED, TUNED, searched.cut(aim)),
        fitted(FIXED, FIXED, single),
        fitted(PAIR, PAIR, searched.pair(aim)),
        *(
            fitted(f"fixed sweep {n}", FIXED, one)
            for n, one in enumerate(searched.sweep(single.settings["threshold"], SWEEP), 1)
        ),
        fitted(HINDSIGHT, PAIR, every_pair.pair(test_aim), goal=test_aim),
        sedna(SEDNA, "threshold"),
        sedna(ENTROPY, "entropy"),
        ours(limits, world.edge.model_copy(update={"characterize": False}), VERDICTS),
        ours(limits, world.edge, OURS),
        routed("oracle", "oracle", oracle(limits), most),
    )
    return policies, aim, pairs


def compare(world: World, traces: Sequence[Trace], rounds: int) -> dict[str, Any]:
    """Run all policies over all traces, ``rounds`` times on each test study; the result."""
    cases, test = world.cases, world.cases.of(TEST)
    studies = repeated(test, rounds=rounds, seed=world.seed)
    policies, aim, pairs = line_up(world, test)
    rows: dict[str, list[dict[str, Any]]] = {trace.name: [] for trace in traces}
    headline = HEADLINE if HEADLINE in rows else next(iter(rows))
    gains: dict[str, Any] = {}
    for trace, policy in each(list(product(traces, policies)), "policies over traces"):
        outcomes = run(world, policy, trace, studies)
        rows[trace.name].append(row(policy, outcomes, world.edge.deadline_s))
        if trace.name == headline and policy.name in (OURS, VERDICTS):
            gains[policy.name] = more_than_edge(outcomes)
    by_name = {trace: {one["policy"]: one for one in found} for trace, found in rows.items()}
    return {
        "models": list(cases.models),
        "cpu": cases.cpu,
        "guarantee": cases.guarantee,
        "thresholds": asdict(cases.thresholds),
        "proposed_from": cases.proposed,
        "deadline_s": world.edge.deadline_s,
        "reserve_s": world.edge.reserve_s,
        "every_s": world.every_s,
        "seed": world.seed,
        "rounds": rounds,
        "studies": len(studies),
        "sets": {split: described(cases.of(split), cases.thresholds) for split in SPLITS},
        "not_placed": list(cases.not_placed),
        "aim": asdict(aim),
        "fixed_pairs": pairs,
        "policies": {one.name: {"kind": one.kind, **one.details} for one in policies},
        "more_than_edge": gains,
        "escalation_ratio": {
            "trace": headline,
            "bar": LIMIT,
            "cloud_bar": CLOUD_LIMIT,
            "verdicts": ratios(by_name, VERDICTS),
            "characterized": ratios(by_name, OURS),
        },
        "traces": [{"trace": name, "policies": found} for name, found in rows.items()],
        "caveat": CAVEAT,
    }


def row(policy: Policy, outcomes: Sequence[Outcome], deadline_s: float) -> dict[str, Any]:
    """Return the figures of one policy over one trace: of all studies, and of both kinds apart."""
    took_s = np.array([one.took_s for one in outcomes])
    real = [one for one in outcomes if one.study.real]
    made = [one for one in outcomes if not one.study.real]
    scans = real_scans([one.study for one in outcomes])
    return {
        "policy": policy.name,
        "kind": policy.kind,
        **_figures(outcomes),
        "false_positives_per_scan": sum(one.false for one in real) / scans,
        "false_positives_amended": sum(one.amended_false for one in real) / scans,
        "real": _figures(real),
        "semi_synthetic": _figures(made),
        **percentiles_ms(took_s),
        "missed": int((took_s > deadline_s + TOLERANCE_S).sum()),
    }


def _figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return what was found and what was sent; None without nodules, or without studies."""
    studies = len(outcomes)
    candidates = sum(len(one.study.sightings) for one in outcomes)
    rois = sum(one.rois for one in outcomes)
    later = sum(one.later_rois for one in outcomes)
    sent = sum(one.sent_bytes + one.later_bytes for one in outcomes)
    nodules = [(one, name) for one in outcomes for name in one.study.nodules]
    found = np.array([name in one.found for one, name in nodules], float)
    amended = np.array([name in one.amended for one, name in nodules], float)
    share = by_patient(outcomes, found) if found.size else None
    return {
        "studies": studies,
        "nodules": found.size,
        "sensitivity": share and share.value,
        "sensitivity_interval": share and [share.low, share.high],
        "sensitivity_amended": float(amended.mean()) if amended.size else None,
        "escalated_share": rois / candidates if candidates else None,
        "rois_per_scan": (rois + later) / studies if studies else None,
        "amended_rois_per_scan": later / studies if studies else None,
        "bytes_per_scan": sent / studies if studies else None,
    }


def by_patient(outcomes: Sequence[Outcome], value: FloatArray, least: float = 0.0) -> Interval:
    """Return the mean ``value`` ``(nodules,)``, with an interval by bootstrap over patients.

    Values are between ``least`` and 1.
    All policies have the same draws, so that their intervals can be compared.
    """
    of = [patient for one in outcomes for patient in one.study.nodules.values()]
    _, patients = np.unique(of, return_inverse=True)
    total, nodules = np.bincount(patients, value), np.bincount(patients)
    rng = np.random.default_rng(0)
    drawn = np.array([draw(len(nodules), rng) for _ in range(RESAMPLES)])
    found = interval(float(value.mean()), (drawn @ total) / (drawn @ nodules))
    return widened(found, len(nodules), least)


def more_than_edge(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the sensitivity less that of the edge's score alone at equal false positives.

    Between two thresholds of the edge with fewer and with more false positives it is interpolated.
    """
    found = np.array([name in one.found for one in outcomes for name in one.study.nodules], float)
    score = np.concatenate([one.study.best for one in outcomes])
    false = np.concatenate([one.study.scores[one.study.is_false] for one in outcomes])
    # a nodule is found if it scores above the false positive at which the report ends
    ends = np.array([*np.unique(false)[::-1], -np.inf])
    counts = np.array([(false > end).sum() for end in ends])
    allowed = sum(one.false for one in outcomes)
    after = min(int(np.searchsorted(counts, allowed)), ends.size - 1)
    before = max(after - 1, 0)
    share = np.interp(allowed, counts[[before, after]], (0.0, 1.0))
    edge = (1 - share) * (score > ends[before]) + share * (score > ends[after])
    return {"edge": float(edge.mean()), **by_patient(outcomes, found - edge, -1).as_dict()}


def ratios(rows: Mapping[str, Mapping[str, Row]], name: str) -> dict[str, Any]:
    """Return the ratio of the policy of that name to each opponent, by trace.

    The ratios of ``rois`` and of ``bytes`` are None where the opponent sends nothing. Flags say
    whether each of the two escalates at all, and whether ours finds ``at_least`` as much. The
    opponent is ``as_good`` if it finds as much as ours without more false positives. An opponent
    that was not run is None.
    """
    return {
        trace: {
            key: _ratio(policies[name], policies[other], key)
            if {name, other} <= policies.keys()
            else None
            for key, other in OPPONENTS.items()
        }
        for trace, policies in rows.items()
    }


def _ratio(ours: Row, other: Row, key: str) -> dict[str, Any]:
    rois, sent = (
        ours[f"{what}_per_scan"] / whole if (whole := other[f"{what}_per_scan"]) else None
        for what in ("rois", "bytes")
    )
    at_least = bool(ours["sensitivity"] >= other["sensitivity"])
    if key == "cloud":
        met = at_least and sent is not None and sent <= CLOUD_LIMIT
    else:
        met = all(ratio is not None and ratio <= LIMIT for ratio in (rois, sent))
    return {
        "rois": rois,
        "bytes": sent,
        "at_least": at_least,
        "met": met,
        "as_good": bool(
            other["sensitivity"] >= ours["sensitivity"]
            and other["false_positives_per_scan"] <= ours["false_positives_per_scan"]
        ),
        "escalates": other["rois_per_scan"] > 0,
        "ours_escalates": ours["rois_per_scan"] > 0,
    }


def described(studies: Sequence[Study], thresholds: Thresholds) -> dict[str, Any]:
    """Return what the studies of one split are, how well both readers rank, what verdicts change.

    ``false_positives`` are those of the edge alone, by real scan.
    """
    real, made = ([one for one in studies if one.real is which] for which in (True, False))
    edge, both, nodule, false = _joined(studies)
    known = nodule | false
    return {
        "scans": [one.name for one in real],
        "nodules": sum(len(one.nodules) for one in real),
        "semi_synthetic_scans": len(made),
        "inserted": sum(len(one.nodules) for one in made),
        "patients": len({patient for one in made for patient in one.nodules.values()}),
        "false_positives": {
            one.name: int((one.is_false & (one.scores >= thresholds.finding)).sum()) for one in real
        },
        "auc_edge": finite(auc(edge[known], nodule[known])),
        "auc_both": finite(auc(both[known], nodule[known])),
        "real": collaboration(real, thresholds),
        "semi_synthetic": collaboration(made, thresholds),
    }


def collaboration(studies: Sequence[Study], thresholds: Thresholds) -> dict[str, Any]:
    """Return how much is uncertain, and what verdicts change, where all of them arrive.

    A verdict on an uncertain candidate may remove it from the findings of the edge alone, or add
    it. To remove a false positive and to add a nodule is ``right``. Ignored ones count only as
    uncertain.
    """
    edge, both, nodule, false = _joined(studies)
    uncertain = (edge >= thresholds.dismiss) & (edge < thresholds.report)
    alone, final = edge >= thresholds.finding, both >= thresholds.finding
    kinds = {
        name: {
            "uncertain": int((uncertain & those).sum()),
            "removed": int((uncertain & those & alone & ~final).sum()),
            "added": int((uncertain & those & ~alone & final).sum()),
        }
        for name, those in (("nodules", nodule), ("false", false))
    }
    return {
        "uncertain_per_scan": float(uncertain.sum() / len(studies)) if studies else None,
        "changed": sum(kind["removed"] + kind["added"] for kind in kinds.values()),
        "right": kinds["nodules"]["added"] + kinds["false"]["removed"],
        **kinds,
    }


def _joined(studies: Sequence[Study]) -> tuple[FloatArray, FloatArray, BoolArray, BoolArray]:
    """Return edge score, merged score, nodule or not, false or not of all candidates ``(n,)``."""
    edge, both, nodule, false = (
        np.concatenate([np.zeros(0, bool), *(getattr(one, name) for one in studies)])
        for name in ("scores", "merged", "is_nodule", "is_false")
    )
    return edge, both, nodule, false
