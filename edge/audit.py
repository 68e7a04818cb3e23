"""Which scans without anything to ask about are read again all the same: a random sample.

A filter that calls "nothing found" easy never learns of its misses. Of a sampled scan the best
places that the edge dismissed are sent, where there is room beside what is described; the promise
of `edge.guarantee` does not count on it. The study's random key decides, so that a study that is
read again after a crash is audited again, or again not.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum

from edge.decide import Plan, Thresholds
from edge.escalation.rois import EscalationResult
from edge.findings import Route
from protos.messages import Verdict

_RANGE = 2.0**64


class AuditOutcome(Enum):
    """What became of a scan without anything to ask about."""

    NOT_SAMPLED = "not sampled"
    NOTHING = "nothing to send"  # not even a faint place was proposed
    UNANSWERED = "unanswered"  # not one place was read again
    CLEAR = "clear"
    CONFIRMED = "confirmed"  # the cloud calls a dismissed place a nodule


@dataclass(frozen=True)
class Audit:
    """The audit of one scan in which nothing was uncertain.

    Attributes:
        rate: the share of such scans that are sampled.
        highest_score: of the places that the edge dismissed, 0 if there are none.
        sent, read, confirmed: how many of them were sent, read again, and called nodules.
        reason: why not all that were sent were read.
    """

    outcome: AuditOutcome
    rate: float
    highest_score: float
    sent: int = 0
    read: int = 0
    confirmed: int = 0
    reason: str = ""

    @property
    def text(self) -> str:
        """One line for the report."""
        best = f"nothing was uncertain, the best dismissed place scored {self.highest_score:.3f}"
        counts = f"{self.read} of {self.sent} dismissed places were read again"
        why = f": {self.reason}" if self.reason else ""
        match self.outcome:
            case AuditOutcome.NOT_SAMPLED:
                return f"{best}; not sampled ({100 * self.rate:g} % of such scans are)"
            case AuditOutcome.NOTHING:
                return "sampled, and not one place was proposed that could be sent"
            case AuditOutcome.UNANSWERED:
                return f"{best}; sampled, {counts}{why}"
            case _:
                return f"{best}; sampled, {counts}, {self.confirmed} of them confirmed{why}"


def is_sampled(study_key: str, rate: float) -> bool:
    """Whether the study belongs to the sampled part ``rate`` of all.

    Raises:
        ValueError: ``rate`` is not in [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"an audit rate of {rate} is not in [0, 1]")
    digest = hashlib.sha256(f"audit {study_key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < rate * _RANGE


def confirms(verdict: Verdict, thresholds: Thresholds) -> bool:
    """Whether the second reader calls an audited place a nodule.

    His own word counts: the merged one never overrules an edge that was sure of nothing.
    """
    return verdict.probability >= thresholds.final


def audit_of(
    plan: Plan, answers: EscalationResult, thresholds: Thresholds, *, rate: float, sampled: bool
) -> Audit | None:
    """What an audit came to; None for a scan with something to ask about."""
    if plan.uncertain:
        return None
    dismissed = [d.candidate.score for d in plan.decisions if d.route is Route.DISMISS]
    verdicts = [answers.verdicts[i] for i in plan.audit if i in answers.verdicts]
    confirmed = sum(confirms(verdict, thresholds) for verdict in verdicts)
    why = answers.reason or plan.held_back
    return Audit(
        _outcome(sampled, len(dismissed), len(verdicts), confirmed),
        rate,
        max(dismissed, default=0.0),
        len(plan.audit),
        len(verdicts),
        confirmed,
        why if sampled and dismissed else "",
    )


def _outcome(sampled: bool, dismissed: int, read: int, confirmed: int) -> AuditOutcome:
    if not sampled:
        return AuditOutcome.NOT_SAMPLED
    if not dismissed:
        return AuditOutcome.NOTHING
    if not read:
        return AuditOutcome.UNANSWERED
    return AuditOutcome.CONFIRMED if confirmed else AuditOutcome.CLEAR
