"""The amendment context: what a report was made from, so that it can be amended without the study.

Neither the lung box nor the findings are stored: the findings follow from plan and verdicts.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Self, get_type_hints

import numpy as np
from pydantic import TypeAdapter

from edge.decide import Plan, Thresholds
from edge.escalation.rois import EscalationResult
from edge.merge import Merged, MergeWeights, merge
from edge.report.model import Report
from imaging.volume import Geometry, Triple

DERIVED = frozenset({"findings", "decisions"})
"""Fields of a report that follow from plan and verdicts, and are not stored."""


@dataclass(frozen=True, eq=False)
class AmendmentContext:
    """The report that is out, and what its findings follow from.

    Attributes:
        report: as it stands in the outbox, without its findings.
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
