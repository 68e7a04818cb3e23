"""Read the donors of an evaluation: nodules of cubes, and lesions of whole scans."""

from pathlib import Path

import numpy as np

from evaluation.accuracy.data import MATCH_MM, Cube, read_cubes, read_votes
from evaluation.lesion_insertion.scans import Host
from evaluation.lesion_insertion.subgroups import Traits, optional_column, read_traits
from imaging.morphology import opened
from imaging.preprocess import Preprocessed
from imaging.volume import UInt8Array, from_window
from models.insertion.donors import VOTES, Donor, away_mm, cut, cut_donor
from models.runtime.second_reader import nearest_piece

_DENSE_HU = -400


def read_donors(
    folder: Path, splits: tuple[str, ...], *, most: int | None = None
) -> tuple[list[Donor], Traits]:
    """Return the nodules of ``splits`` that readers outlined at their centre, and their traits.

    At most ``most`` cubes are read, the first of the splits.
    """
    cubes = read_cubes(folder, splits)[:most]
    votes = read_votes(folder, cubes)
    traits, match = read_traits(folder, cubes), optional_column(folder, cubes, "match_mm")
    donors = {
        i: donor
        for i, (cube, vote) in enumerate(zip(cubes, votes, strict=True))
        if not match[i] > MATCH_MM and (donor := donor_of(cube, vote)) is not None
    }
    return list(donors.values()), {name: of[list(donors)] for name, of in traits.items()}


def donor_of(cube: Cube, votes: UInt8Array) -> Donor | None:
    """Return the cube's nodule, or None if no two readers drew anything at its centre."""
    place = (cube.centre_zyx, cube.diameter_mm)
    return cut_donor(cube.name, cube.patient, cube.voxels, votes >= VOTES, *place)


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
