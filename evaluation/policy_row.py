"""The figures of one policy over one trace, and how sure of them its patients make us."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.bootstrap import RESAMPLES, Interval, draw, interval
from evaluation.link import PERCENTILES, TOLERANCE_S
from evaluation.policy_rules import Policy
from evaluation.policy_world import Told


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
        **{f"p{q}_ms": 1000 * float(np.percentile(took_s, q)) for q in PERCENTILES},
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
