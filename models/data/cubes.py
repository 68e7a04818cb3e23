"""Cubes, each with a nodule in its middle: ``SPLIT.npz``, ``index.csv`` and ``marks.csv``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from imaging.volume import Triple, UInt8Array
from models.data.folder import (
    CALIBRATION,
    FOUND,
    MARKS,
    ROLES,
    TRAIN,
    Mark,
    check_once,
    marks_of,
    splits_of,
)
from models.data.tables import SIZES_MM, Table, read_table
from models.runtime.errors import BadTable, MissingData

MATCH_MM = 5.0
"""Ratings of readers whose centre is further than this from LUNA16's may be of a neighbour."""

_RATING = (1.0, 5.0)

STATED = {
    "match_mm": (0.0, SIZES_MM[1]), "malignancy_mean": _RATING, "texture_mean": _RATING,
    "subtlety_mean": _RATING, "slice_spacing": SIZES_MM,
}  # fmt: skip
"""Columns of the index that it may lack, and from what to what their numbers are."""

SIDE_MM = 50
"""Side of a cube in voxels of 1 mm."""

MAX_READERS = 16
"""A voxel has no more votes."""

_PLACE = ("z", "y", "x", "diameter_mm")


@dataclass(frozen=True, eq=False)
class Cube:
    """One nodule: ``voxels`` uint8 of the window, ``(z, y, x)``, 1 mm; centre ``(z, y, x)``.

    ``votes`` is how many readers drew each voxel, ``known`` what the index states in the columns
    `STATED`.
    """

    name: str
    patient: str
    voxels: UInt8Array
    centre_zyx: Triple
    diameter_mm: float
    votes: UInt8Array
    known: Mapping[str, float] = field(default_factory=dict)

    def hit_by(self, index_zyx: Triple) -> bool:
        """Return whether a detection there hits it: nearer than half its diameter."""
        distance = float(np.linalg.norm(np.subtract(index_zyx, self.centre_zyx)))
        return distance < self.diameter_mm / 2

    def stated(self, column: str) -> float:
        """Return what the index states; NaN if it lacks the column, or the value is empty."""
        return self.known.get(column, np.nan)

    @property
    def sure(self) -> bool:
        """Return whether ratings and votes are surely of this nodule, not of a neighbour."""
        return not self.stated("match_mm") > MATCH_MM

    def rated(self, name: str) -> float:
        """Return the mean rating of that name, 1 to 5; NaN if it may be a neighbour's."""
        return self.stated(f"{name}_mean") if self.sure else np.nan


def stored_in(split: str) -> str:
    """Return the name of the file that holds the cubes of a split, without its ending."""
    return TRAIN if split == CALIBRATION else split


def read_cubes(folder: Path, splits: tuple[str, ...], needed: tuple[str, ...] = ()) -> list[Cube]:
    """Read the cubes of ``splits``, and of the columns `STATED` those that the index has.

    The split ``calibration`` is a part of ``train.npz`` (`models.data.folder`), the others are
    ``SPLIT.npz``; each in the order of its rows. A cube's name has the file and the row in it. The
    columns ``needed`` must have a number in each line.

    Raises:
        MissingData: the file of a split is missing or unusable, or a split has no cube.
        BadTable: the index is damaged, does not have one line for each cube, or has a patient in
            two splits.
    """
    index = read_table(folder / "index.csv", ("split", "row", "patient", *_PLACE, *needed))
    patients, mine, rows = index.text("patient"), splits_of(index), index.whole("row")
    centre = [index.within(axis, 0, SIDE_MM - 1) for axis in _PLACE[:3]]
    diameter = index.within(_PLACE[3], *SIZES_MM)
    stated = {
        name: index.within(name, *limits, blank=None if name in needed else np.nan)
        for name, limits in STATED.items()
        if name in index.header
    }
    cubes = list[Cube]()
    for split in dict.fromkeys(splits):
        stored = stored_in(split)
        ct, votes = _arrays(folder / f"{stored}.npz")
        lines = [i for i, name in enumerate(mine) if stored_in(name) == stored]
        if sorted(rows[lines]) != list(range(len(ct))):
            raise BadTable(
                index.path,
                f"split {stored!r}: {len(lines)} lines for {len(ct)} cubes, expected one line for"
                f" each, with row 0 to {len(ct) - 1}",
            )
        kept = sorted((i for i in lines if mine[i] == split), key=lambda i: rows[i])
        if not kept:
            raise MissingData(index.path, f"no cube is in the split {split!r}")
        for i in kept:
            row, (z, y, x) = int(rows[i]), (float(one[i]) for one in centre)
            known = {name: float(values[i]) for name, values in stated.items()}
            cubes.append(
                Cube(f"{stored}/{row}", patients[i], ct[row], (z, y, x), float(diameter[i]),
                     votes[row], known)
            )  # fmt: skip
    return cubes


def neighbours_of(folder: Path, cubes: list[Cube]) -> list[list[Mark]]:
    """Return what `marks.csv` marks in each cube beside its own nodule: z, y, x in voxels.

    Raises:
        BadTable: the table is damaged, or names a cube that the index does not.
    """
    index = read_table(folder / "index.csv", ("split", "row"))
    found = {name: list[Mark]() for name in _names(index)}
    table = read_table(folder / MARKS, ("split", "row", "kind", *_PLACE))
    for name, mark in zip(_names(table), marks_of(table, "zyx"), strict=True):
        if name not in found:
            raise BadTable(table.path, f"index.csv has no cube {name}", mark.line)
        found[name].append(mark)
    for cube in cubes:
        own = Mark(FOUND[0], cube.centre_zyx, cube.diameter_mm, by_eye=False, line=0)
        check_once(table.path, f"cube {cube.name}, with its own,", [own, *found[cube.name]])
    return [found[cube.name] for cube in cubes]


def _names(table: Table) -> list[str]:
    pairs = zip(table.one_of("split", ROLES), table.whole("row"), strict=True)
    return [f"{file}/{row}" for file, row in pairs]


def _arrays(path: Path) -> list[UInt8Array]:
    try:
        # opened here, because np.load leaves a damaged file open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = [np.asarray(arrays[name]) for name in ("ct", "votes")]
    except Exception as error:  # a flipped byte raises one of a dozen: numpy's, zip's, tokenize's
        told = getattr(error, "strerror", None) or type(error).__name__
        raise MissingData(path, f"cannot be read as cubes: {told}") from error
    for name, array in zip(("ct", "votes"), found, strict=True):
        if array.dtype != np.uint8 or array.shape != (len(found[0]), *3 * (SIDE_MM,)):
            has = f"{name}: {array.dtype} {array.shape}"
            raise MissingData(path, f"{has}, expected uint8 (n, {SIDE_MM}, {SIDE_MM}, {SIDE_MM})")
    if found[1].size and found[1].max() > MAX_READERS:
        raise MissingData(path, f"votes: {found[1].max()} at a voxel, expected readers, not levels")
    return found
