"""A data folder: the split of its patients, its whole scans, and what is marked in them.

``DIR/nodules`` has the cubes (`models.data.cubes`). ``DIR/ct`` and ``DIR/lidc`` have a folder for
each whole scan, `scans.csv` with its role, and `marks.csv`; one of the two may be absent.
"""

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imaging.read import read_study
from imaging.volume import FloatArray, Study, Triple, Volume, triple
from imaging.volume_files import FORMATS
from models.data.tables import Table, read_table
from models.runtime.errors import BadTable, MissingData

TRAIN = "train"
CALIBRATION = "calibration"
"""Splits of patients; the cubes of both are in `train.npz`."""

ROLES = (TRAIN, "val", "test")
"""Roles of whole scans, and the splits that `index.csv` names."""

SUBSETS = (4, 5)
"""Patients of these subsets of LUNA16 are kept for calibration."""

TRAINED_SCANS = ("LIDC-IDRI-0021",)
"""Patients of those subsets who have a whole scan in training: their cubes are trained on."""

FOUND = ("nodule", "lesion")
"""The kinds of marks in a scan that must be found."""

IGNORED = ("excluded", "doubtful")
"""The kinds that count neither as found nor as false."""

BY_EYE = "by eye"
"""The source of marks that depend on what the networks proposed."""

UNKNOWN_RADIUS_MM = 5.0
"""Radius of a mark without a diameter, as in LUNA16."""

APART_MM = 1.0
"""Two marks that are nearer than this are of one nodule."""

MARKS, LISTING = "marks.csv", "scans.csv"
"""Names of a table of marks, and of the table beside it that lists the scans."""


@dataclass(frozen=True)
class Mark:
    """A line of a table of marks; its centre is ``(x, y, z)`` LPS mm, or z, y, x in a cube.

    A ``diameter_mm`` of -1 is not known.
    """

    kind: str
    centre: Triple
    diameter_mm: float
    by_eye: bool
    line: int

    @property
    def must_be_found(self) -> bool:
        """Return whether its kind is one of `FOUND`."""
        return self.kind in FOUND

    @property
    def sphere(self) -> list[float]:
        """Return centre and diameter; one of unknown size has 10 mm, as in LUNA16."""
        mm = self.diameter_mm
        return [*self.centre, mm if mm > 0 else 2 * UNKNOWN_RADIUS_MM]


def splits_of(index: Table, known: dict[str, str] | None = None) -> list[str]:
    """Return the split of each line of `index.csv`: that of its file, or ``calibration``.

    The patients are entered in ``known``, as by `one_split`.

    Raises:
        BadTable: a split is none, or a patient is in two of them.
    """
    patients, files = index.text("patient"), index.one_of("split", ROLES)
    has_subset = "subset" in index.header
    subsets = index.numbers("subset", blank=-1) if has_subset else np.full(len(files), -1.0)
    for subset, line in zip(subsets, index.lines, strict=True):
        if subset != np.rint(subset):
            raise BadTable(index.path, f"subset = {subset:g}, expected a whole number", line)
    kept = np.isin(subsets, SUBSETS) & ~np.isin(patients, TRAINED_SCANS)
    found = [
        CALIBRATION if file == TRAIN and mine else file
        for file, mine in zip(files, kept, strict=True)
    ]
    one_split(index, patients, found, {} if known is None else known)
    return found


def one_split(
    table: Table, patients: Sequence[str], splits: Sequence[str], known: dict[str, str]
) -> None:
    """Enter the patients of a table with their splits in ``known``; upper case does not count.

    Raises:
        BadTable: a patient is in two of them: what is measured would be what was trained on.
    """
    for patient, split, line in zip(patients, splits, table.lines, strict=True):
        key = patient.casefold()
        if patient and split and known.setdefault(key, split) != split:
            reason = f"patient {patient!r} is in {split!r}, elsewhere in {known[key]!r}"
            raise BadTable(table.path, reason, line)


@dataclass(frozen=True)
class MarkedScan:
    """A whole scan of a table of marks or of the list beside it; ``file`` is its name there.

    ``role`` is empty if no list states it.
    """

    file: str
    marks: list[Mark]
    role: str = ""


def read_scans(
    path: Path, patients: dict[str, str] | None = None, *, with_roles: bool = False
) -> dict[str, MarkedScan]:
    """Return the scans that a table of marks names, and those of `scans.csv` beside it, if any.

    A list with roles must name all scans. The key is the name without the suffix of a volume file.
    ``patients`` are those of other tables with their splits; those of the list are added. If
    ``with_roles``, the list must be there and state them.

    Raises:
        BadTable: a table is damaged, names a scan that the list with roles does not, or marks a
            place twice; or a patient is in two splits.
    """
    listing, found, complete = path.with_name(LISTING), dict[str, MarkedScan](), False
    if with_roles or listing.is_file():
        table = read_table(listing, ("scan", "role") if with_roles else ("scan",))
        files, complete = _files(table), "role" in table.header
        roles = [row.get("role", "").strip().lower() for row in table.rows]
        if with_roles:
            table.one_of("role", ROLES)
        owners = [row.get("patient", "").strip() for row in table.rows]
        one_split(table, owners, roles, {} if patients is None else patients)
        for file, role, line in zip(files, roles, table.lines, strict=True):
            if bare_name(file) in found:
                raise BadTable(listing, f"lists scan {file!r} twice", line)
            found[bare_name(file)] = MarkedScan(file, [], role)
    table = read_table(path, ("scan", "kind", "x", "y", "z", "diameter_mm"))
    for file, mark in zip(_files(table), marks_of(table, "xyz"), strict=True):
        if complete and bare_name(file) not in found:
            raise BadTable(path, f"scan {file!r} is not in {LISTING} beside it", mark.line)
        found.setdefault(bare_name(file), MarkedScan(file, [])).marks.append(mark)
    for name, scan in found.items():
        check_once(path, f"scan {name!r}", scan.marks)
    return found


def _files(table: Table) -> list[str]:
    """Return the scans of a table, each the name of a folder or a file, without a path."""
    names = table.text("scan")
    for name, line in zip(names, table.lines, strict=True):
        if name in (".", "..") or Path(name).name != name:
            raise BadTable(table.path, f"scan {name!r}, expected a name without a path", line)
    return names


def bare_name(name: str) -> str:
    """Return a name without the suffix of a volume file."""
    suffixes = sorted(FORMATS, key=len, reverse=True)
    return next((name[: -len(s)] for s in suffixes if name.lower().endswith(s)), name)


def marked_scans(data: Path, role: str, *, fully: bool = False) -> list[tuple[Path, list[Mark]]]:
    """Return the whole scans of ``data/ct`` and ``data/lidc`` with that role in `scans.csv`.

    With ``fully``, scans are left out that have nodules which were seen by eye alone: they probably
    have more of them.

    Raises:
        BadTable: a table is damaged, a scan is in both folders, or a patient is in two splits,
            those of the cubes included.
        MissingData: there is no scan of that role.
    """
    index, patients = data / "nodules" / "index.csv", dict[str, str]()
    found, names = list[tuple[Path, list[Mark]]](), set[str]()
    if index.is_file():
        splits_of(read_table(index, ("split", "patient")), patients)
    for part in (data / "ct", data / "lidc"):
        scans = read_scans(part / MARKS, patients, with_roles=True) if os.path.lexists(part) else {}
        if both := names & scans.keys():
            raise BadTable(part / LISTING, f"lists scans of ct too: {sorted(both)}")
        names |= scans.keys()
        found += [(part / one.file, one.marks) for one in scans.values() if one.role == role]
    if not found:
        raise MissingData(data, f"no scan has the role {role!r} in ct/{LISTING} or lidc/{LISTING}")
    return [
        (scan, marks)
        for scan, marks in found
        if not (fully and any(mark.must_be_found and mark.by_eye for mark in marks))
    ]


def read_marked(folder: Path, marks: Sequence[Mark]) -> tuple[Study, FloatArray, FloatArray]:
    """Read a whole scan; return it, what must be found in it, and what is ignored.

    The latter are ``(n, 4)``: x, y, z in the patient (LPS mm) and diameter in mm.

    Raises:
        StudyError: the scan is refused.
        MissingData: what must be found lies outside of the scan.
    """
    study = read_study(folder)
    for mark in marks:
        if mark.must_be_found and not is_inside(study.volume, mark.centre):
            place = ", ".join(f"{mm:g}" for mm in mark.centre)
            reason = f"the {mark.kind} at {place} (line {mark.line} of {MARKS}) is outside of it"
            raise MissingData(folder, f"{reason}; expected LPS mm, for RAS change x and y")
    nodules = spheres(mark for mark in marks if mark.must_be_found)
    return study, nodules, spheres(mark for mark in marks if not mark.must_be_found)


def is_inside(volume: Volume, point_mm: Triple) -> bool:
    """Return whether the volume has a voxel there; beyond its last voxels, within one of them."""
    index = volume.geometry.to_index(point_mm)
    return bool((index >= -1).all() and (index <= np.array(volume.hu.shape)).all())


def marks_of(table: Table, axes: str) -> list[Mark]:
    """Return the marks of a table, line by line; ``axes`` are the columns of their centre.

    Raises:
        BadTable: a kind, a place or a diameter is none.
    """
    kinds = table.one_of("kind", (*FOUND, *IGNORED))
    places = np.stack([table.numbers(axis) for axis in axes], axis=1)
    sources = (re.sub("[^a-z]+", " ", row.get("source", "").lower()) for row in table.rows)
    eye = [source.strip() == BY_EYE for source in sources]
    rows = zip(kinds, places, table.diameters().tolist(), eye, table.lines, strict=True)
    return [Mark(kind, triple(place), *others) for kind, place, *others in rows]


def check_once(path: Path, where: str, marks: Sequence[Mark]) -> None:
    """Check that no place which must be found is listed twice: it would count twice.

    Raises:
        BadTable: one is, or two are nearer than `APART_MM`.
    """
    known = [mark for mark in marks if mark.must_be_found]
    for number, mark in enumerate(known):
        for other in known[:number]:
            if mark.by_eye == other.by_eye and math.dist(mark.centre, other.centre) < APART_MM:
                reason = f"{where} has two nodules or lesions at {mark.centre}"
                raise BadTable(path, reason, mark.line)


def spheres(marks: Iterable[Mark]) -> FloatArray:
    """Return centre and diameter of marks ``(n, 4)``."""
    return stacked([mark.sphere for mark in marks])


def stacked(marks: Sequence[Sequence[float]]) -> FloatArray:
    """Return marks as ``(n, 4)``, also where there are none."""
    return np.array(marks, dtype=np.float64).reshape(-1, 4)
