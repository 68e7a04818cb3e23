"""Sensitivity by what is known of each nodule: diameter, texture, subtlety, slice spacing.

Every subgroup is compared with the false positives of all scans, so that one threshold serves all.
A nodule without a value for a trait belongs to the subgroup `UNKNOWN`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.accuracy.bootstrap import RESAMPLES, Interval, figures
from evaluation.accuracy.data import Cube, read_table
from evaluation.accuracy.froc import RATES, Scored
from evaluation.common.tables import rate_name
from imaging.volume import FloatArray
from models.markdown import Rows, percents
from models.runtime.second_reader import TEXTURES

MATCH_MM = 5.0
"""Readers whose centre lies further from the nodule's may have rated a neighbour."""

UNKNOWN = "unknown"

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Traits:
    """What is known of nodules, each ``(n,)``, NaN where it is not.

    ``texture`` and ``subtlety`` are the readers' means of scales from 1 to 5 (ground glass to
    solid, extremely subtle to obvious); ``slice_spacing_mm`` is that of the scan.
    """

    diameter_mm: FloatArray
    texture: FloatArray
    subtlety: FloatArray
    slice_spacing_mm: FloatArray

    def of(self, chosen: Sequence[int]) -> Traits:
        """Those of the nodules ``chosen``, in that order."""
        columns = (getattr(self, name)[list(chosen)] for name in self.__dataclass_fields__)
        return Traits(*columns)


@dataclass(frozen=True)
class Grouping:
    """Where one trait is cut: ``names[i]`` is for values from ``edges[i - 1]`` to ``edges[i]``."""

    trait: str
    edges: tuple[float, ...]
    names: tuple[str, ...]

    def masks(self, traits: Traits) -> dict[str, BoolArray]:
        """The nodules ``(n,)`` of each subgroup; empty subgroups are left out."""
        value = getattr(traits, self.trait)
        known = np.isfinite(value)
        place = np.digitize(np.where(known, value, 0.0), self.edges)
        found = {name: known & (place == i) for i, name in enumerate(self.names)}
        found[UNKNOWN] = ~known
        return {name: mask for name, mask in found.items() if mask.any()}


GROUPINGS: dict[str, Grouping] = {
    "diameter": Grouping(
        "diameter_mm",
        (4, 6, 8, 15, 30),
        ("below 4 mm", "4 to 6 mm", "6 to 8 mm", "8 to 15 mm", "15 to 30 mm", "from 30 mm"),
    ),
    "texture": Grouping("texture", (2.5, 4), TEXTURES),
    "subtlety": Grouping("subtlety", (3, 4), ("1 to 3, subtle", "3 to 4", "4 to 5, obvious")),
    "slice spacing": Grouping(
        "slice_spacing_mm", (1, 2), ("below 1 mm", "1 to 2 mm", "2 mm and more")
    ),
}


def read_traits(folder: Path, cubes: Sequence[Cube]) -> Traits:
    """What ``index.csv`` of `folder` says of `cubes`; columns and values may be missing.

    Raises:
        BadTable: the index cannot be read, or does not have a line for each cube.
    """
    names = ("match_mm", "texture_mean", "subtlety_mean", "slice_spacing")
    match, texture, subtlety, spacing = (optional_column(folder, cubes, name) for name in names)
    unsure = match > MATCH_MM  # where nobody measured it, ratings are taken for the nodule's
    return Traits(
        diameter_mm=np.array([cube.diameter_mm for cube in cubes], float),
        texture=np.where(unsure, np.nan, texture),
        subtlety=np.where(unsure, np.nan, subtlety),
        slice_spacing_mm=spacing,
    )


def optional_column(folder: Path, cubes: Sequence[Cube], column: str) -> FloatArray:
    """The column of ``index.csv`` for `cubes` ``(n,)``; NaN where it, or a value, is missing.

    Raises:
        BadTable: the index cannot be read.
    """
    index = read_table(folder / "index.csv", ("split", "row"))
    keys = zip(index.text("split"), index.numbers("row"), strict=True)
    line = {f"{split}/{int(row)}": number for number, (split, row) in enumerate(keys)}
    values = [_number(row.get(column, "")) for row in index.rows]
    return np.array([values[line[cube.name]] for cube in cubes], float)


def by_subgroup(
    scored: Scored,
    traits: Traits,
    *,
    groupings: Mapping[str, Grouping] = GROUPINGS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """For machines: sensitivity at `RATES` of each subgroup of each grouping, with its interval."""
    return {
        name: {
            subgroup: subgroup_json(scored, mask, resamples=resamples, seed=seed)
            for subgroup, mask in grouping.masks(traits).items()
        }
        for name, grouping in groupings.items()
    }


def subgroup_json(scored: Scored, mask: BoolArray, *, resamples: int, seed: int) -> dict[str, Any]:
    """Sensitivity at `RATES` of the nodules ``mask`` ``(n,)``, against all false positives."""
    part = only(scored, mask)
    found = figures(part, resamples=resamples, seed=seed)
    return {
        "nodules": part.nodule_score.size,
        "patients": int(np.unique(part.nodule_group).size),
        "proposed": int(np.isfinite(part.nodule_score).sum()),
        "sensitivity": at_rates(found.sensitivity),
        "cpm": found.cpm.as_dict(),
    }


def at_rates(sensitivity: Sequence[Interval]) -> list[dict[str, Any]]:
    """For machines: one point for each of `RATES`."""
    return [
        {"false_positives_per_scan": rate, **value.as_dict()}
        for rate, value in zip(RATES, sensitivity, strict=True)
    ]


def only(scored: Scored, mask: BoolArray) -> Scored:
    """The same false positives with the nodules ``mask`` ``(n,)`` alone; their patients renumbered.

    Raises:
        ValueError: no nodule is left.
    """
    if scored.paired:
        return replace(
            scored, nodule_score=scored.nodule_score[mask], nodule_group=scored.nodule_group[mask]
        )
    _, group = np.unique(scored.nodule_group[mask], return_inverse=True)
    return replace(
        scored, nodule_score=scored.nodule_score[mask], nodule_group=group.astype(np.int64)
    )


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


SHOWN: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Of `RATES`, those that the tables show; the JSON has them all."""


def subgroups_table(subgroups: Mapping[str, Any], title: str) -> Rows:
    """One line a subgroup: nodules, and sensitivity in % at some false positives a scan."""
    places = [RATES.index(rate) for rate in SHOWN]
    cells = [
        [by, subgroup, f"{one['nodules']} ({one['patients']})",
         *(share(one["sensitivity"][place]) for place in places)]
        for by, found in subgroups.items()
        for subgroup, one in found.items()
    ]  # fmt: skip
    heads = ["by", "subgroup", "nodules", *(f"at {rate_name(rate)}" for rate in SHOWN)]
    return Rows(heads, cells, title)


def share(point: Mapping[str, float | None]) -> str:
    """A share with its interval, in %; a dash where any of it is unknown."""
    unknown = any(point[key] is None for key in ("value", "low", "high"))
    return "-" if unknown else percents(point)
