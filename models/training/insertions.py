"""Copies of whole training scans with nodules of cubes in them, inserted by `models.insertion`.

Composed samples have seams that no lung has, and a scan has one nodule or two. In a copy nodules
lie in whole lung, at many places. Tissue from beside nodules is inserted alike, so that the way of
inserting does not tell what is a nodule.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from imaging.preprocess import preprocess
from imaging.volume import FloatArray, Volume
from models.data.folder import marked_scans, read_marked, stacked
from models.insertion.donors import Donor, cut, cut_donor
from models.insertion.insert import APART_MM, FreeSpace, Occupied, insert, plan_nodules
from models.runtime.errors import MissingData
from models.training.compose import beside
from models.training.data import Cubes, Piece, balls

TOGETHER = 12
"""Donors in one copy of a scan; a third of them are tissue."""


@dataclass(frozen=True, eq=False)
class _Host:
    """A whole scan: a `models.insertion.insert.Host` with marks ``(n, 4)``, x, y, z LPS mm."""

    name: str
    volume: Volume
    space: FreeSpace
    nodules: FloatArray
    ignored: FloatArray

    @property
    def occupied(self) -> tuple[Occupied, ...]:
        marks = np.concatenate([self.nodules, self.ignored]).tolist()
        return tuple(Occupied((x, y, z), mm / 2 + APART_MM) for x, y, z, mm in marks)


def donors_of(cubes: Cubes) -> list[Donor]:
    """Return the nodules of cubes that two readers outlined, each with its patient.

    One whose readers are not surely its own is left out.
    """
    sure = np.flatnonzero(np.isfinite(cubes.malignancy))
    found = []
    for i in sure:
        piece, patient = cubes.pieces[i], cubes.patients[i]
        z, y, x, mm = piece.nodules[0].tolist()
        found.append(
            cut_donor(f"{patient}/{i}", patient, piece.voxels, piece.mask > 0, (z, y, x), mm)
        )
    return [donor for donor in found if donor is not None]


def tissue_of(cubes: Cubes, rng: np.random.Generator) -> Iterator[Donor]:
    """Yield tissue from beside the nodules of cubes, in their shapes, in random order."""
    for i in rng.permutation(len(cubes.pieces)):
        piece, patient = cubes.pieces[i], cubes.patients[i]
        mask, mm = beside(piece.mask, piece.nodules[0, 3], 3, rng) > 0, float(piece.nodules[0, 3])
        if mask.sum() >= 20:
            z, y, x = np.argwhere(mask).mean(0).tolist()
            yield cut(f"{patient}/{i}, tissue", patient, piece.voxels, mask, (z, y, x), mm)


def copies_of_scans(data: Path, cubes: Cubes, count: int, seed: int) -> tuple[Piece, ...]:
    """Return about ``count`` copies of the fully marked training scans with `TOGETHER` donors each.

    A piece has the scan's name. Its nodules are the inserted ones and the scan's own.

    Raises:
        MissingData: no cube has a nodule that can be inserted.
    """
    rng, hosts = np.random.default_rng(seed), list[_Host]()
    for folder, marks in marked_scans(data, "train", fully=True):
        study, nodules, ignored = read_marked(folder, marks)
        volume = study.volume
        space = FreeSpace.of(preprocess(volume, folder))
        hosts.append(_Host(folder.name, volume, space, nodules, ignored))
    donors = donors_of(cubes)
    if not donors:
        raise MissingData(data, "no training nodule has a rating and an outline of two readers")
    chosen = [donors[i] for i in rng.integers(len(donors), size=count * TOGETHER * 2 // 3)]
    tissue = [one for one, _ in zip(tissue_of(cubes, rng), chosen[::2], strict=False)]
    planned, _ = plan_nodules(hosts, [*chosen, *tissue], TOGETHER, rng)
    copies = []
    for plan in track(planned, "inserting nodules into scans"):
        host, box = plan.host, preprocess(insert(plan.host.volume, plan.insertions), plan.host.name)
        new = [(*i.centre_mm, i.diameter_mm) for i in plan.insertions if i.donor in chosen]
        marked, ignored = (
            np.column_stack([box.geometry.to_index(at[:, :3]), at[:, 3]])
            for at in (np.concatenate([host.nodules, stacked(new)]), host.ignored)
        )
        mask = balls(box.voxels.shape, marked)
        copies.append(Piece(box.voxels, mask, marked, ignored, host.name))
    return tuple(copies)
