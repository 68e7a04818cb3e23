"""What the networks learn from: cubes of real nodules, whole real scans, and phantoms."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.volume import FloatArray
from models.training.piece import NONE, Piece

READERS_FOR_MASK = 2
"""A voxel is nodule where at least this many of the four readers drew it."""

UNKNOWN_MM = 10.0
"""The diameter at which a mark of unknown size is ignored (LUNA16 ignores a radius of 5 mm)."""

MATCH_MM = 5.0
"""Ratings and masks of readers whose centre is further from LUNA16's may be a neighbour's."""


@dataclass(frozen=True, eq=False)
class Cubes:
    """Cubes of one split, each with its nodule in the middle.

    Attributes:
        pieces: the cubes.
        patients: whose each is.
        malignancy: the readers' mean rating, 1 to 5, ``(n,)``; NaN where it may be a neighbour's.
        texture: the same, 1 ground glass to 5 solid.
    """

    pieces: tuple[Piece, ...]
    patients: tuple[str, ...]
    malignancy: FloatArray
    texture: FloatArray


def load_cubes(folder: Path, split: str) -> Cubes:
    """The cubes of `folder/split.npz` with the marks of `index.csv` and `marks.csv`."""
    with np.load(folder / f"{split}.npz") as arrays:
        ct, votes = arrays["ct"], arrays["votes"]
    index = [row for row in _rows(folder / "index.csv") if row["split"] == split]
    marks = [row for row in _rows(folder / "marks.csv") if row["split"] == split]
    index.sort(key=lambda r: int(r["row"]))
    pieces = []
    for row in index:
        number = int(row["row"])
        beside = [m for m in marks if int(m["row"]) == number]
        own = [_mark(row)]
        nodules = own + [_mark(m) for m in beside if m["kind"] == "nodule"]
        ignored = [_mark(m) for m in beside if m["kind"] != "nodule"]
        mask = np.where(votes[number] >= READERS_FOR_MASK, 255, 0).astype(np.uint8)
        pieces.append(Piece(ct[number], mask, _stack(nodules), _stack(ignored)))
    malignancy, texture = (_ratings(index, name) for name in ("malignancy", "texture"))
    return Cubes(tuple(pieces), tuple(r["patient"] for r in index), malignancy, texture)


def load_scan(folder: Path, truth: Path | None = None) -> Piece:
    """A whole scan's lung box, with the lesion that ``truth`` (`scans.csv`) marks in it."""
    return load_box(folder, truth)[1]


def load_box(folder: Path, truth: Path | None = None) -> tuple[Preprocessed, Piece]:
    """The same beside the box as the edge has it, which knows where in it the lungs are."""
    study = read_study(folder)
    box = preprocess(study.volume, folder)
    lesions = [
        _lesion(box.geometry.to_index([float(row[a]) for a in "xyz"]), row)
        for row in (_rows(truth) if truth else [])
        if row["scan"] == folder.name and row["x"]
    ]
    return box, Piece(box.voxels, np.zeros_like(box.voxels), _stack(lesions), NONE)


def _lesion(index_zyx: FloatArray, row: dict[str, str]) -> list[float]:
    return [*(float(v) for v in index_zyx), float(row["diameter_mm"])]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _mark(row: dict[str, str]) -> list[float]:
    diameter = float(row["diameter_mm"])
    return [*(float(row[a]) for a in "zyx"), diameter if diameter > 0 else UNKNOWN_MM]


def _ratings(index: list[dict[str, str]], name: str) -> FloatArray:
    apart = np.array([float(row["match_mm"]) for row in index])
    means = np.array([float(row[f"{name}_mean"]) for row in index])
    return np.where(apart <= MATCH_MM, means, np.nan)


def _stack(marks: list[list[float]]) -> FloatArray:
    return np.array(marks, dtype=np.float64).reshape(-1, 4)
