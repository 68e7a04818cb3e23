"""Reads real scans and nodules with both models, as agent and cloud do, into cases for policies."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cloud.limits import pad
from edge.job import Job
from edge.pipeline import Pipeline, read_and_report
from edge.report.model import Assessment, Report
from edge.selection import SELECTION_POLICY, Shape, Size
from evaluation.accuracy.data import (
    RIM_MM,
    Cube,
    Lesion,
    Mark,
    read_cubes,
    read_marks,
    read_table,
    read_truth,
)
from evaluation.accuracy.reports import ledger_s
from evaluation.common.cli import each
from evaluation.common.readers import ReadsRegions
from evaluation.errors import MissingData
from evaluation.policies.cases import Cases, Piece, Sighting
from evaluation.timing.latency import this_machine
from imaging.preprocess import Preprocessed
from imaging.roi import cut_roi
from imaging.volume import Geometry, UInt8Array
from models.runtime.detection import Candidate

VAL, TEST = "val", "test"
BATCHES = (1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8)
"""Regions at once, to learn what the cloud's model costs; the first of each size warms up."""

BEFORE = ("read", "preprocess", "screen")
AFTER = ("merge", "draw", "report")


@dataclass(frozen=True)
class Sources:
    """Where the pieces lie: cubes with their index, whole scans, and a table with their roles."""

    cubes: Path
    scans: Path
    truth: Path


@dataclass(frozen=True, eq=False)
class Readers:
    """The line of the edge, without a cloud, and the cloud's model.

    Attributes:
        line: of the agent.
        second: reads regions.
        named: what `second` is.
        proposed: weaker candidates are left out.
    """

    line: Pipeline
    second: ReadsRegions
    named: str
    proposed: float

    def sightings(
        self, candidates: Sequence[Candidate], voxels: UInt8Array
    ) -> Iterator[tuple[Candidate, Sighting]]:
        """The proposed ones among the candidates, with the cloud's word on each."""
        for one in candidates:
            if one.score >= self.proposed:
                words = self._words(one, voxels)
                yield one, Sighting(one.score, one.diameter_mm, words)

    def _words(self, one: Candidate, voxels: UInt8Array) -> dict[Size, float]:
        """By size; smaller ones where the edge might ask about it and send them."""
        full, thresholds = self.second.roi_shape, self.line.reader.thresholds
        unsure = thresholds.dismiss <= one.score < thresholds.report
        sizes = SELECTION_POLICY.sizes_for(one.diameter_mm, full) if unsure else (Size.FULL,)
        regions = [_as_sent(one, voxels, size.shape_of(full), full) for size in sizes]
        chances = self.second.read(np.stack(regions)).probability
        return dict(zip(sizes, map(float, chances), strict=True))


def read_cases(sources: Sources, readers: Readers) -> Cases:
    """Everything that lies in ``sources`` for val and test.

    Raises:
        MissingData, BadTable: cubes, scans or tables are not what was promised.
    """
    roles, truth = _roles(sources), read_truth(sources.truth)
    pieces = [
        _read_scan(sources.scans / name, role, truth[name], readers)
        for name, role in each(roles, "scans")
    ]
    for split in (VAL, TEST):
        marks = read_marks(sources.cubes, split)
        for cube in each(read_cubes(sources.cubes, (split,)), f"{split} nodules"):
            pieces.append(_read_cube(cube, split, marks.get(cube.name, ()), readers))
    reader = readers.line.reader
    return Cases(
        pieces=tuple(pieces),
        proposed=readers.proposed,
        batches=tuple(_timed(readers.second)),
        thresholds=reader.thresholds,
        weights=reader.weights,
        guarantee=reader.guarantee.text,
        models=(reader.label, readers.named),
        cpu=this_machine().cpu,
    )


def _roles(sources: Sources) -> list[tuple[str, str]]:
    """The scans of val and test."""
    table = read_table(sources.truth, ("scan", "role"))
    named = dict(zip(table.text("scan"), table.text("role"), strict=True))
    roles = [(name, role) for name, role in named.items() if role in (VAL, TEST)]
    for split in (VAL, TEST):
        if split not in named.values():
            raise MissingData(sources.truth, f"names no scan of role {split}")
    return roles


def timed(cases: Cases, sources: Sources, readers: Readers) -> Cases:
    """The same scores with all times measured again, on this machine as it is now."""
    scans = [piece.name for piece in cases.pieces if piece.whole]
    times_s = {name: _walk(sources.scans / name, readers)[1] for name in each(scans, "scans")}
    pieces = (
        replace(piece, before_s=times_s[piece.name][0], after_s=times_s[piece.name][1])
        if piece.whole
        else piece
        for piece in cases.pieces
    )
    batches = tuple(_timed(readers.second))
    return replace(cases, pieces=tuple(pieces), batches=batches, cpu=this_machine().cpu)


def _read_scan(folder: Path, split: str, lesions: tuple[Lesion, ...], readers: Readers) -> Piece:
    """A whole scan through the agent's own line, with its times."""
    (assessment, box), (before_s, after_s) = _walk(folder, readers)
    candidates = [decision.candidate for decision in assessment.plan.decisions]
    return Piece(
        folder.name,
        split,
        folder.name,
        tuple(f"{folder.name}/{i}" for i in range(len(lesions))),
        tuple(
            _in_scan(sighting, one, folder.name, lesions)
            for one, sighting in readers.sightings(candidates, box.voxels)
        ),
        before_s,
        after_s,
    )


def _walk(
    folder: Path, readers: Readers
) -> tuple[tuple[Assessment, Preprocessed], tuple[float, float]]:
    """What the line makes of a scan, and its seconds before the decision and after the verdicts.

    It is read twice: the first time the engine and the disk's cache are cold.
    """
    kept: list[tuple[Assessment, Preprocessed]] = []

    def note(_report: Report, assessment: Assessment, _reader: object, box: Preprocessed) -> None:
        kept.append((assessment, box))

    line = replace(readers.line, persist_pending=note)
    with tempfile.TemporaryDirectory(prefix="overread-policies-") as out:
        for _ in range(2):
            report = read_and_report(line, Job(folder, Path(out, "report"))).report
    if report.rejection is not None:
        raise MissingData(folder, report.rejection.reason)
    took_s = ledger_s(report)
    before_s, after_s = (sum(took_s[stage] for stage in part) for part in (BEFORE, AFTER))
    return kept[-1], (before_s, after_s)


def _in_scan(
    sighting: Sighting, one: Candidate, scan: str, lesions: tuple[Lesion, ...]
) -> Sighting:
    hit = next((i for i, lesion in enumerate(lesions) if lesion.hit_by(one.centre_mm)), None)
    if hit is not None:
        return replace(sighting, nodule=f"{scan}/{hit}")
    return replace(sighting, ignored=any(lesion.covers(one.centre_mm) for lesion in lesions))


def _read_cube(cube: Cube, split: str, marks: Sequence[Mark], readers: Readers) -> Piece:
    """A cube with its nodule; what lies on another known place counts neither way."""
    found = readers.line.reader.screen(Preprocessed(cube.voxels, Geometry()))
    own = Mark(cube.centre_zyx, cube.diameter_mm)
    sightings = [
        replace(
            sighting,
            nodule=cube.name if cube.hit_by(one.index_zyx) else "",
            ignored=any(mark.covers(one.index_zyx, RIM_MM) for mark in (own, *marks)),
        )
        for one, sighting in readers.sightings(found, cube.voxels)
    ]
    return Piece(cube.name, split, cube.patient, (cube.name,), tuple(sightings))


def _as_sent(one: Candidate, voxels: UInt8Array, shape: Shape, full: Shape) -> UInt8Array:
    """The region as it is cut on the edge and mirrored in the cloud."""
    return pad(cut_roi(voxels, one.index_zyx, shape), full)


def _timed(second: ReadsRegions) -> Iterator[tuple[int, float]]:
    for number, n in enumerate(BATCHES):
        batch = np.zeros((n, *second.roi_shape), np.uint8)
        began_s = time.perf_counter()
        second.read(batch)
        if n in BATCHES[:number]:
            yield n, time.perf_counter() - began_s
