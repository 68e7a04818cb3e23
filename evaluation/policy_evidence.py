"""What the cases themselves say of second readings: what they rank, take away and bring back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edge.decide import Thresholds
from evaluation.policy_cases import Cases
from evaluation.policy_studies import Study
from models.auc import auc


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
