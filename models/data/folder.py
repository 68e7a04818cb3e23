"""A data folder: the split of its patients, its whole scans, and what is marked in them.

``DIR/nodules`` has the cubes (`models.data.cubes`). ``DIR/ct`` and ``DIR/lidc`` have a folder for
each whole scan, `scans.csv` with its role, and `marks.csv`; one of the two may be absent.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imaging.volume import FloatArray, Triple, triple
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


def splits_of(index: Table) -> list[str]:
    """Return the split of each line of `index.csv`: that of its file, or ``calibration``.

    Raises:
        BadTable: a split is none, or a patient is in two of them.
    """
    patients, files = index.text("patient"), index.one_of("split", ROLES)
    has_subset = "subset" in index.header
    subsets = index.numbers("subset", blank=-1) if has_subset else np.full(len(files), -1)
    kept = np.isin(subsets, SUBSETS) & ~np.isin(patients, TRAINED_SCANS)
    found = [
        CALIBRATION if file == TRAIN and mine else file
        for file, mine in zip(files, kept, strict=True)
    ]
    one_split(index, patients, found, {})
    return found


def one_split(
    table: Table, patients: Sequence[str], splits: Sequence[str], known: dict[str, str]
) -> None:
    """Enter the patients of a table with their splits in ``known``.

    Raises:
        BadTable: a patient is in two of them: what is measured would be what was trained on.
    """
    for patient, split, line in zip(patients, splits, table.lines, strict=True):
        if patient and split and known.setdefault(patient, split) != split:
            reason = f"patient {patient!r} is in {split!r}, elsewhere in {known[patient]!r}"
            raise BadTable(table.path, reason, line)


@dataclass(frozen=True)
class MarkedScan:
    """A whole scan of a table of marks or of the list beside it; ``file`` is its name there.

    ``role`` and ``patient`` are empty if no list states them.
    """

    file: str
    marks: list[Mark]
    role: str = ""
    patient: str = ""


def read_scans(path: Path, patients: dict[str, str] | None = None) -> dict[str, MarkedScan]:
    """Return the scans that a table of marks names, and those of `scans.csv` beside it, if any.

    A list with roles must name all scans. The key is the name without the suffix of a volume file.
    ``patients`` are those of other tables with their splits; those of the list are added.

    Raises:
        BadTable: a table is damaged, names a scan that the list with roles does not, or marks a
            place twice; or a patient is in two splits.
    """
    listing, found, complete = path.with_name(LISTING), dict[str, MarkedScan](), False
    if listing.is_file():
        table = read_table(listing, ("scan",))
        files, blank = table.text("scan"), [""] * len(table.rows)
        complete = "role" in table.header
        roles = table.one_of("role", (*ROLES, "")) if complete else blank
        owners = [row.get("patient", "").strip() for row in table.rows]
        one_split(table, owners, roles, {} if patients is None else patients)
        for file, role, owner, line in zip(files, roles, owners, table.lines, strict=True):
            if bare_name(file) in found:
                raise BadTable(listing, f"lists scan {file!r} twice", line)
            found[bare_name(file)] = MarkedScan(file, [], role, owner)
    table = read_table(path, ("scan", "kind", "x", "y", "z", "diameter_mm"))
    for file, mark in zip(table.text("scan"), marks_of(table, "xyz"), strict=True):
        if complete and bare_name(file) not in found:
            raise BadTable(path, f"scan {file!r} is not in {LISTING} beside it", mark.line)
        found.setdefault(bare_name(file), MarkedScan(file, [])).marks.append(mark)
    for name, scan in found.items():
        check_once(path, f"scan {name!r}", scan.marks)
    return found


def bare_name(name: str) -> str:
    """Return a name without the suffix of a volume file."""
    suffixes = sorted(FORMATS, key=len, reverse=True)
    return next((name[: -len(s)] for s in suffixes if name.lower().endswith(s)), name)


def marked_scans(
    data: Path, role: str, *, fully: bool = False
) -> list[tuple[Path, FloatArray, FloatArray]]:
    """Return the whole scans of ``data/ct`` and ``data/lidc`` with that role in `scans.csv`.

    Each is a folder, what must be found in it, and what is ignored: both ``(n, 4)``, x, y, z in the
    patient (LPS mm) and diameter in mm. With ``fully``, scans are left out that have nodules which
    were seen by eye alone: they probably have more of them.

    Raises:
        BadTable: a table is damaged, or a patient is in two splits, those of the cubes included.
        MissingData: there is no scan of that role.
    """
    index, patients = data / "nodules" / "index.csv", dict[str, str]()
    found = list[tuple[Path, list[Mark]]]()
    if index.is_file():
        cubes = read_table(index, ("split", "patient"))
        one_split(cubes, cubes.text("patient"), splits_of(cubes), patients)
    for part in (data / "ct", data / "lidc"):
        scans = read_scans(part / MARKS, patients).values() if part.is_dir() else ()
        found += [(part / one.file, one.marks) for one in scans if one.role == role]
    if not found:
        raise MissingData(data, f"no scan has the role {role!r} in ct/{LISTING} or lidc/{LISTING}")
    return [
        (
            scan,
            spheres(mark for mark in marks if mark.must_be_found),
            spheres(mark for mark in marks if not mark.must_be_found),
        )
        for scan, marks in found
        if not (fully and any(mark.must_be_found and mark.by_eye for mark in marks))
    ]


def marks_of(table: Table, axes: str) -> list[Mark]:
    """Return the marks of a table, line by line; ``axes`` are the columns of their centre.

    Raises:
        BadTable: a kind, a place or a diameter is none.
    """
    kinds = table.one_of("kind", (*FOUND, *IGNORED))
    places = np.stack([table.numbers(axis) for axis in axes], axis=1)
    eye = [row.get("source", "").strip().lower() == BY_EYE for row in table.rows]
    rows = zip(kinds, places, table.diameters().tolist(), eye, table.lines, strict=True)
    return [Mark(kind, triple(place), *others) for kind, place, *others in rows]


def check_once(path: Path, where: str, marks: Iterable[Mark]) -> None:
    """Check that no place which must be found is listed twice: it would count twice.

    Raises:
        BadTable: one is.
    """
    places = set[Triple]()
    for mark in marks:
        if mark.must_be_found and mark.centre in places:
            raise BadTable(path, f"{where} has two nodules or lesions at {mark.centre}", mark.line)
        if mark.must_be_found:
            places.add(mark.centre)


def spheres(marks: Iterable[Mark]) -> FloatArray:
    """Return centre and diameter of marks ``(n, 4)``."""
    return stacked([mark.sphere for mark in marks])


def stacked(marks: Sequence[Sequence[float]]) -> FloatArray:
    """Return marks as ``(n, 4)``, also where there are none."""
    return np.array(marks, dtype=np.float64).reshape(-1, 4)
