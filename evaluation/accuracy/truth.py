"""The known lesions of whole scans, and which scans are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.accuracy.data import read_table
from evaluation.errors import BadTable, MissingData
from imaging.volume import Triple

RIM_MM = 3.0
"""A detection up to this far outside a known lesion is neither hit nor false positive."""


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
