"""What is known of whole scans: the lesions that a CSV lists for each, by the folder's name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.errors import BadTable, MissingData
from evaluation.table import Table, read_table
from imaging.volume import Triple

RIM_MM = 3.0
"""A mark this far outside a known lesion is still put down to it, as neither hit nor false."""

_COLUMNS = ("scan", "x", "y", "z", "diameter_mm")


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
    table = read_table(path, _COLUMNS)
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
