"""The nouns of the edge: what becomes of a candidate on its way to the report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from imaging.volume import Triple
from models.runtime.detection import Candidate
from protos.messages import Verdict

BoolArray = npt.NDArray[np.bool_]

SMALL_MM = 6.0
"""Below it guidelines ask for no follow-up of a nodule that is not suspicious: Fleischner Society
(MacMahon et al., Radiology 284:228-243, 2017); Lung-RADS v2022, category 2."""

SUSPICIOUS = 0.5
"""A malignancy above the middle of the readers' scale."""


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


@dataclass(frozen=True, eq=False)
class Outline:
    """The nodule's voxels, ``voxel_mm3`` each: bool ``(z, y, x)`` from ``start`` in the box."""

    mask: BoolArray
    start: tuple[int, int, int]
    voxel_mm3: float = 1.0

    @property
    def volume_mm3(self) -> float:
        """Of all its voxels."""
        return float(self.mask.sum()) * self.voxel_mm3

    @property
    def centre_zyx(self) -> Triple:
        """The middle of its voxels, in the box."""
        z, y, x = (float(a) for a in np.argwhere(self.mask).mean(0) + self.start)
        return z, y, x


@dataclass(frozen=True)
class Finding:
    """A candidate after the decision, as it stands in the report.

    ``probability`` is the merged one; ``edge_score`` and ``verdict`` are what it came from.
    Where the nodule was outlined, the centre is the outline's.
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
    outline: Outline | None = None

    @property
    def small(self) -> bool:
        """Whether it is told apart from what asks for action: below 6 mm, and not suspicious.

        What nobody has read a second time is not suspicious to anybody.
        """
        suspicion = self.verdict.malignancy if self.verdict else None
        return self.diameter_mm < SMALL_MM and (suspicion or 0.0) < SUSPICIOUS
