"""Persist what is pending for a report that is about to go out: its ROIs without a verdict."""

from dataclasses import replace

from edge.decide import Plan
from edge.escalation.rois import EscalationResult, cut_rois
from edge.findings import Route
from edge.pipeline import PersistPending
from edge.reader import EdgeReader
from edge.report.compose import Assessment
from edge.report.model import Report
from edge.store.amendment import AmendmentContext
from edge.store.pending import PendingStore
from imaging.preprocess import Preprocessed


def persist_in(store: PendingStore) -> PersistPending:
    """Return the stage that saves the ROIs without a verdict in ``store``."""

    def persist(
        report: Report, assessment: Assessment, reader: EdgeReader, box: Preprocessed
    ) -> None:
        plan, answers = assessment.plan, assessment.answers
        context = AmendmentContext(report, plan, reader.thresholds, reader.weights, box.geometry)
        pending = replace(plan, send=pending_candidates(plan, answers), sizes=())
        store.save(context, answers, cut_rois(pending, box))

    return persist


def pending_candidates(plan: Plan, answers: EscalationResult) -> tuple[int, ...]:
    """Return the candidates whose second reading is pending, most valuable first.

    A candidate is pending if the cloud was to read it and no verdict came by the deadline: time
    was short, or the cloud did not answer, or refused. An audit is never pending. Findings of the
    edge come last: their verdicts change no decision.
    """
    if answers.switched_off:
        return ()
    requested = dict.fromkeys((*plan.send, *plan.later, *plan.uncertain))
    undecided = [i for i in requested if plan.decisions[i].route is Route.ESCALATE]
    return tuple(i for i in (*undecided, *plan.characterize) if i not in answers.verdicts)
