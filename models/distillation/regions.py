"""Regions that students learn from: drawn once, kept in files, read at random.

Teachers cost many times what a student costs. So each region is drawn and read once, and all
students see the same. A chunk is a file of `RECORD`s; the logits of each teacher lie beside it.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from rich.progress import track
from torch import nn

from imaging.roi import ROI_SHAPE
from imaging.volume import FloatArray
from models.training.hybrid import logits
from models.training.regions import Region, RegionDrawer
from models.training.run_folder import write_atomically

CHUNK = 256
"""The regions of a chunk."""

RECORD = np.dtype([
    ("voxels", np.uint8, ROI_SHAPE),
    ("mask", np.uint8, np.prod(ROI_SHAPE) // 8),  # as bits
    ("nodule", np.float32), ("diameter_mm", np.float32), ("malignancy", np.float32),
    ("texture", np.int64), ("outlined", np.bool_),
])  # fmt: skip
"""A `Region` as bytes."""

VALUES = (RECORD.names or ())[2:]


def make_chunks(
    folder: Path, count: int, drawer: Callable[[], RegionDrawer], *, seed: int, size: int = CHUNK
) -> list[Path]:
    """Return the files of ``count`` chunks in ``folder``; those that are missing are drawn."""
    paths = [folder / f"{number:04d}.npy" for number in range(count)]
    for number, path in enumerate(track(paths, f"drawing regions, {folder.name}")):
        if not path.exists():
            rng = np.random.default_rng((seed, number))
            _write(path, packed(islice(drawer().stream(rng), size)))
    return paths


def answers_of(chunks: Sequence[Path], digest: str, teacher: nn.Module) -> FloatArray:
    """Return a teacher's logit of every region ``(n,)``; ``digest`` is that of its weights."""
    paths = [chunk.with_suffix(f".{digest}.npy") for chunk in chunks]
    for path, chunk in zip(paths, track(chunks, f"reading regions, {digest}"), strict=True):
        if not path.exists():
            _write(path, logits(teacher, np.ascontiguousarray(np.load(chunk)["voxels"])))
    return np.concatenate([np.load(path) for path in paths])


def values_of(chunks: Sequence[Path], name: str) -> FloatArray:
    """Return a number of each region, such as `Region.nodule` ``(n,)``."""
    return np.concatenate([np.load(path, "r")[name] for path in chunks]).astype(float)


def packed(regions: Iterable[Region]) -> np.ndarray:
    """Return regions as `RECORD`s ``(n,)``."""
    rows = [
        (region.voxels, np.packbits(region.mask > 127), *(getattr(region, name) for name in VALUES))
        for region in regions
    ]
    return np.array(rows, RECORD)


def region_of(record: np.void) -> Region:
    """Return the region of a record."""
    mask = np.unpackbits(record["mask"]).reshape(ROI_SHAPE) * np.uint8(255)
    return Region(np.array(record["voxels"]), mask, **{n: record[n].item() for n in VALUES})


def _write(path: Path, values: np.ndarray) -> None:
    write_atomically(path, lambda file: np.save(file, values))
