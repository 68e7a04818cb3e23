"""The pool that students learn from: regions drawn once, so that teachers are asked once.

A teacher costs eight times what the student costs. Asked anew for every batch of every run it
would take most of the time; asked once for each region of a pool, next to none. Each region of
the pool is drawn as the hybrid's are, augmented; the student sees it mirrored and turned as well.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imaging.volume import FloatArray, UInt8Array
from models.runtime.errors import DamagedArtifact
from models.training.piece import NONE, Piece

HELD = 10
"""One region of so many is held out: students never learn from it."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Regions for students, and regions of other patients to judge them on.

    Attributes:
        voxels: uint8 ``(n, side, side, side)``.
        masks: the nodules' voxels as bits, ``(n, side^3 / 8)``.
        nodules: ``(n, 4)``: z, y, x in voxels and diameter in mm; 0 where there is none.
        val_nodules: regions of validation nodules ``(m, side, side, side)``.
        val_patients: whose each of them is ``(m,)``.
        scan_alarms: regions of the screening network's false alarms on validation scans.
        cube_alarms: the same for the surroundings of the validation nodules.
        scans: how many whole scans `scan_alarms` come from ``(1,)``.
    """

    voxels: UInt8Array
    masks: UInt8Array
    nodules: FloatArray
    val_nodules: UInt8Array
    val_patients: npt.NDArray[np.int64]
    scan_alarms: UInt8Array
    cube_alarms: UInt8Array
    scans: npt.NDArray[np.int64]

    @property
    def label(self) -> FloatArray:
        """1 for a region with a nodule in its middle, else 0: ``(n,)``."""
        return (self.nodules[:, 3] > 0).astype(np.float64)

    @property
    def learnt(self) -> int:
        """How many regions students learn from, the first ones; the others are held out."""
        return len(self.voxels) - len(self.voxels) // HELD

    @property
    def key(self) -> str:
        """Twelve digits that tell this pool from any other."""
        digest = hashlib.sha256(self.nodules.tobytes())
        for part in (self.voxels[::50], self.val_nodules, self.scan_alarms, self.cube_alarms):
            digest.update(part.tobytes())
        return digest.hexdigest()[:12]

    def piece(self, number: int) -> Piece:
        """One region with its truth."""
        shape = self.voxels.shape[1:]
        bits = np.unpackbits(self.masks[number], count=int(np.prod(shape)))
        mark = self.nodules[number : number + 1]
        return Piece(
            self.voxels[number], (bits * 255).reshape(shape), mark if mark[0, 3] else NONE, NONE
        )


def save_pool(pool: Pool, folder: Path) -> None:
    """Writes ``folder/pool.npz``, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_arrays(folder / "pool.npz", {f.name: getattr(pool, f.name) for f in fields(pool)})


def load_pool(folder: Path) -> Pool:
    """What `save_pool` wrote.

    Raises:
        DamagedArtifact: the file holds something else.
    """
    with np.load(folder / "pool.npz") as found:
        if set(found) != (names := {f.name for f in fields(Pool)}):
            raise DamagedArtifact(f"{folder / 'pool.npz'}: no pool: lacks {names - set(found)}")
        return Pool(**found)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An npz that a kill leaves either old or new."""
    part = path.with_suffix(".partial.npz")
    np.savez(part, **arrays)  # type: ignore[arg-type]  # the stub takes the names for allow_pickle
    os.replace(part, path)
