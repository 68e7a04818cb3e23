"""The data types of detection: a candidate with its route, an outline, and a finding."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from imaging.volume import Triple
from models.runtime.detection import Candidate
from protos.messages import Verdict

BoolArray = npt.NDArray[np.bool_]
Inner = tuple[tuple[float, ...], tuple[float, ...]] | None
"""Box indices ``(z, y, x)``, see `imaging.preprocess.Preprocessed.inner`; None if not known."""

READERS_MM = 1.6
"""Two of four readers draw a nodule wider by this diameter than it is at half contrast: the median
of validation nodules (`overread-eval characterization`)."""
CROWDED_MM = 10.0
"""Findings nearer than this lie in one consolidation, where the disease is diffuse."""
DISAGREEMENT = 0.5
"""Strong disagreement of the readers' probabilities: half of the scale, so that it rather is a
nodule for one of them, and rather none for the other."""
SMALL_MM = 6.0
"""A finding below this diameter is marked as small. What follows from that is for a radiologist."""


class Route(Enum):
    """What the edge decides for a candidate."""

    DISMISS = "dismiss"
    REPORT = "report"
    ESCALATE = "escalate"


class DecidedBy(Enum):
    """Who made the decision that a candidate is a finding or a possible finding."""

    EDGE = "edge"
    CLOUD = "cloud"
    EDGE_ALONE = "edge alone"


class SecondReading(Enum):
    """How many of the uncertain candidates were read again; all of none is complete.

    It is complete only if the cloud has also characterized all findings that it was to, and partial
    at most if not. ``OFF`` is a site without a second reader.
    """

    COMPLETE = "complete"
    PARTIAL = "partial"
    MISSING = "missing"
    OFF = "off"


@dataclass(frozen=True)
class Decision:
    """A candidate with its route, and the reason for it."""

    candidate: Candidate
    route: Route
    reason: str


@dataclass(frozen=True, eq=False)
class Outline:
    """The nodule's voxels, ``voxel_mm3`` each: bool ``(z, y, x)`` from ``start`` in the box."""

    mask: BoolArray
    start: tuple[int, int, int]
    voxel_mm3: float = 1.0
    # so that pydantic can read and write reports, whose outlines it leaves out
    __pydantic_config__: ClassVar[dict[str, bool]] = {"arbitrary_types_allowed": True}

    @property
    def volume_mm3(self) -> float:
        """The volume of all voxels."""
        return float(self.mask.sum()) * self.voxel_mm3

    @property
    def diameter_mm(self) -> float:
        """The diameter of the sphere of this volume."""
        return float(np.cbrt(6 / np.pi * self.volume_mm3))

    def is_cut(self, inner: Inner = None) -> bool:
        """Tell whether it reaches a face of the ROI or of ``inner``, and may continue outside."""
        voxels, (low, high) = np.argwhere(self.mask), inner or (-np.inf, np.inf)
        if (voxels == 0).any() or (voxels == np.array(self.mask.shape) - 1).any():
            return True
        placed = voxels + self.start
        return bool((placed - 0.5 <= low).any() or (placed + 0.5 >= high).any())

    @property
    def centre_zyx(self) -> Triple:
        """The mean of the voxels' indices, in the box."""
        z, y, x = (float(a) for a in np.argwhere(self.mask).mean(0) + self.start)
        return z, y, x


@dataclass(frozen=True)
class Finding:
    """A candidate that is in the report.

    ``probability`` is merged from ``edge_score`` and ``verdict``. The centre is that of the
    outline, if there is one. ``diameter_mm`` is that of the sphere of ``volume_mm3``; without a
    volume it is the network's estimate of the same.
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
    volume_mm3: float | None = None

    @property
    def disagreement(self) -> str:
        """What edge and cloud each say where they disagree strongly; empty where they do not."""
        cloud = self.verdict.probability if self.verdict else self.edge_score
        if not abs(self.edge_score - cloud) >= DISAGREEMENT:
            return ""
        return f"edge {self.edge_score:.2f}, cloud {cloud:.2f}"

    @property
    def small(self) -> bool:
        """Whether it is marked as small: its diameter, as it is printed, is below `SMALL_MM`."""
        return round(self.diameter_mm, 1) < SMALL_MM


def named(noun: str, numbers: Sequence[int]) -> str:
    """Return ``finding 1`` or ``findings 1, 2``."""
    return f"{noun}{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"


def crowds(findings: Sequence[Finding]) -> tuple[tuple[int, ...], ...]:
    """Return the indices of findings that touch or nearly touch, two and more to a group.

    Findings belong together if their spheres are at most `CROWDED_MM` apart, also by way of others.
    """
    centres = np.array([finding.centre_mm for finding in findings]).reshape(-1, 3)
    radii = np.array([finding.diameter_mm for finding in findings]) / 2
    apart_mm = np.linalg.norm(centres[:, None] - centres, axis=-1) - radii[:, None] - radii
    together = apart_mm <= CROWDED_MM
    while not np.array_equal(together, wider := together @ together):
        together = wider
    groups = dict.fromkeys(tuple(np.flatnonzero(row).tolist()) for row in together)
    return tuple(group for group in groups if len(group) > 1)
