"""Pieces of lung with their truth: cubes of nodules and whole scans read, transformed and batched.

Every transformation moves the truth with the voxels.
"""

import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.volume import FloatArray, UInt8Array

NONE: FloatArray = np.zeros((0, 4))
"""No marks."""

MATCH_MM = 5.0
"""Ratings of readers whose centre is further than this from LUNA16's may be of a neighbour."""

Batch = dict[str, torch.Tensor]
Draw = Callable[[np.random.Generator], Batch]


@dataclass(frozen=True, eq=False)
class Piece:
    """Voxels at 1 mm with their truth.

    Attributes:
        voxels: uint8 ``(z, y, x)`` of the HU window.
        mask: uint8 of the same shape, 255 where a nodule is.
        nodules: ``(n, 4)``: z, y, x in voxels and diameter in mm.
        ignored: the same for marks that count neither as nodule nor as false positive.
    """

    voxels: UInt8Array
    mask: UInt8Array
    nodules: FloatArray
    ignored: FloatArray


def crop(piece: Piece, start: npt.ArrayLike, size: npt.ArrayLike) -> Piece:
    """Return the part from ``start`` of ``size``; marks outside stay, in the part's coordinates."""
    first = np.asarray(start, dtype=int)
    box = tuple(slice(a, a + n) for a, n in zip(first, np.asarray(size, dtype=int), strict=True))
    shift = np.array([*first, 0.0])
    return Piece(piece.voxels[box], piece.mask[box], piece.nodules - shift, piece.ignored - shift)


def mirrored(piece: Piece, axes: tuple[bool, bool, bool], swap_yx: bool = False) -> Piece:
    """Flip along ``axes``; then exchange y and x."""
    flips = tuple(slice(None, None, -1) if flip else slice(None) for flip in axes)
    voxels, mask = piece.voxels[flips], piece.mask[flips]
    # of a mark: size - 1 - coordinate where the axis is flipped; the diameter stays
    signs = np.where([*axes, False], -1, 1)
    shift = np.where([*axes, False], np.array([*piece.voxels.shape, 0]) - 1, 0)
    marks = [m * signs + shift for m in (piece.nodules, piece.ignored)]
    if swap_yx:
        voxels, mask = voxels.transpose(0, 2, 1), mask.transpose(0, 2, 1)
        marks = [m[:, [0, 2, 1, 3]] for m in marks]
    return Piece(voxels, mask, marks[0], marks[1])


def zoomed(piece: Piece, factor: float) -> Piece:
    """Scale the piece by ``factor``, diameters too."""
    shift = np.array([0.5 * factor - 0.5] * 3 + [0.0])  # voxel centres lie at halves
    marks = [m * factor + shift for m in (piece.nodules, piece.ignored)]
    return Piece(resize(piece.voxels, factor), resize(piece.mask, factor), marks[0], marks[1])


def resize(voxels: UInt8Array, factor: float) -> UInt8Array:
    """Scale uint8 ``(z, y, x)`` by ``factor`` along every axis, trilinear."""
    z, y, x = (max(4, round(n * factor)) for n in voxels.shape)
    deep = cv2.resize(np.ascontiguousarray(voxels).reshape(voxels.shape[0], -1),
                      (voxels[0].size, z)).reshape(z, *voxels.shape[1:])  # fmt: skip
    out = np.empty((z, y, x), np.uint8)
    for image, target in zip(deep, out, strict=True):
        cv2.resize(image, (x, y), dst=target)
    return out


def away_from_marks(places: FloatArray, piece: Piece, margin: float) -> npt.NDArray[np.bool_]:
    """Return which of the places ``(n, 3)`` lie further than ``margin`` from every mark's rim."""
    away = np.ones(len(places), dtype=bool)
    for z, y, x, diameter in np.concatenate([piece.nodules, piece.ignored]):
        away &= np.linalg.norm(places - [z, y, x], axis=1) > diameter / 2 + margin
    return away


@dataclass(frozen=True, eq=False)
class Cubes:
    """Cubes of one split, each with its nodule in the middle.

    Attributes:
        pieces: the cubes.
        patients: the patient of each.
        malignancy: the readers' mean rating, 1 to 5, ``(n,)``; NaN where it may be a neighbour's.
        texture: the same, 1 ground glass to 5 solid.
    """

    pieces: tuple[Piece, ...]
    patients: tuple[str, ...]
    malignancy: FloatArray
    texture: FloatArray


def load_cubes(folder: Path, split: str) -> Cubes:
    """Read the cubes of `folder/split.npz` with the marks of `index.csv` and `marks.csv`."""
    with np.load(folder / f"{split}.npz") as arrays:
        ct, votes = arrays["ct"], arrays["votes"]
    index = [row for row in _rows(folder / "index.csv") if row["split"] == split]
    marks = [row for row in _rows(folder / "marks.csv") if row["split"] == split]
    index.sort(key=lambda r: int(r["row"]))
    pieces = []
    for row in index:
        number = int(row["row"])
        neighbours = [m for m in marks if int(m["row"]) == number]
        nodules = [_mark(row)] + [_mark(m) for m in neighbours if m["kind"] == "nodule"]
        ignored = [_mark(m) for m in neighbours if m["kind"] != "nodule"]
        # a voxel is nodule if two of the four readers outlined it
        mask = np.where(votes[number] >= 2, 255, 0).astype(np.uint8)
        pieces.append(Piece(ct[number], mask, _stack(nodules), _stack(ignored)))
    sure = np.array([float(row["match_mm"]) <= MATCH_MM for row in index], bool)
    malignancy, texture = (
        np.where(sure, [float(row[f"{name}_mean"]) for row in index], np.nan)
        for name in ("malignancy", "texture")
    )
    return Cubes(tuple(pieces), tuple(r["patient"] for r in index), malignancy, texture)


def load_box(folder: Path, truth: Path | None = None) -> tuple[Preprocessed, Piece]:
    """Read a scan as the edge preprocesses it, and as a piece with the lesions of `scans.csv`."""
    study = read_study(folder)
    box = preprocess(study.volume, folder)
    lesions = [
        [
            *(float(v) for v in box.geometry.to_index([float(row[a]) for a in "xyz"])),
            float(row["diameter_mm"]),
        ]
        for row in (_rows(truth) if truth else [])
        if row["scan"] == folder.name and row["x"]
    ]
    return box, Piece(box.voxels, np.zeros_like(box.voxels), _stack(lesions), NONE)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _mark(row: dict[str, str]) -> list[float]:
    diameter = float(row["diameter_mm"])
    # a mark of unknown size is ignored at 10 mm, as LUNA16 ignores a radius of 5 mm
    return [*(float(row[a]) for a in "zyx"), diameter if diameter > 0 else 10.0]


def _stack(marks: list[list[float]]) -> FloatArray:
    return np.array(marks, dtype=np.float64).reshape(-1, 4)


def draw_batches(draw: Draw, size: int, *, workers: int, seed: int) -> Iterator[Batch]:
    """Yield batches of ``size`` samples of ``draw``, by ``workers`` processes (0: this one)."""
    ahead = 6 if workers else None
    yield from DataLoader(_Stream(draw, seed), size, num_workers=workers, prefetch_factor=ahead)


class _Stream(IterableDataset[Batch]):
    def __init__(self, draw: Draw, seed: int) -> None:
        self._draw, self._seed = draw, seed

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        if info is not None:
            cv2.setNumThreads(0)
            os.nice(6)  # the loaders leave the cores to the training
        rng = np.random.default_rng((self._seed, info.id if info else 0))
        while True:
            yield self._draw(rng)
