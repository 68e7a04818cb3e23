"""Names what an amendment changes: in words for people, and as data.

A finding keeps its number through all versions of a report; a number is never given twice.

The next version of a report: what its findings are with the verdicts that came since.
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
from edge.store.context import Grounds
from imaging.volume import Triple
from protos.messages import Verdict


def numbers_of(before: Report, findings: Sequence[Finding], plan: Plan) -> tuple[int, ...]:
    """A number for each of ``findings``: its old one, or the next that was never given."""
    known = {plan.index_of(finding): number for number, finding in before.numbered}
    given = [*known.values(), *(c.number for c in before.changes if c.number is not None)]
    unused = count(max(given, default=0) + 1)
    places = [plan.index_of(finding) for finding in findings]
    return tuple(known[place] if place in known else next(unused) for place in places)


def changes_between(
    before: Report,
    findings: Sequence[Finding],
    numbers: Sequence[int],
    news: EscalationResult,
    grounds: Grounds,
) -> tuple[Change, ...]:
    """What each new verdict changed, in the order of the candidates.

    Args:
        before: the version that is out, with its findings.
        findings: of the new version.
        numbers: theirs.
        news: the verdicts that came since.
        grounds: plan and weights of both.
    """
    old, new = (
        _numbered(before.numbered, grounds.plan),
        _numbered(zip(numbers, findings, strict=True), grounds.plan),
    )
    return tuple(
        _change(before.version + 1, place, verdict, old.get(place), new.get(place), grounds)
        for place, verdict in sorted(news.verdicts.items())
    )


def given_up(version: int, open_places: int, reason: str) -> Change:
    """That so many candidates will not be read again any more, and why."""
    several = "1 candidate was" if open_places == 1 else f"{open_places} candidates were"
    return Change(version, ChangeKind.GIVEN_UP, f"{several} not read again: {reason}")


Numbered = tuple[int, Finding]


def _numbered(pairs: Iterable[Numbered], plan: Plan) -> Mapping[int, Numbered]:
    """Number and finding by the place of the candidate."""
    return {plan.index_of(finding): (number, finding) for number, finding in pairs}


def _change(
    version: int,
    place: int,
    verdict: Verdict,
    old: Numbered | None,
    new: Numbered | None,
    grounds: Grounds,
) -> Change:
    candidate = grounds.plan.decisions[place].candidate
    merged = grounds.weights.merged(candidate.score, verdict.probability)
    kind = _kind(old, new)
    number, finding = new or old or (None, None)
    centre_mm = finding.centre_mm if finding else candidate.centre_mm
    before = old[1].probability if old else candidate.score
    moved = f"probability from {before:.2f} to {merged:.2f} by the verdict"
    where = f"{_name(kind, number)} at {_place(centre_mm)} mm"
    words = f"{where}: {moved} {verdict.probability:.2f} of {verdict.model}"
    return Change(
        version, kind, words, number, centre_mm, before, merged, verdict.probability, verdict.model
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
            return f"finding {number} is new,"
        case ChangeKind.REMOVED:
            return f"finding {number} is no finding any more,"
        case ChangeKind.PROBABILITY:
            return f"finding {number}"
        case _:
            return "a candidate remains no finding,"


def _place(centre_mm: Triple) -> str:
    return "({:.1f}, {:.1f}, {:.1f})".format(*centre_mm)


def amended(
    grounds: Grounds,
    old: EscalationResult,
    new: EscalationResult,
    *,
    created: str,
    open_places: int,
    gives_up: bool,
) -> Report:
    """Version + 1 of the report, without its pictures.

    Args:
        grounds: of the version that is out.
        old: the verdicts that it has.
        new: these, and those that came since.
        created: wall-clock time, ISO 8601 with zone.
        open_places: candidates that no verdict is there for even now.
        gives_up: whether they are not asked for any more; the reason is that of ``new``.
    """
    before = replace(grounds.report, findings=grounds.merged(old).findings)
    merged = grounds.merged(new)
    news = EscalationResult({i: v for i, v in new.verdicts.items() if i not in old.verdicts})
    numbers = numbers_of(before, merged.findings, grounds.plan)
    changes = changes_between(before, merged.findings, numbers, news, grounds)
    over = open_places == 0
    if open_places and gives_up:
        changes += (given_up(before.version + 1, open_places, new.reason),)
        over = True
    return replace(
        before,
        created=created,
        findings=merged.findings,
        finding_numbers=numbers,
        second_reading=merged.second_reading,
        second_reading_reason=merged.reason,
        models=models_used(before.models["edge"], new),
        guarantee=amended_guarantee(before.guarantee, grounds.plan, new),
        version=before.version + 1,
        changes=before.changes + changes,
        status=Status.FINAL if over else Status.PROVISIONAL,
    )
