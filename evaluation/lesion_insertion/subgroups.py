"""Sensitivity in subgroups of nodules: by diameter, texture, subtlety and slice spacing.

Every subgroup is compared with the false positives of all scans, so that one threshold serves all.
A nodule without a value for a trait belongs to the subgroup `UNKNOWN`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.accuracy.bootstrap import figures
from evaluation.accuracy.data import MATCH_MM, Cube, index_lines, read_table
from evaluation.accuracy.froc import Scored
from imaging.volume import FloatArray
from models.runtime.second_reader import TEXTURES

UNKNOWN = "unknown"

BoolArray = npt.NDArray[np.bool_]


Traits = dict[str, FloatArray]
"""Traits of nodules by the names of `GROUPINGS`, each ``(n,)``; NaN where one is not known.

Texture and subtlety are the readers' means of scales from 1 to 5 (ground glass to solid, extremely
subtle to obvious); the slice spacing is that of the scan, in mm.
"""

GROUPINGS: dict[str, tuple[tuple[float, ...], tuple[str, ...]]] = {
    "diameter": (
        (4, 6, 8, 15, 30),
        ("below 4 mm", "4 to 6 mm", "6 to 8 mm", "8 to 15 mm", "15 to 30 mm", "from 30 mm"),
    ),
    "texture": ((2.5, 4), TEXTURES),
    "subtlety": ((3, 4), ("1 to 3, subtle", "3 to 4", "4 to 5, obvious")),
    "slice spacing": ((1, 2), ("below 1 mm", "1 to 2 mm", "2 mm and more")),
}
"""Of each trait the values at which its subgroups begin, and their names."""


def masks(trait: str, value: FloatArray) -> dict[str, BoolArray]:
    """Return the nodules ``(n,)`` of each subgroup of a trait that is not empty."""
    edges, names = GROUPINGS[trait]
    known = np.isfinite(value)
    place = np.digitize(np.where(known, value, 0.0), edges)
    found = {name: known & (place == i) for i, name in enumerate(names)} | {UNKNOWN: ~known}
    return {name: mask for name, mask in found.items() if mask.any()}


def read_traits(folder: Path, cubes: Sequence[Cube]) -> Traits:
    """Read the traits of ``cubes`` from ``index.csv``; columns and values may be missing."""
    names = ("match_mm", "texture_mean", "subtlety_mean", "slice_spacing")
    match, texture, subtlety, spacing = (optional_column(folder, cubes, name) for name in names)
    unsure = match > MATCH_MM  # an unknown distance does not exclude ratings
    return {
        "diameter": np.array([cube.diameter_mm for cube in cubes], float),
        "texture": np.where(unsure, np.nan, texture),
        "subtlety": np.where(unsure, np.nan, subtlety),
        "slice spacing": spacing,
    }


def optional_column(folder: Path, cubes: Sequence[Cube], column: str) -> FloatArray:
    """Read a column of ``index.csv`` for ``cubes`` ``(n,)``; NaN if it, or a value, is missing."""
    index = read_table(folder / "index.csv", ("split", "row"))
    values = np.array([_number(row.get(column, "")) for row in index.rows], float)
    return values[index_lines(index, cubes)]


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def by_subgroup(scored: Scored, traits: Traits, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the figures of each subgroup of each grouping, with intervals."""
    for name, value in traits.items():
        for subgroup, mask in masks(name, value).items():
            yield {"by": name, "subgroup": subgroup, **part(only(scored, mask), seed)}


def part(of: Scored, seed: int) -> dict[str, Any]:
    """Return the figures of some nodules against all false positives."""
    return {
        "nodules": of.nodule_score.size,
        "patients": int(np.unique(of.nodule_group).size),
        **figures(of, seed),
    }


def only(scored: Scored, mask: BoolArray) -> Scored:
    """Return the nodules ``mask`` ``(n,)`` with all false positives; patients are renumbered.

    Raises:
        ValueError: no nodule is left.
    """
    group = scored.nodule_group[mask]
    if not scored.paired:
        group = np.unique(group, return_inverse=True)[1].astype(np.int64)
    return replace(scored, nodule_score=scored.nodule_score[mask], nodule_group=group)
