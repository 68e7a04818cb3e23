"""Amendments: what a report was made from, its next version, and what the new verdicts changed.

The context is stored with the pending ROIs, so that a report can be amended without the study.
Neither the lung box nor the findings are in it: the findings follow from plan and verdicts.

A finding or possible finding keeps its number through all versions of a report, also where it moves
from one list to the other. No number is used twice.
"""

import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Self

import numpy as np

from edge.decide import Plan, Thresholds
from edge.escalation.rois import EscalationResult
from edge.findings import Finding
from edge.guarantee import amended_guarantee
from edge.merge import Merged, MergeWeights, merge
from edge.report.compose import AMENDED_LATER, completed, models_used, reading_reason
from edge.report.model import Change, ChangeKind, Report, Status
from edge.report.serialize import adapter
from edge.report.wording import characterizations
from imaging.volume import Geometry, Triple
from protos.messages import Verdict

DERIVED = {
    "findings", "possible", "decisions", "result", "next_steps", "locations", "groups", "brock",
    "lung_rads",
}  # fmt: skip
"""Fields of a report that follow from others, from plan and from verdicts, and are not stored."""


@dataclass(frozen=True, eq=False)
class AmendmentContext:
    """The report that is out, and what its findings follow from.

    Attributes:
        report: as it is in the outbox, without its findings and possible findings.
        plan: every candidate with its route.
        thresholds, weights: of the model that screened, so that a newer model changes nothing.
        geometry: of the lung box.
    """

    report: Report
    plan: Plan
    thresholds: Thresholds
    weights: MergeWeights
    geometry: Geometry

    def merged(self, answers: EscalationResult) -> Merged:
        """Merge these answers, as if every uncertain candidate had been sent."""
        everything = tuple(dict.fromkeys((*self.plan.send, *self.plan.uncertain)))
        plan = replace(self.plan, send=everything, sizes=(), later=())
        return merge(plan, answers, self.thresholds, self.weights, self.geometry)

    def to_bytes(self) -> bytes:
        """Serialize the context as compressed JSON."""
        geometry = self.geometry
        stored = {
            # five times as fast as `dataclasses.asdict`
            "report": adapter(Report).dump_python(self.report, mode="json", exclude=DERIVED),
            "plan": adapter(Plan).dump_python(replace(self.plan, sizes=()), mode="json"),
            "thresholds": asdict(self.thresholds),
            "weights": asdict(self.weights),
            "spacing_mm": geometry.spacing_mm,
            "origin_mm": geometry.origin_mm,
            "direction": np.asarray(geometry.direction).tolist(),
        }
        text = json.dumps(stored, ensure_ascii=False)
        return zlib.compress(text.encode("utf-8", "replace"), 1)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: it is damaged.
        """
        stored = json.loads(zlib.decompress(data))
        plan: Plan = adapter(Plan).validate_python(stored["plan"])
        triple = adapter(Triple)
        geometry = Geometry(
            triple.validate_python(stored["spacing_mm"]),
            triple.validate_python(stored["origin_mm"]),
            np.array(stored["direction"], dtype=np.float64),
        )
        return cls(
            adapter(Report).validate_python({**stored["report"], "decisions": plan.decisions}),
            plan,
            adapter(Thresholds).validate_python(stored["thresholds"]),
            adapter(MergeWeights).validate_python(stored["weights"]),
            geometry,
        )


def amend_report(
    context: AmendmentContext,
    old: EscalationResult,
    new: EscalationResult,
    *,
    created: str,
    open_rois: Collection[int],
    gives_up: bool,
) -> Report:
    """Return the next version of the report, without its pictures.

    ``old`` holds the verdicts in the version that is out, ``new`` these and the later ones.
    ``open_rois`` have none yet. If it gives up, they will not be retried, for the reason in
    ``new``. A characterization whose ROI is not open, for lack of room, will not come either.
    """
    shown, merged = (context.merged(answers) for answers in (old, new))
    before = replace(context.report, findings=shown.findings, possible=shown.possible)
    version = before.version + 1
    numbers = _finding_numbers(before, (*merged.findings, *merged.possible), context.plan)
    after = replace(
        before, findings=merged.findings, possible=merged.possible, finding_numbers=numbers
    )
    # what each new verdict changed, in the order of the candidates
    was, now = (_by_candidate(report, context.plan) for report in (before, after))
    changes = [
        _change(version, i, verdict, was.get(i), now.get(i), context)
        for i, verdict in sorted(new.verdicts.items())
        if i not in old.verdicts
    ]
    pending = () if gives_up else open_rois
    given_up = []
    if count := sum(i not in pending for i in open_rois if i in context.plan.uncertain):
        several = "1 candidate was" if count == 1 else f"{count} candidates were"
        given_up.append(f"{several} not read again: {new.reason}")
    lacks = sum(i not in pending for i in merged.uncharacterized)
    if lacks and all(change.kind is not ChangeKind.GIVEN_UP for change in before.changes):
        why = new.reason if gives_up else "their ROIs are not stored"
        given_up.append(f"{characterizations(lacks)} are missing: {why}")
    changes += [Change(version, ChangeKind.GIVEN_UP, text) for text in given_up]
    amended = replace(
        after,
        created=created,
        second_reading=merged.second_reading,
        second_reading_reason=reading_reason(merged, pending, AMENDED_LATER if pending else ""),
        models=models_used(before.models["edge"], new),
        guarantee=amended_guarantee(before.guarantee, context.plan, new),
        version=version,
        changes=(*before.changes, *changes),
        status=Status.PROVISIONAL if pending else Status.FINAL,
    )
    return completed(amended)


def _finding_numbers(before: Report, listed: Sequence[Finding], plan: Plan) -> tuple[int, ...]:
    """Return a number for each that is ``listed``: its old one, or the next that was never used."""
    known = {i: one.number for i, one in _by_candidate(before, plan).items()}
    used = [*known.values(), *(c.number for c in before.changes if c.number is not None)]
    unused = count(max(used, default=0) + 1)
    candidates = [plan.index_of(finding) for finding in listed]
    return tuple(known[i] if i in known else next(unused) for i in candidates)


@dataclass(frozen=True)
class _Listed:
    """A finding or possible finding of one version, with its number."""

    number: int
    finding: Finding
    is_finding: bool

    @property
    def name(self) -> str:
        return f"{'finding' if self.is_finding else 'possible finding'} {self.number}"


def _by_candidate(report: Report, plan: Plan) -> Mapping[int, _Listed]:
    """Return what each candidate in the lists of the report is there."""
    lists = (report.numbered, True), (report.numbered_possible, False)
    return {
        plan.index_of(finding): _Listed(number, finding, is_finding)
        for numbered, is_finding in lists
        for number, finding in numbered
    }


def _change(
    version: int,
    index: int,
    verdict: Verdict,
    old: _Listed | None,
    new: _Listed | None,
    context: AmendmentContext,
) -> Change:
    candidate = context.plan.decisions[index].candidate
    merged = context.weights.merged(candidate.score, verdict.probability, candidate.diameter_mm)
    shown = new or old
    centre_mm = shown.finding.centre_mm if shown else candidate.centre_mm
    before = old.finding.probability if old else candidate.score
    moved = f"probability from {before:.2f} to {merged:.2f} by the verdict"
    kind, name = _kind_of(old, new)
    locator = context.report.locator
    named = f"{locator.locate(centre_mm).text}, at " if locator else ""
    where = "{}({:.1f}, {:.1f}, {:.1f}) mm".format(named, *centre_mm)
    text = f"{name}, {where}: {moved} {verdict.probability:.2f} of {verdict.model}"
    if old and new and index in context.plan.characterize:
        sizes = old.finding.diameter_mm, new.finding.diameter_mm
        text += "; diameter from {:.1f} to {:.1f} mm".format(*sizes)
    return Change(
        version,
        kind,
        text,
        shown.number if shown else None,
        centre_mm,
        before,
        merged,
        verdict.probability,
        verdict.model,
    )


def _kind_of(old: _Listed | None, new: _Listed | None) -> tuple[ChangeKind, str]:
    """Return the kind of a change from ``old`` to ``new``, and what it is about in words."""
    if new is None:
        if old is None:
            return ChangeKind.NO_FINDING, "still no finding"
        kind = ChangeKind.REMOVED if old.is_finding else ChangeKind.POSSIBLE_REMOVED
        return kind, f"{old.name} removed"
    if old is None:
        kind = ChangeKind.ADDED if new.is_finding else ChangeKind.POSSIBLE_ADDED
        return kind, f"new {new.name}"
    if old.is_finding == new.is_finding:
        return ChangeKind.PROBABILITY, new.name
    if new.is_finding:
        return ChangeKind.RAISED, f"{old.name} is now a finding"
    return ChangeKind.LOWERED, f"{old.name} is now a possible finding"
