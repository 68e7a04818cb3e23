"""What is known of whole scans: the lesions that must be found, and the places that do not count.

A table of marks names a kind in each line. ``nodule`` and ``lesion`` must be found. ``excluded``
and ``doubtful`` count neither as found nor as false. A `scans.csv` beside it may list scans without
any mark. If it states roles, it lists all scans.

A mark whose column ``source`` says ``by eye`` was seen among the strongest candidates of networks,
so it is no independent truth: a nodule by eye counts neither way. A scan with such a nodule is not
fully marked. It probably holds more of them, and its false positives are not counted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.accuracy.froc import match_scan
from imaging.volume import FloatArray, Nodule, Triple
from models.data.folder import (
    FOUND,
    LISTING,
    UNKNOWN_RADIUS_MM,
    Mark,
    bare_name,
    check_once,
    read_scans,
    stacked,
)
from models.runtime.errors import BadTable


@dataclass(frozen=True)
class Lesion:
    """A known lesion: centre ``(x, y, z)`` LPS mm, diameter of the sphere of equal volume.

    A diameter of -1 is not known. A detection hits the lesion within half its diameter.
    """

    centre_mm: Triple
    diameter_mm: float

    @property
    def reach_mm(self) -> float:
        """Return half the diameter, or the radius of LUNA16 where it is not known."""
        return self.diameter_mm / 2 if self.known else UNKNOWN_RADIUS_MM

    @property
    def known(self) -> bool:
        """Return whether its size is known."""
        return self.diameter_mm > 0

    def hit_by(self, point_mm: Triple) -> bool:
        """Return whether a detection there hits it: nearer than `reach_mm`."""
        return float(np.linalg.norm(np.subtract(point_mm, self.centre_mm))) < self.reach_mm


@dataclass(frozen=True)
class Truth:
    """What is known of one scan.

    A detection on an ``ignored`` place is neither a hit nor a false positive. ``role`` is that of
    the scan in training and tests; empty if no table states it. ``by_eye`` are the kinds of its
    marks that were made by eye.
    """

    lesions: tuple[Lesion, ...] = ()
    ignored: tuple[Lesion, ...] = ()
    role: str = ""
    by_eye: tuple[str, ...] = ()

    @property
    def fully_marked(self) -> bool:
        """Return whether what is found elsewhere is false: no nodule was seen by eye alone."""
        return not set(self.by_eye) & set(FOUND)

    def is_false(self, point_mm: Triple) -> bool:
        """Return whether a detection there is false: on no lesion and no ignored place."""
        return not any(place.hit_by(point_mm) for place in (*self.lesions, *self.ignored))

    def spheres(self) -> tuple[FloatArray, FloatArray]:
        """Return what must be found ``(n, 4)`` and what is ignored ``(m, 4)``.

        The columns are x, y, z and diameter in mm, as `froc.match_scan` takes them.
        """
        return stacked(_rows(self.lesions)), stacked(_rows(self.ignored))


def _rows(lesions: Sequence[Lesion]) -> list[tuple[float, ...]]:
    return [(*one.centre_mm, 2 * one.reach_mm) for one in lesions]


Detection = tuple[Triple, float]
"""A location ``(x, y, z)`` LPS mm and its score."""


@dataclass(frozen=True, eq=False)
class ScanScores:
    """One scan: the highest score on each known lesion, and the scores of its false positives.

    ``lesion_score`` ``(lesions,)`` is ``-inf`` where no detection hit the lesion. ``false_score``
    is ``(m,)``.
    """

    lesion_score: FloatArray
    false_score: FloatArray

    @property
    def found(self) -> int:
        """Return the number of lesions that a detection hit."""
        return int(np.isfinite(self.lesion_score).sum())


def score_scan(detections: Iterable[Detection], truth: Truth) -> ScanScores:
    """Sort the detections of one scan into hits and false positives, by the rules of LUNA16.

    A lesion has the highest score of the detections that hit it. A detection on an ignored place is
    not counted. Every other one is a false positive.
    """
    rows = [(*location, score) for location, score in detections]
    best, false, _, _ = match_scan(stacked(rows), *truth.spheres())
    return ScanScores(best, false)


COUNTED_MM = 5.0
"""Least diameter of the nodules of phantoms that count; smaller ones are ignored."""


def truth_of(nodules: Sequence[Nodule]) -> Truth:
    """Return the truth of a phantom; within 5 mm of a nodule too small to count is ignored."""
    return Truth(
        tuple(Lesion(n.centre_mm, n.diameter_mm) for n in nodules if n.diameter_mm >= COUNTED_MM),
        tuple(Lesion(n.centre_mm, 10.0) for n in nodules if n.diameter_mm < COUNTED_MM),
    )


def read_truth(*paths: Path) -> dict[str, Truth]:
    """Read what is known of each scan that the tables name, several lines to a scan.

    Columns ``scan, kind, x, y, z, diameter_mm``; a diameter of -1, or an empty one, is not known.
    A column ``source`` tells which marks were made by eye.

    Raises:
        BadTable: a table is damaged, or names a scan that is not in the list beside it; a nodule is
            marked twice, also in two tables; or two give a scan or a patient different roles.
    """
    marks, roles, patients = dict[str, list[Mark]](), dict[str, str](), dict[str, str]()
    for path in paths:
        for name, scan in read_scans(path, patients).items():
            known = roles.get(name, "")
            if known and scan.role and known != scan.role:
                reason = f"scan {name!r} has the role {scan.role!r}, elsewhere {known!r}"
                raise BadTable(path.with_name(LISTING), reason)
            roles[name] = known or scan.role
            marks[name] = [*marks.get(name, ()), *scan.marks]
            check_once(path, f"scan {name!r}, with the tables before,", marks[name])
    return {name: _truth(marks[name], role) for name, role in roles.items()}


def _truth(marks: Sequence[Mark], role: str) -> Truth:
    """Return the truth of a scan; what was seen by eye alone is no independent truth."""
    lesions, ignored = list[Lesion](), list[Lesion]()
    for mark in marks:
        counts = mark.must_be_found and not mark.by_eye
        (lesions if counts else ignored).append(Lesion(mark.centre, mark.diameter_mm))
    by_eye = sorted({mark.kind for mark in marks if mark.by_eye})
    return Truth(tuple(lesions), tuple(ignored), role, tuple(by_eye))


def scan_name(scan: Path) -> str:
    """Return the name of a scan, whatever the working directory.

    It is the name of its folder, or of its file without the suffix.
    """
    found = scan.resolve()
    return found.name if found.is_dir() else bare_name(found.name)
