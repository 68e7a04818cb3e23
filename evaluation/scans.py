"""Semi-synthetic whole scans: known nodules implanted into scans, found or not by the agent's line.

False positives are those of the untouched scan, counted once, however many copies of it carry
implants; the copies give nothing but the scores of their implants. What is marked in a copy and
lies neither at an implant nor where the untouched scan is marked was brought by the implants: it
is told apart and is no part of the curve.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.froc import Scored
from evaluation.reading import Reads
from evaluation.scan import Mark, ScanScores, score_scan
from evaluation.scan_copies import APART_MM, Copy, Ready
from evaluation.scan_host import Host
from evaluation.scan_implant import Implant, implanted
from evaluation.scan_room import Room, Taken
from evaluation.truth import Lesion
from imaging.preprocess import preprocess
from imaging.volume import Volume

SUSPECTED = 20
"""So many of the untouched scan's strongest marks are no places for an implant."""

SAME_MM = 6.0
"""A mark of a copy so near to one of the untouched scan is the same."""


@dataclass(frozen=True, eq=False)
class HostScores:
    """An untouched scan that was read: itself, its marks, and what they are worth."""

    ready: Ready
    marks: tuple[Mark, ...]
    scores: ScanScores

    @property
    def group(self) -> str:
        """What kind of scan it is."""
        return self.ready.host.group


@dataclass(frozen=True)
class Found:
    """One implant and the highest score of a mark that hit it, ``-inf`` where none did."""

    implant: Implant
    host: str
    group: str
    mass: bool
    score: float


@dataclass(frozen=True)
class CopyScores:
    """One copy that was read: its implants, and the scores of the marks that they brought."""

    found: tuple[Found, ...]
    group: str
    brought: tuple[float, ...]


def read_host(host: Host, reads: Reads) -> HostScores:
    """The untouched scan as the agent reads it.

    Raises:
        NoLung: there is no lung in it.
    """
    box = preprocess(host.volume, host.name)
    marks = tuple((candidate.centre_mm, candidate.score) for candidate in reads(box))
    strongest = sorted(marks, key=lambda mark: -mark[1])[:SUSPECTED]
    taken = [Taken(lesion.centre_mm, lesion.reach_mm + APART_MM) for lesion in host.lesions]
    taken += [Taken(place, SAME_MM) for place, _ in strongest]
    ready = Ready(host, Room.of(box), tuple(taken))
    return HostScores(ready, marks, score_scan(host.name, marks, host.lesions))


def read_copies(
    copies: Iterable[Copy], hosts: Sequence[HostScores], reads: Reads
) -> list[CopyScores]:
    """Every copy as the agent reads it, from the volume on.

    Raises:
        NoLung: implants hid the lung.
    """
    by_name = {one.ready.host.name: one for one in hosts}
    return [read_copy(copy, by_name[copy.ready.host.name], reads) for copy in copies]


def read_copy(copy: Copy, untouched: HostScores, reads: Reads) -> CopyScores:
    """One copy as the agent reads it."""
    host = copy.ready.host
    volume = implanted(host.volume, list(copy.implants))
    marks = _marks(volume, host.name, reads)
    truth = tuple(Lesion(one.centre_mm, one.diameter_mm) for one in copy.implants)
    scores = score_scan(host.name, marks, truth)
    found = tuple(
        Found(implant, host.name, host.group, copy.masses, float(score))
        for implant, score in zip(copy.implants, scores.lesion_score, strict=True)
    )
    known = (*host.lesions, *_wide(copy.implants))
    new = [
        score
        for place, score in marks
        if not any(lesion.covers(place) for lesion in known) and not _near(place, untouched.marks)
    ]
    return CopyScores(found, host.group, tuple(new))


def scored(found: Sequence[Found], hosts: Sequence[HostScores]) -> Scored:
    """What the FROC is made of: implants by patient, false positives of the untouched scans."""
    _, patient = np.unique([one.implant.donor.patient for one in found], return_inverse=True)
    counts = [host.scores.false_score.size for host in hosts]
    return Scored(
        nodule_score=np.array([one.score for one in found], float),
        nodule_group=patient.astype(np.int64),
        false_score=np.concatenate([host.scores.false_score for host in hosts]),
        false_scan=np.repeat(np.arange(len(hosts)), counts),
        scans=len(hosts),
        paired=False,
    )


def _marks(volume: Volume, name: str, reads: Reads) -> list[Mark]:
    return [(c.centre_mm, c.score) for c in reads(preprocess(volume, name))]


def _wide(implants: Sequence[Implant]) -> tuple[Lesion, ...]:
    """The implants as far as they extend."""
    return tuple(Lesion(one.centre_mm, 2 * one.reach_mm) for one in implants)


def _near(place: tuple[float, float, float], marks: Sequence[Mark]) -> bool:
    return any(np.linalg.norm(np.subtract(place, other)) < SAME_MM for other, _ in marks)
