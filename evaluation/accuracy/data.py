"""The data of an evaluation: tables, and cubes with nodules.

A CSV is read as named columns; an error names the line. A folder of cubes has ``SPLIT.npz`` and
``index.csv``.
"""

import csv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

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
    """Read the cubes of ``splits``: ``ct`` uint8 (n, z, y, x) of a file, and ``index.csv``.

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
        voxels = _voxels(folder / f"{stored}.npz")
        lines = [i for i, name in enumerate(names) if name == stored]
        if sorted(rows[lines]) != list(range(len(voxels))):
            raise BadTable(
                index.path, f"split {stored!r}: {len(lines)} lines for {len(voxels)} cubes"
            )
        for i in lines:
            if split_of(index.rows[i]) == split:
                place = (z[i], y[i], x[i])
                name = f"{stored}/{rows[i]}"
                cubes.append(Cube(name, patients[i], voxels[rows[i]], place, float(diameter[i])))
    return cubes


def index_lines(index: Table, cubes: Sequence[Cube]) -> npt.NDArray[np.int64]:
    """Return the row of the index for each cube, ``(n,)``."""
    keys = zip(index.text("split"), index.numbers("row"), strict=True)
    line = {f"{split}/{int(row)}": number for number, (split, row) in enumerate(keys)}
    return np.array([line[cube.name] for cube in cubes], dtype=np.int64)


def read_votes(folder: Path, cubes: Sequence[Cube]) -> list[UInt8Array]:
    """Read how many readers drew each voxel of the cubes, ``(z, y, x)`` each.

    Raises:
        MissingData: the file of a cube's split is missing or has no votes.
    """
    places = [cube.name.split("/") for cube in cubes]
    votes = {stored: _voxels(folder / f"{stored}.npz", "votes") for stored, _ in places}
    return [votes[stored][int(row)] for stored, row in places]


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
