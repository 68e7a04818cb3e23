"""What both readers made of real scans and nodules, once and for all policies, and its file.

A *piece* is what was read in one go: a whole scan, or a cube around a nodule. Its candidates are
kept with everything that a policy could learn by asking: the cloud's word at each size of region.
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
        score: the edge's, calibrated.
        diameter_mm: as the edge measured it.
        cloud: the cloud's probability by the size of the region that it was sent.
        nodule: name of the known nodule that it hits; empty for none.
        ignored: it counts neither as hit nor as false.
    """

    score: float
    diameter_mm: float
    cloud: Mapping[Size, float]
    nodule: str = ""
    ignored: bool = False


@dataclass(frozen=True)
class Piece:
    """A whole scan, or a cube with the nodule in it.

    Attributes:
        name: of scan or cube.
        split: ``val`` is fitted on, ``test`` reported.
        patient: whose it is.
        nodules: names of its known ones, those among them that the edge never proposed.
        sightings: its candidates, by falling score.
        before_s: from files to candidates, 0 for a cube.
        after_s: from the last verdict to the written report, 0 for a cube.
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
        """Whether it is a whole scan."""
        return self.before_s > 0


@dataclass(frozen=True)
class Cases:
    """All pieces, and what the readers are like.

    Attributes:
        pieces: whole scans and cubes of all splits.
        proposed: no weaker candidates are among them.
        batches: ``(regions, seconds)`` of the cloud's model, measured.
        thresholds: of the edge's manifest.
        weights: of its merger.
        guarantee: what the manifest promises at these thresholds.
        models: both readers with version and engine.
        cpu: the machine on which all times were measured.
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
        """The pieces of one split."""
        return tuple(piece for piece in self.pieces if piece.split == split)


def key_of(**described: object) -> str:
    """Twelve hexadecimal digits that change with anything that is described."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]


def save(cases: Cases, path: Path) -> None:
    """Writes them whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(_adapter().dump_python(cases, mode="json")).encode())


def load(path: Path) -> Cases:
    """The cases of a file that `save` wrote.

    Raises:
        MissingData: it cannot be read, or holds something else.
    """
    try:
        return _adapter().validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = f"holds no cases ({type(error).__name__}): delete it to read anew"
        raise MissingData(path, reason) from error


@cache
def _adapter() -> TypeAdapter[Cases]:
    """Between cases and JSON; built once."""
    return TypeAdapter(Cases)
