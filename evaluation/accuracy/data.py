"""The data of an evaluation: tables, and cubes with nodules.

A CSV is read as named columns; an error names the line. A folder of cubes has ``SPLIT.npz`` and
``index.csv``.
"""

import csv
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from evaluation.errors import BadTable, MissingData
from imaging.volume import FloatArray, Triple, UInt8Array
from models.data_folder import split_of, stored_in

UNKNOWN_RADIUS_MM = 5.0
"""Radius of an annotation without a diameter, as in LUNA16."""

MATCH_MM = 5.0
"""Ratings whose centre lies further from the nodule's may belong to a neighbour."""

_PLACE = ("z", "y", "x", "diameter_mm")


@dataclass(frozen=True)
class Table:
    """The rows of one CSV file; ``lines`` are their line numbers, for messages."""

    path: Path
    rows: list[dict[str, str]]
    lines: list[int]

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
        with path.open(encoding="utf-8-sig", newline="") as file:
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
    """One nodule: ``voxels`` uint8 of the window, ``(z, y, x)``, 1 mm; centre ``(z, y, x)``.

    ``votes`` is how many readers drew each voxel, ``row`` the nodule's line of the index.
    """

    name: str
    patient: str
    voxels: UInt8Array
    centre_zyx: Triple
    diameter_mm: float
    votes: UInt8Array
    row: Mapping[str, str] = field(default_factory=dict)

    def hit_by(self, index_zyx: Triple) -> bool:
        """Return whether a detection there hits it: nearer than half its diameter."""
        distance = float(np.linalg.norm(np.subtract(index_zyx, self.centre_zyx)))
        return distance < self.diameter_mm / 2

    def stated(self, column: str) -> float:
        """Return what the index states; NaN if it lacks the column, or states no number."""
        try:
            value = float(self.row.get(column, ""))
        except ValueError:
            return math.nan
        return value if math.isfinite(value) else math.nan


def read_cubes(folder: Path, splits: tuple[str, ...]) -> list[Cube]:
    """Read the cubes of ``splits``: ``ct`` and ``votes`` of a file, and ``index.csv``.

    The split ``calibration`` is a part of ``train.npz`` (`models.data_folder`), the others
    are ``SPLIT.npz``. A cube's name has the file and the row in it.

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
        stored = stored_in(split)
        ct, votes = _arrays(folder / f"{stored}.npz")
        lines = [i for i, name in enumerate(names) if name == stored]
        if sorted(rows[lines]) != list(range(len(ct))):
            raise BadTable(index.path, f"split {stored!r}: {len(lines)} lines for {len(ct)} cubes")
        cubes += [
            Cube(
                f"{stored}/{row}", patients[i], ct[row], (z[i], y[i], x[i]), float(diameter[i]),
                votes[row], index.rows[i],
            )
            for i, row in zip(lines, rows[lines], strict=True)
            if split_of(index.rows[i]) == split
        ]  # fmt: skip
    return cubes


def _arrays(path: Path) -> list[UInt8Array]:
    try:
        # opened here, because np.load leaves a damaged file open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = [np.asarray(arrays[name]) for name in ("ct", "votes")]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise MissingData(path, f"cannot be read as cubes ({error})") from error
    for one in found:
        if one.dtype != np.uint8 or one.ndim != 4 or one.shape != found[0].shape:
            raise MissingData(path, f"has {one.dtype} {one.shape}, not uint8 (n, z, y, x)")
    return found
