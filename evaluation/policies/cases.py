"""The readings of real scans and nodules by both models, and their file.

A *piece* is a whole scan, or a cube around a nodule. Its candidates carry everything that a policy
could learn from the cloud: the cloud's score at each size of ROI.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from edge.atomic_files import write_atomically
from edge.decide import Thresholds
from edge.merge import MergeWeights
from edge.selection import Size
from evaluation.errors import MissingData


@dataclass(frozen=True)
class Sighting:
    """One candidate of the edge.

    Attributes:
        score: the edge's calibrated score.
        diameter_mm: the edge's estimate.
        cloud: the cloud's probability by size of the ROI.
        nodule: name of the known nodule that it hits; empty for none.
        ignored: it counts neither as a hit nor as a false positive.
    """

    score: float
    diameter_mm: float
    cloud: Mapping[Size, float]
    nodule: str = ""
    ignored: bool = False

    @property
    def is_false(self) -> bool:
        """Return whether a finding here would be a false positive."""
        return not self.nodule and not self.ignored


@dataclass(frozen=True)
class Piece:
    """A whole scan, or a cube with the nodule in it.

    Attributes:
        name: of scan or cube.
        split: ``val`` to fit, ``test`` to report.
        patient: to whom it belongs.
        nodules: names of its known nodules, also of those without a candidate.
        sightings: its candidates, by falling score.
        before_s: seconds from files to candidates, 0 for a cube.
        after_s: seconds from the last verdict to the written report, 0 for a cube.
    """

    name: str
    split: str
    patient: str
    nodules: tuple[str, ...]
    sightings: tuple[Sighting, ...]
    before_s: float = 0.0
    after_s: float = 0.0

    @property
    def whole(self) -> bool:
        """Return whether it is a whole scan."""
        return self.before_s > 0


@dataclass(frozen=True)
class Cases:
    """All pieces, and the readers.

    Attributes:
        pieces: whole scans and cubes of all splits.
        proposed: the lowest score of a candidate.
        batches: measured ``(ROIs, seconds)`` of the cloud's model.
        thresholds: of the edge's manifest.
        weights: of the score fusion.
        guarantee: of the manifest at these thresholds.
        models: both readers with version and engine.
        cpu: of the machine on which all times were measured.
    """

    pieces: tuple[Piece, ...]
    proposed: float
    batches: tuple[tuple[int, float], ...]
    thresholds: Thresholds
    weights: MergeWeights
    guarantee: str
    models: tuple[str, ...]
    cpu: str

    def of(self, split: str) -> tuple[Piece, ...]:
        """Return the pieces of one split."""
        return tuple(piece for piece in self.pieces if piece.split == split)


def key_of(**described: object) -> str:
    """Return twelve hexadecimal digits that change with any of the values."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]


def save(cases: Cases, path: Path) -> None:
    """Write the cases atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(_adapter().dump_python(cases, mode="json")).encode())


def load(path: Path) -> Cases:
    """Read the cases of a file that `save` wrote.

    Raises:
        MissingData: it cannot be read, or holds something else.
    """
    try:
        return _adapter().validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = f"not a file of cases ({type(error).__name__}): delete it to read them again"
        raise MissingData(path, reason) from error


@cache
def _adapter() -> TypeAdapter[Cases]:
    """Return the converter between cases and JSON; built once."""
    return TypeAdapter(Cases)
