"""The pool that students train on: regions drawn once, so that teachers read each region once.

A teacher costs eight times what the student costs. Regions are drawn and augmented as the hybrid's
are; the student sees them mirrored and turned as well.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import nn

from imaging.roi import cut_roi
from imaging.volume import FloatArray, UInt8Array
from models.runtime.errors import DamagedArtifact
from models.training.data import NONE, Batch, Cubes, Piece, draw_batches, load_cubes
from models.training.hybrid import HybridTask
from models.training.regions import Region, RegionDrawer
from models.training.runs import Material, find_false_positives, hybrid_task

BATCH = 32


@dataclass(frozen=True, eq=False)
class Pool:
    """Regions to train students on, and regions of other patients to measure them on.

    Attributes:
        voxels: uint8 ``(n, side, side, side)``.
        masks: the nodules' voxels as bits, ``(n, side^3 / 8)``.
        nodules: ``(n, 4)``: z, y, x in voxels and diameter in mm; 0 where there is none.
        val_nodules: regions of validation nodules ``(m, side, side, side)``.
        val_patients: the patient of each ``(m,)``.
        scan_false_positives: false positives of the screening network on validation scans.
        cube_false_positives: those beside the validation nodules, in their cubes.
        scans: the number of whole scans that `scan_false_positives` come from ``(1,)``.
    """

    voxels: UInt8Array
    masks: UInt8Array
    nodules: FloatArray
    val_nodules: UInt8Array
    val_patients: npt.NDArray[np.int64]
    scan_false_positives: UInt8Array
    cube_false_positives: UInt8Array
    scans: npt.NDArray[np.int64]

    @property
    def label(self) -> FloatArray:
        """1 for a region with a nodule in its middle, else 0: ``(n,)``."""
        return (self.nodules[:, 3] > 0).astype(np.float64)

    @property
    def learnt(self) -> int:
        """The number of regions that students train on; the last tenth is held out."""
        return len(self.voxels) - len(self.voxels) // 10

    @property
    def validation(self) -> dict[str, UInt8Array]:
        """The validation regions by the names of `Scores`."""
        return {
            "nodules": self.val_nodules,
            "scan_false_positives": self.scan_false_positives,
            "cube_false_positives": self.cube_false_positives,
        }

    @property
    def key(self) -> str:
        """Twelve digits that identify this pool."""
        digest = hashlib.sha256(self.nodules.tobytes())
        for part in (self.voxels[::50], *self.validation.values()):
            digest.update(part.tobytes())
        return digest.hexdigest()[:12]

    def piece(self, number: int) -> Piece:
        """Return one region with its truth."""
        shape = self.voxels.shape[1:]
        bits = np.unpackbits(self.masks[number], count=int(np.prod(shape)))
        mark = self.nodules[number : number + 1]
        return Piece(
            self.voxels[number], (bits * 255).reshape(shape), mark if mark[0, 3] else NONE, NONE
        )


def make_pool(
    material: Material, data: Path, screeners: Sequence[nn.Module], folder: Path,
    *, count: int, seed: int,
) -> Pool:  # fmt: skip
    """Draw a pool as the hybrid's training draws, and write it to ``folder``."""
    task = hybrid_task(material, screeners, screeners[-1])
    val = load_cubes(data / "nodules", "val")
    pool = draw_pool(task, val, screeners[-1], count=count, seed=seed)
    save_pool(pool, folder)
    return pool


def draw_pool(
    task: HybridTask, val: Cubes, screener: nn.Module, *, count: int, seed: int, workers: int = 2
) -> Pool:
    """Draw ``count`` of the task's regions, and add those of its validation and of ``val``."""
    batches = draw_batches(partial(_draw, task.drawer), BATCH, workers=workers, seed=seed)
    needed = -(-count // BATCH)
    drawn = list(track(islice(batches, needed), "drawing regions", needed))
    voxels, masks, nodules = (
        np.concatenate([batch[name].numpy() for batch in drawn])[:count]
        for name in ("voxels", "masks", "nodules")
    )
    patients = np.unique(val.patients, return_inverse=True)[1].astype(np.int64)
    beside, held = _cube_false_positives(val.pieces, screener, task.drawer.side), task.validation
    scans = np.array([held.scans])
    return Pool(voxels, masks, nodules, held.nodules, patients, held.false_positives, beside, scans)


def _draw(drawer: RegionDrawer, rng: np.random.Generator) -> Batch:
    region = drawer.draw(rng)
    return {
        "voxels": torch.from_numpy(region.voxels),
        "masks": torch.from_numpy(np.packbits(region.mask > 127)),
        "nodules": torch.from_numpy(mark_of(region)),
    }


def mark_of(region: Region) -> FloatArray:
    """Return centre and diameter ``(4,)`` of the nodule in the region's middle, 0 if none.

    The centre is that of the outline near the middle; without an outline it is the middle.
    """
    middle = (np.array(region.voxels.shape) - 1) / 2
    if not region.diameter_mm:
        return np.zeros(4)
    inside = np.argwhere(region.mask > 127)
    centre = middle
    for _ in range(2):  # the second ball is around the centre that the first one found
        near = np.linalg.norm(inside - centre, axis=1) < region.diameter_mm / 2 + 3
        centre = inside[near].mean(0) if near.any() else centre
    return np.append(centre, region.diameter_mm)


def _cube_false_positives(cubes: Sequence[Piece], screener: nn.Module, side: int) -> UInt8Array:
    """Return regions around the five strongest false positives in each cube."""
    found = [np.zeros((0, side, side, side), np.uint8)]
    for cube in track(cubes, "collecting false positives"):
        places = find_false_positives([screener], cube)[0][:5]
        found += [cut_roi(cube.voxels, place, (side,) * 3)[None] for place in places]
    return np.concatenate(found)


def save_pool(pool: Pool, folder: Path) -> None:
    """Write ``folder/pool.npz`` atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "pool.npz", {f.name: getattr(pool, f.name) for f in fields(pool)})


def load_pool(folder: Path) -> Pool:
    """Read the file of `save_pool`.

    Raises:
        DamagedArtifact: the file is not a pool.
    """
    with np.load(folder / "pool.npz") as found:
        if set(found) != (names := {f.name for f in fields(Pool)}):
            raise DamagedArtifact(f"{folder / 'pool.npz'}: not a pool, lacks {names - set(found)}")
        return Pool(**found)


def stored(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Return the arrays of an npz file, which are made and written first if it is missing."""
    if not path.exists():
        _write(path, make())
    with np.load(path) as found:
        return dict(found)


def _write(path: Path, arrays: Mapping[str, Any]) -> None:
    part = path.with_suffix(".partial.npz")
    np.savez(part, **arrays)
    os.replace(part, path)
