"""What a report was made on: enough to make it again when more verdicts come, without the study.

The lung box is not kept, nor are the findings: they follow from the plan and the verdicts.
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

FOLLOWS = frozenset({"findings", "decisions"})
"""Fields of a report that are made again and not kept."""


@dataclass(frozen=True, eq=False)
class Grounds:
    """The report that is out, and what its findings followed from.

    Attributes:
        report: as it stands in the outbox, without its findings.
        plan: every candidate with its route.
        thresholds, weights: of the model that screened, so that a newer one changes nothing.
        geometry: of the lung box.
    """

    report: Report
    plan: Plan
    thresholds: Thresholds
    weights: MergeWeights
    geometry: Geometry

    def merged(self, answers: EscalationResult) -> Merged:
        """The findings with these answers, as if every uncertain candidate had been sent."""
        everything = tuple(dict.fromkeys((*self.plan.send, *self.plan.uncertain)))
        plan = replace(self.plan, send=everything, sizes=(), later=())
        return merge(plan, answers, self.thresholds, self.weights, self.geometry)

    def to_bytes(self) -> bytes:
        """The grounds as JSON, compressed."""
        place = self.geometry
        kept = {
            "report": _without(asdict(replace(self.report, findings=(), decisions=()))),
            "plan": asdict(replace(self.plan, sizes=())),  # of no use afterwards
            "thresholds": asdict(self.thresholds),
            "weights": asdict(self.weights),
            "spacing_mm": place.spacing_mm,
            "origin_mm": place.origin_mm,
            "direction": np.asarray(place.direction).tolist(),
        }
        text = json.dumps(kept, ensure_ascii=False, default=_plain)
        return zlib.compress(text.encode("utf-8", "replace"), 1)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The grounds that `to_bytes` wrote, also by an older version of this program.

        Raises:
            ValueError: they are of a form that this version does not know.
        """
        kept = json.loads(zlib.decompress(data))
        plan: Plan = _adapter(Plan).validate_python(kept["plan"])
        triple = _adapter(Triple)
        geometry = Geometry(
            triple.validate_python(kept["spacing_mm"]),
            triple.validate_python(kept["origin_mm"]),
            np.array(kept["direction"], dtype=np.float64),
        )
        return cls(
            _report(kept["report"], plan),
            plan,
            _adapter(Thresholds).validate_python(kept["thresholds"]),
            _adapter(MergeWeights).validate_python(kept["weights"]),
            geometry,
        )


def _report(words: Mapping[str, Any], plan: Plan) -> Report:
    """The report of these words; a field that only another version knows is left out."""
    kinds = get_type_hints(Report)
    values = {
        name: _adapter(kinds[name]).validate_python(value)
        for name, value in words.items()
        if name in kinds
    }
    return Report(**values, decisions=plan.decisions)


def _without(words: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in words.items() if name not in FOLLOWS}


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Reads values of this kind from JSON; built once, which takes longer than reading."""
    return TypeAdapter(kind)


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} cannot be kept")
