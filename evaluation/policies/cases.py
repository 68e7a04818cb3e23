"""The readings of real scans and nodules by both models, as agent and cloud read them; their file.

A *piece* is a whole scan, or a cube around a nodule. Its candidates carry everything that a policy
could learn from the cloud: the cloud's score at each size of ROI.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from cloud.limits import pad
from edge.atomic_files import write_atomically
from edge.decide import Thresholds
from edge.job import Job
from edge.merge import MergeWeights
from edge.pipeline import Pipeline, read_and_report
from edge.report.model import Assessment, Report
from edge.selection import SELECTION_POLICY, Shape, Size
from evaluation.accuracy.data import Annotation, Cube, read_annotations, read_cubes
from evaluation.accuracy.reports import ledger_s
from evaluation.accuracy.truth import RIM_MM, Truth, read_truth
from evaluation.common.cli import each
from evaluation.common.readers import RoiReader
from evaluation.errors import MissingData
from evaluation.timing.latency import this_machine
from imaging.preprocess import Preprocessed
from imaging.roi import cut_roi
from imaging.volume import Geometry, UInt8Array
from models.runtime.detection import Candidate

VAL, TEST = "val", "test"
BATCHES = (1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8)
"""Sizes of the batches that time the cloud's model; the first of each size is a warm-up."""


@dataclass(frozen=True)
class Sighting:
    """One candidate of the edge.

    ``cloud`` is the cloud's probability by size of the ROI; ``nodule`` names the known nodule that
    it hits, if any. An ``ignored`` one counts neither as a hit nor as a false positive.
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
    """A whole scan, or a cube with the nodule in it; split ``val`` is to fit, ``test`` to report.

    ``nodules`` names the known ones, also those without a candidate; ``sightings`` fall by score.
    ``before_s`` is from files to candidates, ``after_s`` from the last verdict to the written
    report; both are 0 for a cube.
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
    """All pieces, with thresholds, score fusion and guarantee of the edge's manifest.

    ``proposed`` is the lowest score of a candidate, ``batches`` are measured ``(ROIs, seconds)`` of
    the cloud's model, and all times were measured on ``cpu``.
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


@dataclass(frozen=True)
class Sources:
    """The folders of cubes and of whole scans, and the table of marks with the scans' roles."""

    cubes: Path
    scans: Path
    truth: Path


@dataclass(frozen=True, eq=False)
class Readers:
    """The edge's pipeline without a cloud, and the cloud's model."""

    pipeline: Pipeline
    second: RoiReader
    second_label: str
    proposed: float

    def sightings(
        self, candidates: Sequence[Candidate], voxels: UInt8Array
    ) -> Iterator[tuple[Candidate, Sighting]]:
        """Yield the candidates from ``proposed`` on, with the cloud's score at each size.

        Smaller sizes are read only where the edge is uncertain, and so might send them.
        """
        full, thresholds = self.second.roi_shape, self.pipeline.reader.thresholds
        for one in candidates:
            if one.score < self.proposed:
                continue
            uncertain = thresholds.dismiss <= one.score < thresholds.report
            sizes = SELECTION_POLICY.sizes_for(one.diameter_mm, full) if uncertain else (Size.FULL,)
            rois = [as_sent(one, voxels, size, full) for size in sizes]
            scores = self.second.read(np.stack(rois)).probability
            cloud = dict(zip(sizes, map(float, scores), strict=True))
            yield one, Sighting(one.score, one.diameter_mm, cloud)


def as_sent(one: Candidate, voxels: UInt8Array, size: Size, full: Shape) -> UInt8Array:
    """Cut the candidate's ROI in that size as the edge does, and pad it as the cloud does."""
    return pad(cut_roi(voxels, one.index_zyx, size.shape_of(full)), full)


def read_cases(sources: Sources, readers: Readers) -> Cases:
    """Read all pieces of ``sources`` for val and test.

    Raises:
        MissingData, BadTable: cubes, scans or tables are missing or damaged.
    """
    known = read_truth(sources.truth)
    for split in (VAL, TEST):
        if split not in {truth.role for truth in known.values()}:
            raise MissingData(sources.truth, f"no scan of role {split}")
    scans = [name for name, truth in known.items() if truth.role in (VAL, TEST)]
    pieces = [
        _read_scan(sources.scans / name, known[name], readers) for name in each(scans, "scans")
    ]
    for split in (VAL, TEST):
        annotations = read_annotations(sources.cubes, split)
        for cube in each(read_cubes(sources.cubes, (split,)), f"{split} nodules"):
            pieces.append(_read_cube(cube, split, annotations.get(cube.name, ()), readers))
    reader = readers.pipeline.reader
    return Cases(
        pieces=tuple(pieces),
        proposed=readers.proposed,
        batches=tuple(_timed(readers.second)),
        thresholds=reader.thresholds,
        weights=reader.weights,
        guarantee=reader.guarantee.text,
        models=(reader.label, readers.second_label),
        cpu=this_machine()["cpu"],
    )


def remeasured(cases: Cases, sources: Sources, readers: Readers) -> Cases:
    """Return the same scores with all times measured again on this machine."""
    scans = [piece.name for piece in cases.pieces if piece.whole]
    times_s = {name: _run(sources.scans / name, readers)[2:] for name in each(scans, "scans")}
    pieces = []
    for piece in cases.pieces:
        before_s, after_s = times_s.get(piece.name, (0.0, 0.0))
        pieces.append(replace(piece, before_s=before_s, after_s=after_s))
    batches = tuple(_timed(readers.second))
    return replace(cases, pieces=tuple(pieces), batches=batches, cpu=this_machine()["cpu"])


def _read_scan(folder: Path, truth: Truth, readers: Readers) -> Piece:
    """Read a whole scan through the agent's own pipeline, and time it."""
    assessment, box, before_s, after_s = _run(folder, readers)
    candidates = [decision.candidate for decision in assessment.plan.decisions]
    names = tuple(f"{folder.name}/{i}" for i in range(len(truth.lesions)))
    sightings = []
    for one, sighting in readers.sightings(candidates, box.voxels):
        hits = [i for i, lesion in enumerate(truth.lesions) if lesion.hit_by(one.centre_mm)]
        near = not hits and not truth.is_false(one.centre_mm)
        sightings.append(replace(sighting, nodule=names[hits[0]] if hits else "", ignored=near))
    return Piece(folder.name, truth.role, folder.name, names, tuple(sightings), before_s, after_s)


def _run(folder: Path, readers: Readers) -> tuple[Assessment, Preprocessed, float, float]:
    """Run a scan through the pipeline; its seconds before the decision and after the verdicts.

    It is read twice, because the engine and the disk's cache are cold the first time.
    """
    kept: list[tuple[Assessment, Preprocessed]] = []

    def note(_report: Report, assessment: Assessment, _reader: object, box: Preprocessed) -> None:
        kept.append((assessment, box))

    pipeline = replace(readers.pipeline, persist_pending=note)
    with tempfile.TemporaryDirectory(prefix="overread-policies-") as out:
        for _ in range(2):
            report = read_and_report(pipeline, Job(folder, Path(out, "report"))).report
    if report.rejection is not None:
        raise MissingData(folder, report.rejection.reason)
    took_s = ledger_s(report)
    before_s = sum(took_s[stage] for stage in ("read", "preprocess", "screen"))
    return *kept[-1], before_s, sum(took_s[stage] for stage in ("merge", "draw", "report"))


def _read_cube(
    cube: Cube, split: str, annotations: Sequence[Annotation], readers: Readers
) -> Piece:
    """Read a cube with its nodule; a candidate on another annotation is ignored."""
    found = readers.pipeline.reader.screen(Preprocessed(cube.voxels, Geometry()))
    own = Annotation(cube.centre_zyx, cube.diameter_mm)
    sightings = [
        replace(
            sighting,
            nodule=cube.name if cube.hit_by(one.index_zyx) else "",
            ignored=any(mark.covers(one.index_zyx, RIM_MM) for mark in (own, *annotations)),
        )
        for one, sighting in readers.sightings(found, cube.voxels)
    ]
    return Piece(cube.name, split, cube.patient, (cube.name,), tuple(sightings))


def _timed(second: RoiReader) -> Iterator[tuple[int, float]]:
    """Yield ``(ROIs, seconds)`` of batches of the cloud's model."""
    for number, n in enumerate(BATCHES):
        batch = np.zeros((n, *second.roi_shape), np.uint8)
        began_s = time.perf_counter()
        second.read(batch)
        if n in BATCHES[:number]:
            yield n, time.perf_counter() - began_s


def key_of(**described: object) -> str:
    """Return twelve hexadecimal digits that change with any of the values."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]


def save(cases: Cases, path: Path) -> None:
    """Write the cases atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(TypeAdapter(Cases).dump_python(cases, mode="json")).encode())


def load(path: Path) -> Cases:
    """Read the cases of a file that `save` wrote.

    Raises:
        MissingData: it cannot be read, or holds something else.
    """
    try:
        return TypeAdapter(Cases).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = f"not a file of cases ({type(error).__name__}): delete it to read them again"
        raise MissingData(path, reason) from error
