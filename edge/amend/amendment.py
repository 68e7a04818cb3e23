"""Amendments: what a report was made from, its next version, and what the new verdicts changed.

The context is stored with the pending ROIs, so that a report can be amended without the study.
Neither the lung box nor the findings are in it: the findings follow from plan and verdicts.

A finding keeps its number through all versions of a report. No number is used twice.
"""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Self, get_type_hints

import numpy as np
from pydantic import TypeAdapter

from edge.decide import Plan, Thresholds
from edge.escalation.rois import EscalationResult
from edge.findings import Finding
from edge.guarantee import amended_guarantee
from edge.merge import Merged, MergeWeights, merge
from edge.report.model import AMENDED_LATER, Change, ChangeKind, Report, Status, models_used
from imaging.volume import Geometry, Triple
from protos.messages import Verdict

DERIVED = frozenset({"findings", "decisions"})
"""Fields of a report that follow from plan and verdicts, and are not stored."""


@dataclass(frozen=True, eq=False)
class AmendmentContext:
    """The report that is out, and what its findings follow from.

    Attributes:
        report: as it is in the outbox, without its findings.
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
        report = asdict(replace(self.report, findings=(), decisions=()))
        stored = {
            "report": {name: value for name, value in report.items() if name not in DERIVED},
            "plan": asdict(replace(self.plan, sizes=())),
            "thresholds": asdict(self.thresholds),
            "weights": asdict(self.weights),
            "spacing_mm": geometry.spacing_mm,
            "origin_mm": geometry.origin_mm,
            "direction": np.asarray(geometry.direction).tolist(),
        }
        text = json.dumps(stored, ensure_ascii=False, default=_plain)
        return zlib.compress(text.encode("utf-8", "replace"), 1)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote, also in an older version of this program.

        Raises:
            ValueError: this version does not know the format.
        """
        stored = json.loads(zlib.decompress(data))
        plan: Plan = _adapter(Plan).validate_python(stored["plan"])
        triple = _adapter(Triple)
        geometry = Geometry(
            triple.validate_python(stored["spacing_mm"]),
            triple.validate_python(stored["origin_mm"]),
            np.array(stored["direction"], dtype=np.float64),
        )
        return cls(
            _report(stored["report"], plan),
            plan,
            _adapter(Thresholds).validate_python(stored["thresholds"]),
            _adapter(MergeWeights).validate_python(stored["weights"]),
            geometry,
        )


def _report(stored: Mapping[str, Any], plan: Plan) -> Report:
    """Read a report; a field that only another version of this program knows is ignored."""
    kinds = get_type_hints(Report)
    values = {
        name: _adapter(kinds[name]).validate_python(value)
        for name, value in stored.items()
        if name in kinds
    }
    return Report(**values, decisions=plan.decisions)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Return a reader of such values; building one takes longer than reading."""
    return TypeAdapter(kind)


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot store {value!r}")


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

    ``old`` holds the verdicts in the version that is out, ``new`` these and the later ones. If it
    gives up, the ROIs that are still open will not be retried, for the reason in ``new``.
    """
    before = replace(context.report, findings=context.merged(old).findings)
    merged, version = context.merged(new), before.version + 1
    numbers = _finding_numbers(before, merged.findings, context.plan)
    # what each new verdict changed, in the order of the candidates
    was = _by_candidate(before.numbered, context.plan)
    now = _by_candidate(zip(numbers, merged.findings, strict=True), context.plan)
    changes = [
        _change(version, i, verdict, was.get(i), now.get(i), context)
        for i, verdict in sorted(new.verdicts.items())
        if i not in old.verdicts
    ]
    if open_rois and gives_up:
        several = "1 candidate was" if open_rois == 1 else f"{open_rois} candidates were"
        text = f"{several} not read again: {new.reason}"
        changes.append(Change(version, ChangeKind.GIVEN_UP, text))
    waits = bool(open_rois) and not gives_up
    return replace(
        before,
        created=created,
        findings=merged.findings,
        finding_numbers=numbers,
        second_reading=merged.second_reading,
        second_reading_reason=f"{merged.reason}; {AMENDED_LATER}" if waits else merged.reason,
        models=models_used(before.models["edge"], new),
        guarantee=amended_guarantee(before.guarantee, context.plan, new),
        version=version,
        changes=(*before.changes, *changes),
        status=Status.PROVISIONAL if waits else Status.FINAL,
    )


def _finding_numbers(before: Report, findings: Sequence[Finding], plan: Plan) -> tuple[int, ...]:
    """Return a number for each of ``findings``: its old one, or the next that was never used."""
    known = {plan.index_of(finding): number for number, finding in before.numbered}
    used = [*known.values(), *(c.number for c in before.changes if c.number is not None)]
    unused = count(max(used, default=0) + 1)
    candidates = [plan.index_of(finding) for finding in findings]
    return tuple(known[i] if i in known else next(unused) for i in candidates)


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
    number, finding = new or old or (None, None)
    centre_mm = finding.centre_mm if finding else candidate.centre_mm
    before = old[1].probability if old else candidate.score
    moved = f"probability from {before:.2f} to {merged:.2f} by the verdict"
    match old, new:
        case None, None:
            kind, name = ChangeKind.NO_FINDING, "still no finding"
        case None, _:
            kind, name = ChangeKind.ADDED, f"new finding {number}"
        case _, None:
            kind, name = ChangeKind.REMOVED, f"finding {number} removed"
        case _:
            kind, name = ChangeKind.PROBABILITY, f"finding {number}"
    locator = context.report.locator
    named = f"{locator.locate(centre_mm).text}, at " if locator else ""
    where = "{}({:.1f}, {:.1f}, {:.1f}) mm".format(named, *centre_mm)
    text = f"{name}, {where}: {moved} {verdict.probability:.2f} of {verdict.model}"
    return Change(
        version, kind, text, number, centre_mm, before, merged, verdict.probability, verdict.model
    )
