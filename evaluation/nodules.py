"""Sensitivity on cubes of nodules against false positives on whole scans, at one threshold.

A cube holds a nodule with its surroundings, a whole scan everything that is taken for one by
mistake; the same reader goes over both. The computation is here, the reading is not: a reader is
any function from a box to candidates (`evaluation.reading` gives the agent's own).

Only some lesions of a scan are known, so a few of the false positives may be true.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.bootstrap import Figures
from evaluation.cubes import Cube
from evaluation.froc import (
    RATES,
    TARGETS,
    Scored,
    froc,
    sensitivity_at,
    threshold_at,
    threshold_within,
)
from evaluation.reading import Reads
from evaluation.scan import ScanScores, score_scan
from evaluation.truth import Lesion, scan_name
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.volume import FloatArray, Geometry

CAVEAT = "Only some lesions of each scan are known: a few of the false positives may be true."


@dataclass(frozen=True, eq=False)
class NoduleScores:
    """Everything that was read; ``nodule_score`` ``(n,)``, ``patients`` names each one's."""

    nodule_score: FloatArray
    patients: tuple[str, ...]
    scans: tuple[ScanScores, ...]

    @property
    def scored(self) -> Scored:
        """What the FROC is made of: nodules by patient, false positives by scan."""
        _, group = np.unique(self.patients, return_inverse=True)
        counts = [scan.false_score.size for scan in self.scans]
        return Scored(
            nodule_score=self.nodule_score,
            nodule_group=group.astype(np.int64),
            false_score=np.concatenate([scan.false_score for scan in self.scans]),
            false_scan=np.repeat(np.arange(len(self.scans)), counts),
            scans=len(self.scans),
            paired=False,
        )


def read_cube(cube: Cube, reads: Reads, surround: int = 0) -> float:
    """The highest score of a candidate that hits the cube's nodule, ``-inf`` if none does.

    ``surround`` is as for `surrounded`.
    """
    seen = surrounded(cube, surround)
    found = reads(Preprocessed(seen.voxels, Geometry()))
    return max((c.score for c in found if seen.hit_by(c.index_zyx)), default=-np.inf)


def surrounded(cube: Cube, side: int) -> Cube:
    """The cube in the middle of a box of ``side`` voxels, filled with its own mirror images.

    A network sees the faces of a small box, and with them that a nodule is in its middle; a scan
    gives no such hint. A side that is no larger leaves the cube as it is.
    """
    grown = [max(0, side - n) for n in cube.voxels.shape]
    pad = [(n // 2, n - n // 2) for n in grown]
    z, y, x = (at + before for at, (before, _) in zip(cube.centre_zyx, pad, strict=True))
    return replace(cube, voxels=np.pad(cube.voxels, pad, mode="symmetric"), centre_zyx=(z, y, x))


def read_scan(folder: Path, lesions: tuple[Lesion, ...], reads: Reads) -> ScanScores:
    """One whole scan from its files, read as the agent reads it.

    Raises:
        StudyError: the scan cannot be read.
    """
    box = preprocess(read_study(folder).volume, folder)
    marks = [(candidate.centre_mm, candidate.score) for candidate in reads(box)]
    return score_scan(scan_name(folder), marks, lesions)


def read_all(
    cubes: Iterable[Cube],
    scans: Iterable[tuple[Path, tuple[Lesion, ...]]],
    reads: Reads,
    surround: int = 0,
) -> NoduleScores:
    """Everything through one reader: cubes, and whole scans with what is known of them.

    ``surround`` is as for `surrounded`.

    Raises:
        StudyError: a scan cannot be read.
    """
    found = [(read_cube(cube, reads, surround), cube.patient) for cube in cubes]
    read = tuple(read_scan(folder, lesions, reads) for folder, lesions in scans)
    score = np.array([score for score, _ in found], float)
    return NoduleScores(score, tuple(patient for _, patient in found), read)


def as_json(
    scores: NoduleScores, figures: Figures, bands: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The result for machines; a figure that no threshold reaches is None.

    ``bands`` are the figures of `evaluation.bands`, where they were taken.
    """
    curve = froc(scores.scored)
    by_rate, by_target = threshold_within(curve), threshold_at(curve)
    return {
        "nodules": scores.nodule_score.size,
        "patients": len(set(scores.patients)),
        "proposed": int(np.isfinite(scores.nodule_score).sum()),
        "sensitivity": [
            {"false_positives_per_scan": rate, "threshold": _finite(t), **value.as_json()}
            for rate, t, value in zip(RATES, by_rate, figures.sensitivity, strict=True)
        ],
        "cpm": figures.cpm.as_json(),
        "fp_at": {
            f"{100 * target:g}": {"threshold": _finite(t), **value.as_json()}
            for target, t, value in zip(TARGETS, by_target, figures.false_positives, strict=True)
        },
        "scans": [_scan_json(scan, by_rate, by_target) for scan in scores.scans],
        "without": without_each(scores),
        "caveat": CAVEAT,
        **({} if bands is None else {"bands": bands}),
    }


def without_each(scores: NoduleScores) -> list[dict[str, Any]]:
    """The sensitivities and the CPM with each scan left out in turn: what hangs on one scan."""
    found = []
    for left_out in scores.scans if len(scores.scans) > 1 else ():
        rest = tuple(scan for scan in scores.scans if scan is not left_out)
        at = sensitivity_at(froc(replace(scores, scans=rest).scored))
        by_rate = {f"{rate:g}": float(value) for rate, value in zip(RATES, at, strict=True)}
        found.append({"scan": left_out.name, "sensitivity": by_rate, "cpm": float(at.mean())})
    return found


def _scan_json(scan: ScanScores, by_rate: FloatArray, by_target: FloatArray) -> dict[str, Any]:
    best = scan.lesion_score.max(initial=-np.inf)
    return {
        "scan": scan.name,
        "proposed_false": scan.false_score.size,
        "false_positives": {
            f"{rate:g}": scan.false_above(t) for rate, t in zip(RATES, by_rate, strict=True)
        },
        "false_positives_at": {
            f"{100 * target:g}": scan.false_above(t) if np.isfinite(t) else None
            for target, t in zip(TARGETS, by_target, strict=True)
        },
        "lesion_score": _finite(best),
        "lesions": [
            {
                "centre_mm": list(lesion.centre_mm),
                "diameter_mm": lesion.diameter_mm,
                "score": _finite(score),
                "false_positives_above": scan.false_above(score) if np.isfinite(score) else None,
            }
            for lesion, score in zip(scan.lesions, scan.lesion_score, strict=True)
        ],
    }


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
