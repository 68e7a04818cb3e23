"""Audit a random sample of the scans in which no candidate is uncertain.

A filter that finds nothing uncertain never learns of its misses. Of a sampled scan the best
dismissed candidates are sent too, where they fit beside those to characterize. The guarantee of
`edge.guarantee` does not count on it. The random study key decides, so that a study that is read
again after a crash gets the same answer.
"""

import hashlib
from dataclasses import dataclass
from enum import Enum

from edge.decide import Plan, Thresholds
from edge.escalation.rois import EscalationResult
from edge.findings import Route
from protos.messages import Verdict


class AuditOutcome(Enum):
    """The result for a scan in which no candidate was uncertain."""

    NOT_SAMPLED = "not sampled"
    NOTHING = "nothing to send"  # the screening network proposed no candidate at all
    UNANSWERED = "unanswered"  # no candidate was read again
    CLEAR = "clear"
    CONFIRMED = "confirmed"  # the cloud calls a dismissed candidate a nodule


@dataclass(frozen=True)
class Audit:
    """The audit of one scan in which no candidate was uncertain.

    Attributes:
        rate: share of such scans that are sampled.
        highest_score: of the candidates that the edge dismissed, 0 if there are none.
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
        """The audit in one line for the report."""
        best = (
            f"no candidate was uncertain, the highest dismissed score is {self.highest_score:.3f}"
        )
        counts = f"{self.read} of {self.sent} dismissed candidates were read again"
        why = f": {self.reason}" if self.reason else ""
        match self.outcome:
            case AuditOutcome.NOT_SAMPLED:
                return f"{best}; not sampled (rate {100 * self.rate:g} %)"
            case AuditOutcome.NOTHING:
                return "sampled, but there was no candidate to send"
            case AuditOutcome.UNANSWERED:
                return f"{best}; sampled, {counts}{why}"
            case _:
                return f"{best}; sampled, {counts}, {self.confirmed} of them confirmed{why}"


def is_sampled(study_key: str, rate: float) -> bool:
    """Tell whether the study is in the sample, a share ``rate`` of all.

    Raises:
        ValueError: ``rate`` is not in [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"audit rate {rate} is not in [0, 1]")
    digest = hashlib.sha256(f"audit {study_key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < rate * 2.0**64


def confirms(verdict: Verdict, thresholds: Thresholds) -> bool:
    """Tell whether the verdict makes a dismissed candidate a finding.

    The cloud's own probability counts: the edge's score would hold the merged one down.
    """
    return verdict.probability >= thresholds.finding


def audit_of(
    plan: Plan, answers: EscalationResult, thresholds: Thresholds, *, rate: float, sampled: bool
) -> Audit | None:
    """Return the audit of a scan; None if a candidate was uncertain."""
    if plan.uncertain:
        return None
    dismissed = [d.candidate.score for d in plan.decisions if d.route is Route.DISMISS]
    verdicts = [answers.verdicts[i] for i in plan.audit if i in answers.verdicts]
    confirmed = sum(confirms(verdict, thresholds) for verdict in verdicts)
    outcome = AuditOutcome.CONFIRMED if confirmed else AuditOutcome.CLEAR
    if not sampled:
        outcome = AuditOutcome.NOT_SAMPLED
    elif not dismissed:
        outcome = AuditOutcome.NOTHING
    elif not verdicts:
        outcome = AuditOutcome.UNANSWERED
    why = (answers.reason or plan.held_back) if sampled and dismissed else ""
    best, counts = max(dismissed, default=0.0), (len(plan.audit), len(verdicts), confirmed)
    return Audit(outcome, rate, best, *counts, why)
