"""Ways to spend the budget, compared on the same studies over the same links.

What a policy leaves open is chosen on validation studies, with a link that brings everything;
figures are of test studies. The readings are real, the time is simulated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evaluation.policy_evidence import alarms, evidence
from evaluation.policy_fit import Choice, Reached, best, filters, reach
from evaluation.policy_ratio import (
    ENTROPY,
    FIXED,
    HINDSIGHT,
    OURS,
    PAIR,
    TUNED,
    VERDICTS,
    escalation_ratio,
)
from evaluation.policy_reading import TEST, VAL
from evaluation.policy_routes import band, cloud_only, edge_only, oracle
from evaluation.policy_row import row
from evaluation.policy_rules import Policy, ours, routed
from evaluation.policy_run import run
from evaluation.policy_search import search
from evaluation.policy_studies import Study, studies_of
from evaluation.policy_world import World
from evaluation.trace import Trace

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
            ours(limits, world.edge.model_copy(update={"describe": False}), VERDICTS),
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
    return routed(name, kind, choice.routing, most, patient=patient, **choice.as_json(aim))


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
        "aim": field.aim.as_json(),
        "evidence": evidence(field.studies, cases.thresholds),
        "policies": {one.name: {"kind": one.kind, **one.told} for one in field.policies},
        "escalation_ratio": escalation_ratio(rows),
        "traces": [{"trace": name, "policies": found} for name, found in rows.items()],
        "caveat": CAVEAT,
    }
