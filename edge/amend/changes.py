"""The next version of a report: its findings with the new verdicts, and what they changed.

A finding keeps its number through all versions of a report. No number is used twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count

from edge.decide import Plan
from edge.escalation.rois import EscalationResult
from edge.findings import Finding
from edge.guarantee import amended_guarantee
from edge.report.model import Change, ChangeKind, Report, Status, models_used
from edge.store.context import AmendmentContext
from imaging.volume import Triple
from protos.messages import Verdict


def amend_report(
    context: AmendmentContext,
    old: EscalationResult,
    new: EscalationResult,
    *,
    created: str,
    open_rois: int,
    gives_up: bool,
) -> Report:
    """Return the next version of the report, without its pictures.

    Args:
        context: of the version that is out.
        old: the verdicts in that version.
        new: these verdicts and the later ones.
        created: wall-clock time, ISO 8601 with zone.
        open_rois: ROIs that still have no verdict.
        gives_up: whether they will not be retried; the reason is that of ``new``.
    """
    before = replace(context.report, findings=context.merged(old).findings)
    merged = context.merged(new)
    news = EscalationResult({i: v for i, v in new.verdicts.items() if i not in old.verdicts})
    numbers = finding_numbers(before, merged.findings, context.plan)
    changes = changes_between(before, merged.findings, numbers, news, context)
    if open_rois and gives_up:
        changes += (given_up(before.version + 1, open_rois, new.reason),)
    return replace(
        before,
        created=created,
        findings=merged.findings,
        finding_numbers=numbers,
        second_reading=merged.second_reading,
        second_reading_reason=merged.reason,
        models=models_used(before.models["edge"], new),
        guarantee=amended_guarantee(before.guarantee, context.plan, new),
        version=before.version + 1,
        changes=before.changes + changes,
        status=Status.PROVISIONAL if open_rois and not gives_up else Status.FINAL,
    )


def finding_numbers(before: Report, findings: Sequence[Finding], plan: Plan) -> tuple[int, ...]:
    """Return a number for each of ``findings``: its old one, or the next that was never used."""
    known = {plan.index_of(finding): number for number, finding in before.numbered}
    used = [*known.values(), *(c.number for c in before.changes if c.number is not None)]
    unused = count(max(used, default=0) + 1)
    candidates = [plan.index_of(finding) for finding in findings]
    return tuple(known[i] if i in known else next(unused) for i in candidates)


def changes_between(
    before: Report,
    findings: Sequence[Finding],
    numbers: Sequence[int],
    news: EscalationResult,
    context: AmendmentContext,
) -> tuple[Change, ...]:
    """Return what each new verdict changed, in the order of the candidates.

    Args:
        before: the version that is out, with its findings.
        findings: of the new version.
        numbers: of ``findings``.
        news: the new verdicts.
        context: plan and weights of both versions.
    """
    old = _by_candidate(before.numbered, context.plan)
    new = _by_candidate(zip(numbers, findings, strict=True), context.plan)
    return tuple(
        _change(before.version + 1, i, verdict, old.get(i), new.get(i), context)
        for i, verdict in sorted(news.verdicts.items())
    )


def given_up(version: int, open_rois: int, reason: str) -> Change:
    """Return the change that says how many candidates will not be read again, and why."""
    several = "1 candidate was" if open_rois == 1 else f"{open_rois} candidates were"
    return Change(version, ChangeKind.GIVEN_UP, f"{several} not read again: {reason}")


Numbered = tuple[int, Finding]
"""A finding with its number."""


def _by_candidate(findings: Iterable[Numbered], plan: Plan) -> Mapping[int, Numbered]:
    return {plan.index_of(finding): (number, finding) for number, finding in findings}


def _change(
    version: int,
    index: int,
    verdict: Verdict,
    old: Numbered | None,
    new: Numbered | None,
    context: AmendmentContext,
) -> Change:
    """Return what the verdict on the candidate ``index`` changed."""
    candidate = context.plan.decisions[index].candidate
    merged = context.weights.merged(candidate.score, verdict.probability)
    kind = _kind(old, new)
    number, finding = new or old or (None, None)
    centre_mm = finding.centre_mm if finding else candidate.centre_mm
    before = old[1].probability if old else candidate.score
    moved = f"probability from {before:.2f} to {merged:.2f} by the verdict"
    where = f"{_name(kind, number)} at {_position(centre_mm)} mm"
    text = f"{where}: {moved} {verdict.probability:.2f} of {verdict.model}"
    return Change(
        version, kind, text, number, centre_mm, before, merged, verdict.probability, verdict.model
    )


def _kind(old: Numbered | None, new: Numbered | None) -> ChangeKind:
    match old, new:
        case None, None:
            return ChangeKind.NO_FINDING
        case None, _:
            return ChangeKind.ADDED
        case _, None:
            return ChangeKind.REMOVED
        case _:
            return ChangeKind.PROBABILITY


def _name(kind: ChangeKind, number: int | None) -> str:
    match kind:
        case ChangeKind.ADDED:
            return f"new finding {number}"
        case ChangeKind.REMOVED:
            return f"finding {number} removed,"
        case ChangeKind.PROBABILITY:
            return f"finding {number}"
        case _:
            return "still no finding"


def _position(centre_mm: Triple) -> str:
    return "({:.1f}, {:.1f}, {:.1f})".format(*centre_mm)
