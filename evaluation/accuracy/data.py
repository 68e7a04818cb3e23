"""Nodules with their surroundings, cut out of scans: a folder of cubes with an index.

What is known of whole scans: the lesions that a CSV lists for each, by the folder's name.

A CSV file as named columns, with a typed error that gives the line of whatever is wrong.

What else is known inside cubes of nodules: places that count neither as hit nor as false.
"""

from __future__ import annotations

import csv
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.errors import BadTable, MissingData
from imaging.volume import FloatArray, Triple, UInt8Array


@dataclass(frozen=True)
class Table:
    """The rows of one CSV file; `lines` are their line numbers in it, for messages."""

    path: Path
    rows: list[dict[str, str]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.rows)

    def text(self, column: str) -> list[str]:
        """The column as text ``(n,)``.

        Raises:
            BadTable: a value is empty.
        """
        values = [row[column].strip() for row in self.rows]
        for value, line in zip(values, self.lines, strict=True):
            if not value:
                raise BadTable(self.path, f"column {column!r} is empty", line)
        return values

    def numbers(self, column: str, *, blank: float | None = None) -> FloatArray:
        """The column as float64 ``(n,)``; an empty value becomes `blank` where one is given.

        Raises:
            BadTable: a value is not a finite number.
        """
        pairs = zip(self.rows, self.lines, strict=True)
        return np.array([self._number(row, column, line, blank) for row, line in pairs])

    def _number(self, row: dict[str, str], column: str, line: int, blank: float | None) -> float:
        text = row[column].strip()
        if not text and blank is not None:
            return blank
        try:
            value = float(text)
        except ValueError:
            raise BadTable(self.path, f"{column} = {text!r} is not a number", line) from None
        if not np.isfinite(value):
            raise BadTable(self.path, f"{column} = {text!r} is not finite", line)
        return value


def read_table(path: Path, required: tuple[str, ...]) -> Table:
    """The CSV at `path`, whose header must name every column of `required`.

    Raises:
        BadTable: no such file, not text, a column is missing, or a row is too short or too long.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, restkey="", restval=None)
            header = reader.fieldnames or []
            rows, lines = _rows(path, reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadTable(path, f"cannot be read as CSV ({error})") from error
    missing = [name for name in required if name not in header]
    if missing:
        raise BadTable(path, f"lacks the columns {missing}; it has {list(header)}", 1)
    return Table(path, rows, lines)


def _rows(path: Path, reader: csv.DictReader[str]) -> tuple[list[dict[str, str]], list[int]]:
    rows, lines = [], []
    for row in reader:
        if "" in row or None in row.values():
            raise BadTable(path, "has another number of values than the header", reader.line_num)
        rows.append(row)
        lines.append(reader.line_num)
    return rows, lines


_COLUMNS = ("split", "row", "patient", "z", "y", "x", "diameter_mm")


@dataclass(frozen=True, eq=False)
class Cube:
    """One nodule: ``voxels`` uint8 of the window, ``(z, y, x)``, 1 mm; centre ``(z, y, x)``."""

    name: str
    patient: str
    voxels: UInt8Array
    centre_zyx: Triple
    diameter_mm: float

    def hit_by(self, index_zyx: Triple) -> bool:
        """Whether a mark there counts as this nodule: nearer than half its diameter."""
        distance = float(np.linalg.norm(np.subtract(index_zyx, self.centre_zyx)))
        return distance < self.diameter_mm / 2


def read_cubes(folder: Path, splits: tuple[str, ...]) -> list[Cube]:
    """The cubes of `splits`: ``SPLIT.npz`` with ``ct`` uint8 (n, z, y, x), and ``index.csv``.

    Raises:
        MissingData: a split has no file, or the file is no such array.
        BadTable: the index cannot be read, or does not have one line for each cube.
    """
    index = read_table(folder / "index.csv", _COLUMNS)
    return [cube for split in splits for cube in _cubes_of(folder, split, index)]


def _cubes_of(folder: Path, split: str, index: Table) -> list[Cube]:
    voxels = _voxels(folder / f"{split}.npz")
    chosen = [i for i, name in enumerate(index.text("split")) if name == split]
    rows = index.numbers("row")[chosen].astype(np.int64)
    if sorted(rows) != list(range(len(voxels))):
        raise BadTable(index.path, f"split {split!r}: {len(rows)} lines for {len(voxels)} cubes")
    z, y, x, diameter = (index.numbers(name)[chosen] for name in ("z", "y", "x", "diameter_mm"))
    patients = [index.text("patient")[i] for i in chosen]
    return [
        Cube(f"{split}/{row}", patients[i], voxels[row], (z[i], y[i], x[i]), float(diameter[i]))
        for i, row in enumerate(rows)
    ]


def read_votes(folder: Path, split: str) -> UInt8Array:
    """How many readers drew each voxel, ``(n, z, y, x)`` as the cubes of that split.

    Raises:
        MissingData: the split has no file, or the file holds no votes.
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


RIM_MM = 3.0
"""A mark this far outside a known lesion is still put down to it, as neither hit nor false."""

_TRUTH_COLUMNS = ("scan", "x", "y", "z", "diameter_mm")


@dataclass(frozen=True)
class Lesion:
    """A known lesion: centre ``(x, y, z)`` LPS mm, diameter of the sphere of equal volume.

    ``longest_mm`` is its longest extent, 0 where it was not measured. Lesions are no spheres:
    the longer of the two says how far from the centre a mark may lie and still mean the lesion.
    """

    centre_mm: Triple
    diameter_mm: float
    longest_mm: float = 0.0

    @property
    def reach_mm(self) -> float:
        """Half the longer of diameter and longest extent."""
        return max(self.diameter_mm, self.longest_mm) / 2

    def hit_by(self, point_mm: Triple) -> bool:
        """Whether a mark there means this lesion: nearer than `reach_mm`."""
        return self._distance(point_mm) < self.reach_mm

    def covers(self, point_mm: Triple, rim_mm: float = RIM_MM) -> bool:
        """Whether a mark there is not counted as false: nearer than `reach_mm` + `rim_mm`."""
        return self._distance(point_mm) < self.reach_mm + rim_mm

    def _distance(self, point_mm: Triple) -> float:
        return float(np.linalg.norm(np.subtract(point_mm, self.centre_mm)))


def read_truth(path: Path) -> dict[str, tuple[Lesion, ...]]:
    """The lesions of each scan that the CSV names; a scan with empty x, y, z has none known.

    Columns ``scan, x, y, z, diameter_mm`` and, where measured, ``longest_mm``; several lines may
    name one scan.

    Raises:
        BadTable: the file cannot be read, lacks a column, or a lesion has no place or no size.
    """
    table = read_table(path, _TRUTH_COLUMNS)
    place = [table.numbers(axis, blank=np.nan) for axis in ("x", "y", "z")]
    diameter = table.numbers("diameter_mm", blank=0.0)
    longest = table.numbers("longest_mm", blank=0.0) if _measured(table) else diameter * 0
    found: dict[str, list[Lesion]] = {name: [] for name in table.text("scan")}
    for i, name in enumerate(table.text("scan")):
        x, y, z = (float(axis[i]) for axis in place)
        if np.isnan([x, y, z]).all():
            continue
        if np.isnan([x, y, z]).any() or max(diameter[i], longest[i]) <= 0:
            raise BadTable(path, "a lesion needs x, y, z and a diameter", table.lines[i])
        found[name].append(Lesion((x, y, z), float(diameter[i]), float(longest[i])))
    return {name: tuple(lesions) for name, lesions in found.items()}


def _measured(table: Table) -> bool:
    return bool(table.rows) and "longest_mm" in table.rows[0]


def scan_folders(given: list[Path], named: set[str]) -> list[Path]:
    """The scans to read: each folder given, or its sub-folders where `named` names those.

    Raises:
        MissingData: a path does not exist, or two scans have the same name.
    """
    folders: list[Path] = []
    for path in given:
        if not path.exists():
            raise MissingData(path, "there is no such scan")
        inside = [p for p in sorted(path.iterdir()) if p.name in named] if path.is_dir() else []
        folders += [path] if scan_name(path) in named or not inside else inside
    names = [scan_name(folder) for folder in folders]
    for folder, name in zip(folders, names, strict=True):
        if names.count(name) > 1:
            raise MissingData(folder, f"two scans are named {name!r}")
    return folders


def scan_name(folder: Path) -> str:
    """The name of a scan: of its folder, wherever one stands while it is named."""
    return folder.resolve().name


LEAST_RADIUS_MM = 5.0
"""Of a mark whose diameter is not known, as LUNA16 has it."""


@dataclass(frozen=True)
class Mark:
    """A place ``(z, y, x)`` in a cube of 1 mm a voxel; a diameter of -1 is not known."""

    index_zyx: Triple
    diameter_mm: float

    def covers(self, index_zyx: Triple, rim_mm: float) -> bool:
        """Whether a candidate there is put down to it."""
        radius_mm = self.diameter_mm / 2 if self.diameter_mm > 0 else LEAST_RADIUS_MM
        return float(np.linalg.norm(np.subtract(index_zyx, self.index_zyx))) < radius_mm + rim_mm


def read_marks(folder: Path, split: str) -> dict[str, list[Mark]]:
    """The marks of ``marks.csv`` by the cube's name; none where there is no such file.

    Raises:
        BadTable: it is there and cannot be read.
    """
    path, found = folder / "marks.csv", defaultdict[str, list[Mark]](list)
    if not path.is_file():
        return found
    table = read_table(path, ("split", "row", "z", "y", "x", "diameter_mm"))
    z, y, x, diameter = (table.numbers(name) for name in ("z", "y", "x", "diameter_mm"))
    rows = table.numbers("row").astype(np.int64)
    for i, name in enumerate(table.text("split")):
        if name == split:
            place = (float(z[i]), float(y[i]), float(x[i]))
            found[f"{split}/{rows[i]}"].append(Mark(place, float(diameter[i])))
    return found
