"""The donors of an evaluation, nodules of cubes and lesions of whole scans; and their subgroups.

Subgroups are by diameter, texture, subtlety and slice spacing. Every subgroup is compared with the
false positives of all scans, so that one threshold serves all. A nodule without a value for a trait
belongs to the subgroup `UNKNOWN`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.accuracy.bootstrap import figures
from evaluation.accuracy.data import MATCH_MM, Cube, read_cubes
from evaluation.accuracy.froc import Scored
from evaluation.lesion_insertion.scans import Host
from imaging.morphology import opened
from imaging.preprocess import Preprocessed
from imaging.volume import FloatArray, from_window
from models.insertion.donors import VOTES, Donor, away_mm, cut, cut_donor
from models.runtime.second_reader import TEXTURES, nearest_piece

_DENSE_HU = -400

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


def read_donors(folder: Path, splits: tuple[str, ...]) -> tuple[list[Donor], Traits]:
    """Return the nodules of ``splits`` that readers outlined at their centre, and their traits."""
    donors = [
        (donor, cube)
        for cube in read_cubes(folder, splits)
        if not cube.stated("match_mm") > MATCH_MM and (donor := donor_of(cube)) is not None
    ]
    return [donor for donor, _ in donors], traits_of([cube for _, cube in donors])


def donor_of(cube: Cube) -> Donor | None:
    """Return the cube's nodule, or None if no two readers drew anything at its centre."""
    place = (cube.centre_zyx, cube.diameter_mm)
    return cut_donor(cube.name, cube.patient, cube.voxels, cube.votes >= VOTES, *place)


def cut_lesions(host: Host, box: Preprocessed) -> list[Donor]:
    """Return the lesions of a scan that can be cut out of its lung box.

    A lesion is the dense voxels within its longest extent, without thin vessels.
    """
    donors, name = [], host.name
    for lesion in host.truth.lesions:
        side = int(2 * lesion.reach_mm + 24)
        centre = np.rint(box.geometry.to_index(lesion.centre_mm)).astype(int)
        start = centre - side // 2
        if (start < 0).any() or (start + side > box.voxels.shape).any():
            continue
        voxels = box.voxels[tuple(slice(a, a + side) for a in start)]
        away = away_mm(voxels.shape, (side // 2,) * 3)
        dense = (from_window(voxels) > _DENSE_HU) & (away <= lesion.reach_mm + 1)
        mask = nearest_piece(opened(dense.astype(np.uint8), 2.5) > 0)
        if mask.any():
            z, y, x = (float(v) for v in np.argwhere(mask).mean(0))
            diameter = float((6 * mask.sum() / np.pi) ** (1 / 3))
            donors.append(cut(f"lesion of {name}", name, voxels, mask, (z, y, x), diameter))
    return donors


def masks(trait: str, value: FloatArray) -> dict[str, BoolArray]:
    """Return the nodules ``(n,)`` of each subgroup of a trait that is not empty."""
    edges, names = GROUPINGS[trait]
    known = np.isfinite(value)
    place = np.digitize(np.where(known, value, 0.0), edges)
    found = {name: known & (place == i) for i, name in enumerate(names)} | {UNKNOWN: ~known}
    return {name: mask for name, mask in found.items() if mask.any()}


def traits_of(cubes: Sequence[Cube]) -> Traits:
    """Return the traits of nodules; ratings of a doubtful match are not known."""
    sure = [not cube.stated("match_mm") > MATCH_MM for cube in cubes]
    texture, subtlety = (
        np.where(sure, [cube.stated(f"{name}_mean") for cube in cubes], np.nan)
        for name in ("texture", "subtlety")
    )
    return {
        "diameter": np.array([cube.diameter_mm for cube in cubes], float),
        "texture": texture,
        "subtlety": subtlety,
        "slice spacing": np.array([cube.stated("slice_spacing") for cube in cubes], float),
    }


def by_subgroup(scored: Scored, traits: Traits) -> Iterator[dict[str, Any]]:
    """Yield the figures of each subgroup of each grouping, with intervals."""
    for name, value in traits.items():
        for subgroup, mask in masks(name, value).items():
            yield {"by": name, "subgroup": subgroup, **part(only(scored, mask))}


def part(of: Scored) -> dict[str, Any]:
    """Return the figures of some nodules against all false positives."""
    return {
        "nodules": of.nodule_score.size,
        "patients": int(np.unique(of.nodule_group).size),
        **figures(of),
    }


def only(scored: Scored, mask: BoolArray) -> Scored:
    """Return the nodules ``mask`` ``(n,)`` with all false positives; patients are renumbered."""
    _, group = np.unique(scored.nodule_group[mask], return_inverse=True)
    return replace(scored, nodule_score=scored.nodule_score[mask], nodule_group=group)
