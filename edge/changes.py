"""Names what an amendment changes: in words for people, and as data.

A finding keeps its number through all versions of a report; a number is never given twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count

from edge.decide import Plan
from edge.exchange import Escalated
from edge.finding import Finding
from edge.grounds import Grounds
from edge.outcome import Change, ChangeKind, Report
from imaging.volume import Triple
from models.runtime.detection import Candidate
from protos.messages import Verdict


def place_of(finding: Finding, plan: Plan) -> int:
    """The place of the finding's candidate in the plan."""
    if finding.verdict is not None:
        return finding.verdict.roi_id
    places = (i for i, d in enumerate(plan.decisions) if _is_of(finding, d.candidate))
    return next(places)


def _is_of(finding: Finding, candidate: Candidate) -> bool:
    """Whether the finding is the candidate as the edge saw it."""
    return finding.index_zyx == candidate.index_zyx and finding.edge_score == candidate.score


def numbers_of(before: Report, findings: Sequence[Finding], plan: Plan) -> tuple[int, ...]:
    """A number for each of ``findings``: its old one, or the next that was never given."""
    known = {place_of(finding, plan): number for number, finding in before.numbered}
    given = [*known.values(), *(c.number for c in before.changes if c.number is not None)]
    unused = count(max(given, default=0) + 1)
    places = [place_of(finding, plan) for finding in findings]
    return tuple(known[place] if place in known else next(unused) for place in places)


def changes_between(
    before: Report,
    findings: Sequence[Finding],
    numbers: Sequence[int],
    news: Escalated,
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
    return {place_of(finding, plan): (number, finding) for number, finding in pairs}


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
