"""Nodules with their surroundings, cut out of scans: a folder of cubes with an index."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.errors import BadTable, MissingData
from evaluation.table import Table, read_table
from imaging.volume import Triple, UInt8Array

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
