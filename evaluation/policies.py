"""Ways to spend the budget, compared on the same studies over the same links.

What a policy leaves open is chosen on validation studies, with a link that brings everything;
figures are of test studies. The readings are real, the time is simulated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evaluation.link import PERCENTILES, TOLERANCE_S
from evaluation.policy_fit import NO_TOP, Choice, Reached, bands, best, filters, reach, sweep
from evaluation.policy_ratio import CHOSEN, OURS, SINGLE, VERDICTS, escalation_ratio
from evaluation.policy_reading import TEST, VAL
from evaluation.policy_routes import band, cloud_only, edge_only, oracle
from evaluation.policy_rules import Policy, ours, routed
from evaluation.policy_run import run
from evaluation.policy_studies import Study, studies_of
from evaluation.policy_world import Told, World
from evaluation.trace import Trace

SWEEP = 6
"""Bands of the sweep that are run over the traces."""

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
    limits, final = world.thresholds, world.thresholds.final
    aim = reach(band(limits.dismiss, limits.report), val, final)
    most, tried = world.edge.max_rois, bands(val, final)
    chosen = filters(val, final, limits.alone)
    pair = best(tried, aim)
    fixed = {
        CHOSEN: pair,
        SINGLE: best(_single(tried), aim),
        **{f"fixed sweep {n}": one for n, one in enumerate(sweep(tried, pair, SWEEP), 1)},
    }
    sedna = {f"Sedna {name}": best(choices, aim) for name, choices in chosen.items()}
    return Field(
        (
            routed("edge only", "edge only", edge_only(limits.alone), most),
            routed("cloud only", "cloud only", cloud_only(), most, patient=True),
            *(_fitted(name, CHOSEN, one, aim, most) for name, one in fixed.items()),
            *_hindsight(world, test),
            *(_fitted(name, name, one, aim, most, patient=True) for name, one in sedna.items()),
            ours(limits, world.edge.model_copy(update={"describe": False}), VERDICTS),
            ours(limits, world.edge, OURS),
            routed("oracle", "oracle", oracle(limits), most),
        ),
        test,
        aim,
    )


def _single(tried: Sequence[Choice]) -> list[Choice]:
    return [one for one in tried if one.settings["high"] == NO_TOP]


def _hindsight(world: World, test: Sequence[Study]) -> list[Policy]:
    """The bands that would have been best if the test had been known: a limit, no policy."""
    limits, most = world.thresholds, world.edge.max_rois
    aim = reach(band(limits.dismiss, limits.report), test, limits.final)
    tried = bands(test, limits.final)
    return [
        _fitted("fixed, in hindsight", CHOSEN, best(tried, aim), aim, most),
        _fitted("fixed single, in hindsight", CHOSEN, best(_single(tried), aim), aim, most),
    ]


def _fitted(
    name: str, kind: str, choice: Choice, aim: Reached, most: int, *, patient: bool = False
) -> Policy:
    return routed(name, kind, choice.routing, most, patient=patient, **choice.as_json(aim))


def row(policy: Policy, told: Sequence[Told], deadline_s: float) -> dict[str, Any]:
    """The figures of one policy over one trace."""
    took_s = np.array([one.took_s for one in told])
    nodules = sum(len(one.study.nodules) for one in told)
    candidates = sum(len(one.study.sightings) for one in told)
    rois = sum(one.rois for one in told)
    later = sum(one.later_rois for one in told)
    sent = sum(one.sent_bytes + one.later_bytes for one in told)
    return {
        "policy": policy.name,
        "kind": policy.kind,
        "studies": len(told),
        "nodules": nodules,
        "sensitivity": sum(len(one.found) for one in told) / nodules,
        "sensitivity_amended": sum(len(one.amended) for one in told) / nodules,
        "false_positives_per_scan": sum(one.false for one in told) / len(told),
        "false_positives_amended": sum(one.amended_false for one in told) / len(told),
        "escalated_share": rois / candidates,
        "rois_per_scan": (rois + later) / len(told),
        "amended_rois_per_scan": later / len(told),
        "bytes_per_scan": sent / len(told),
        **{f"p{q}_ms": 1000 * float(np.percentile(took_s, q)) for q in PERCENTILES},
        "missed": int((took_s > deadline_s + TOLERANCE_S).sum()),
    }


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
        "aim": field.aim.as_json(),
        "policies": {one.name: {"kind": one.kind, **one.told} for one in field.policies},
        "escalation_ratio": escalation_ratio(rows),
        "traces": [{"trace": name, "policies": found} for name, found in rows.items()],
        "caveat": CAVEAT,
    }
