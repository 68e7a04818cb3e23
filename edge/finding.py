"""The nouns of the edge: what becomes of a candidate on its way to the report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from imaging.volume import Triple
from models.runtime.detection import Candidate
from protos.messages import Verdict


class Route(Enum):
    """What the edge decides of a candidate."""

    DISMISS = "dismiss"
    REPORT = "report"
    ESCALATE = "escalate"


class DecidedBy(Enum):
    """Whose word a finding stands on."""

    EDGE = "edge"
    CLOUD = "cloud"
    EDGE_ALONE = "edge, second reading missing"


class SecondReading(Enum):
    """How much of what wanted a second reading got one; all of nothing is complete."""

    COMPLETE = "complete"
    PARTIAL = "partial"
    MISSING = "missing"


@dataclass(frozen=True)
class Decision:
    """A candidate with its route, and the reason in words that a person can check."""

    candidate: Candidate
    route: Route
    reason: str


@dataclass(frozen=True)
class Finding:
    """A candidate after the decision, as it stands in the report.

    ``probability`` is the merged one; ``edge_score`` and ``verdict`` are what it came from.
    """

    centre_mm: Triple
    diameter_mm: float
    probability: float
    edge_score: float
    decided_by: DecidedBy
    reason: str
    index_zyx: Triple
    route: Route
    verdict: Verdict | None = None
