"""What is known of whole scans: the lesions that must be found, and the places that do not count.

A table of marks names a kind in each line. ``nodule`` and ``lesion`` must be found. ``excluded``
and ``doubtful`` count neither as found nor as false. A `scans.csv` beside it may list the scans,
also those without any mark, with their roles.

A mark whose column ``source`` says ``by eye`` was seen among the strongest candidates of networks,
so it is no independent truth: a nodule by eye counts neither way. A scan with such a nodule is not
fully marked. It probably holds more of them, and its false positives are not counted.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.accuracy.data import UNKNOWN_RADIUS_MM, Table, read_table
from evaluation.accuracy.froc import match_scan
from evaluation.errors import BadTable
from imaging.volume import FloatArray, Nodule, Triple, triple
from imaging.volume_files import FORMATS
from models.data_folder import BY_EYE, FOUND, stacked

IGNORED = ("excluded", "doubtful")
"""The kinds of marks that need not be `FOUND`."""

LISTING = "scans.csv"
"""Name of the table that lists the scans, beside a table of marks."""

_COLUMNS = ("scan", "kind", "x", "y", "z", "diameter_mm")


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
        BadTable: a file cannot be read, lacks a column, or a line has no location, no valid size or
            another kind; or two tables give a scan different roles.
    """
    lesions, ignored = defaultdict[str, list[Lesion]](list), defaultdict[str, list[Lesion]](list)
    roles, by_eye = dict[str, str](), defaultdict[str, set[str]](set)
    for path in paths:
        table = read_table(path, _COLUMNS)
        listing = path.with_name(LISTING)
        if listing.is_file():
            _read_roles(read_table(listing, ("scan",)), roles)
        kinds = [kind.lower() for kind in table.text("kind")]
        sources = [row.get("source", "").strip().lower() for row in table.rows]
        rows = zip(_names(table), kinds, _lesions(table), table.lines, sources, strict=True)
        for name, kind, lesion, line, source in rows:
            roles.setdefault(name, "")
            if kind not in (*FOUND, *IGNORED):
                expected = ", ".join((*FOUND, *IGNORED))
                raise BadTable(path, f"kind {kind!r}, expected one of {expected}", line)
            if source == BY_EYE:
                by_eye[name].add(kind)
            counts = kind in FOUND and source != BY_EYE
            (lesions if counts else ignored)[name].append(lesion)
    return {
        name: Truth(tuple(lesions[name]), tuple(ignored[name]), role, tuple(sorted(by_eye[name])))
        for name, role in roles.items()
    }


def _lesions(table: Table) -> list[Lesion]:
    place = np.stack([table.numbers(axis, blank=np.nan) for axis in ("x", "y", "z")], axis=1)
    diameter = table.numbers("diameter_mm", blank=-1.0)
    for row, size, line in zip(place, diameter, table.lines, strict=True):
        if np.isnan(row).any() or not (size > 0 or size == -1):
            raise BadTable(
                table.path,
                "a lesion needs x, y, z and a diameter_mm above 0; -1 where the diameter is not"
                " known",
                line,
            )
    return [Lesion(triple(row), float(size)) for row, size in zip(place, diameter, strict=True)]


def _read_roles(table: Table, roles: dict[str, str]) -> None:
    """Add the scans of a table with their roles, if it has that column."""
    for name, row, line in zip(_names(table), table.rows, table.lines, strict=True):
        role = row.get("role", "").strip()
        if role and roles.get(name, "") not in ("", role):
            reason = f"scan {name!r} has the role {role!r}, elsewhere {roles[name]!r}"
            raise BadTable(table.path, reason, line)
        roles[name] = role or roles.get(name, "")


def _names(table: Table) -> list[str]:
    return [_bare(name) for name in table.text("scan")]


def _bare(name: str) -> str:
    """Return a name without the suffix of a volume file."""
    suffixes = sorted(FORMATS, key=len, reverse=True)
    return next((name[: -len(s)] for s in suffixes if name.lower().endswith(s)), name)


def scan_name(scan: Path) -> str:
    """Return the name of a scan, whatever the working directory.

    It is the name of its folder, or of its file without the suffix.
    """
    found = scan.resolve()
    return found.name if found.is_dir() else _bare(found.name)
