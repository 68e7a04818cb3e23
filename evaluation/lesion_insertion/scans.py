"""Whole scans into which lesions are inserted, without them and with them.

The false positives of a host are counted once, however many synthetic scans are made of it; those
give only the scores of their insertions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from evaluation.accuracy.froc import Scored
from evaluation.accuracy.readers import Reads, Stage
from evaluation.accuracy.truth import Detection, Lesion, ScanScores, Truth, scan_name, score_scan
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.volume import Volume
from models.insertion.insert import APART_MM, FreeSpace, Insertion, Occupied, SyntheticScan, insert
from models.runtime.detection import Candidate

SAME_MM = 6.0
"""An insertion lies at least this far from a strong detection of its host."""


@dataclass(frozen=True, eq=False)
class Host:
    """One scan, upright, with what is known of it."""

    name: str
    volume: Volume
    truth: Truth


def load_host(source: Path, known: Mapping[str, Truth]) -> Host:
    """Return the scan in a folder or file."""
    name = scan_name(source)
    return Host(name, read_study(source).volume, known[name])


@dataclass(frozen=True, eq=False)
class PreparedHost:
    """A host that was read without insertions: free space, occupied locations and detections."""

    host: Host
    space: FreeSpace
    occupied: tuple[Occupied, ...]
    detections: Mapping[Stage, tuple[Detection, ...]]

    @cached_property
    def scores(self) -> dict[Stage, ScanScores]:
        """Return its false positives, and the scores of its known lesions, by stage."""
        return {
            stage: score_scan(found, self.host.truth) for stage, found in self.detections.items()
        }


def free_places(
    host: Host, box: Preprocessed, strongest: Sequence[Candidate] = ()
) -> tuple[FreeSpace, tuple[Occupied, ...]]:
    """Return the free lung of a scan, and what lies in it: marks and its strongest candidates."""
    known = (*host.truth.lesions, *host.truth.ignored)
    return FreeSpace.of(box), (
        *(Occupied(lesion.centre_mm, lesion.reach_mm + APART_MM) for lesion in known),
        *(Occupied(candidate.centre_mm, SAME_MM) for candidate in strongest),
    )


def prepare_host(host: Host, reads: Reads) -> PreparedHost:
    """Read the scan as the edge reads it, and find where lesions can be inserted."""
    box = preprocess(host.volume, host.name)
    found = reads(box)
    # those of the edge, whatever the stage: every stage gets the same insertions
    strongest = sorted(found[Stage.EDGE], key=lambda one: -one.score)[:20]
    detections = {
        stage: tuple((one.centre_mm, one.score) for one in of) for stage, of in found.items()
    }
    return PreparedHost(host, *free_places(host, box, strongest), detections)


@dataclass(frozen=True)
class InsertionScore:
    """One insertion, its host, and the highest score of each stage on it, ``-inf`` without one."""

    insertion: Insertion
    host: Host
    score: Mapping[Stage, float]


def read_synthetic(scan: SyntheticScan[PreparedHost], reads: Reads) -> list[InsertionScore]:
    """Read one synthetic scan as the agent reads it, from the volume on."""
    host = scan.host.host
    found = reads(preprocess(insert(host.volume, scan.insertions), host.name))
    inserted = Truth(tuple(Lesion(one.centre_mm, one.diameter_mm) for one in scan.insertions))
    scores = {
        stage: score_scan([(c.centre_mm, c.score) for c in candidates], inserted).lesion_score
        for stage, candidates in found.items()
    }
    return [
        InsertionScore(one, host, {stage: float(of[i]) for stage, of in scores.items()})
        for i, one in enumerate(scan.insertions)
    ]


def scored(
    insertions: Sequence[InsertionScore], hosts: Sequence[PreparedHost], stage: Stage
) -> Scored:
    """Return the input of the FROC: insertions by patient, false positives of the hosts."""
    _, patient = np.unique([one.insertion.donor.patient for one in insertions], return_inverse=True)
    score = np.array([one.score[stage] for one in insertions], float)
    false = [host.scores[stage].false_score for host in hosts]
    return Scored.of(score, patient, false, paired=False)
