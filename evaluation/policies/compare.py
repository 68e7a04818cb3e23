"""Ways to spend the budget, compared on the same studies over the same links.

What a policy leaves open is chosen on validation studies, with a link that brings everything;
figures are of test studies. The readings are real, the time is simulated.

The figures of one policy over one trace, and how sure of them its patients make us.

How much less ours asks than each kind of opponent, and whether that is at most half.

Fixed thresholds may mean three things: a single one, from which on the cloud's word decides; a
pair, asked between and reported above; and a cut on the edge's own score, which asks nothing.

What the cases themselves say of second readings: what they rank, take away and bring back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edge.decide import Thresholds
from evaluation.accuracy.bootstrap import RESAMPLES, Interval, draw, interval
from evaluation.links.link import TOLERANCE_S
from evaluation.links.trace import Trace
from evaluation.policies.cases import Cases
from evaluation.policies.read_cases import TEST, VAL
from evaluation.policies.routing import Policy, band, cloud_only, edge_only, oracle, ours, routed
from evaluation.policies.search import Choice, Reached, best, filters, reach, search
from evaluation.policies.simulate import Told, World, run
from evaluation.policies.studies import Study, studies_of
from evaluation.timing.latency import percentiles_ms
from models.auc import auc


def row(policy: Policy, told: Sequence[Told], deadline_s: float) -> dict[str, Any]:
    """What was found, at what cost, and when."""
    took_s = np.array([one.took_s for one in told])
    nodules = sum(len(one.study.nodules) for one in told)
    candidates = sum(len(one.study.sightings) for one in told)
    rois = sum(one.rois for one in told)
    later = sum(one.later_rois for one in told)
    sent = sum(one.sent_bytes + one.later_bytes for one in told)
    sensitivity = by_patient(told)
    return {
        "policy": policy.name,
        "kind": policy.kind,
        "studies": len(told),
        "nodules": nodules,
        "sensitivity": sensitivity.value,
        "sensitivity_interval": [sensitivity.low, sensitivity.high],
        "sensitivity_amended": sum(len(one.amended) for one in told) / nodules,
        "false_positives_per_scan": sum(one.false for one in told) / len(told),
        "false_positives_amended": sum(one.amended_false for one in told) / len(told),
        "escalated_share": rois / candidates,
        "rois_per_scan": (rois + later) / len(told),
        "amended_rois_per_scan": later / len(told),
        "bytes_per_scan": sent / len(told),
        **percentiles_ms(took_s),
        "missed": int((took_s > deadline_s + TOLERANCE_S).sum()),
    }


def by_patient(told: Sequence[Told]) -> Interval:
    """The part of the nodules that was found, patients drawn with replacement.

    The same draws for every policy, so that their intervals can be compared.
    """
    patients = sorted({one.study.patient for one in told})
    found, nodules = np.zeros(len(patients)), np.zeros(len(patients))
    for one in told:
        place = patients.index(one.study.patient)
        found[place] += len(one.found)
        nodules[place] += len(one.study.nodules)
    rng = np.random.default_rng(0)
    drawn = np.array([draw(len(patients), rng) for _ in range(RESAMPLES)])
    return interval(float(found.sum() / nodules.sum()), (drawn @ found) / (drawn @ nodules))


HEADLINE = "fibre"
"""The trace that stands for a link which carries what it should."""

BAR = 0.5
"""At most this part of the regions and of the bytes."""

FIXED, PAIR, TUNED = "fixed threshold", "fixed pair", "edge only, tuned"
"""What was chosen on validation to find as much as ours with no more false alarms."""

HINDSIGHT = "fixed threshold, in hindsight"
"""The single threshold that is chosen on the test itself."""

ENTROPY = "Sedna entropy"

OURS, VERDICTS = "ours", "ours, verdicts only"
"""The agent as it is set, and the agent that has nothing described: fixed thresholds ask for
verdicts and nothing else."""

OPPONENTS = {
    "single": FIXED, "pair": PAIR, "cut": TUNED, "sedna": ENTROPY, "hindsight": HINDSIGHT
}  # fmt: skip
"""The rows that ours is held against; the first is the headline."""

Row = Mapping[str, Any]


def escalation_ratio(rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Ours over each opponent, for verdicts alone and with descriptions.

    For each of the two, by trace and opponent: the parts of ``rois`` and of ``bytes``, None where
    the opponent asks nothing; whether either asks at all; whether the opponent is ``as_good``,
    finds as much with no more false alarms there; and whether the bar is ``met``. An opponent
    that did not run is None.
    """
    return {
        "trace": HEADLINE if HEADLINE in rows else next(iter(rows)),
        "bar": BAR,
        **{
            name: {trace: _of_trace(found, ours) for trace, found in rows.items()}
            for name, ours in (("verdicts", VERDICTS), ("described", OURS))
        },
    }


def _of_trace(rows: Sequence[Row], name: str) -> dict[str, dict[str, Any] | None]:
    by_name = {row["policy"]: row for row in rows}
    return {
        key: _against(by_name[name], by_name[other])
        if name in by_name and other in by_name
        else None
        for key, other in OPPONENTS.items()
    }


def _against(ours: Row, other: Row) -> dict[str, Any]:
    parts = {key: _part(ours[f"{key}_per_scan"], other[f"{key}_per_scan"])
             for key in ("rois", "bytes")}  # fmt: skip
    return {
        **parts,
        "met": all(part is not None and part <= BAR for part in parts.values()),
        "as_good": bool(
            other["sensitivity"] >= ours["sensitivity"]
            and other["false_positives_per_scan"] <= ours["false_positives_per_scan"]
        ),
        "asks": other["rois_per_scan"] > 0,
        "ours_asks": ours["rois_per_scan"] > 0,
    }


def _part(part: float, whole: float) -> float | None:
    """None where the other asks nothing."""
    return part / whole if whole else None


def evidence(studies: Sequence[Study], thresholds: Thresholds) -> dict[str, Any]:
    """How well the edge and both together rank candidates, and what verdicts change.

    ``asked`` counts the candidates between `dismiss` and `report`, nodules and false alarms, and
    of them those that a verdict takes away from, or brings into, what the edge reports alone.
    """
    ones = [one for study in studies for one in study.sightings]
    edge = np.concatenate([study.scores for study in studies])
    both = np.concatenate([study.merged for study in studies])
    nodule = np.array([bool(one.nodule) for one in ones], bool)
    false = np.array([not one.nodule and not one.ignored for one in ones], bool)
    judged = nodule | false
    asked = (edge >= thresholds.dismiss) & (edge < thresholds.report)
    alone, final = edge >= thresholds.alone, both >= thresholds.final
    return {
        "auc_edge": auc(edge[judged], nodule[judged]),
        "auc_both": auc(both[judged], nodule[judged]),
        "asked": {
            name: {
                "candidates": int((asked & kind).sum()),
                "taken_away": int((asked & kind & alone & ~final).sum()),
                "brought_back": int((asked & kind & ~alone & final).sum()),
            }
            for name, kind in (("nodules", nodule), ("false", false))
        },
    }


def alarms(cases: Cases, split: str) -> dict[str, int]:
    """Of each whole scan, how many of its own places the edge alone would report falsely."""
    alone = cases.thresholds.alone
    return {
        piece.name: sum(
            not one.nodule and not one.ignored and one.score >= alone for one in piece.sightings
        )
        for piece in cases.of(split)
        if piece.whole
    }


SWEEP = 6
"""Single thresholds that are run over the traces beside the chosen one, for the plots."""

CAVEAT = (
    "Scores and verdicts are real, time is simulated. Studies are nodules of a patient laid into "
    "the alarms of another patient's whole scan, of which there are few: false alarms repeat. "
    "Only some lesions of a scan are known, so a few of the false alarms may be true."
)


@dataclass(frozen=True, eq=False)
class Field:
    """Everyone who takes part, and the studies that they are measured on."""

    policies: tuple[Policy, ...]
    studies: tuple[Study, ...]
    aim: Reached


def line_up(world: World, rounds: int) -> Field:
    """The policies, what they leave open chosen on validation, and the test studies."""
    val = studies_of(world.cases, VAL, rounds=1, seed=world.seed)
    test = studies_of(world.cases, TEST, rounds=rounds, seed=world.seed)
    limits, most = world.thresholds, world.edge.max_rois
    aim = reach(band(limits.dismiss, limits.report), val, limits.final)
    return Field(
        (
            routed("edge only", "edge only", edge_only(limits.alone), most),
            routed("cloud only", "cloud only", cloud_only(), most, patient=True),
            *_fixed(world, val, aim),
            _hindsight(world, test),
            *_sedna(world, val, aim),
            ours(limits, world.edge.model_copy(update={"characterize": False}), VERDICTS),
            ours(limits, world.edge, OURS),
            routed("oracle", "oracle", oracle(limits), most),
        ),
        test,
        aim,
    )


def _fixed(world: World, val: Sequence[Study], aim: Reached) -> list[Policy]:
    """The three kinds of fixed thresholds, and a sweep of the single one."""
    searched, most = search(val, world.thresholds.final), world.edge.max_rois
    single = searched.single(aim)
    swept = searched.sweep(single.settings["threshold"], SWEEP)
    return [
        _fitted(TUNED, TUNED, searched.cut(aim), aim, most),
        _fitted(FIXED, FIXED, single, aim, most),
        _fitted(PAIR, PAIR, searched.pair(aim), aim, most),
        *(_fitted(f"fixed sweep {n}", FIXED, one, aim, most) for n, one in enumerate(swept, 1)),
    ]


def _hindsight(world: World, test: Sequence[Study]) -> Policy:
    """The single threshold that would have been best if the test had been known: a limit."""
    limits = world.thresholds
    aim = reach(band(limits.dismiss, limits.report), test, limits.final)
    choice = search(test, limits.final).single(aim)
    return _fitted(HINDSIGHT, FIXED, choice, aim, world.edge.max_rois)


def _sedna(world: World, val: Sequence[Study], aim: Reached) -> list[Policy]:
    tried = filters(val, world.thresholds.final, world.thresholds.alone)
    names = {"threshold": "Sedna threshold", "entropy": ENTROPY}
    return [
        _fitted(name, name, best(tried[key], aim), aim, world.edge.max_rois, patient=True)
        for key, name in names.items()
    ]


def _fitted(
    name: str, kind: str, choice: Choice, aim: Reached, most: int, *, patient: bool = False
) -> Policy:
    return routed(name, kind, choice.routing, most, patient=patient, **choice.as_dict(aim))


def compare(
    world: World, field: Field, traces: Sequence[Trace], pairs: Iterable[tuple[Trace, Policy]]
) -> dict[str, Any]:
    """Everything, for machines; ``pairs`` are all of them, watched."""
    rows: dict[str, list[dict[str, Any]]] = {trace.name: [] for trace in traces}
    for trace, policy in pairs:
        told = run(world, policy, trace, field.studies)
        rows[trace.name].append(row(policy, told, world.edge.deadline_s))
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
        "studies": len(field.studies),
        "patients": len({one.patient for one in cases.of(TEST) if not one.whole}),
        "scans": [one.name for one in cases.of(TEST) if one.whole],
        "alarms": {"val": alarms(cases, VAL), "test": alarms(cases, TEST)},
        "aim": field.aim.as_dict(),
        "evidence": evidence(field.studies, cases.thresholds),
        "policies": {one.name: {"kind": one.kind, **one.told} for one in field.policies},
        "escalation_ratio": escalation_ratio(rows),
        "traces": [{"trace": name, "policies": found} for name, found in rows.items()],
        "caveat": CAVEAT,
    }
