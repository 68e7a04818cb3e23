"""Draws the pool: training regions as the hybrid's, and regions of validation patients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from imaging.roi import cut_roi
from imaging.volume import FloatArray, UInt8Array
from models.training import stream
from models.training.distil_pool import Pool, save_pool
from models.training.hybrid import Trial
from models.training.material import Cubes, load_cubes
from models.training.piece import Piece
from models.training.recipe import Material, find_alarms, hybrid_task
from models.training.regions import Region, RegionDrawer

ALARMS_A_CUBE = 5
"""Of a validation cube's surroundings so many false alarms are kept, the strongest."""

BATCH = 32


def make_pool(
    material: Material, data: Path, screeners: Sequence[nn.Module], folder: Path,
    *, count: int, seed: int,
) -> Pool:  # fmt: skip
    """Draws a pool as the hybrid's training draws, and writes it to ``folder``."""
    task = hybrid_task(material, screeners, screeners[-1])
    val = load_cubes(data / "nodules", "val")
    pool = draw_pool(task.drawer, task.trial, val, screeners[-1], count=count, seed=seed)
    save_pool(pool, folder)
    return pool


def draw_pool(
    drawer: RegionDrawer, trial: Trial, val: Cubes, screener: nn.Module,
    *, count: int, seed: int, workers: int = 2,
) -> Pool:  # fmt: skip
    """``count`` regions by that seed, and the validation regions of ``trial`` and ``val``."""
    batches = stream.batches(partial(_draw, drawer), BATCH, workers=workers, seed=seed)
    some = track(
        islice(batches, -(-count // BATCH)), "drawing regions", -(-count // BATCH),
        console=Console(stderr=True),
    )  # fmt: skip
    drawn = list(some)
    voxels, masks, nodules = (
        np.concatenate([batch[name].numpy() for batch in drawn])[:count]
        for name in ("voxels", "masks", "nodules")
    )
    patients = np.unique(val.patients, return_inverse=True)[1].astype(np.int64)
    beside = _beside(val.pieces, screener, drawer.side)
    return Pool(
        voxels, masks, nodules, trial.nodules, patients, trial.alarms, beside,
        np.array([trial.scans]),
    )  # fmt: skip


def _draw(drawer: RegionDrawer, rng: np.random.Generator) -> stream.Batch:
    region = drawer.draw(rng)
    return {
        "voxels": torch.from_numpy(region.voxels),
        "masks": torch.from_numpy(np.packbits(region.mask > 127)),
        "nodules": torch.from_numpy(mark_of(region)),
    }


def mark_of(region: Region) -> FloatArray:
    """Centre and diameter ``(4,)`` of the nodule in the region's middle; 0 where there is none.

    A region's middle errs as a candidate does; the outline tells where the nodule really is. A
    nodule without an outline is taken to be in the middle.
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


def _beside(cubes: Sequence[Piece], screener: nn.Module, side: int) -> UInt8Array:
    """Regions around the strongest false alarms in each cube."""
    found = [np.zeros((0, side, side, side), np.uint8)]
    for cube in track(cubes, "looking beside nodules", console=Console(stderr=True)):
        places = find_alarms([screener], cube)[0][:ALARMS_A_CUBE]
        found += [cut_roi(cube.voxels, place, (side,) * 3)[None] for place in places]
    return np.concatenate(found)
