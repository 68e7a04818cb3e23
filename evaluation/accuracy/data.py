"""The data of an evaluation: cubes with nodules, the known lesions of scans, and their tables.

A CSV is read as named columns; an error names the line. A folder of cubes has ``SPLIT.npz``,
``index.csv`` and, where more is known inside the cubes, ``marks.csv``.
"""

import csv
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evaluation.errors import BadTable, MissingData
from imaging.volume import FloatArray, Triple, UInt8Array

RIM_MM = 3.0
"""A detection up to this far outside a known lesion is neither hit nor false positive."""

UNKNOWN_RADIUS_MM = 5.0
"""Radius of an annotation without a diameter, as in LUNA16."""

_PLACE = ("z", "y", "x", "diameter_mm")


@dataclass(frozen=True)
class Table:
    """The rows of one CSV file; ``lines`` are their line numbers, for messages."""

    path: Path
    rows: list[dict[str, str]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.rows)

    def text(self, column: str) -> list[str]:
        """Return a column as text ``(n,)``.

        Raises:
            BadTable: a value is empty.
        """
        values = [row[column].strip() for row in self.rows]
        for value, line in zip(values, self.lines, strict=True):
            if not value:
                raise BadTable(self.path, f"column {column!r} is empty", line)
        return values

    def numbers(self, column: str, *, blank: float | None = None) -> FloatArray:
        """Return a column as float64 ``(n,)``; an empty value becomes ``blank``, if given.

        Raises:
            BadTable: a value is not a finite number.
        """
        values = np.empty(len(self.rows))
        for number, (row, line) in enumerate(zip(self.rows, self.lines, strict=True)):
            text = row[column].strip()
            try:
                values[number] = blank if blank is not None and not text else float(text)
            except ValueError:
                raise BadTable(self.path, f"{column} = {text!r} is not a number", line) from None
            if text and not np.isfinite(values[number]):
                raise BadTable(self.path, f"{column} = {text!r} is not finite", line)
        return values


def read_table(path: Path, required: tuple[str, ...]) -> Table:
    """Read the CSV at ``path``, whose header must name the columns ``required``.

    Raises:
        BadTable: it is missing, not text, lacks a column, or has a row of another length.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, restkey="", restval=None)
            header, rows, lines = reader.fieldnames or [], list[dict[str, str]](), list[int]()
            for row in reader:
                if "" in row or None in row.values():
                    reason = "the row is shorter or longer than the header"
                    raise BadTable(path, reason, reader.line_num)
                rows.append(row)
                lines.append(reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadTable(path, f"cannot be read as CSV ({error})") from error
    missing = [name for name in required if name not in header]
    if missing:
        raise BadTable(path, f"lacks the columns {missing}, has {list(header)}", 1)
    return Table(path, rows, lines)


@dataclass(frozen=True, eq=False)
class Cube:
    """One nodule: ``voxels`` uint8 of the window, ``(z, y, x)``, 1 mm; centre ``(z, y, x)``."""

    name: str
    patient: str
    voxels: UInt8Array
    centre_zyx: Triple
    diameter_mm: float

    def hit_by(self, index_zyx: Triple) -> bool:
        """Return whether a detection there hits it: nearer than half its diameter."""
        distance = float(np.linalg.norm(np.subtract(index_zyx, self.centre_zyx)))
        return distance < self.diameter_mm / 2


def read_cubes(folder: Path, splits: tuple[str, ...]) -> list[Cube]:
    """Read the cubes of ``splits``: ``ct`` uint8 (n, z, y, x) of ``SPLIT.npz``, and ``index.csv``.

    Raises:
        MissingData: the file of a split is missing or unusable.
        BadTable: the index cannot be read, or does not have one line for each cube.
    """
    index = read_table(folder / "index.csv", ("split", "row", "patient", *_PLACE))
    names, patients = index.text("split"), index.text("patient")
    rows = index.numbers("row").astype(np.int64)
    z, y, x, diameter = (index.numbers(name) for name in _PLACE)
    cubes: list[Cube] = []
    for split in splits:
        voxels = _voxels(folder / f"{split}.npz")
        lines = [i for i, name in enumerate(names) if name == split]
        if sorted(rows[lines]) != list(range(len(voxels))):
            raise BadTable(
                index.path, f"split {split!r}: {len(lines)} lines for {len(voxels)} cubes"
            )
        for i in lines:
            place = (z[i], y[i], x[i])
            name = f"{split}/{rows[i]}"
            cubes.append(Cube(name, patients[i], voxels[rows[i]], place, float(diameter[i])))
    return cubes


def index_lines(index: Table, cubes: Sequence[Cube]) -> npt.NDArray[np.int64]:
    """Return the row of the index for each cube, ``(n,)``."""
    keys = zip(index.text("split"), index.numbers("row"), strict=True)
    line = {f"{split}/{int(row)}": number for number, (split, row) in enumerate(keys)}
    return np.array([line[cube.name] for cube in cubes], dtype=np.int64)


def read_votes(folder: Path, split: str) -> UInt8Array:
    """Read how many readers drew each voxel, ``(n, z, y, x)`` as the cubes of that split.

    Raises:
        MissingData: the file of the split is missing or has no votes.
    """
    return _voxels(folder / f"{split}.npz", "votes")


def _voxels(path: Path, name: str = "ct") -> UInt8Array:
    try:
        # opened here, because np.load leaves a damaged file open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            voxels = np.asarray(arrays[name])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise MissingData(path, f"cannot be read as cubes ({error})") from error
    if voxels.dtype != np.uint8 or voxels.ndim != 4:
        raise MissingData(path, f"{name} is {voxels.dtype} {voxels.shape}, not uint8 (n, z, y, x)")
    return voxels


@dataclass(frozen=True)
class Lesion:
    """A known lesion: centre ``(x, y, z)`` LPS mm, diameter of the sphere of equal volume.

    ``longest_mm`` is its longest extent, 0 if it was not measured. Lesions are not spheres: half
    the longer of the two is the distance within which a detection hits the lesion.
    """

    centre_mm: Triple
    diameter_mm: float
    longest_mm: float = 0.0

    @property
    def reach_mm(self) -> float:
        """Return half the longer of diameter and longest extent."""
        return max(self.diameter_mm, self.longest_mm) / 2

    def hit_by(self, point_mm: Triple) -> bool:
        """Return whether a detection there hits it: nearer than `reach_mm`."""
        return self._distance(point_mm) < self.reach_mm

    def covers(self, point_mm: Triple, rim_mm: float = RIM_MM) -> bool:
        """Return whether a detection there is no false positive: within the rim of `reach_mm`."""
        return self._distance(point_mm) < self.reach_mm + rim_mm

    def _distance(self, point_mm: Triple) -> float:
        return float(np.linalg.norm(np.subtract(point_mm, self.centre_mm)))


def read_truth(path: Path) -> dict[str, tuple[Lesion, ...]]:
    """Read the known lesions of each scan that the CSV names; empty x, y, z: none is known.

    Columns ``scan, x, y, z, diameter_mm`` and, where measured, ``longest_mm``; several lines may
    name one scan.

    Raises:
        BadTable: the file cannot be read, lacks a column, or a lesion has no location or no size.
    """
    table = read_table(path, ("scan", "x", "y", "z", "diameter_mm"))
    place = [table.numbers(axis, blank=np.nan) for axis in ("x", "y", "z")]
    diameter = table.numbers("diameter_mm", blank=0.0)
    measured = bool(table.rows) and "longest_mm" in table.rows[0]
    longest = table.numbers("longest_mm", blank=0.0) if measured else diameter * 0
    found: dict[str, list[Lesion]] = {name: [] for name in table.text("scan")}
    for i, name in enumerate(table.text("scan")):
        x, y, z = (float(axis[i]) for axis in place)
        if np.isnan([x, y, z]).all():
            continue
        if np.isnan([x, y, z]).any() or max(diameter[i], longest[i]) <= 0:
            raise BadTable(path, "a lesion needs x, y, z and a diameter", table.lines[i])
        found[name].append(Lesion((x, y, z), float(diameter[i]), float(longest[i])))
    return {name: tuple(lesions) for name, lesions in found.items()}


def scan_folders(given: list[Path], named: set[str]) -> list[Path]:
    """Return the scans to read: each folder given, or those of its sub-folders that are ``named``.

    Raises:
        MissingData: a path does not exist, or two scans have the same name.
    """
    folders: list[Path] = []
    for path in given:
        if not path.exists():
            raise MissingData(path, "no such scan")
        inside = [p for p in sorted(path.iterdir()) if p.name in named] if path.is_dir() else []
        folders += [path] if scan_name(path) in named or not inside else inside
    names = [scan_name(folder) for folder in folders]
    for folder, name in zip(folders, names, strict=True):
        if names.count(name) > 1:
            raise MissingData(folder, f"two scans are named {name!r}")
    return folders


def scans_of_splits(folders: Sequence[Path], truth: Path, splits: Sequence[str]) -> list[Path]:
    """Return the scans whose ``role`` in the table ``truth`` is one of ``splits``.

    A table without that column excludes no scan.

    Raises:
        BadTable: the table cannot be read.
        MissingData: no scan is left.
    """
    table = read_table(truth, ("scan",))
    role = {row["scan"].strip(): row.get("role", "").strip() for row in table.rows}
    kept = [folder for folder in folders if role.get(scan_name(folder), "") in ("", *splits)]
    if not kept:
        raise MissingData(truth, f"no scan has one of the roles {tuple(splits)}")
    return kept


def scan_name(folder: Path) -> str:
    """Return the name of a scan: that of its folder, whatever the working directory."""
    return folder.resolve().name


@dataclass(frozen=True)
class Annotation:
    """A location ``(z, y, x)`` in a cube of 1 mm a voxel; a diameter of -1 is not known."""

    index_zyx: Triple
    diameter_mm: float

    def covers(self, index_zyx: Triple, rim_mm: float) -> bool:
        """Return whether a candidate there belongs to it."""
        radius_mm = self.diameter_mm / 2 if self.diameter_mm > 0 else UNKNOWN_RADIUS_MM
        return float(np.linalg.norm(np.subtract(index_zyx, self.index_zyx))) < radius_mm + rim_mm


def read_annotations(folder: Path, split: str) -> dict[str, list[Annotation]]:
    """Read ``marks.csv`` by the cube's name; empty without such a file."""
    path, found = folder / "marks.csv", defaultdict[str, list[Annotation]](list)
    if not path.is_file():
        return found
    table = read_table(path, ("split", "row", *_PLACE))
    values = zip(*(table.numbers(name).tolist() for name in ("row", *_PLACE)), strict=True)
    for name, (row, z, y, x, diameter) in zip(table.text("split"), values, strict=True):
        if name == split:
            found[f"{split}/{int(row)}"].append(Annotation((z, y, x), diameter))
    return found
