"""The comparison of policies on the same studies over the same links.

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
from evaluation.accuracy.bootstrap import RESAMPLES, Interval, draw, interval
from evaluation.common.cli import each
from evaluation.links.link import TOLERANCE_S
from evaluation.links.trace import Trace
from evaluation.policies.cases import TEST, VAL, Cases
from evaluation.policies.routing import Policy, band, cloud_only, edge_only, oracle, ours, routed
from evaluation.policies.search import Choice, Reached, best, filters, reach, search
from evaluation.policies.simulate import Outcome, World, run
from evaluation.policies.studies import Study, studies_of
from evaluation.timing.latency import percentiles_ms
from models.auc import auc

FIXED, PAIR, TUNED = "fixed threshold", "fixed pair", "edge only, tuned"
"""Chosen on validation to find as much as ours with no more false positives."""

HINDSIGHT = "fixed threshold, in hindsight"
"""The single threshold that is chosen on the test studies themselves: a limit."""

SEDNA, ENTROPY = "Sedna threshold", "Sedna entropy"

OURS, VERDICTS = "ours", "ours, verdicts only"
"""The agent as it is set, and the agent without characterization: fixed thresholds request verdicts
and nothing else."""

OPPONENTS = {
    "single": FIXED, "pair": PAIR, "cut": TUNED, "sedna": ENTROPY, "hindsight": HINDSIGHT
}  # fmt: skip
"""The policies with which ours is compared; the first is the headline."""

HEADLINE = "fibre"
"""The trace of a good link, for the headline."""

LIMIT = 0.5
"""Required: at most this share of the opponent's ROIs and of its bytes."""

SWEEP = 6
"""Number of single thresholds that are run beside the chosen one, for the plots."""

CAVEAT = (
    "Scores and verdicts are real, time is simulated. Studies are nodules of one patient among the "
    "false positives of another patient's whole scan. There are few such scans, so false positives "
    "repeat. Only some lesions of a scan are known: some of the false positives may be nodules."
)

Row = Mapping[str, Any]


def line_up(world: World, test: Sequence[Study]) -> tuple[tuple[Policy, ...], Reached]:
    """Return the policies, with thresholds chosen on validation, and the aim of these."""
    val = studies_of(world.cases, VAL, rounds=1, seed=world.seed)
    limits, most = world.cases.thresholds, world.edge.max_rois
    ours_band = band(limits.dismiss, limits.report)
    aim = reach(ours_band, val, limits.final)
    searched = search(val, limits.final)
    single = searched.single(aim)
    test_aim = reach(ours_band, test, limits.final)
    hindsight = search(test, limits.final).single(test_aim)
    filtered = filters(val, limits.final, limits.alone)

    def fitted(name: str, kind: str, choice: Choice, *, goal: Reached = aim, **how: bool) -> Policy:
        return routed(name, kind, choice.routing, most, **how, **choice.as_dict(goal))

    def sedna(name: str, key: str) -> Policy:
        return fitted(name, name, best(filtered[key], aim), without_deadline=True)

    policies = (
        routed("edge only", "edge only", edge_only(limits.alone), most),
        routed("cloud only", "cloud only", cloud_only(), most, without_deadline=True),
        fitted(TUNED, TUNED, searched.cut(aim)),
        fitted(FIXED, FIXED, single),
        fitted(PAIR, PAIR, searched.pair(aim)),
        *(
            fitted(f"fixed sweep {n}", FIXED, one)
            for n, one in enumerate(searched.sweep(single.settings["threshold"], SWEEP), 1)
        ),
        fitted(HINDSIGHT, FIXED, hindsight, goal=test_aim),
        sedna(SEDNA, "threshold"),
        sedna(ENTROPY, "entropy"),
        ours(limits, world.edge.model_copy(update={"characterize": False}), VERDICTS),
        ours(limits, world.edge, OURS),
        routed("oracle", "oracle", oracle(limits), most),
    )
    return policies, aim


def compare(world: World, traces: Sequence[Trace], rounds: int) -> dict[str, Any]:
    """Run all policies over all traces, ``rounds`` times for each test patient; the result."""
    studies = studies_of(world.cases, TEST, rounds=rounds, seed=world.seed)
    policies, aim = line_up(world, studies)
    rows: dict[str, list[dict[str, Any]]] = {trace.name: [] for trace in traces}
    for trace, policy in each(list(product(traces, policies)), "policies over traces"):
        outcomes = run(world, policy, trace, studies)
        rows[trace.name].append(row(policy, outcomes, world.edge.deadline_s))
    cases = world.cases
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
        "studies": len(studies),
        "patients": len({one.patient for one in cases.of(TEST) if not one.whole}),
        "scans": [one.name for one in cases.of(TEST) if one.whole],
        "false_positives": {split: false_positives(cases, split) for split in (VAL, TEST)},
        "aim": asdict(aim),
        "evidence": evidence(studies, cases.thresholds),
        "policies": {one.name: {"kind": one.kind, **one.details} for one in policies},
        "escalation_ratio": escalation_ratio(rows),
        "traces": [{"trace": name, "policies": found} for name, found in rows.items()],
        "caveat": CAVEAT,
    }


def row(policy: Policy, outcomes: Sequence[Outcome], deadline_s: float) -> dict[str, Any]:
    """Return the figures of one policy over one trace."""
    took_s = np.array([one.took_s for one in outcomes])
    nodules = sum(len(one.study.nodules) for one in outcomes)
    candidates = sum(len(one.study.sightings) for one in outcomes)
    rois = sum(one.rois for one in outcomes)
    later = sum(one.later_rois for one in outcomes)
    sent = sum(one.sent_bytes + one.later_bytes for one in outcomes)
    sensitivity, studies = by_patient(outcomes), len(outcomes)
    return {
        "policy": policy.name,
        "kind": policy.kind,
        "studies": studies,
        "nodules": nodules,
        "sensitivity": sensitivity.value,
        "sensitivity_interval": [sensitivity.low, sensitivity.high],
        "sensitivity_amended": sum(len(one.amended) for one in outcomes) / nodules,
        "false_positives_per_scan": sum(one.false for one in outcomes) / studies,
        "false_positives_amended": sum(one.amended_false for one in outcomes) / studies,
        "escalated_share": rois / candidates,
        "rois_per_scan": (rois + later) / studies,
        "amended_rois_per_scan": later / studies,
        "bytes_per_scan": sent / studies,
        **percentiles_ms(took_s),
        "missed": int((took_s > deadline_s + TOLERANCE_S).sum()),
    }


def by_patient(outcomes: Sequence[Outcome]) -> Interval:
    """Return the sensitivity, with an interval by bootstrap over patients.

    All policies have the same draws, so that their intervals can be compared.
    """
    _, patients = np.unique([one.study.patient for one in outcomes], return_inverse=True)
    found = np.bincount(patients, [len(one.found) for one in outcomes])
    nodules = np.bincount(patients, [len(one.study.nodules) for one in outcomes])
    rng = np.random.default_rng(0)
    drawn = np.array([draw(len(found), rng) for _ in range(RESAMPLES)])
    return interval(float(found.sum() / nodules.sum()), (drawn @ found) / (drawn @ nodules))


def escalation_ratio(rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Return the ratio of our policy to each other policy, with and without characterization.

    For each trace and opponent: the ratios of ``rois`` and of ``bytes``, None where the opponent
    sends nothing; whether each of the two escalates at all; whether the opponent is ``as_good``,
    which means equal sensitivity without more false positives; and whether the requirement is
    ``met``. An opponent that was not run is None.
    """
    by_name = {trace: {row["policy"]: row for row in found} for trace, found in rows.items()}

    def ratios(name: str) -> dict[str, Any]:
        return {
            trace: {
                key: _ratio(policies[name], policies[other])
                if {name, other} <= policies.keys()
                else None
                for key, other in OPPONENTS.items()
            }
            for trace, policies in by_name.items()
        }

    return {
        "trace": HEADLINE if HEADLINE in rows else next(iter(rows)),
        "bar": LIMIT,
        "verdicts": ratios(VERDICTS),
        "characterized": ratios(OURS),
    }


def _ratio(ours: Row, other: Row) -> dict[str, Any]:
    ratios = {
        key: ours[f"{key}_per_scan"] / whole if (whole := other[f"{key}_per_scan"]) else None
        for key in ("rois", "bytes")
    }
    return {
        **ratios,
        "met": all(ratio is not None and ratio <= LIMIT for ratio in ratios.values()),
        "as_good": bool(
            other["sensitivity"] >= ours["sensitivity"]
            and other["false_positives_per_scan"] <= ours["false_positives_per_scan"]
        ),
        "escalates": other["rois_per_scan"] > 0,
        "ours_escalates": ours["rois_per_scan"] > 0,
    }


def evidence(studies: Sequence[Study], thresholds: Thresholds) -> dict[str, Any]:
    """Return how well the edge and both together rank candidates, and what verdicts change.

    ``escalated`` counts the candidates between `dismiss` and `report`, nodules and false positives,
    and those of them that a verdict removes from, or adds to, the findings of the edge alone.
    """
    edge, both, nodule, false = (
        np.concatenate([getattr(study, name) for study in studies])
        for name in ("scores", "merged", "is_nodule", "is_false")
    )
    known = nodule | false
    escalated = (edge >= thresholds.dismiss) & (edge < thresholds.report)
    alone, final = edge >= thresholds.alone, both >= thresholds.final
    return {
        "auc_edge": auc(edge[known], nodule[known]),
        "auc_both": auc(both[known], nodule[known]),
        "escalated": {
            name: {
                "candidates": int((escalated & those).sum()),
                "taken_away": int((escalated & those & alone & ~final).sum()),
                "brought_back": int((escalated & those & ~alone & final).sum()),
            }
            for name, those in (("nodules", nodule), ("false", false))
        },
    }


def false_positives(cases: Cases, split: str) -> dict[str, int]:
    """Return the number of false positives of the edge alone in each whole scan of the split."""
    alone = cases.thresholds.alone
    return {
        piece.name: sum(one.is_false and one.score >= alone for one in piece.sightings)
        for piece in cases.of(split)
        if piece.whole
    }
